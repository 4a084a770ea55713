"""The tables of the page, as data: `page.html` turns them into HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from markupsafe import Markup

from prunejax.measures.columns import LOSS, measure_columns, number
from prunejax.record.summary import by_event
from prunejax.report.results import Study
from prunejax.report.words import DASH, MINUS, count, factor, interval, minus, name, percented

Found = Mapping[str, Any]


@dataclass
class Table:
    """A table; the first cell of a row names it. Cells of `Markup` are HTML already."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    text: str = ""  # above it
    kind: str = ""  # "text": cells hold text, not numbers

    @classmethod
    def of(
        cls, rows: Sequence[Mapping[str, str]], title: str, text: str = "", kind: str = ""
    ) -> "Table | None":
        """The table of rows that name their columns, all the same; None without any."""
        if not rows:
            return None
        return cls(list(rows[0]), [list(row.values()) for row in rows], title, text, kind)


def small(*lines: str) -> Markup:
    """Lines below the number of a cell."""
    return Markup("").join(Markup("<small>{}</small>").format(line) for line in lines if line)


def _over(text: str, *below: str) -> Markup:
    """A cell with lines below its number."""
    return Markup("{}{}").format(text, small(*below))


def _shown(value: float, digits: str) -> str:
    """The number in a format; counts of weights and the like in full, not as `4.096e+04`."""
    full = digits.endswith("g") and 1e4 <= abs(value) < 1e9
    return f"{value:,.0f}" if full else format(value, digits)


def _mean(found: Found | None, column: str, digits: str, runs: int) -> str | Markup:
    """`93.12 ± 0.40` with the interval below, and n where it is not the number of runs."""
    if not found or found["mean"] is None:
        return DASH
    times = factor(column)
    text = _shown(times * found["mean"], digits)
    if found["std"] is not None:
        # equal numbers whose mean was rounded: a spread of 1e-14 is none
        std = found["std"] if found["std"] > 1e-12 * abs(found["mean"]) else 0.0
        text += f" ± {_shown(times * std, digits)}"
    below = ""
    if found["low"] is not None:
        low, high = (_shown(times * found[end], digits) for end in ("low", "high"))
        below = f"[{low}, {high}]"
    count = f"n = {found['n']}" if found["n"] != runs else ""
    return _over(minus(text), minus(below), count)


def _means(
    study: Study, summary: Found, columns: Sequence[str], digits: str, title: str
) -> Table | None:
    if not columns:
        return None
    rows: list[list[str]] = []
    for label in study.variants:
        arm = summary["variants"].get(label)
        if arm is None:
            continue
        count = str(arm["completed"])
        count += f" of {arm['runs']}" if arm["completed"] != arm["runs"] else ""
        formats = {column: ".4f" if column == LOSS else digits for column in columns}
        cells = [_mean(arm["columns"].get(c), c, f, arm["completed"]) for c, f in formats.items()]
        rows.append([label, count, *cells])
    return Table(["arm", "runs", *map(percented, columns)], rows, title, _MEANS)


_MEANS = "Mean ± standard deviation over runs, below it the 95% confidence interval of the mean."


def arms(study: Study, summary: Found) -> Table | None:
    """Mean, std, n and interval of each arm."""
    of_arms = summary["variants"].values()
    told = (*study.outcomes, "sparsity")
    columns = [c for c in told if any(c in arm["columns"] for arm in of_arms)]
    return _means(study, summary, columns, ".2f", "Arms")


def measures(study: Study, summary: Found) -> Table | None:
    """Mean, std and interval of each measured column."""
    return _means(study, summary, measure_columns(study.good), ".4g", "Measures")


def p_text(p: float | None, symbol: str = "p") -> str:
    """`p = 0.013`."""
    if p is None:
        return ""
    return f"{symbol} = {p:.3f}" if p >= 0.001 else f"{symbol} < 0.001"


def _difference(found: Found | None, column: str) -> str | Markup:
    """`+0.52` with interval, p and Holm's p below."""
    if not found or found["difference"] is None:
        return DASH
    times = factor(column)
    digits = 2 if times == 100 else 3
    text = minus(f"{times * found['difference']:+.{digits}f}")
    if found["low"] is None:
        return _over(text, f"n = {found['n']}")
    below = interval(times * found["low"], times * found["high"], digits, sign="+")
    ps = [p_text(found["p"])]
    if found.get("p_holm") is not None:
        ps.append(p_text(found["p_holm"], "Holm") + (" *" if found["p_holm"] < 0.05 else ""))
    return _over(text, below, ", ".join(ps), f"n = {found['n']}")


def differences(study: Study, summary: Found) -> Table | None:
    """What each arm gains over its baseline, paired by seed."""
    paired, baselines = summary["paired"]["variants"], summary["paired"]["baselines"]
    if not paired:
        return None
    shared = len(set(baselines.values())) == 1
    columns = [c for c in study.outcomes if any(c in p for p in paired.values())]
    rows: list[list[str]] = [
        [label, *([] if shared else [baselines[label]])]
        + [_difference(paired[label].get(c), c) for c in columns]
        for label in study.variants
        if label in paired
    ]
    to = next(iter(baselines.values())) if shared else "the unpruned arm"
    heads = [f"{name(c)}, points" if factor(c) == 100 else name(c) for c in columns]
    in_points = "" if LOSS in columns else " in percentage points"
    return Table(
        ["arm", *([] if shared else [f"{MINUS} arm"]), *heads],
        rows,
        f"Differences to {to}",
        f"Mean difference{in_points} over the seeds that both arms have, with its paired "
        "95% t interval and two-sided p; Holm: the p corrected for the number of arms in that "
        "column, * where it is below 0.05. No interval below three seeds, or where the "
        "differences vary by no more than rounding.",
    )


def tests(summary: Found) -> Table | None:
    """Welch's t-tests between the arms that the config names."""
    rows = []
    for test in summary["welch"]:
        for column in ("best_test_accuracy", "final_test_accuracy", "mean_stability"):
            found = test["columns"].get(column)
            if found is None or found["p"] is None:
                continue
            rows.append({
                "arms": f"{test['a']} {MINUS} {test['b']}",
                "column": name(column),
                "difference, points": minus(f"{100 * found['difference']:+.2f}"),
                "95% interval": interval(100 * found["low"], 100 * found["high"], sign="+"),
                "t": _r(found["t"]),
                "p": f"{found['p']:.2g}",
                "Cohen's d": _r(found["d"]),
            })  # fmt: skip
    return Table.of(rows, "Welch's t-tests")


def claims(summary: Found) -> Table | None:
    """What the study claims, with the numbers of its verdicts."""
    rows = []
    for claim in summary.get("claims") or []:
        times = factor(claim["column"])
        low, high = (None if claim[k] is None else times * claim[k] for k in ("low", "high"))
        known = claim["difference"] is not None
        rows.append({
            "claim": f"{claim['a']} {claim['direction']} {claim['b']}",
            "about": name(claim["column"]),
            "difference": minus(f"{times * claim['difference']:+.2f}") if known else DASH,
            "95% interval": interval(low, high, sign="+") or DASH,
            "seeds": str(claim["n"]),
            "p": DASH if claim["p"] is None else f"{claim['p']:.2g}",
            "Holm p": DASH if claim["p_holm"] is None else f"{claim['p_holm']:.2g}",
            "verdict": ": ".join(p for p in (claim["verdict"], claim.get("reason")) if p),
        })  # fmt: skip
    text = "Paired by seed; Holm's correction goes over the claims of this page."
    return Table.of(rows, "Claims", text, "text")


def relations(summary: Found) -> Table | None:
    """Stability and accuracy: over runs, between and within arms, and two intervals."""
    rows = []
    for found in summary.get("relations") or []:
        these, general = found["these_arms"], found["arms_in_general"]
        pair = {"x": name(found["x"]), "y": name(found["y"])}
        beyond = found["reason"] or DASH
        if general:
            beyond = f"{general['value']:.2f} {interval(general['low'], general['high'])}"
        within, between = found["within"], found["between"]
        counts = ", ".join(count(found[f"n_{what}s"], what) for what in ("run", "arm", "seed"))
        runs = _scope(found["scope"]).removeprefix("group: ")
        rows.append({
            "quantities": f"{pair['x']} and {pair['y']}",
            "runs": _over(runs, counts),
            "r, τ over runs": _two(found),
            "r, τ between arms": _two(between),
            "r within arms": _over(_r(within["pearson"]), p_text(within.get("p"))),
            "r for these arms: 95% interval": interval(these["low"], these["high"]) or DASH,
            "r for arms in general: 95% interval": minus(beyond),
            "what can be said": found["sentence"].format(**pair),
        })  # fmt: skip
    text = (
        f"For these arms: would other seeds give this sign ({summary['methods']['clustered']})? "
        "For arms in general: would other arms? Arms are the unit, so that more seeds cannot make "
        "up for few arms; only this interval can carry a sentence on the tradeoff."
    )
    return Table.of(rows, "Stability and accuracy", text, "text")


def _scope(name: str) -> str:
    """Which runs, in words; the name of a group is a label, and stays as it is."""
    return name if name.startswith("group: ") else name.replace("_", " ")


def _r(value: float | None) -> str:
    return DASH if value is None else minus(f"{value:.2f}")


def _two(found: Found) -> str:
    return f"{_r(found['pearson'])}, {_r(found['kendall'])}"


def events(study: Study) -> Table | None:
    """Per arm: events, units removed, mean and largest instability."""
    rows = []
    kinds = {study.attribute(label, "granularity") == "weight" for label in study.events_of}
    units = {(True,): "weights", (False,): "units"}.get(tuple(kinds), "units or weights")
    for label, own in study.events_of.items():
        runs = {row["run"] for row in own}
        # layers of one event share its number: once
        drops = [number(layers[0]["instability"]) for layers in by_event(own)]
        found = np.array([d for d in drops if isfinite(d)])
        removed = sum(number(row["targeted"]) for row in own) / len(runs)
        mean, most = (100 * found.mean(), 100 * found.max()) if found.size else (None, None)
        row = {
            "arm": label,
            "events per run": f"{len(drops) / len(runs):g}",
            "layers": str(len({row["layer"] for row in own})),
            f"{units} targeted per run": _shown(removed, "g"),
        }
        if study.has_accuracy:
            row |= {"mean instability, %": _r(mean), "largest instability, %": _r(most)}
        rows.append(row)
    text = (
        "Instability is the fall of test accuracy at an event relative to the accuracy before it. "
        * study.has_accuracy
        + "Layers pruned in one epoch are one event."
    )
    return Table.of(rows, "Pruning events", text)


def correlations(summary: Found) -> Table | None:
    """Every correlation of the summary."""
    rows = []
    for scope, columns in summary["correlations"].items():
        for x, others in columns.items():
            for y, found in others.items():
                r = found["pearson"]
                if r["value"] is not None:
                    rows.append({
                        "columns": f"{name(x)} and {name(y)}",
                        "runs": _scope(scope),
                        "Pearson r": _r(r["value"]),
                        "95% interval for these arms": interval(r["low"], r["high"]) or DASH,
                        "Kendall τ": _r(found["kendall"]["value"]),
                        "n": str(r["n"]),
                    })  # fmt: skip
    text = f"Over runs; the intervals: {summary['methods']['clustered']}."
    return Table.of(rows, "All correlations", text, "text")


def all_of(study: Study, summary: Found) -> list[Table]:
    """The tables after the figures, in order."""
    found = (
        *(claims(summary), relations(summary), arms(study, summary), differences(study, summary)),
        *(tests(summary), measures(study, summary), events(study)),
    )
    return [table for table in found if table is not None]
