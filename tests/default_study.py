"""What the README says of the default study, made from its summary.

    python -m tests.default_study runs/digits

takes over the numbers (`docs/digits_summary.json`), the figures and the README's part between the
marks from a finished run directory; `tests/test_readme.py` compares them.
"""

import json
import shutil
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from prunejax.measures.columns import by_variant, number
from prunejax.report import headline, tables, words

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = ROOT / "docs" / "digits_summary.json"
FIGURES = ("dynamics", "stability", "forecast")
COLUMNS = ("mean_stability", "final_test_accuracy", "hessian_trace", "sparsity")
BEGIN, END = "<!-- from docs/digits_summary.json -->\n", "<!-- to here -->\n"


def excerpt(directory):
    """Of a run directory: what the README needs of `summary.json`, arms in words, instabilities."""
    study = tables.load([directory])
    summary = json.loads((Path(directory) / "summary.json").read_text())
    drops = {
        label: [
            number(row["instability"])
            for row in {(row["run"], row["epoch"]): row for row in rows}.values()
        ]
        for label, rows in by_variant(study.events).items()
    }
    return {
        "runs": summary["runs"],
        "arms": words.arms(study),
        "claims": summary["claims"],
        "relations": summary["relations"][:1],
        "forecasts": summary["forecasts"],
        "mean_instability": {label: sum(found) / len(found) for label, found in drops.items()},
        "variants": {
            label: {
                "completed": arm["completed"],
                "columns": {c: arm["columns"][c] for c in COLUMNS},
            }
            for label, arm in summary["variants"].items()
        },
        "paired": summary["paired"]
        | {
            "variants": {
                label: {c: found[c] for c in ("final_test_accuracy", "hessian_trace")}
                for label, found in summary["paired"]["variants"].items()
            }
        },
    }


def images(found):
    """Alt text of each figure: its finding."""
    ends = [
        100 * arm["columns"]["final_test_accuracy"]["mean"] for arm in found["variants"].values()
    ]
    worst = max(found["mean_instability"], key=found["mean_instability"].get)
    cost = 100 * found["mean_instability"][worst]
    stability = ", ".join(
        f"{label} {100 * arm['columns']['mean_stability']['mean']:.1f} %"
        for label, arm in found["variants"].items()
    )
    first, second = (found["forecasts"][order]["value"] for order in ("first", "second"))
    return {
        "dynamics": f"Test accuracy over epochs: an event costs most in {worst}, {cost:.1f} % of "
        "the accuracy on average; all arms end within "
        f"{max(ends) - min(ends):.1f} points of each other",
        "stability": f"Mean stability of the arms: {stability}",
        "forecast": "Predicted against measured change of the loss at each event: "
        f"the second order follows it, {words.coefficient('r', second)}, "
        f"the first does not, {words.coefficient('r', first)}",
    }


def _cell(mean, times, digits):
    text = f"{times * mean['mean']:.{digits}f}"
    low, high = (None if mean[e] is None else times * mean[e] for e in ("low", "high"))
    block = words.interval(low, high, digits)
    return f"{text} {block}".strip()


def table(found):
    """A row per arm."""
    lines = [
        "| arm | what is pruned | mean stability, % | final test accuracy, % | Tr(H) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label, arm in found["variants"].items():
        cells = [
            _cell(arm["columns"][column], times, digits)
            for column, times, digits in zip(COLUMNS, (100, 100, 1), (2, 2, 1), strict=False)
        ]
        lines.append(f"| {label} | {found['arms'][label]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _differing(found, column):
    return [
        label
        for label, arm in found["paired"]["variants"].items()
        if arm[column]["p_holm"] is not None and arm[column]["p_holm"] < 0.05
    ]


def sentences(found):
    """The page's own lines, then what it says of flatness, of the relation, and of forecasts."""
    lines = headline.results(
        cast(Any, SimpleNamespace(unfinished=False, known={"prunejax.report.ranking.of": None})),
        found,
    )
    texts = [f"**{r.verdict.capitalize()}.** {r.text}" if r.verdict else r.text for r in lines]
    differ = _differing(found, "hessian_trace")
    who = f"{', '.join(differ)} differ" if differ else "No arm differs"
    texts.append(f"{who} from {found['paired']['baseline']} in Tr(H) after Holm's correction.")
    (relation,) = found["relations"]
    these, few = relation["these_arms"], relation["arms_in_general"] is None
    texts.append(
        f"Stability and final accuracy over the {relation['n_runs']} runs with events: "
        f"{words.coefficient('r', relation['pearson'])} "
        f"{words.interval(these['low'], these['high'])} for these arms (seeds as blocks)"
        + (f"; for arms in general, {relation['reason']}." if few else ".")
    )
    second, first = (found["forecasts"][order] for order in ("second", "first"))
    assert second["low"] > max(0.5, first["high"])  # else the sentence below is wrong
    parts = [
        f"{words.coefficient('r', f['value'])} {words.interval(f['low'], f['high'])}"
        for f in (second, first)
    ]
    texts.append(
        f"How much the loss changes at an event, curvature foretells: {parts[0]} for one quadratic "
        f"form an event; the gradient alone does not: {parts[1]} ({second['n']} events, "
        f"{second['seeds']} seeds as blocks)."
    )
    return "".join(
        textwrap.fill(text, 110, initial_indent="- ", subsequent_indent="  ") + "\n"
        for text in texts
    )


def part(found):
    """The README's part on the default study."""
    alt = images(found)
    pictures = {name: f"![{alt[name]}](docs/digits_{name}.png)\n" for name in FIGURES}
    seeds = min(arm["completed"] for arm in found["variants"].values())
    sparsities = [
        100 * arm["columns"]["sparsity"]["mean"]
        for label, arm in found["variants"].items()
        if label != found["paired"]["baseline"]
    ]
    intro = (
        f"That run ({seeds} seeds an arm, 95 % confidence intervals of the mean; all pruned arms "
        f"end at {min(sparsities):.1f} % sparsity):\n"
    )
    assert max(sparsities) - min(sparsities) < 0.05
    return "\n".join([
        pictures["dynamics"] + pictures["stability"], intro, table(found), sentences(found),
        pictures["forecast"],
    ])  # fmt: skip


def main(directory):
    """Takes everything over."""
    found = excerpt(directory)
    SUMMARY.write_text(json.dumps(found, indent=1) + "\n")
    for name in FIGURES:
        shutil.copyfile(
            Path(directory) / "figures" / f"{name}.png", ROOT / "docs" / f"digits_{name}.png"
        )
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(before + BEGIN + part(found) + END + after)


if __name__ == "__main__":
    main(sys.argv[1])
