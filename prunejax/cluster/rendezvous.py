"""Processes meet at one address before they rely on each other. Plain sockets, no JAX.

Process 0 listens and sends every caller a fresh number; a process answers with its id, the count it
was started with, and a proof (HMAC) that it knows the program's secret, and waits for "go", which
carries a proof as well. Whoever is missing, misconfigured or unreachable is named in one line,
within a time limit; strangers are turned away and hold nobody up.
"""

import asyncio
import hmac
import os
import re
import secrets
import socket
import time

_PAUSE_SECONDS = 0.25  # between two tries to reach process 0
_GREETING_SECONDS = 5.0  # a connection that says nothing for this long is no peer
_STRANGERS = 64  # connections that may be silent at once; more are closed


def split(address: str) -> tuple[str, int]:
    """`HOST:PORT` as a pair; an IPv6 host stands in brackets.
    Raises ValueError: no host, or no port from 1 to 65535.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"coordinator {address!r}: write HOST:PORT with a port from 1 to 65535")
    return host, int(port)


def interface(host: str) -> str | None:
    """The address of this machine by which others reach `host`; None: not known, listen on all.

    A name that means loopback here alone (as in some /etc/hosts) says nothing about the others.
    """
    if host == "localhost" or host.startswith("127."):  # only processes of this machine reach it
        return host
    try:
        for family, _, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            if not str(address[0]).startswith(("127.", "::1")):
                with socket.socket(family, socket.SOCK_STREAM) as probe:
                    probe.bind((address[0], 0))
                return str(address[0])
    except OSError:
        pass
    return None


def meet(
    host: str,
    port: int,
    process_id: int,
    process_count: int,
    timeout_seconds: float,
    secret: str = "",
) -> None:
    """Returns in every process once all `process_count` of them are there.

    Args:
      host: where process 0 listens.
      port: its port, free again when this returns.
      process_id: 0 .. process_count - 1.
      process_count: number of processes.
      timeout_seconds: how long to wait for the others.
      secret: of this program; whoever does not know it is turned away.

    Raises:
      ConnectionError: process 0 is not reachable, or processes are missing, at the time limit.
      ValueError: processes were started with different counts or secrets.
    """
    if process_id == 0:
        asyncio.run(_Meeting(process_count, secret).gather(host, port, timeout_seconds))
    else:
        asyncio.run(_report(host, port, process_id, process_count, timeout_seconds, secret))


def _proof(secret: str, *said: object) -> str:
    return hmac.new(secret.encode(), " ".join(map(str, said)).encode(), "sha256").hexdigest()


class _Meeting:
    """Process 0: waits for one greeting from every other process, then lets all of them go on."""

    def __init__(self, count: int, secret: str) -> None:
        self.count, self.secret = count, secret
        self.present: dict[int, tuple[asyncio.StreamWriter, str]] = {}
        self.seen: set[int] = set()  # also those that gave up earlier
        self.turned_away = self.open = 0

    async def gather(self, host: str, port: int, limit: float) -> None:
        self.whole = asyncio.get_running_loop().create_future()
        try:
            server = await asyncio.start_server(self._admit, interface(host), port, limit=200)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else error  # not the address again
            raise ConnectionError(
                f"process 0 cannot listen at {host}:{port} ({reason}): "
                "another program may hold the port; choose another one"
            ) from None
        try:
            await asyncio.wait_for(self.whole, limit)
            for writer, nonce in self.present.values():
                writer.write(f"go {_proof(self.secret, nonce, 'go')}\n".encode())
        except TimeoutError:
            away = [i for i in range(1, self.count) if i not in self.present]
            missing = ", ".join(str(i) for i in away if i not in self.seen or self.seen >= {*away})
            others = f" ({self.turned_away} strangers were turned away)" if self.turned_away else ""
            raise ConnectionError(
                f"process 0 waited {limit:g} s at {host}:{port} for process {missing} of "
                f"{self.count}{others}: check that every process was started with this address"
            ) from None
        finally:
            server.close()

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Keeps one connection: until "go" if it is a peer, a few seconds if it is not."""
        nonce, index, self.open = secrets.token_hex(16), -1, self.open + 1
        try:
            if self.open > _STRANGERS + self.count:
                return
            writer.write(f"prunejax {nonce}\n".encode())
            line = await asyncio.wait_for(reader.readline(), _GREETING_SECONDS)
            said = re.fullmatch(rb"(\d{1,6}) (\d{1,6}) ([0-9a-f]{64})\n", line)
            if said is None:
                self.turned_away += 1
                return
            index, other = int(said[1]), int(said[2])
            if not hmac.compare_digest(said[3].decode(), _proof(self.secret, nonce, index, other)):
                self.turned_away += 1
                index = -1
                writer.write(b"no secret\n")
            elif other != self.count or not 0 < index < other:
                writer.write(f"count {self.count}\n".encode())
                self._refuse(index, other)
            else:
                self.seen.add(index)
                self.present[index] = writer, nonce  # one that was started again takes its place
                if len(self.present) == self.count - 1 and not self.whole.done():
                    self.whole.set_result(None)
                await reader.read(1)  # until it hangs up
        except (OSError, ValueError, TimeoutError, asyncio.CancelledError):
            self.turned_away += index < 0
        finally:
            self.open -= 1
            if self.present.get(index, (None, ""))[0] is writer and not self.whole.done():
                del self.present[index]
            writer.close()

    def _refuse(self, index: int, other: int) -> None:
        if not self.whole.done():
            self.whole.set_exception(
                ValueError(
                    f"process {index} was started with a count of {other}, process 0 with "
                    f"{self.count}: start all with the same --process_count"
                )
            )


async def _report(host: str, port: int, index: int, count: int, limit: float, secret: str) -> None:
    """Every other process: greets process 0 until it answers or the time is up."""
    deadline, reason, nonce = time.monotonic() + limit, "no answer", None
    while (left := deadline - time.monotonic()) > 0:
        answer, nonce = "", None
        try:
            async with asyncio.timeout(left):
                reader, writer = await asyncio.open_connection(host, port, limit=200)
                nonce, reason = "", "what answers there is not process 0"
                try:
                    greeting = re.fullmatch(rb"prunejax ([0-9a-f]{32})\n", await reader.readline())
                    nonce = greeting[1].decode() if greeting else ""
                    if nonce:
                        proof = _proof(secret, nonce, index, count)
                        writer.write(f"{index} {count} {proof}\n".encode())
                        answer = (await reader.readline()).decode("ascii", "replace").strip()
                finally:
                    writer.close()
            if answer and hmac.compare_digest(answer, f"go {_proof(secret, nonce, 'go')}"):
                return
        except TimeoutError:
            if nonce is not None:
                reason = "process 0 is there and waits for others" if nonce else reason
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None)
            plain = os.strerror(number) if number and number > 0 else error
            reason = str(getattr(error, "strerror", None) if (number or 0) < 0 else plain)
        if answer.startswith("count "):
            raise ValueError(
                f"process {index} was started with a count of {count}, process 0 was started with "
                f"a count of {answer[6:]}: start all with the same --process_count"
            )
        if answer == "no secret":
            raise ValueError(
                f"process 0 at {host}:{port} has another secret: it is of another program, or "
                "PRUNEJAX_SECRET differs; choose another port, or start all with the same secret"
            )
        await asyncio.sleep(min(_PAUSE_SECONDS, max(0.01, deadline - time.monotonic())))
    raise ConnectionError(
        f"coordinator {host}:{port} not reachable within {limit:g} s ({reason}): check that "
        "process 0 runs there and that the port is open between the hosts"
    )
