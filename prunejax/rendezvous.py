"""Processes meet at one address before they rely on each other. Plain sockets, no JAX.

Process 0 listens; every other process greets it with its id and the count it was started with,
and waits for "go". Whoever is missing, misconfigured or unreachable is then named in one line,
within a time limit.
"""

import os
import re
import socket
import time

_PAUSE_SECONDS = 0.25  # between two tries to reach process 0
_GREETING_SECONDS = 5.0  # a connection that says nothing for this long is no peer


def split(address: str) -> tuple[str, int]:
    """`HOST:PORT` as a pair; an IPv6 host stands in brackets.

    Raises:
      ValueError: no host, or no port from 1 to 65535.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"coordinator {address!r}: write HOST:PORT with a port from 1 to 65535")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine can reach `host`."""
    return host == "localhost" or host.startswith("127.")


def meet(host: str, port: int, process_id: int, process_count: int, timeout_seconds: float) -> None:
    """Returns in every process once all `process_count` of them are there.

    Args:
      host: where process 0 listens.
      port: its port, free again when this returns.
      process_id: 0 .. process_count - 1.
      process_count: number of processes.
      timeout_seconds: how long to wait for the others.

    Raises:
      ConnectionError: process 0 is not reachable, or processes are missing, at the time limit.
      ValueError: processes were started with different counts.
    """
    deadline = time.monotonic() + timeout_seconds
    if process_id == 0:
        _gather(host, port, process_count, deadline, timeout_seconds)
    else:
        _report(host, port, process_id, process_count, deadline, timeout_seconds)


def _left(deadline: float) -> float:
    """Seconds until the deadline, positive as sockets want it."""
    return max(0.01, deadline - time.monotonic())


def _line(connection: socket.socket) -> str:
    """What the other side says, up to its first line end, 100 characters, or its closing."""
    said = b""
    while not said.endswith(b"\n") and len(said) < 100 and (byte := connection.recv(1)):
        said += byte
    return said.decode("ascii", "replace")


def _gather(host: str, port: int, count: int, deadline: float, limit: float) -> None:
    """Process 0: waits for one greeting from every other process, then lets all of them go on."""
    present: dict[int, socket.socket] = {}
    try:
        listener = _listen(host, port)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error  # Python repeats the address
        raise ConnectionError(
            f"process 0 cannot listen at {host}:{port} ({reason}): "
            "another program may hold the port; choose another one"
        ) from None
    try:
        while not _complete(present, count):
            listener.settimeout(_left(deadline))
            try:
                peer, _ = listener.accept()
            except TimeoutError:
                missing = ", ".join(str(i) for i in range(1, count) if i not in present)
                raise ConnectionError(
                    f"process 0 waited {limit:g} s at {host}:{port} for process {missing} of "
                    f"{count}: check that every process was started with this address"
                ) from None
            _admit(peer, count, present)
        for index, peer in present.items():
            try:
                peer.sendall(b"go\n")
            except OSError:
                raise ConnectionError(f"process {index} ended while it waited for others") from None
    finally:
        for peer in present.values():
            peer.close()
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket: on loopback only if the address is loopback, else on every interface."""
    if is_loopback(host):
        return socket.create_server((host, port))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _complete(present: dict[int, socket.socket], count: int) -> bool:
    """Whether all others are there, and still there: one that has hung up does not count."""
    if len(present) < count - 1:
        return False
    for index, peer in list(present.items()):
        peer.setblocking(False)
        try:
            gone = peer.recv(1) == b""
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        peer.settimeout(_GREETING_SECONDS)
        if gone:
            present.pop(index).close()
    return len(present) == count - 1


def _admit(peer: socket.socket, count: int, present: dict[int, socket.socket]) -> None:
    """Reads one greeting; strangers are dropped, a peer with another count ends the meeting."""
    peer.settimeout(_GREETING_SECONDS)
    try:
        line = _line(peer)
    except OSError:
        line = ""
    greeting = re.fullmatch(r"prunejax (\d+) (\d+)\n", line)
    if greeting is None:
        peer.close()
        return
    index, other = int(greeting.group(1)), int(greeting.group(2))
    if other != count:
        with peer:
            peer.sendall(f"process 0 was started with a count of {count}\n".encode())
        raise ValueError(
            f"process {index} was started with a count of {other}, process 0 with {count}: "
            "start all with the same --process_count"
        )
    if index in present:
        present[index].close()  # a process that was started again takes its own place
    present[index] = peer


def _report(host: str, port: int, index: int, count: int, deadline: float, limit: float) -> None:
    """Every other process: greets process 0 until it answers or the time is up."""
    reason = "no answer"
    while time.monotonic() < deadline:
        answer = ""
        try:
            with socket.create_connection((host, port), timeout=_left(deadline)) as connection:
                connection.sendall(f"prunejax {index} {count}\n".encode())
                connection.settimeout(_left(deadline))
                answer = _line(connection)
            reason = "what answers there is not process 0"
        except OSError as error:
            reason = error.strerror or str(error)
        if answer == "go\n":
            return
        if answer.startswith("process 0 was started"):
            raise ValueError(f"process {index} was started with a count of {count}, {answer[:-1]}")
        time.sleep(min(_PAUSE_SECONDS, _left(deadline)))
    raise ConnectionError(
        f"coordinator {host}:{port} not reachable within {limit:g} s ({reason}): check that "
        "process 0 runs there and that the port is open between the hosts"
    )
