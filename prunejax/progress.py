"""The live line of a running study: percent, steps per second, time left, what is running."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


def duration(seconds: float) -> str:
    """`75` -> "1:15", `3700` -> "1:01:40"."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Progress:
    """Rewrites one line on a terminal; elsewhere prints a line every few seconds.

    Steps per second and the time left count training only: wrap compilation, evaluation or
    measurement of unusual length in `excluded`.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        interval: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock.

        Args:
          total: steps of the whole study, all runs together.
          done: steps already made before this start (a resumed study).
          quiet: print nothing (every process but the first).
          stream: where to print, standard error by default.
          interval: seconds between lines: 0.2 on a terminal, else 5.
          clock: seconds, for tests.
        """
        self._total, self._first, self._done = max(total, 1), done, done
        self._quiet = quiet
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._interval = interval if interval is not None else (0.2 if self._terminal else 5.0)
        self._clock = clock
        self._start = clock()
        self._excluded = 0.0
        self._shown: float | None = None
        self._text = ""
        self._width = 0

    @contextmanager
    def excluded(self, text: str = "") -> Iterator[None]:
        """Time spent inside does not count; `text` says what goes on, e.g. "measuring RUN"."""
        if text:  # said at once when it begins, then like steps
            self._show(text, force=text.split()[:1] != self._text.split()[:1])
        begun = self._clock()
        try:
            yield
        finally:
            self._excluded += self._clock() - begun

    def rate(self) -> float:
        """Steps per second of training time so far; 0 before the first."""
        seconds = self._clock() - self._start - self._excluded
        return (self._done - self._first) / seconds if seconds > 0 else 0.0

    def line(self, text: str = "") -> str:
        """The line as shown: ` 43%  1200/2800 steps  812 steps/s  2 s left  none seed 3`."""
        share = min(self._done / self._total, 1.0)
        # Rounded down: 100% means done.
        parts = [f"{int(100 * share):3d}%", f"{self._done}/{self._total} steps"]
        rate = self.rate()
        if rate > 0:
            parts.append(f"{rate:.3g} steps/s" if rate < 100 else f"{rate:.0f} steps/s")
            if self._done < self._total:  # what follows training is not counted
                parts.append(f"ETA {duration((self._total - self._done) / rate)}")
        return "  ".join([*parts, text] if text else parts)

    def advance(self, steps: int, text: str = "") -> None:
        """Counts `steps` more; `text` says which arm or run they belong to."""
        self._done += steps
        self._show(text)

    def message(self, text: str) -> None:
        """A line that stays, above the live one."""
        if self._quiet:
            return
        self._clear()
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self, text: str = "") -> None:
        """Shows where it ended and leaves the line standing."""
        self._show(text, force=True)
        if self._terminal and not self._quiet and self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0

    def _clear(self) -> None:
        if self._terminal and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._width = 0

    def _show(self, text: str, force: bool = False) -> None:
        now = self._clock()
        recent = self._shown is not None and now - self._shown < self._interval
        if self._quiet or (recent and not force):
            return
        self._shown, self._text = now, text
        line = self.line(text)
        if self._terminal:
            line = line[: shutil.get_terminal_size().columns - 1]
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
