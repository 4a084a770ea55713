"""What stands first: a sentence per claim, and the differences of all arms to the baseline."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from prunejax.measures.claims import WITHHELD
from prunejax.measures.columns import LOSS
from prunejax.report import figures_predictors, panels, ranking, words
from prunejax.report.results import Study
from prunejax.report.words import count, factor, interval, minus, name

Found = Mapping[str, Any]
_DATA = ("name", "train_examples")
_MANY = 8  # more arms than this have one line each
_FIRST = 16  # more arms than this would keep the figures off the first screens
_MAIN = "final_test_accuracy"
_SUMMED = 6  # more claims than this are counted in a line first


def lead(study: Study) -> str:
    """What was run, in a sentence."""
    arms = study.variants
    runs = len({row["run"] for row in [*study.runs, *study.epochs]})
    sets, sizes = (_each(study.settings(v, "data").get(k) for v in arms) for k in _DATA)
    models = dict.fromkeys(study.attribute(arm, "model") for arm in arms)
    models.pop(None, None)
    facts = [f"{count(runs, 'run')}, {count(len(arms), 'arm')}"]
    if sets:
        size = f", {_span(sizes, 'training example')}" if sizes and all(sizes) else ""
        facts.append(f"{_kinds('data set', sets)}{size}")
    if models:
        facts.append(_kinds("network", [str(model) for model in models]))
    epochs, batch = (
        _each(study.settings(v).get(k) for v in arms) for k in ("epochs", "batch_size")
    )
    if epochs:
        facts.append(f"{_span(epochs, 'epoch')} of batches of {_span(batch) or '?'}")
    return "; ".join(facts) + "."


def _each(values: Iterable[Any]) -> list[Any]:
    return [x for x in dict.fromkeys(values) if x is not None]


def _span(values: Sequence[Any], what: str = "") -> str:
    """`60`, or `60 to 240` where arms differ; with `what` as `60 epochs`."""
    span = " to ".join(str(x) for x in sorted({min(values), max(values)})) if values else ""
    return f"{span} {count(max(values), what).partition(' ')[2]}" if what else span


def _kinds(what: str, names: Sequence[str]) -> str:
    """`data set mnist`, `data sets mnist, digits`."""
    return f"{count(len(names), what).partition(' ')[2]} {', '.join(names)}"


def _main(summary: Found) -> str:
    """The outcome: the final accuracy, of a regression the final test loss."""
    known = {column for arm in summary["variants"].values() for column in arm["columns"]}
    return LOSS if LOSS in known else _MAIN


def _unit(column: str) -> str:
    return "points" if factor(column) == 100 else ""


def _amount(found: Found, column: str) -> str:
    """`+2.8 [+2.1, +3.6] points`."""
    times, digits = factor(column), 3 if column == LOSS else 2
    parts = [minus(f"{times * found['difference']:+.{digits}f}")]
    if found["low"] is not None:
        parts.append(interval(times * found["low"], times * found["high"], digits, sign="+"))
    return " ".join([*parts, _unit(column)]).strip()


@dataclass
class Result:
    """A line of the first screen."""

    verdict: str  # empty: it is no claim
    text: str


def results(study: Study, summary: Found) -> list[Result]:
    """A sentence per claim; where none is on the final accuracy, one on how arms compare in it."""
    found = []
    for claim in summary.get("claims") or []:
        text = f"{claim['a']} {claim['direction']} {claim['b']} in {name(claim['column'])}"
        facts = [f"n = {count(claim['n'], 'seed')}"]
        if claim["difference"] is not None:
            text += f": difference {_amount(claim, claim['column'])}"
        if claim["p_holm"] is not None:
            facts.append(panels.p_text(claim["p_holm"], "Holm p"))
        if claim.get("reason") and claim["verdict"] not in WITHHELD:
            facts.append(claim["reason"])
        found.append(Result(claim["verdict"], f"{text} ({', '.join(facts)})."))
    if any(result.verdict in WITHHELD for result in found):
        found.insert(0, Result("", f"{claim['reason'].capitalize()}."))
    elif len(found) > _SUMMED:
        counts = Counter(result.verdict for result in found)
        parts = [f"{counts[verdict]} {verdict}" for verdict in sorted(counts)]
        found.insert(0, Result("", f"{len(found)} claims: {', '.join(parts)}."))
    of_claims = {claim["column"] for claim in summary.get("claims") or []}
    ranked = ranking.of(study)
    rest = [] if _main(summary) in of_claims or ranked else _comparison(summary)
    if ranked:
        rest = [Result("", line) for line in figures_predictors.first_lines(*ranked)]
    if study.unfinished:
        for result in rest:
            result.text = f"So far: {result.text[0].lower()}{result.text[1:]}"
    completed = [arm["completed"] for arm in summary["variants"].values()]
    if completed and not any(completed) and not study.unfinished:
        rest = [Result("", "No run was completed: there is nothing to compare.")]
    return [*found, *rest]


def _comparison(summary: Found) -> list[Result]:
    """How many arms differ from the baseline in the final accuracy."""
    column = _main(summary)
    paired = summary["paired"]["variants"]
    judged = {v: arm[column] for v, arm in paired.items() if column in arm}
    known = {v: f for v, f in judged.items() if f.get("p_holm") is not None}
    if not judged:
        return []
    baselines = set(summary["paired"]["baselines"].values())
    to = baselines.pop() if len(baselines) == 1 else "their unpruned arms"
    if not known:
        text = "too few seeds, or no spread between them, to tell more than the differences"
        return [Result("", f"{count(len(judged), 'arm')} compared with {to}: {text}.")]
    differ = [v for v in known if known[v]["p_holm"] < 0.05]
    if not differ:
        seeds = max(f["n"] for f in known.values())
        size = f"{count(len(known), 'arm')}, up to {count(seeds, 'seed')}"
        text = f"No arm differs from {to} in {name(column)} after Holm's correction ({size})."
        return [Result("", text)]
    verb = "differs" if len(differ) == 1 else "differ"
    text = f"{len(differ)} of {count(len(known), 'arm')} {verb} from {to} in {name(column)}"
    text += " after Holm's correction"
    if len(differ) > 3:  # the forest has them all
        differ = sorted(differ, key=lambda v: known[v]["difference"])
        low, high = (f"{v} {_amount(known[v], column)}" for v in (differ[0], differ[-1]))
        text += f", from {low} to {high}"
    else:
        text += ": " + "; ".join(f"{v} {_amount(known[v], column)}" for v in differ)
    return [Result("", text + ".")]


def columns(summary: Found) -> list[str]:
    """What the forest plots are about: the columns of the claims, and the final accuracy."""
    of_claims = [claim["column"] for claim in summary.get("claims") or []]
    main = _main(summary)
    rest = [column for column in dict.fromkeys(of_claims) if column != main]
    return [*rest[:1], main] if main not in of_claims else [main, *rest[:1]]


@dataclass
class Line:
    """An arm of a forest plot; places are percent of the width."""

    label: str
    words: str
    to: str  # its baseline, where arms have different ones
    text: str
    dot: float
    low: float | None
    high: float | None
    significant: bool


@dataclass
class Forest:
    """Differences of all arms to the baseline in one column."""

    title: str
    lines: list[Line]
    ticks: list[tuple[float, str]]
    zero: float
    many: bool  # arms: a line each

    @property
    def cut(self) -> bool:
        """Whether an interval goes on beyond the plot."""
        return any(line.low == 0 or line.high == 100 for line in self.lines)

    @property
    def with_intervals(self) -> bool:
        """False: too few seeds, or no spread between them, for any."""
        return any(line.low is not None for line in self.lines)

    @property
    def alt(self) -> str:
        """The plot in words."""
        return "; ".join(f"{line.label} {line.text}" for line in self.lines)


def forest(
    study: Study, summary: Found, column: str, arms: Collection[str] | None = None
) -> Forest | None:
    """The plot of a column, of all arms or of those named; None without an arm to compare."""
    paired, baselines = summary["paired"]["variants"], summary["paired"]["baselines"]
    found = {
        v: paired[v][column]
        for v in (study.variants if arms is None else arms)
        if v in paired and (paired[v].get(column) or {}).get("difference") is not None
    }
    if not found:
        return None
    times = factor(column)
    centers = [times * f["difference"] for f in found.values()]
    edges = [times * f[e] for f in found.values() for e in ("low", "high") if f[e] is not None]
    # An interval from very few seeds may be longer than everything else: it is cut off there.
    reach = 4 * max(*map(abs, centers), 1e-9)
    shown = [min(max(edge, -reach), reach) for edge in edges] + [*centers, 0.0]
    low, high = min(shown), max(shown)
    margin = 0.06 * (high - low or 1.0)
    low, high = low - margin, high + margin

    def place(x: float) -> float:
        return round(float(np.clip(100 * (x - low) / (high - low), 0, 100)), 2)

    shared = len(set(baselines.values())) == 1
    told = words.arms(study)
    lines = []
    for label, f in found.items():
        p = f.get("p_holm")
        text = _amount(f, column).removesuffix(" points")
        lines.append(
            Line(
                label,
                told.get(label, ""),
                "" if shared else baselines[label],
                f"{text}{'*' if p is not None and p < 0.05 else ''}",
                place(times * f["difference"]),
                None if f["low"] is None else place(times * f["low"]),
                None if f["high"] is None else place(times * f["high"]),
                p is not None and p < 0.05,
            )
        )
    ticks = [float(t) for t in MaxNLocator(5).tick_values(low, high) if 4 <= place(t) <= 96]
    to = next(iter(baselines.values())) if shared else "the unpruned arm of the same group"
    unit = f" ({_unit(column)})" if _unit(column) else ""
    return Forest(
        f"Difference to {to} in {name(column)}{unit}",
        lines,
        [(place(t), minus(f"{t:+g}") if t else "0") for t in ticks],
        place(0.0),
        len(lines) > _MANY,
    )


def shown(whole: Forest, summary: Found) -> list[str]:
    """The arms that stand before the figures: all, or of very many those that claims name.

    Without claims those that differ significantly, then those that differ most.
    """
    labels = [line.label for line in whole.lines]
    if len(labels) <= _FIRST:
        return labels
    claims = summary.get("claims") or []
    named = {claim[side] for claim in claims for side in ("a", "b")}
    first = [label for label in labels if label in named][:_FIRST]
    most = sorted(whole.lines, key=lambda line: (-line.significant, -abs(line.dot - whole.zero)))
    few = first or {line.label for line in most[:_FIRST]}
    return [label for label in labels if label in few]


def brief(study: Study, summary: Found, column: str, whole: Forest) -> Forest:
    """The plot of those arms, on a scale of their own; `whole` where that is all of them."""
    few = shown(whole, summary)
    return whole if len(few) == len(whole.lines) else forest(study, summary, column, few) or whole
