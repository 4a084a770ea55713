"""`summary.json`: what the rows of `runs.csv` say about each arm, claim and relation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import inf, isfinite
from typing import Any

from prunejax.measures import claims as claims_lib
from prunejax.measures import correlation, relations, statistics
from prunejax.measures.columns import (
    LABELS,
    OUTCOMES,
    Row,
    by_variant,
    is_completed,
    measure_columns,
    number,
    numeric_columns,
    pairs,
    resolutions,
    value,
)


def _compared(
    arms: Mapping[str, Sequence[Row]], a: str, b: str, column: str
) -> tuple[list[float], list[float]]:
    """The values that a claim compares: of two arms, or of an arm and a number."""
    if b not in arms and isfinite(number(b)):
        values = [value(row, column) for row in arms.get(a, ())]
        return values, [number(b)] * len(values)
    return pairs(arms.get(a, ()), arms.get(b, ()), column)


def correlate(rows: Sequence[Row], x: str, y: str) -> dict[str, Any]:
    """Pearson, Kendall and Spearman of two columns over runs, with seeds as blocks."""
    a, b = [value(row, x) for row in rows], [value(row, y) for row in rows]
    seeds = [row["seed"] for row in rows]
    return {
        kind: asdict(correlation.clustered(a, b, seeds, kind))
        for kind in ("pearson", "kendall", "spearman")
    }


def correlations(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """`[x][y]`: stability against outcomes and measures, each measure against the outcomes."""
    columns = numeric_columns(rows)
    outcomes = [c for c in OUTCOMES if c in columns]
    measures = measure_columns(rows)
    found = {"mean_stability": {y: correlate(rows, "mean_stability", y) for y in outcomes}}
    for measure in measures:
        found["mean_stability"][measure] = correlate(rows, "mean_stability", measure)
        found[measure] = {y: correlate(rows, measure, y) for y in outcomes}
    return found


def summarize(
    rows: Sequence[Row],
    *,
    baseline: str = "none",
    baselines: Mapping[str, str] | None = None,
    selected: Sequence[str] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    comparisons: Sequence[Sequence[str]] = (),
    claims: Sequence[str | claims_lib.Claim] = (),
    test_examples: int = 0,
    pooled: Sequence[str] | None = None,
    withheld: str = "",
) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
      rows: rows of `runs.csv` (text or numbers), all arms.
      baseline: the arm that the others are compared with, seed by seed.
      baselines: arm -> its own baseline; one that is not there is compared with none. None: all
        with `baseline`.
      selected: arms of one more set of correlations, e.g. those of the paper's figure 2.
      groups: name -> arms that are alike but for pruning; correlations are given for each.
      comparisons: pairs of arms for Welch's test, e.g. `[("Prune_L", "Prune_S")]`.
      claims: lines of `config.report.claims` (`measures.claims`), or what they say.
      test_examples: of the test split; 0: not known. A spread below one example is rounding.
      pooled: arms whose accuracies are on one test set: correlations are over no others (but for
        `groups`, and `selected` where it has none of them). None: all.
      withheld: a key of `claims.WITHHELD`: why no verdicts are given.

    Returns:
      A JSON-able dict; undefined numbers are None. Correlations are given over all runs and over
      the runs with events (runs without have stability 1 by convention, not by measurement).
    """
    good = [row for row in rows if is_completed(row)]  # a run that stopped has no outcome
    columns = numeric_columns(good)
    arms = by_variant(rows)
    complete = {name: [row for row in arm if is_completed(row)] for name, arm in arms.items()}
    steps = resolutions(columns, test_examples)
    variants = {
        name: {
            "runs": len(arm),
            "completed": len(complete[name]),
            "columns": {
                c: asdict(
                    statistics.mean(
                        [value(row, c) for row in complete[name]], resolution=steps.get(c, 0.0)
                    )
                )
                for c in columns
            },
        }
        for name, arm in arms.items()
    }
    one = [row for row in good if pooled is None or row["variant"] in pooled]
    scopes = {"all_runs": one, "runs_with_events": _eventful(one)}
    if selected:
        own, whole = ([r for r in of if r["variant"] in selected] for of in (one, good))
        scopes["selected"] = own or whole
    for name, members in (groups or {}).items():
        scopes[f"group: {name}"] = [row for row in _eventful(good) if row["variant"] in members]
    of = {name: baseline if baselines is None else baselines.get(name, "") for name in complete}
    paired = {
        name: {
            c: asdict(
                statistics.paired(*pairs(arm, complete[of[name]], c), resolution=steps.get(c, 0.0))
            )
            for c in columns
        }
        for name, arm in complete.items()
        if name != of[name] and complete.get(of[name])
    }
    for c in columns:  # one family: the arms, in one column
        for name, p in zip(
            paired, statistics.holm([arm[c]["p"] for arm in paired.values()]), strict=True
        ):
            paired[name][c]["p_holm"] = p
    judged = claims_lib.judge(
        [claims_lib.parse(claim) if isinstance(claim, str) else claim for claim in claims],
        lambda a, b, c: _compared(complete, a, b, c),
        steps,
        withheld,
    )
    tests = [
        {"a": a, "b": b, "columns": _welch(complete[a], complete[b], columns, steps)}
        for a, b in comparisons
        if complete.get(a) and complete.get(b)
    ]
    stopped = [
        {"run": row["run"], "status": row["status"]} for row in rows if not is_completed(row)
    ]
    summary = {
        "runs": len(rows),
        "stopped": stopped,
        "confidence": 0.95,
        "methods": statistics.METHODS,
        "notes": [*_beyond(variants), *_left_out(complete), *_other_data(good, one)],
        "claims": judged,
        "relations": _relations(scopes, withheld),
        "variants": variants,
        "correlations": {name: correlations(scope) for name, scope in scopes.items()},
        "paired": {
            "baseline": baseline,
            "baselines": {name: of[name] for name in paired},
            "variants": paired,
        },
        "welch": tests,
    }
    return jsonable(summary)


def _relations(scopes: Mapping[str, Sequence[Row]], withheld: str) -> list[dict[str, Any]]:
    """Stability against accuracy: for each group of arms, or for the arms with events."""
    groups = [name for name in scopes if name.startswith("group: ")]
    chosen = groups or ["selected" if "selected" in scopes else "runs_with_events"]
    found = []
    for scope in chosen:
        for y in ("final_test_accuracy", "best_test_accuracy"):  # `sentences` corrects for both
            values: dict[str, dict[str, tuple[float, float]]] = {}
            for row in scopes[scope]:
                pair = (value(row, "mean_stability"), value(row, y))
                if isfinite(pair[0]) and isfinite(pair[1]):
                    values.setdefault(str(row["variant"]), {})[str(row["seed"])] = pair
            if len(values) > 1:
                found.append(relations.relate(values, "mean_stability", y, scope))
    relations.sentences(found, withheld)
    return found


def _eventful(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if number(row.get("events")) > 0]


def _other_data(good: Sequence[Row], one: Sequence[Row]) -> list[str]:
    """Arms that no correlation is over, for they are tested on other data."""
    here = {row["variant"] for row in one}
    others = list(dict.fromkeys(str(r["variant"]) for r in good if r["variant"] not in here))
    if not others:
        return []
    return [f"Tested on other data, and in no correlation over all runs: {_first(others)}."]


_NAMED = 3  # arms that a note names; of more it gives the number


def _left_out(arms: Mapping[str, Sequence[Row]]) -> list[str]:
    """Runs whose number is infinite, e.g. a noise scale whose mean gradient may be zero."""
    columns = dict.fromkeys(c for rows in arms.values() for row in rows[:1] for c in row)
    infinite = []
    for column in columns:
        if column in LABELS:
            continue
        counts = {k: sum(abs(number(r.get(column))) == inf for r in arms[k]) for k in arms}
        own = {name: count for name, count in counts.items() if count}
        what = column.replace("_", " ")
        if len(own) > _NAMED:
            infinite.append(f"{what} in {sum(own.values())} runs of {len(own)} arms")
        else:
            infinite += [f"{what} of {k} ({n} of {len(arms[k])} runs)" for k, n in own.items()]
    if not infinite:
        return []
    return [
        f"Infinite, and not in means, intervals and tests: {_first(infinite)}. What is shown is "
        "about the other runs alone (n), and too small where the infinite ones are the largest."
    ]


def _first(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _beyond(variants: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Fractions with an interval that passes 0 or 100 %."""
    beyond = [
        f"{name} ({column.replace('_', ' ')})"
        for name, arm in variants.items()
        for column, found in arm["columns"].items()
        if column in (*OUTCOMES[:3], "mean_stability") and (found["high"] > 1 or found["low"] < 0)
    ]
    if not beyond:
        return []
    return [
        f"Some intervals of fractions pass 0 or 100 %: {_first(beyond)}. They are symmetric t "
        "intervals and are not cut: such a width says that the runs are too few, or too close to "
        "the bound, for a t interval to be sharp."
    ]


def _welch(
    a: Sequence[Row], b: Sequence[Row], columns: Sequence[str], steps: Mapping[str, float]
) -> dict[str, Any]:
    return {
        c: asdict(
            statistics.welch(
                [value(r, c) for r in a], [value(r, c) for r in b], resolution=steps.get(c, 0.0)
            )
        )
        for c in columns
    }


def jsonable(content: Any) -> Any:
    """Replaces NaN and infinities, which JSON does not have, by None."""
    if isinstance(content, Mapping):
        return {str(key): jsonable(item) for key, item in content.items()}
    if isinstance(content, list | tuple):
        return [jsonable(item) for item in content]
    if isinstance(content, float):
        return float(content) if isfinite(content) else None
    return content
