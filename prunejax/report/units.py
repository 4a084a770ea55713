"""Words of pages whose study minimizes another loss than the cross entropy: it is not in nats."""

import re
from dataclasses import replace

from matplotlib.text import Text

from prunejax.report.figures import Drawing
from prunejax.report.panels import Table


def without(text: str) -> str:
    """The text without the unit: `test loss (nats)` becomes `test loss`."""
    return re.sub(r" \(nats²?\)| per nat\b|,? in nats\b| nats\b", "", text)


def table(made: Table) -> Table:
    """The table without the unit."""
    rows = [[type(cell)(without(cell)) for cell in row] for row in made.rows]  # str or Markup
    return replace(made, head=[*map(without, made.head)], rows=rows)


def drawing(made: Drawing) -> Drawing:
    """The drawing without the unit, in its panels too."""
    for figure in made.panels:
        for text in figure.findobj(Text):
            if "nat" in text.get_text():
                text.set_text(without(text.get_text()))
        for axis in (a for axes in figure.axes for a in (axes.xaxis, axes.yaxis)):
            labels = [label.get_text() for label in axis.get_majorticklabels()]
            if labels != [*map(without, labels)]:  # names of rows, written anew when drawn
                axis.set_ticks(axis.get_majorticklocs(), [*map(without, labels)])
    title, caption, alt = map(without, (made.title, made.caption, made.alt))
    return replace(made, title=title, caption=caption, alt=alt)
