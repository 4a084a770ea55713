"""How figures look: one colour and marker per arm, percent, the same bytes each time."""

import io
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from math import isfinite

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

from prunejax.measures.statistics import Correlation

# Okabe and Ito's palette, told apart by colour-blind readers; its yellow is too pale on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C3E")
BASELINE = "#000000"
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
FEW = 4  # of fewer runs the runs are drawn: their t interval would be wider than the panel
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
SETTINGS = {
    "font.size": 10,
    "text.parse_math": False,  # a "$" in a label is a "$"
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.title_fontsize": 9.5,
    "figure.facecolor": "white",
    "svg.hashsalt": "prunejax",  # else element ids differ from one drawing to the next
}


class Look:
    """Colour, marker and line of each arm, the same in every figure."""

    def __init__(self, variants: Sequence[str], baselines: Collection[str]) -> None:
        """`variants` in their order; the baselines are black."""
        self._index = {v: i for i, v in enumerate(v for v in variants if v not in baselines)}
        self._baselines = {v: i for i, v in enumerate(v for v in variants if v in baselines)}

    def color(self, variant: str) -> str:
        """Hexadecimal colour; colours come round again after seven arms."""
        index = self._index.get(variant)
        return BASELINE if index is None else COLORS[index % len(COLORS)]

    def marker(self, variant: str) -> str:
        """Marker of the arm's points; no two of 49 arms share colour and marker."""
        if variant in self._baselines:
            return MARKERS[self._baselines[variant] % len(MARKERS)]
        index = self._index.get(variant, 0)
        return MARKERS[(index + index // len(COLORS)) % len(MARKERS)]

    def line(self, variant: str) -> str:
        """Line style: dashed, dotted, ... from the second round of colours on."""
        if variant in self._baselines:
            return LINES[self._baselines[variant] % len(LINES)]
        return LINES[self._index.get(variant, 0) // len(COLORS) % len(LINES)]

    def handle(self, variant: str, label: str, *, points: bool = False) -> Line2D:
        """A legend entry."""
        label = f" {label}" if label.startswith("_") else label  # "_x" would be left out
        return Line2D(
            [],
            [],
            color=self.color(variant),
            linestyle="none" if points else self.line(variant),  # type: ignore[arg-type]
            marker=self.marker(variant) if points else "none",
            label=label,
        )


def line_handle(label: str, color: str, marker: str = "none", line: str = "-") -> Line2D:
    """A legend entry that is no arm's."""
    return Line2D([], [], color=color, marker=marker, linestyle=line, label=label)  # type: ignore[arg-type]


def figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, outside pyplot's global state."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def legend_below(made: Figure, handles: Sequence[Line2D], title: str | None = None) -> None:
    """One legend under all panels, as many columns as the longest label allows."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, min(len(handles), int(11 * made.get_figwidth()) // (longest + 8)))
    lines = -(-len(handles) // columns)
    made.set_figheight(made.get_figheight() + 0.21 * max(0, lines - (title is None)))
    made.legend(handles=handles, loc="outside lower center", ncols=columns, title=title)


def pad(axes: Axes, share: float = 0.06) -> None:
    """Room around the points, so that none sits on the frame."""
    axes.margins(share)


def plain_numbers(axis: Axis) -> None:
    """Labels of a logarithmic axis whose limits are set: few enough to stand apart.

    Plain numbers, for powers of ten would need math text, which is off.
    """
    axis.set_major_formatter("{x:g}")
    low, high = sorted(axis.get_view_interval())
    if high > 10 * low:
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_minor_formatter("{x:g}" if high < 100 * low else NullFormatter())


def render(made: Figure) -> tuple[bytes, bytes]:
    """(PNG, SVG); the same figure gives the same bytes.

    The canvases are driven by hand because `savefig` draws everything twice.
    """
    png, svg = io.BytesIO(), io.BytesIO()
    canvas = FigureCanvasAgg(made)
    canvas.draw()
    made.set_layout_engine("none")  # laid out for good: that takes as long as drawing
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(png, format="png")
    FigureCanvasSVG(made).print_svg(svg, metadata={"Date": None, "Creator": "prunejax"})
    return png.getvalue(), svg.getvalue()


def context() -> AbstractContextManager[None]:
    """This style, for the length of a `with` block; the caller's settings stay as they are."""
    return matplotlib.rc_context(SETTINGS)  # type: ignore[arg-type]


def percent(fraction: float, digits: int = 1) -> str:
    """`0.9312` -> "93.1%"; a dash where undefined."""
    return f"{100 * fraction:.{digits}f}%" if isfinite(fraction) else DASH


def with_interval(symbol: str, found: Correlation) -> str:
    """`r = −0.62 [−0.80, −0.31]`."""
    if not isfinite(found.value):
        return f"{symbol} undefined"
    text = f"{symbol} = {found.value:.2f}"
    if isfinite(found.low):
        text += f" [{found.low:.2f}, {found.high:.2f}]"
    return text.replace("-", MINUS)
