"""Figures drawn side by side in processes of their own, where that is safe; the same bytes."""

import multiprocessing
import sys
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from prunejax.report import style
from prunejax.report.figures import Drawing
from prunejax.system import limits

Rendered = tuple[bytes, bytes, list[str]]  # what `style.render` returns

_drawings: Mapping[str, Drawing] = {}  # read by forked processes: figures need not be sent


def workers(count: int) -> int:
    """How many processes draw `count` figures; 1: this one alone.

    One for each core. Where JAX runs in this process its threads hold locks that a fork would
    never see released; outside Linux, fork is not safe beside system libraries.
    """
    cores = limits.cores() if sys.platform == "linux" else 1
    return 1 if "jax" in sys.modules else max(1, min(cores, count))


def _one(name: str) -> Rendered:
    return style.render(_drawings[name].panels, name)


def render(drawings: Mapping[str, Drawing], processes: int) -> dict[str, Rendered]:
    """`style.render` of each figure, in the order given.

    Args:
      drawings: by name.
      processes: at most so many draw; see `workers`.
    """
    global _drawings
    if processes < 2 or len(drawings) < 2:
        return {name: style.render(made.panels, name) for name, made in drawings.items()}
    _drawings = drawings
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of threads at a fork: those of numpy's products, idle here.
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
                return dict(zip(drawings, pool.map(_one, drawings), strict=True))
    except BrokenProcessPool:  # one was killed, for its memory say: alone it takes less
        return render(drawings, 1)
    finally:
        _drawings = {}
