"""The HTML page: text, tables and drawings in one file; no network, no script."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from prunejax.errors import FigureError
from prunejax.report import (
    drawing,
    figures_barriers,
    figures_recall,
    gallery,
    headline,
    levels,
    overlaps,
    panels,
    provenance,
    ranking,
    so_far,
    units,
)
from prunejax.report.figures import Drawing
from prunejax.report.results import Study, summary
from prunejax.report.style import Look, context, with_words
from prunejax.report.tables import load
from prunejax.system import files


@dataclass
class Figure:
    """A drawing as the page takes it."""

    id: str
    title: str
    caption: str
    svgs: list[Markup]
    alt: str


def write(directories: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Builds figures, summary and page; see `prunejax.report.build`."""
    study = load(directories)
    figures_recall.annotate(study)
    figures_barriers.annotate(study)
    target = Path(output) if output is not None else Path(directories[0])
    files.folder(target)
    with context():
        look = Look(study.variants, set(study.baselines.values()) or {study.baseline})
        choice = gallery.choose(study)
        make = partial(gallery.make, study=study, look=look)
        content: dict[str, Any] = {}  # of the page, without the figures

        def write_words() -> None:
            files.save_json(target / "summary.json", summary(study))
            _views(study, target)
            content.update(_content(study, summary(study), target))

        processes = drawing.workers(len(choice.names))
        drawn = drawing.draw(make, choice.names, processes, write_words)
    figures = {
        name: _figure(name, *found, target)
        for name, found in drawn.items()
        if isinstance(found, tuple)
    }
    asked = [figures[name] for name in choice.asked if name in figures]
    more = [figure for name, figure in figures.items() if name not in choice.asked]
    failed = [found for found in drawn.values() if isinstance(found, str)]
    study.notes += failed
    text = content["template"].render(
        content,
        notes=[*study.notes, *summary(study).get("notes", ())],
        figures=asked,
        more=more,
        empty=choice.empty(drawn),
    )
    page = target / "report.html"
    _forget(page, figures)
    files.replace(page, lambda file: file.write(text.encode()))
    if failed:
        raise FigureError(failed, page)
    return page


def _views(study: Study, target: Path) -> None:
    """Writes the tables that follow from stored arrays; views of them, like the figures."""
    ranked = ranking.of(study)
    for name, rows in (
        ("recalls", figures_recall.table(study)),
        ("tickets", levels.records(study)),
        ("overlaps", overlaps.records(study)),
        ("predictors", ranked[1] if ranked else ()),
    ):
        if rows:
            files.save_rows(target / f"{name}.csv", rows)


def _figure(name: str, made: Drawing, rendered: drawing.Rendered, target: Path) -> Figure:
    """Writes a figure."""
    png, svg, parts = rendered
    files.replace(target / "figures" / f"{name}.png", lambda file: file.write(png))
    files.replace(target / "figures" / f"{name}.svg", lambda file: file.write(svg))
    svgs = [Markup(with_words(part, made.title)) for part in parts]
    return Figure(f"figure-{name}", made.title, made.caption, svgs, made.alt)


def _forget(page: Path, figures: Collection[str]) -> None:
    """Removes files of figures that the page as it was had, and the new one has not."""
    before = page.read_text(errors="replace") if page.is_file() else ""
    for name in set(re.findall(r'<h[23] id="figure-([^"/]+)"', before)).difference(figures):
        for kind in ("png", "svg"):
            (page.parent / "figures" / f"{name}.{kind}").unlink(missing_ok=True)


def _content(study: Study, found: Mapping[str, Any], target: Path) -> dict[str, Any]:
    """The template, and what it takes but for figures and notes."""
    import jinja2  # late: in the time of the processes that draw

    # The arms of a grid are points of a ranking, not treatments beside a control.
    compared = [] if ranking.of(study) else headline.columns(found)
    plots = {column: headline.forest(study, found, column) for column in compared}
    whole = {column: plot for column, plot in plots.items() if plot}
    forests = [headline.brief(study, found, column, plot) for column, plot in whole.items()]
    results = headline.results(study, found)
    own = (levels.table(study), overlaps.table(study), figures_barriers.table(study))
    tables = [*panels.all_of(study, found), *filter(None, own)]
    pairs = panels.correlations(found)
    if not study.in_nats:
        results = [replace(result, text=units.without(result.text)) for result in results]
        tables = [units.table(table) for table in tables]
        pairs = pairs and units.table(pairs)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("prunejax.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["slug"] = lambda text: re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return dict(
        template=environment.get_template("page.html"),
        title=study.title,
        lead=headline.lead(study),
        results=results,
        forests=forests,
        whole=[plot for plot in whole.values() if plot not in forests],
        progress=so_far.progress(study) if study.unfinished else None,
        tables=tables,
        correlations=pairs,
        facts=provenance.facts(study, target),
        settings=provenance.settings(study),
        fields=provenance.fields(study),
        differences=provenance.between_directories(study),
        environments=provenance.environments(study),
    )
