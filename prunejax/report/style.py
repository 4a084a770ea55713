"""How figures look: one colour, marker and line per arm, percent, the same bytes each time.

A figure is a list of panels of one width. The page lays them side by side or, on a phone, below
each other; `render` also puts them into one file.
"""

import io
import re
import textwrap
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike

from prunejax.measures import statistics
from prunejax.report import contrast, png
from prunejax.report.fit import DrawnAxes, Fit
from prunejax.report.names import apart

# Told apart by colour-blind readers (after Okabe and Ito), each with a contrast of at least 3:1
# on white; their orange, sky blue and yellow are too pale for that.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#B65C92", "#7A5C3E", "#5B5BD6", "#857800")
BASELINE = "#000000"
GREY = "#555555"
FEW = 4  # of fewer runs the runs are drawn: their t interval would be wider than the panel
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LEGEND = 1.5  # inches: panels are higher, legends of a few arms are not
_ROOM = (0.6, 0.47, 0.27)  # inches left of, below and above the axes of most panels
LINES = ("-", "--", ":", "-.")
WIDTH = 4.5  # of a panel, in inches: at 10 points, letters are 11 pixels high on a phone
SETTINGS = {
    "font.size": 10,
    "text.parse_math": False,  # a "$" in a label is a "$"
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.title_fontsize": 10,
    "figure.facecolor": "white",
    "svg.hashsalt": "prunejax",  # else element ids differ from one drawing to the next
    "svg.fonttype": "none",  # text that can be selected and searched
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
        """Line style: not solid from the fifth arm on; no two of 28 arms share line and colour."""
        if variant in self._baselines:
            return LINES[self._baselines[variant] % len(LINES)]
        turn, place = divmod(self._index.get(variant, 0), len(COLORS))
        return LINES[(turn + (place >= 4)) % len(LINES)]

    def handle(self, variant: str, label: str, *, points: bool = False) -> Line2D:
        """A legend entry."""
        label = f" {label}" if label.startswith("_") else label  # "_x" would be left out
        marker = self.marker(variant) if points else "none"
        return line_handle(
            label, self.color(variant), marker, "none" if points else self.line(variant)
        )


def line_handle(label: str, color: str, marker: str = "none", line: str = "-") -> Line2D:
    """A legend entry that is no arm's."""
    return Line2D([], [], color=color, marker=marker, linestyle=line, label=label)  # type: ignore[arg-type]


def nth(index: int) -> tuple[str, str]:
    """Colour and marker of the so-manieth line of a figure whose lines are no arms."""
    return COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]


def panel(height: float = 3.4, **words: str) -> tuple[Figure, Axes]:
    """A panel of this height in inches, outside pyplot's global state.

    `words`: `title`, `xlabel`, `ylabel`.
    """
    made = Figure(figsize=(WIDTH, height), dpi=150, layout=Fit())
    (left, bottom, top), high = _ROOM, max(height, 1.0)
    start = {"left": left / WIDTH, "right": 0.98, "bottom": bottom / high, "top": 1 - top / high}
    axes = made.subplots(gridspec_kw=start, subplot_kw={"axes_class": DrawnAxes})
    axes.set(**words)
    return made, axes


def seeds(
    axes: Axes,
    points: Sequence[tuple[float, Sequence[float] | np.ndarray]],
    color: str,
    marker: str,
    **line: Any,
) -> list[tuple[float, float]]:
    """Draws every seed (dot), the interval of the mean, and the line through the means.

    Args:
      points: x, and the values of the seeds there; left out where none is finite.
      line: how the line of means is drawn.

    Returns:
      x and mean of each point.
    """
    means = []
    for x, ys in points:
        mean = statistics.mean(ys)
        if not mean.n:
            continue
        axes.plot([x] * len(ys), ys, ".", color=color, markersize=3, alpha=0.5)
        if np.isfinite(mean.low):
            axes.plot([x, x], [mean.low, mean.high], color=color, linewidth=1.2)
        means.append((x, mean.mean))
    xs, centers = ([m[i] for m in means] for i in (0, 1))
    axes.plot(xs, centers, color=color, marker=marker, **({"markersize": 5} | line))
    return means


def band(
    axes: Axes,
    handles: list[Line2D],
    label: str,
    values: ArrayLike,
    color: str = GREY,
    line: str = "--",
    alpha: float = 0.15,
) -> None:
    """The mean of an arm across the panel, its interval, its legend entry; nothing without one."""
    mean = statistics.mean(values)
    if not mean.n:
        return
    axes.axhline(mean.mean, color=color, linewidth=1.2, linestyle=line)
    if np.isfinite(mean.low):
        axes.axhspan(mean.low, mean.high, color=color, alpha=alpha, linewidth=0)
    handles.append(line_handle(label, color, line=line))


def legend(handles: Sequence[Line2D], title: str | None = None) -> Figure:
    """A panel that explains the others; as many columns as the longest label allows."""
    for handle in handles:
        label = str(handle.get_label())
        parted = re.sub(r"([,;])(?=\S)", r"\1 ", label)  # of a product: lines end behind a setting
        handle.set_label(label if len(label) <= 40 else textwrap.fill(parted, 40))
    labels = [str(handle.get_label()) for handle in handles]
    longest = max((len(line) for label in labels for line in label.split("\n")), default=1)
    columns = max(1, min(len(handles), 52 // (longest + 8)))
    lines = sum(1 + label.count("\n") for label in labels) / columns
    made = Figure(figsize=(WIDTH, 0.35 + 0.215 * (np.ceil(lines) + (title is not None))), dpi=150)
    made.legend(
        handles=handles, loc="upper left", ncols=columns, title=title, alignment="left",
        bbox_to_anchor=(0, 1), borderaxespad=0.2,
    )  # fmt: skip
    return made


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names lines at the right, beside where they end, moved apart where they would overlap.

    Args: ends: (y of the last point, text, colour); the limits of the axes are set for good.
    """
    low, high = axes.get_ylim()
    gap = 0.062 * 3.4 / axes.figure.get_figheight()  # type: ignore[union-attr]
    order = sorted(ends, key=lambda end: end[0])
    places = [float(np.clip((y - low) / (high - low), 0, 1)) for y, _, _ in order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    over = max(0.0, (places[-1] if places else 0) - 1)
    for i in range(len(places) - 1, -1, -1):  # pushed beyond the top: back down
        limit = 1.0 if i + 1 == len(places) else places[i + 1] - gap
        places[i] = min(places[i], limit) if over else places[i]
    names = apart([text for _, text, _ in order], 20)
    for place, (_, _, color), name in zip(places, order, names, strict=True):
        ink = contrast.on_white(color)
        axes.text(1.015, place, name, color=ink, transform=axes.transAxes, va="center")


def plain_numbers(axis: Axis) -> None:
    """Labels of a logarithmic axis whose limits are set: few enough to stand apart.

    Plain numbers, for powers of ten would need math text, which is off.
    """
    axis.set_major_formatter("{x:g}")
    low, high = sorted(axis.get_view_interval())
    if high > 10 * low:
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_minor_formatter("{x:g}" if high < 100 * low else NullFormatter())


def render(panels: Sequence[Figure], name: str = "figure") -> tuple[bytes, bytes, list[str]]:
    """(PNG of all panels, SVG of all panels, SVG of each); the same panels give the same bytes.

    Args:
      panels: in reading order; up to three stand side by side in the files.
      name: goes in front of the ids in the SVG, which are the page's as well.
    """
    drawings, places = [], []  # places: (x, y) in inches
    count = len(panels)
    if count > 1 and panels[-1].get_figheight() < _LEGEND:  # it goes below, into a row of its own
        count -= 1
    wide = 2 if count == 4 else min(3, count)
    top = 0.0
    for start in range(0, len(panels), wide):
        row = panels[start : start + wide]
        places += [(WIDTH * i, top) for i in range(len(row))]
        top += max(made.get_figheight() for made in row)
    sheet = png.Sheet(round(150 * top), round(150 * WIDTH * wide))
    for index, (made, (x, y)) in enumerate(zip(panels, places, strict=True)):
        # The canvases are driven by hand because `savefig` draws everything twice.
        canvas, svg = FigureCanvasAgg(made), io.BytesIO()
        canvas.draw()
        made.set_layout_engine("none")  # laid out for good: that takes as long as drawing
        sheet.paste(np.asarray(canvas.buffer_rgba()), round(150 * y), round(150 * x))
        FigureCanvasSVG(made).print_svg(svg, metadata={"Date": None, "Creator": "prunejax"})
        drawings.append(_inline(svg.getvalue().decode(), f"{name}-{index}-"))
    parts = [
        drawing.replace("<svg ", f'<svg x="{72 * x:g}" y="{72 * y:g}" '
                        f'width="{72 * WIDTH:g}" height="{72 * made.get_figheight():g}" ', 1)
        for drawing, (x, y), made in zip(drawings, places, panels, strict=True)
    ]  # fmt: skip
    size = f"{72 * WIDTH * wide:g}", f"{72 * top:g}"
    whole = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size[0]}pt" height="{size[1]}pt" viewBox="0 0 {size[0]} {size[1]}">'
        + "".join(parts) + "</svg>\n"
    )  # fmt: skip
    return sheet.png(), whole.encode(), drawings


def _inline(svg: str, prefix: str) -> str:
    """The bare element, without a size of its own, with ids that no other figure has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    svg = re.sub(
        r"<svg[^>]*>",
        f'<svg {view[0]} stroke-linejoin="round" stroke-linecap="butt">',
        svg,
        count=1,
    )
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{prefix}", svg)
    return svg.strip()


def with_words(svg: str, alt: str) -> str:
    """The drawing with what it shows, for those who do not see it."""
    text = escape(alt)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{text}" ', 1)


@contextmanager
def context() -> Iterator[None]:
    """This style, for the length of a `with` block; the caller's settings stay as they are."""
    plain: dict[str, Any] = {
        k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")
    }
    with matplotlib.rc_context(plain | SETTINGS):  # type: ignore[arg-type]
        yield
