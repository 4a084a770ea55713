"""The live line of a running study: percent, steps per second, time left, what is running.

A study never ends because of it: once a line cannot be written (the stream is closed, its reader
or its terminal is gone) nothing more is printed.
"""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

import numpy as np
from numpy.typing import ArrayLike

_UNWRITABLE = (OSError, ValueError)  # ValueError: the stream is closed


def duration(seconds: float) -> str:
    """`75` -> "1:15", `3700` -> "1:01:40"."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def whose(runs: Sequence[tuple[str, int]]) -> str:
    """(arm, seed) of each run -> "none, L_13, 8 seeds"."""
    labels, seeds = dict.fromkeys(arm for arm, _ in runs), sorted({seed for _, seed in runs})
    arms = ", ".join(labels) if len(labels) <= 3 else f"{len(labels)} variants"
    return f"{arms}, {f'seed {seeds[0]}' if len(seeds) == 1 else f'{len(seeds)} seeds'}"


def standing(loss: ArrayLike, split: str, accuracy: ArrayLike) -> str:
    """`, loss 0.52, test accuracy 91.2%`: means over the runs whose number is finite.

    Args: loss, accuracy: one number per run, in nats and as a fraction. split: of the accuracy.
    """
    means = []
    for values in (loss, accuracy):
        array = np.asarray(values, np.float64)
        kept = array[np.isfinite(array)]
        means.append(float(kept.mean()) if kept.size else np.nan)
    if np.isnan(means[1]):  # of a regression
        return f", loss {means[0]:.3g}"
    return f", loss {means[0]:.3g}, {split} accuracy {100 * means[1]:.1f}%"


class Progress:
    """Rewrites one line on a terminal and in a notebook; elsewhere prints a line every few seconds.

    Steps per second and the time left leave out what is wrapped in `excluded` (compilation,
    measurement), and the steps of `advance(..., timed=False)` made meanwhile.
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
        found = stream if stream is not None else sys.stderr  # None: closed before the start
        self._quiet = quiet or found is None
        self._stream: TextIO = found
        self._terminal = False
        with suppress(AttributeError, *_UNWRITABLE):
            # A cell's output is no terminal, but rewrites a line like one.
            notebook = type(found).__module__.partition(".")[0] == "ipykernel"
            self._terminal = found.isatty() or notebook
        self._interval = interval if interval is not None else (0.2 if self._terminal else 5.0)
        self._clock = clock
        self._start = clock()
        self._excluded, self._depth = 0.0, 0
        self._shown: float | None = None
        self._text = ""
        self._width = 0

    @contextmanager
    def excluded(self, text: str = "") -> Iterator[None]:
        """Time spent inside does not count; `text` says what goes on, e.g. "measuring RUN".

        May be nested: then the outermost counts.
        """
        if text:  # said at once when it begins, then like steps
            self._show(text, force=text.split()[:1] != self._text.split()[:1])
        begun = self._clock()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._excluded += self._clock() - begun

    def rate(self) -> float:
        """Steps per second of counted time so far; 0 before the first."""
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

    def advance(self, steps: int, text: str = "", *, timed: bool = True) -> None:
        """Counts `steps` more.

        Args:
          steps: made since the last call, all runs together.
          text: which arm or run they belong to, and how it stands.
          timed: False if they were made in excluded time (with compilation, or by an earlier
            start): they say nothing about the speed.
        """
        self._done += steps
        self._first += 0 if timed else steps
        self._show(text)

    def message(self, text: str) -> None:
        """A line that stays, above the live one."""
        if self._quiet:
            return
        self._clear()
        self._write(text + "\n")

    def close(self, text: str = "") -> None:
        """Shows where it ended and leaves the line standing."""
        self._show(text, force=True)
        if self._terminal and not self._quiet and self._width:
            self._write("\n")
            self._width = 0

    def _write(self, text: str) -> None:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # a label that this terminal has no characters for
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except _UNWRITABLE:
            self._quiet = True

    def _clear(self) -> None:
        if self._terminal and self._width:
            self._write("\r" + " " * self._width + "\r")
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
            self._write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._write(line + "\n")
