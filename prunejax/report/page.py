"""The HTML page: text, tables and drawings in one file; no network, no script."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from prunejax.errors import FigureError
from prunejax.measures.claims import MECHANICS, UNFINISHED
from prunejax.measures.forecasts import forecasts
from prunejax.measures.summary import summarize
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
from prunejax.report.results import Study
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


def _withheld(study: Study) -> str:
    """Why the page gives no verdicts; empty: it does."""
    if study.report_option("mechanics_only", False):
        return MECHANICS
    return UNFINISHED if study.unfinished else ""


def write(directories: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Builds figures, summary and page; see `prunejax.report.build`."""
    study = load(directories)
    figures_recall.annotate(study)
    figures_barriers.annotate(study)
    target = Path(output) if output is not None else Path(directories[0])
    with files.writing(target):
        target.mkdir(parents=True, exist_ok=True)
    with drawing.helper(len(study.runs)) as helper, context():
        summary = _summary(study)
        study.relations = summary["relations"]
        look = Look(study.variants, set(study.baselines.values()) or {study.baseline})
        choice = gallery.choose(study)
        make = partial(gallery.make, study=study, look=look)
        if helper is not None:
            drawn = helper.draw(make, choice.names)
        else:
            drawn = drawing.draw(make, choice.names, drawing.workers(len(choice.names)))
    figures = {
        name: _figure(name, *found, target)
        for name, found in drawn.items()
        if isinstance(found, tuple)
    }
    asked = [figures[name] for name in choice.asked if name in figures]
    more = [figure for name, figure in figures.items() if name not in choice.asked]
    failed = [found for found in drawn.values() if isinstance(found, str)]
    study.notes += failed
    files.save_json(target / "summary.json", summary)
    _views(study, target)
    text = _page(study, summary, asked, more, choice.empty(drawn), target)
    page = target / "report.html"
    files.replace(page, lambda file: file.write(text.encode()))
    if failed:
        raise FigureError(failed, page)
    return page


def _summary(study: Study) -> dict[str, Any]:
    summary = summarize(
        study.runs,
        baseline=study.baseline,
        baselines=study.baselines,
        selected=study.report_option("correlate", ()),
        groups=study.groups if len(study.groups) > 1 else None,
        comparisons=study.tests,
        claims=study.claims,
        test_examples=study.test_examples,
        withheld=_withheld(study),
    )
    return summary | {
        "forecasts": forecasts(study.events),
        "directories": list(study.directories),
        "missing_shards": study.missing_shards,
    }


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


def _page(
    study: Study,
    summary: Mapping[str, Any],
    asked: Sequence[Figure],
    more: Sequence[Figure],
    empty: Sequence[str],
    target: Path,
) -> str:
    # The arms of a grid are points of a ranking, not treatments beside a control.
    compared = [] if ranking.of(study) else headline.columns(summary)
    plots = {column: headline.forest(study, summary, column) for column in compared}
    whole = {column: plot for column, plot in plots.items() if plot}
    forests = [headline.brief(study, summary, column, plot) for column, plot in whole.items()]
    results = headline.results(study, summary)
    own = (levels.table(study), overlaps.table(study), figures_barriers.table(study))
    tables = [*panels.all_of(study, summary), *filter(None, own)]
    pairs = panels.correlations(summary)
    if not study.in_nats:
        results = [replace(found, text=units.without(found.text)) for found in results]
        tables = [units.table(found) for found in tables]
        pairs = pairs and units.table(pairs)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("prunejax.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["slug"] = lambda text: re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return environment.get_template("page.html").render(
        title=study.title,
        lead=headline.lead(study),
        notes=[*study.notes, *summary.get("notes", ())],
        results=results,
        forests=forests,
        whole=[plot for plot in whole.values() if plot not in forests],
        progress=so_far.progress(study) if study.unfinished else None,
        figures=asked,
        more=more,
        empty=empty,
        tables=tables,
        correlations=pairs,
        facts=provenance.facts(study, target),
        settings=provenance.settings(study),
        fields=provenance.fields(study),
        differences=provenance.between_directories(study),
        environments=provenance.environments(study),
    )
