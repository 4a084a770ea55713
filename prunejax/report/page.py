"""The HTML page: text, tables and embedded figures; no network, no script."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from prunejax import files
from prunejax.measures.summary import summarize
from prunejax.report import gallery, panels, provenance
from prunejax.report.figures import Drawing
from prunejax.report.results import Study
from prunejax.report.style import Look, context, render
from prunejax.report.tables import load

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 1140px; margin: 2rem auto 4rem; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; }
p { max-width: 62rem; } .lead { color: #444; margin-top: 0; }
.note { border-left: 4px solid #D55E00; background: #fdf3ec; padding: .5rem .9rem;
        margin: .5rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #e2e2e2;
         vertical-align: top; white-space: nowrap; }
th { border-bottom: 2px solid #999; font-weight: 600; vertical-align: bottom;
     white-space: normal; }
th:first-child, td:first-child, .text td, .text th { text-align: left; }
.text td { white-space: normal; overflow-wrap: anywhere; }
small { color: #555; display: block; } img { width: 100%; height: auto; }
figure { margin: .6rem 0 0; } figcaption { font-size: .9rem; color: #333; max-width: 62rem; }
details { margin-top: .8rem; }
summary { cursor: pointer; font-weight: 600; } pre { overflow-x: auto; font-size: .85rem; }
code { font-size: .92em; }
"""


def write(directories: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Builds figures, summary and page; see `prunejax.report.build`."""
    study = load(directories)
    target = Path(output) if output is not None else Path(directories[0])
    with files.writing(target):
        target.mkdir(parents=True, exist_ok=True)
    summary = summarize(
        study.runs,
        baseline=study.baseline,
        baselines=study.baselines,
        selected=study.report_option("correlate", ()),
        groups=study.groups if len(study.groups) > 1 else None,
        comparisons=panels.comparisons(study),
    )
    summary["directories"] = [str(path) for path in study.directories]
    summary["missing_shards"] = study.missing_shards
    look = Look(study.variants, set(study.baselines.values()) or {study.baseline})
    blocks = []
    with context():
        for name, drawing in gallery.draw(study, look).items():
            png, svg = render(drawing.figure)
            files.replace(target / "figures" / f"{name}.png", lambda f, data=png: f.write(data))  # type: ignore[misc]
            files.replace(target / "figures" / f"{name}.svg", lambda f, data=svg: f.write(data))  # type: ignore[misc]
            width = round(100 * drawing.figure.get_figwidth())
            blocks.append(_figure(drawing, svg, width))
    files.save_json(target / "summary.json", summary)
    text = _page(study, summary, blocks)
    page = target / "report.html"
    files.replace(page, lambda file: file.write(text.encode()))
    return page


def _figure(drawing: Drawing, svg: bytes, width: int) -> str:
    data = base64.b64encode(svg).decode()
    return (
        f"<h2>{escape(drawing.title)}</h2>\n<figure>"
        f'<img alt="{escape(drawing.title)}" style="max-width: {width}px" '
        f'src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(drawing.caption)}</figcaption></figure>"
    )


def _page(study: Study, summary: Mapping[str, Any], figures: Sequence[str]) -> str:
    notes = [f'<p class="note">{escape(note)}</p>' for note in study.notes]
    parts = [
        f"<h1>{escape(study.title)}</h1>",
        f'<p class="lead">{escape(panels.lead(study))}</p>',
        *notes,
        panels.findings(study, summary),
        "<h2>Arms</h2>",
        panels.arms(study, summary),
        panels.differences(study, summary),
        panels.tests(summary),
        panels.measures(study, summary),
        *figures,
        "<h2>Pruning events</h2>",
        panels.events(study),
        panels.correlation_table(summary),
        "<h2>Config</h2>",
        provenance.config(study),
        "<h2>Environment</h2>",
        provenance.environment(study),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(study.title)}</title><style>{CSS}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )
