"""How figures look: one colour and marker per arm, percent, the same bytes each time."""

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from math import isfinite

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunejax.measures.statistics import Correlation

# Okabe and Ito's palette, told apart by colour-blind readers; its yellow is too pale on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C3E")
BASELINE = "#000000"
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
SETTINGS = {
    "font.size": 10,
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
    "figure.facecolor": "white",
    "svg.hashsalt": "prunejax",  # else element ids differ from one drawing to the next
    "savefig.dpi": 150,
}


class Look:
    """Colour, marker and line of each arm, the same in every figure."""

    def __init__(self, variants: Sequence[str], baseline: str) -> None:
        """`variants` in their order; the baseline is black."""
        others = [variant for variant in variants if variant != baseline]
        self._index = {variant: i for i, variant in enumerate(others)}

    def color(self, variant: str) -> str:
        """Hexadecimal colour; colours come round again after seven arms."""
        index = self._index.get(variant)
        return BASELINE if index is None else COLORS[index % len(COLORS)]

    def marker(self, variant: str) -> str:
        """Marker of the arm's points; no two of 49 arms share colour and marker."""
        index = self._index.get(variant)
        turns = 0 if index is None else index + index // len(COLORS)
        return "o" if index is None else MARKERS[turns % len(MARKERS)]

    def line(self, variant: str) -> str:
        """Line style: dashed, dotted, ... from the second round of colours on."""
        index = self._index.get(variant)
        return "-" if index is None else LINES[index // len(COLORS) % len(LINES)]

    def handle(self, variant: str, label: str, *, points: bool = False) -> Line2D:
        """A legend entry."""
        return Line2D(
            [],
            [],
            color=self.color(variant),
            linestyle="none" if points else self.line(variant),  # type: ignore[arg-type]
            marker=self.marker(variant) if points else "none",
            label=label,
        )


def figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, outside pyplot's global state."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def legend_below(made: Figure, handles: Sequence[Line2D], width: int = 110) -> None:
    """One legend under all panels, as many columns as labels of this length allow."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, min(len(handles), width // (longest + 7)))
    made.legend(handles=handles, loc="outside lower center", ncols=columns)


def pad(axes: Axes, share: float = 0.06) -> None:
    """Room around the points, so that none sits on the frame."""
    axes.margins(share)


def render(made: Figure) -> tuple[bytes, bytes]:
    """(PNG, SVG); the same figure gives the same bytes."""
    png, svg = io.BytesIO(), io.BytesIO()
    made.savefig(png, format="png", metadata={"Software": None})
    made.savefig(svg, format="svg", metadata={"Date": None, "Creator": "prunejax"})
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
