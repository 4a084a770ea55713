"""Axes that are placed by one measurement, and measured and drawn without repeated work."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox

MOVED = 0.05  # of a panel: axes that moved less keep their ticks, and are not measured again
_WORKED_OUT = ("_update_ticks", "_get_ticklabel_bboxes", "_update_label_position")  # of an `Axis`


def _kept(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, worked out once for the same arguments; lists among them are of ticks.

    A version that passes them by name has it worked out as often as it asks.
    """
    once = functools.cache(method)

    def kept(*given: Any, **named: Any) -> Any:
        if named:
            return method(*given, **named)
        return once(*(tuple(x) if isinstance(x, list) else x for x in given))

    return kept


@contextmanager
def _once(axes: Axes) -> Iterator[None]:
    """What matplotlib works out about five times in one drawing is kept for the length of it.

    Ticks follow from limits, the boxes of their labels and the place of the axis' label from the
    ticks; none of them changes while axes are drawn or measured. The names are matplotlib's own:
    where a version has others, nothing is kept, and the drawing is the same.
    """
    kept = [
        (axis, name) for axis in (axes.xaxis, axes.yaxis) for name in _WORKED_OUT
        if hasattr(axis, name)
    ]  # fmt: skip
    for axis, name in kept:
        setattr(axis, name, _kept(getattr(axis, name)))
    try:
        yield
    finally:
        for axis, name in kept:
            delattr(axis, name)


class DrawnAxes(Axes):
    """Axes whose ticks are worked out once for a measurement, and once for a drawing."""

    def draw(self, renderer: Any) -> None:
        """As of `Axes`."""
        with _once(self):
            super().draw(renderer)

    def get_tightbbox(self, *args: Any, **options: Any) -> Any:
        """As of `Axes`."""
        with _once(self):
            return super().get_tightbbox(*args, **options)


class Fit(ConstrainedLayoutEngine):
    """Places the one axes of a panel: the room that its words take, measured once if that will do.

    Measuring takes about as long as drawing, and matplotlib's own engine does it twice for every
    figure. Here the axes start where most end, and are measured again only where they moved.
    """

    def execute(self, fig: Figure) -> Any:
        """Sets the position of the axes; several axes are left to matplotlib's engine."""
        if len(fig.axes) != 1 or not isinstance(fig.canvas, FigureCanvasAgg):
            return super().execute(fig)
        (axes,), inches = fig.axes, fig.get_size_inches()
        pads = np.asarray([self.get()["w_pad"], self.get()["h_pad"]]) / inches
        for _ in range(2):
            box = axes.get_tightbbox(fig.canvas.get_renderer(), for_layout_only=True)
            assert box is not None  # of axes that are not seen
            around = box.transformed(fig.transFigure.inverted())
            old = axes.get_position(original=True)
            low = np.maximum(np.subtract(old.min, around.min), 0) + pads
            high = 1 - np.maximum(np.subtract(around.max, old.max), 0) - pads
            if np.any(high <= low):  # no room for the axes: matplotlib's engine says so
                return super().execute(fig)
            axes.set_position(Bbox([low, high]))
            if np.abs([low - old.min, high - old.max]).max() < MOVED:
                break
        return None
