import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from prunejax.cluster import rendezvous


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def connect(port: int) -> socket.socket:
    """Tries until somebody listens."""
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError(f"nobody listens at {port}")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("count", [2, 4])
def test_all_processes_meet_and_leave_the_port_free(host, count):
    port = free_port()
    with ThreadPoolExecutor(count) as pool:
        # Process 0 comes last: the others must retry until it listens.
        others = [pool.submit(rendezvous.meet, host, port, i, count, 20) for i in range(1, count)]
        pool.submit(rendezvous.meet, host, port, 0, count, 20).result()
        for other in others:
            other.result()
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_unreachable_coordinator_is_named_with_the_limit():
    port = free_port()
    with pytest.raises(
        ConnectionError, match=rf"127.0.0.1:{port} not reachable within 0.3 s \(.*ref"
    ):
        rendezvous.meet("127.0.0.1", port, 1, 2, 0.3)


def test_unknown_host_is_named():
    with pytest.raises(ConnectionError, match=r"no-such-host\.invalid:1234 not reachable within"):
        rendezvous.meet("no-such-host.invalid", 1234, 1, 2, 0.3)


def test_missing_processes_are_named():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        main = pool.submit(rendezvous.meet, "127.0.0.1", port, 0, 4, 1.5)
        pool.submit(rendezvous.meet, "127.0.0.1", port, 2, 4, 1.0)
        with pytest.raises(ConnectionError, match=r"waited 1.5 s .* for process 1, 3 of 4"):
            main.result()


def test_different_counts_are_an_error_on_both_sides():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        main = pool.submit(rendezvous.meet, "127.0.0.1", port, 0, 3, 20)
        other = pool.submit(rendezvous.meet, "127.0.0.1", port, 1, 2, 20)
        with pytest.raises(ValueError, match="count of 2, process 0 with 3"):
            main.result()
        with pytest.raises(ValueError, match="count of 2, process 0 was started with a count of 3"):
            other.result()


def test_strangers_are_dropped_and_a_restarted_process_takes_its_place():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        main = pool.submit(rendezvous.meet, "127.0.0.1", port, 0, 3, 20)
        with connect(port) as first:
            nonce = first.recv(100).split()[1].decode()
            first.sendall(f"1 3 {rendezvous._proof('', nonce, 1, 3)}\n".encode())
        for said in (b"GET / HTTP/1.1\n", b"prunejax 1 3\n", b"1 3 " + b"0" * 64 + b"\n"):
            with connect(port) as stranger:
                assert stranger.recv(100).startswith(b"prunejax ")
                stranger.sendall(said)
                assert stranger.recv(100) in (b"", b"no secret\n")
        silent = [connect(port) for _ in range(20)]  # they hold nobody up
        second = pool.submit(rendezvous.meet, "127.0.0.1", port, 2, 3, 20)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.5)  # the first process 1 is gone, so nobody goes on
        rendezvous.meet("127.0.0.1", port, 1, 3, 20)
        second.result()
        main.result()
        for stranger in silent:
            stranger.close()


def test_another_secret_is_told():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        main = pool.submit(rendezvous.meet, "127.0.0.1", port, 0, 2, 5, "a")
        with pytest.raises(ValueError, match="has another secret"):
            rendezvous.meet("127.0.0.1", port, 1, 2, 5, "b")
        rendezvous.meet("127.0.0.1", port, 1, 2, 5, "a")
        main.result()


def test_taken_port_is_named():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConnectionError, match=r"cannot listen at 127.0.0.1:.*in use.*another one"),
    ):
        rendezvous.meet("127.0.0.1", taken.getsockname()[1], 0, 2, 1)


def test_something_else_at_the_address():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)
                    connection.sendall(b"220 mail ready\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(ConnectionError, match="what answers there is not process 0"):
            rendezvous.meet("127.0.0.1", port, 1, 2, 0.6)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize("address", ["host", "host:", ":80", "host:0", "host:65536", "host:x", ""])
def test_bad_addresses(address):
    with pytest.raises(ValueError, match="write HOST:PORT"):
        rendezvous.split(address)


def test_ipv6_addresses():
    assert rendezvous.split("[fe80::1]:80") == ("fe80::1", 80)
