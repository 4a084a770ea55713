"""The tables of the page, as data: `page.html` turns them into HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from markupsafe import Markup

from prunejax.measures.columns import LOSS, by_variant, measure_columns, number
from prunejax.report.results import Study
from prunejax.report.words import DASH, MINUS, factor, interval, minus, name, percented

Found = Mapping[str, Any]


@dataclass
class Table:
    """A table; the first cell of a row names it. Cells of `Markup` are HTML already."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    text: str = ""  # above it
    kind: str = ""  # "text": cells hold text, not numbers


def small(*lines: str) -> Markup:
    """Lines below the number of a cell."""
    return Markup("").join(Markup("<small>{}</small>").format(line) for line in lines if line)


def _mean(found: Found | None, column: str, digits: str, runs: int) -> str | Markup:
    """`93.12 ± 0.40` with the interval below, and n where it is not the number of runs."""
    if not found or found["mean"] is None:
        return DASH
    times = factor(column)
    text = format(times * found["mean"], digits)
    if found["std"] is not None:
        text += f" ± {times * found['std']:{digits}}"
    below = ""
    if found["low"] is not None:
        below = f"[{times * found['low']:{digits}}, {times * found['high']:{digits}}]"
    count = f"n = {found['n']}" if found["n"] != runs else ""
    return Markup("{}{}").format(minus(text), small(minus(below), count))


def _means(study: Study, summary: Found, columns: Sequence[str], digits: str) -> list[list[str]]:
    rows = []
    for label in study.variants:
        arm = summary["variants"].get(label)
        if arm is None:
            continue
        count = str(arm["completed"])
        count += f" of {arm['runs']}" if arm["completed"] != arm["runs"] else ""
        cells = [
            _mean(
                arm["columns"].get(column),
                column,
                ".4f" if column == LOSS else digits,
                arm["completed"],
            )
            for column in columns
        ]
        rows.append([label, count, *cells])
    return rows


_MEANS = "Mean ± standard deviation over runs, below it the 95% confidence interval of the mean."


def arms(study: Study, summary: Found) -> Table | None:
    """Mean, std, n and interval of each arm."""
    of_arms = summary["variants"].values()
    told = (*study.outcomes, "sparsity")
    columns = [c for c in told if any(c in arm["columns"] for arm in of_arms)]
    if not columns:
        return None
    head = ["arm", "runs", *map(percented, columns)]
    return Table(head, _means(study, summary, columns, ".2f"), "Arms", _MEANS)


def measures(study: Study, summary: Found) -> Table | None:
    """Mean, std and interval of each measured column."""
    columns = measure_columns(study.good)
    if not columns:
        return None
    head = ["arm", "runs", *map(percented, columns)]
    return Table(head, _means(study, summary, columns, ".4g"), "Measures", _MEANS)


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
        return Markup("{}{}").format(text, small(f"n = {found['n']}"))
    below = interval(times * found["low"], times * found["high"], digits, sign="+")
    ps = [p_text(found["p"])]
    if found.get("p_holm") is not None:
        ps.append(p_text(found["p_holm"], "Holm") + (" *" if found["p_holm"] < 0.05 else ""))
    return Markup("{}{}").format(text, small(below, ", ".join(ps), f"n = {found['n']}"))


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
            rows.append(
                [
                    f"{test['a']} {MINUS} {test['b']}",
                    name(column),
                    minus(f"{100 * found['difference']:+.2f}"),
                    interval(100 * found["low"], 100 * found["high"], sign="+"),
                    DASH if found["t"] is None else minus(f"{found['t']:.2f}"),
                    f"{found['p']:.2g}",
                    DASH if found["d"] is None else minus(f"{found['d']:.2f}"),
                ]
            )
    head = ["arms", "column", "difference, points", "95% interval", "t", "p", "Cohen's d"]
    return Table(head, rows, "Welch's t-tests") if rows else None


def claims(summary: Found) -> Table | None:
    """What the study claims, with the numbers of its verdicts."""
    rows = []
    for claim in summary.get("claims") or []:
        times = factor(claim["column"])
        known = claim["difference"] is not None
        rows.append(
            [
                f"{claim['a']} {claim['direction']} {claim['b']}",
                name(claim["column"]),
                minus(f"{times * claim['difference']:+.2f}") if known else DASH,
                interval(_times(times, claim["low"]), _times(times, claim["high"]), sign="+")
                or DASH,
                str(claim["n"]),
                DASH if claim["p"] is None else f"{claim['p']:.2g}",
                DASH if claim["p_holm"] is None else f"{claim['p_holm']:.2g}",
                ": ".join(part for part in (claim["verdict"], claim.get("reason")) if part),
            ]
        )
    head = ["claim", "about", "difference", "95% interval", "seeds", "p", "Holm p", "verdict"]
    text = "Paired by seed; Holm's correction goes over the claims of this page."
    return Table(head, rows, "Claims", text, "text") if rows else None


def _times(times: int, x: float | None) -> float | None:
    return None if x is None else times * x


def relations(summary: Found) -> Table | None:
    """Stability and accuracy: over runs, between and within arms, and two intervals."""
    rows = []
    for found in summary.get("relations") or []:
        these, general = found["these_arms"], found["arms_in_general"]
        here = interval(these["low"], these["high"])
        pair = {"x": name(found["x"]), "y": name(found["y"])}
        beyond = found["reason"] or DASH
        if general:
            beyond = f"{general['value']:.2f} {interval(general['low'], general['high'])}"
        within = found["within"]
        runs = found["scope"].removeprefix("group: ").replace("_", " ")
        rows.append(
            [
                f"{pair['x']} and {pair['y']}",
                Markup("{}{}").format(
                    runs,
                    small(
                        f"{found['n_runs']} runs, {found['n_arms']} arms, {found['n_seeds']} seeds"
                    ),
                ),
                _two(found["pearson"], found["kendall"]),
                _two(found["between"]["pearson"], found["between"]["kendall"]),
                Markup("{}{}").format(_r(within["pearson"]), small(p_text(within.get("p")))),
                here or DASH,
                minus(beyond),
                found["sentence"].format(**pair),
            ]
        )
    if not rows:
        return None
    head = ["quantities", "runs", "r, τ over runs", "r, τ between arms", "r within arms",
            "r for these arms: 95% interval", "r for arms in general: 95% interval",
            "what can be said"]  # fmt: skip
    text = (
        f"For these arms: would other seeds give this sign ({summary['methods']['clustered']})? "
        "For arms in general: would other arms? Arms are the unit, so that more seeds cannot make "
        "up for few arms; only this interval can carry a sentence on the tradeoff."
    )
    return Table(head, rows, "Stability and accuracy", text, "text")


def _r(value: float | None) -> str:
    return DASH if value is None else minus(f"{value:.2f}")


def _two(r: float | None, tau: float | None) -> str:
    return f"{_r(r)}, {_r(tau)}"


def events(study: Study) -> Table | None:
    """Per arm: events, units removed, mean and largest instability."""
    rows = []
    for label, own in by_variant(study.events).items():
        runs = {row["run"] for row in own}
        # layers of one event share its number: once
        drops = {(r["run"], r["epoch"], r["step"]): number(r["instability"]) for r in own}
        found = np.array([d for d in drops.values() if isfinite(d)])
        removed = sum(number(row["targeted"]) for row in own) / len(runs)
        rows.append(
            [
                label,
                f"{len(drops) / len(runs):g}",
                str(len({row["layer"] for row in own})),
                f"{removed:g}",
                minus(f"{100 * found.mean():.2f}") if found.size else DASH,
                minus(f"{100 * found.max():.2f}") if found.size else DASH,
            ]
        )
    head = ["arm", "events per run", "layers", "units targeted per run"]
    head += ["mean instability, %", "largest instability, %"]
    text = (
        "Instability is the fall of test accuracy at an event relative to the accuracy before "
        "it; layers pruned in one epoch are one event."
    )
    return Table(head, rows, "Pruning events", text) if rows else None


def correlations(summary: Found) -> Table | None:
    """Every correlation of the summary."""
    rows = []
    for scope, columns in summary["correlations"].items():
        for x, others in columns.items():
            for y, found in others.items():
                r = found["pearson"]
                if r["value"] is not None:
                    pair = f"{name(x)} and {name(y)}"
                    block = interval(r["low"], r["high"]) or DASH
                    tau = _r(found["kendall"]["value"])
                    rows.append([pair, name(scope), _r(r["value"]), block, tau, str(r["n"])])
    head = ["columns", "runs", "Pearson r", "95% interval for these arms", "Kendall τ", "n"]
    text = f"Over runs; the intervals: {summary['methods']['clustered']}."
    return Table(head, rows, "All correlations", text, "text") if rows else None


def all_of(study: Study, summary: Found) -> list[Table]:
    """The tables after the figures, in order."""
    found = [
        claims(summary),
        relations(summary),
        arms(study, summary),
        differences(study, summary),
        tests(summary),
        measures(study, summary),
        events(study),
    ]
    return [table for table in found if table is not None]
