"""What the page says about the results: sentences and tables, as HTML."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite, nan
from typing import Any

import numpy as np

from prunejax.measures.statistics import Correlation
from prunejax.measures.summary import OUTCOMES, by_variant, measure_columns, number
from prunejax.report.markup import minus, name, table
from prunejax.report.results import Study
from prunejax.report.style import DASH, MINUS, with_interval

_COLUMNS = ("mean_stability", *OUTCOMES, "sparsity")


def lead(study: Study) -> str:
    """What was run, in a sentence."""
    config, arms = study.config, study.variants
    runs = len({row["run"] for row in [*study.runs, *study.epochs]})
    data = config.get("data") or {}
    models = dict.fromkeys(study.attribute(arm, "model") for arm in arms)
    models.pop(None, None)
    named = f" ({', '.join(arms)})" if len(arms) <= 8 else ""
    facts = [f"{runs} runs: {len(arms)} arms{named}"]
    if data.get("name"):
        size = f", {data['train_examples']} training examples" if data.get("train_examples") else ""
        facts.append(f"data set {data['name']}{size}")
    if models:
        facts.append(f"network {', '.join(models)}")
    if config.get("epochs"):
        facts.append(f"{config['epochs']} epochs of batches of {config.get('batch_size', '?')}")
    return "; ".join(facts) + "."


def _correlation(found: Mapping[str, Any]) -> Correlation:
    values: dict[str, Any] = {k: np.nan if v is None else v for k, v in found.items()}
    return Correlation(**values)


def findings(study: Study, summary: Mapping[str, Any]) -> str:
    """What the numbers carry about the tradeoff, and no more."""
    arms = {
        label: arm["columns"].get("mean_stability", {}).get("mean")
        for label, arm in summary["variants"].items()
    }
    order = sorted((v, k) for k, v in arms.items() if v is not None)[::-1]
    lines = []
    if 1 < len(order) <= 8:
        lines.append(
            "Stability, highest first: "
            + ", ".join(f"{escape(k)} {100 * v:.1f}%" for v, k in order)
            + "."
        )
    scopes = summary["correlations"]
    groups = [s for s in scopes if s.startswith("group: ")]
    text = "".join(f"<p>{line}</p>" for line in lines)
    if groups:
        return text + f"<p>{_verdicts(scopes, groups)}</p>" + _groups(scopes, groups)
    scope = next(s for s in ("selected", "runs_with_events", "all_runs") if s in scopes)
    for y in ("final_test_accuracy", "best_test_accuracy"):
        r = _stability_r(scopes[scope], y)
        if isfinite(r.low):
            found = f"{with_interval('r', r)}; {_verdict(r)}"
            text += f"<p>Stability and {name(y)} ({r.n} {name(scope)}): {found}.</p>"
    return text


def _stability_r(scope: Mapping[str, Any], column: str) -> Correlation:
    """Pearson's r of stability and a column; NaN where there is none."""
    pair = scope.get("mean_stability", {}).get(column)
    return _correlation(pair["pearson"]) if pair else Correlation(0, nan, nan, nan, nan)


def _verdict(r: Correlation) -> str:
    if r.high < 0:
        return "less stable runs were more accurate"
    if r.low > 0:
        return "less stable runs were less accurate"
    return "the interval contains zero: no sign can be claimed"


def _groups(scopes: Mapping[str, Any], groups: Sequence[str]) -> str:
    rows = []
    for group in groups:
        final, best = (_stability_r(scopes[group], f"{y}_test_accuracy") for y in ("final", "best"))
        words = _verdict(best) if isfinite(best.low) else "too few runs with events"
        cells = [with_interval("r", final), with_interval("r", best), str(best.n), words]
        rows.append([escape(group.removeprefix("group: ")), *cells])
    head = [
        "runs with events of",
        "stability, final accuracy",
        "stability, best accuracy",
        "n",
        "best accuracy",
    ]
    return table(head, rows, "text")


def _verdicts(scopes: Mapping[str, Any], groups: Sequence[str]) -> str:
    """In how many groups the tradeoff holds, is turned round, or cannot be told."""
    counts = {"below": 0, "above": 0, "open": 0}
    for group in groups:
        r = _stability_r(scopes[group], "best_test_accuracy")
        counts["below" if r.high < 0 else "above" if r.low > 0 else "open"] += 1
    return (
        f"In {len(groups)} groups of arms, the 95% interval of the correlation of stability and "
        f"best accuracy lies below zero (the tradeoff holds) in {counts['below']}, above zero in "
        f"{counts['above']}, and contains zero or is undefined in {counts['open']}."
    )


def _mean(found: Mapping[str, Any] | None) -> str:
    """`93.12 ± 0.40` with the interval below, in percent."""
    if not found or found["mean"] is None:
        return DASH
    text = f"{100 * found['mean']:.2f}"
    if found["std"] is not None:
        text += f" ± {100 * found['std']:.2f}"
        text += f"<small>[{100 * found['low']:.2f}, {100 * found['high']:.2f}]</small>"
    return minus(text)


def _difference(found: Mapping[str, Any] | None) -> str:
    """`+0.52 p = 0.01` with the interval below, in percentage points."""
    if not found or found["difference"] is None:
        return DASH
    text = f"{100 * found['difference']:+.2f}"
    if found["low"] is None:
        return minus(text)
    p = f"p = {found['p']:.3f}" if found["p"] >= 0.001 else "p &lt; 0.001"
    interval = f"[{100 * found['low']:+.2f}, {100 * found['high']:+.2f}]"
    return minus(f"{text}<small>{interval}</small><small>{p}, n = {found['n']}</small>")


def arms(study: Study, summary: Mapping[str, Any]) -> str:
    """Mean, std, n and interval of each arm, and its paired difference to the baseline."""
    columns = [
        c for c in _COLUMNS if any(c in arm["columns"] for arm in summary["variants"].values())
    ]
    head = ["arm", "runs", *(f"{name(c)}, %" for c in columns)]
    rows = []
    for label in study.variants:
        arm = summary["variants"].get(label)
        if arm is None:
            continue
        count = str(arm["completed"])
        if arm["completed"] != arm["runs"]:
            count += f" of {arm['runs']}"
        rows.append([escape(label), count, *(_mean(arm["columns"].get(c)) for c in columns)])
    return (
        "<p>Mean ± standard deviation over runs, below it the 95% confidence interval of the "
        "mean.</p>" + table(head, rows)
    )


def measures(study: Study, summary: Mapping[str, Any]) -> str:
    """Mean, std and interval of each measured column."""
    columns = measure_columns(study.good)
    if not columns:
        return ""
    rows = [
        [escape(label), *(_plain(summary["variants"][label]["columns"].get(c)) for c in columns)]
        for label in study.variants
        if label in summary["variants"]
    ]
    return (
        "<h2>Measures</h2><p>Mean ± standard deviation over runs, below it the 95% confidence "
        "interval of the mean.</p>" + table(["arm", *map(name, columns)], rows)
    )


def _plain(found: Mapping[str, Any] | None) -> str:
    """`293 ± 12` with the interval below, four digits."""
    if not found or found["mean"] is None:
        return DASH
    text = f"{found['mean']:.4g}"
    if found["std"] is not None:
        text += f" ± {found['std']:.3g}<small>[{found['low']:.4g}, {found['high']:.4g}]</small>"
    return minus(text)


def differences(study: Study, summary: Mapping[str, Any]) -> str:
    """What each arm gains over its baseline, paired by seed."""
    paired, baselines = summary["paired"]["variants"], summary["paired"]["baselines"]
    if not paired:
        return ""
    shared = len(set(baselines.values())) == 1
    columns = [c for c in ("mean_stability", *OUTCOMES) if any(c in p for p in paired.values())]
    rows = [
        [escape(label), *([] if shared else [escape(baselines[label])])]
        + [_difference(paired[label].get(c)) for c in columns]
        for label in study.variants
        if label in paired
    ]
    to = f"<i>{escape(next(iter(baselines.values())))}</i>" if shared else "the unpruned arm"
    head = ["arm", *([] if shared else [f"{MINUS} arm"]), *(f"{name(c)}, points" for c in columns)]
    return (
        f"<h2>Differences to {to}</h2><p>Mean difference in percentage points over the seeds that "
        "both arms have, with its paired 95% t interval and two-sided p (not corrected for the "
        "number of comparisons).</p>" + table(head, rows)
    )


def comparisons(study: Study) -> list[tuple[str, str]]:
    """`config.report.tests`: pairs "a:b" of arms."""
    found = []
    for pair in study.report_option("tests", ()):
        a, separator, b = pair.partition(":")
        if not separator:
            raise ValueError(f"config.report.tests: {pair!r} is no pair of variants like 'a:b'")
        found.append((a, b))
    return found


def tests(summary: Mapping[str, Any]) -> str:
    """Welch's t-tests between the arms that the config names."""
    rows = []
    for test in summary["welch"]:
        for column in ("best_test_accuracy", "final_test_accuracy", "mean_stability"):
            found = test["columns"].get(column)
            if found is None or found["p"] is None:
                continue
            t = DASH if found["t"] is None else f"{found['t']:.2f}"
            rows.append(
                [
                    f"{escape(test['a'])} {MINUS} {escape(test['b'])}",
                    name(column),
                    minus(f"{100 * found['difference']:+.2f}"),
                    minus(f"[{100 * found['low']:+.2f}, {100 * found['high']:+.2f}]"),
                    minus(t),
                    f"{found['p']:.2g}",
                    DASH if found["d"] is None else minus(f"{found['d']:.2f}"),
                ]
            )
    if not rows:
        return ""
    head = ["arms", "column", "difference, points", "95% interval", "t", "p", "Cohen's d"]
    return "<h2>Welch's t-tests</h2>" + table(head, rows)


def events(study: Study) -> str:
    """Per arm: events, units removed, mean and largest instability."""
    rows = []
    for label, own in by_variant(study.events).items():
        runs = {row["run"] for row in own}
        drops = {(r["run"], r["epoch"]): number(r["instability"]) for r in own}
        found = np.array([d for d in drops.values() if isfinite(d)])
        removed = sum(number(row["targeted"]) for row in own) / len(runs)
        rows.append(
            [
                escape(label),
                f"{len(drops) / len(runs):g}",
                str(len({row["layer"] for row in own})),
                f"{removed:g}",
                minus(f"{100 * found.mean():.2f}") if found.size else DASH,
                minus(f"{100 * found.max():.2f}") if found.size else DASH,
            ]
        )
    if not rows:
        return "<p>No run had a pruning event.</p>"
    head = ["arm", "events per run", "layers", "units targeted per run"]
    head += ["mean instability, %", "largest instability, %"]
    return (
        "<p>Instability is the fall of test accuracy at an event relative to the accuracy before "
        "it; layers pruned in one epoch are one event.</p>" + table(head, rows)
    )


def correlation_table(summary: Mapping[str, Any]) -> str:
    """Every correlation of the summary."""
    rows = []
    for scope, columns in summary["correlations"].items():
        for x, others in columns.items():
            for y, found in others.items():
                r = _correlation(found["pearson"])
                tau = _correlation(found["kendall"])
                if isfinite(r.value):
                    p = f"{r.p:.2g}"
                    cells = [with_interval("r", r), p, with_interval("τ", tau), str(r.n)]
                    rows.append([f"{name(x)} and {name(y)}", name(scope), *cells])
    if not rows:
        return ""
    head = ["columns", "runs", "Pearson, 95% interval", "p", "Kendall, 95% interval", "n"]
    return "<details><summary>All correlations</summary>" + table(head, rows, "text") + "</details>"
