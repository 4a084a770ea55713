"""Figures drawn side by side in processes of their own, where that is safe; the same bytes."""

import gc
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

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

MOST = 8  # processes: more would wait for the figure that has the most panels
_LIGHT = ("stability", "scatter", "gap")  # begun last, so that the processes end together
_make: Make | None = None  # read by forked processes: studies need not be sent


def workers(count: int) -> int:
    """How many processes draw `count` figures; 1: this one alone.

    One for each core, up to `MOST`. Where JAX runs in this process its threads hold locks that a
    fork would never see released (a command has one `beside` it that draws); outside Linux, fork
    is not safe beside system libraries.
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
