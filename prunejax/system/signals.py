"""Signals that ask a study to end: heard at once also while compiled code runs.

Python's own handlers wait until the main thread is back in Python code, which may be minutes while
a program is compiled or measured. Here the number of a signal goes through a pipe to a thread of
its own. While nothing would be lost it ends the process at once; inside `deferred` it is
remembered for who asks `requested`.
"""

import atexit
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from types import FrameType
from typing import ParamSpec, TextIO

P = ParamSpec("P")

INTERRUPTED = 75  # exit code: the same command continues (EX_TEMPFAIL)
_ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_lock = threading.Lock()
_deferred = False  # an end has to wait: something is not saved yet
_requested = False
_told = ""  # of who listens: what is left, and what the same command does
_ended: int | None = None  # exit code of a command that has nothing left to do


def requested() -> bool:
    """Whether a signal asked for an end."""
    return _requested


class listening:
    """Hears SIGTERM, SIGINT, SIGUSR1 and, unless it was ignored (`nohup`), SIGHUP.

    For the main thread; what was there before comes back at the end. Around a command's `main`,
    where that is called without arguments, the process is its own: while the interpreter ends, a
    signal no longer changes the exit code, which says that the study is finished.
    """

    def __init__(self, said: str = "the same command continues from what is saved") -> None:
        """Args: said: what a process that is ended at once tells besides."""
        self._said = said

    def __call__(self, main: Callable[P, int]) -> Callable[P, int]:
        """A command's `main` that listens."""

        @wraps(main)
        def command(*args: P.args, **kwargs: P.kwargs) -> int:
            global _ended
            with self:
                code = main(*args, **kwargs)
                if not args and not kwargs:
                    _ended = code
                    atexit.register(_deaf)
                return code

        return command

    def __enter__(self) -> None:
        global _requested, _deferred, _told, _ended
        _requested = _deferred = False
        _ended = None  # who goes on after a command has something to lose again
        self._told, _told = _told, self._said
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before: dict[int, object] = {}
        for number in _ASKING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, _nothing)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_in_child)
        threading.Thread(target=_listen, args=(read,), name="signals", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        global _told
        if _ended is not None:
            return
        _told = self._told
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        os.close(self._write)  # the thread ends


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a signal is remembered (`requested`) and the process goes on."""
    yield from _during(True)


@contextmanager
def at_once() -> Iterator[None]:
    """Inside, also within `deferred`, a signal ends the process: there is nothing to save."""
    yield from _during(False)


def _during(deferred_there: bool) -> Iterator[None]:
    global _deferred
    with _lock:
        before, _deferred = _deferred, deferred_there
    try:
        if _requested and not deferred_there:
            _leave()
        yield
    finally:
        with _lock:
            _deferred = before


def _deaf() -> None:
    """At the very end, when Python would take its handlers back, and nobody listens."""
    for number in _ASKING:
        signal.signal(number, signal.SIG_IGN)


def _in_child() -> None:
    """A child would wake its parent with signals of its own, and has to end where that asks."""
    signal.set_wakeup_fd(-1)
    if signal.getsignal(signal.SIGTERM) is _nothing:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Only a signal with a handler of Python's wakes the thread."""


def _listen(read: int) -> None:
    global _requested
    while content := os.read(read, 64):
        if set(content) & set(_ASKING):
            with _lock:
                _requested = True
                if not _deferred:
                    _leave()
    os.close(read)


def _leave() -> None:
    """Ends the process, whatever its main thread is doing and whoever reads what it says."""
    if _ended is not None:
        os._exit(_ended)
    text = f"prunejax: interrupted; {_told}\n"
    end = threading.Timer(1.0, os._exit, [INTERRUPTED])  # should the line find no reader
    end.daemon = True
    end.start()
    with suppress(OSError):
        os.write(2, text.encode())
    os._exit(INTERRUPTED)  # mostly in a thread of its own, which `sys.exit` alone would end


def tell(text: str, stream: TextIO, needed: bool = False) -> None:
    """Prints a line; where the stream is gone, with its terminal or reader, nothing happens.

    What the stream has no characters for, of a path say, is escaped. OSError if the text is
    `needed`, and the disk has no room for it.
    """
    try:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        print(shown, file=stream, flush=True)
    except (OSError, ValueError) as error:
        # What is left in its buffer goes nowhere, and the exit code stays what it is.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        if needed and isinstance(error, OSError) and error.errno in _FULL:
            raise
