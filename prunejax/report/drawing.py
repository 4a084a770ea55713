"""Figures drawn side by side in processes of their own, where that is safe; the same bytes.

Forked processes have the study. Where this process cannot be forked another Python is started,
which knows of drawing alone (`python -m prunejax.report.drawing`): figures go to it and come back
as bytes. It imports while figures are made, so that nothing here may import what only makes them.
"""

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread

from matplotlib.figure import Figure

from prunejax.report import style
from prunejax.system import limits


@dataclass
class Drawing:
    """A figure with the words around it."""

    panels: list[Figure]
    title: str
    caption: str
    alt: str  # what it shows: the finding


Rendered = tuple[bytes, bytes, list[str]]  # what `style.render` returns
Make = Callable[[str], Drawing | str | None]
Outcome = tuple[Drawing, Rendered] | str | None  # the words of a figure, and how it looks

ROOT = Path(__file__).resolve().parents[2]
MOST = 8  # processes: more would wait for the figure that has the most panels
_LIGHT = ("stability", "scatter", "gap")  # begun last, so that the processes end together
MANY = 24  # runs from which on a page takes longer than starting another Python
_make: Make | None = None  # read by forked processes: studies need not be sent


def workers(count: int) -> int:
    """How many processes draw `count` figures; 1: this one alone.

    One for each core, up to `MOST`. Where JAX runs in this process its threads hold locks that a
    fork would never see released; outside Linux, fork is not safe beside system libraries.
    """
    cores = limits.cores() if sys.platform == "linux" else 1
    return 1 if "jax" in sys.modules else max(1, min(cores, count, MOST))


def _drawn(name: str, make: Make) -> Outcome:
    made = make(name)
    if not isinstance(made, Drawing):
        return made
    return replace(made, panels=[]), style.render(made.panels, name)


def _one(name: str) -> Outcome:
    assert _make is not None  # forked while it is known
    return _drawn(name, _make)


def _nothing() -> None:
    pass


def draw(
    make: Make, names: Sequence[str], processes: int, meanwhile: Callable[[], object] = _nothing
) -> dict[str, Outcome]:
    """Makes and renders each figure, in the order given.

    Making takes an eighth of the time of rendering: the processes do both.

    Args:
      make: the figure of a name; what is none is handed back as it is.
      names: of the figures.
      processes: at most so many draw; see `workers`.
      meanwhile: called once, beside them; what it raises is raised.
    """
    global _make
    if processes < 2 or len(names) < 2:
        meanwhile()
        return {name: _drawn(name, make) for name in names}
    _make = make
    gc.freeze()  # no search for garbage writes to memory that the processes share
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of threads at a fork: those of numpy's products, idle here.
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
                begun = sorted(names, key=_LIGHT.__contains__)
                drawn = pool.map(_one, begun)
                meanwhile, work = _nothing, meanwhile  # once, should a process be killed
                work()
                found = dict(zip(begun, drawn, strict=True))
                return {name: found[name] for name in names}
    except BrokenProcessPool:  # one was killed, for its memory say: alone it takes less
        return draw(make, names, 1, meanwhile)
    finally:
        _make = None
        gc.unfreeze()


def _rendered(drawings: Mapping[str, Drawing], names: Sequence[str]) -> dict[str, Rendered]:
    return {name: style.render(drawings[name].panels, name) for name in names}


class Helper:
    """A Python that draws, started before there are figures: it imports while they are made."""

    def __init__(self) -> None:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prunejax.report.drawing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    def __enter__(self) -> "Helper":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with self._process:  # closes its pipes, waits
            pass

    def draw(
        self, make: Make, names: Sequence[str], meanwhile: Callable[[], object] = _nothing
    ) -> dict[str, Outcome]:
        """As the function `draw`."""
        made = {name: make(name) for name in names}
        drawings = {name: one for name, one in made.items() if isinstance(one, Drawing)}
        found = self.render(drawings, meanwhile)
        return {
            name: (replace(one, panels=[]), found[name]) if isinstance(one, Drawing) else one
            for name, one in made.items()
        }

    def render(
        self, drawings: Mapping[str, Drawing], meanwhile: Callable[[], object] = _nothing
    ) -> dict[str, Rendered]:
        """`style.render` of each figure, in the order given, about half of them there.

        Whatever keeps it from drawing them, this process draws those, too.
        """
        here, there = halves(drawings)
        try:
            sent = pickle.dumps({name: drawings[name].panels for name in there})
        except Exception:  # whatever a user's figure holds
            here, there, sent = list(drawings), [], pickle.dumps({})
        answer = Future[bytes]()
        Thread(target=lambda: answer.set_result(self._ask(sent)), daemon=True).start()
        found = _rendered(drawings, here)
        meanwhile()
        try:
            found |= pickle.loads(answer.result())
        except Exception:  # it ended before all was drawn, or was no such Python
            found |= _rendered(drawings, there)
        return {name: found[name] for name in drawings}

    def _ask(self, sent: bytes) -> bytes:
        return self._process.communicate(sent)[0]


def helper(runs: int) -> AbstractContextManager[Helper | None]:
    """One for the page of a study of so many runs; None where it would gain nothing."""
    if "jax" not in sys.modules or runs < MANY or limits.cores() < 2 or not sys.executable:
        return nullcontext()
    try:
        return Helper()
    except OSError:  # no process can be started
        return nullcontext()


def halves(drawings: Mapping[str, Drawing]) -> tuple[list[str], list[str]]:
    """The names of figures in two shares with about as many panels each, the larger one first."""
    shares: tuple[list[str], list[str]] = [], []
    load = [0, 0]
    for name in sorted(drawings, key=lambda name: -len(drawings[name].panels)):
        to = load.index(min(load))
        shares[to].append(name)
        load[to] += len(drawings[name].panels)
    return shares


def main() -> None:
    """Reads figures from standard input, writes to standard output what they are drawn as."""
    panels = pickle.load(sys.stdin.buffer)
    with style.context():
        found = {name: style.render(made, name) for name, made in panels.items()}
    pickle.dump(found, sys.stdout.buffer)


if __name__ == "__main__":
    main()
