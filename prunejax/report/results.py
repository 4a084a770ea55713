"""What a report shows: the merged tables of a study and what is known of its arms."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prunejax.measures import statistics
from prunejax.measures.claims import MECHANICS, UNFINISHED, Claim
from prunejax.measures.columns import (
    LOSS,
    OUTCOMES,
    by_variant,
    is_completed,
    number,
    pairs,
    value,
)
from prunejax.measures.forecasts import forecasts
from prunejax.measures.summary import summarize
from prunejax.record.arms import beside, is_at

Row = dict[str, str]

# Settings that make groups of arms where they vary, and how their values are called.
GROUPED_BY: dict[str, Callable[[Any], str]] = {
    "group": str,
    "data": str,  # accuracies on other test sets are no difference
    "model": str,
    "optimizer": str,
    "weight_decay": lambda x: f"weight decay {x:g}" if x else "no weight decay",
    "dropout": lambda x: f"dropout {x:g}" if x else "no dropout",
    "augment": lambda x: "augmented" if x else "not augmented",
}


T = TypeVar("T")


def once(function: Callable[["Study"], T]) -> Callable[["Study"], T]:
    """The function of a study, worked out once for each: several figures and tables read it."""

    @functools.wraps(function)
    def kept(study: Study) -> T:
        name = f"{function.__module__}.{function.__name__}"
        if name not in study.known:
            study.known[name] = function(study)
        return study.known[name]  # type: ignore[no-any-return]

    return kept


@dataclass
class Study:
    """Everything the report shows, from one or more run directories."""

    directories: dict[str, Path]  # by the name they have on the page, which is no absolute path
    config: dict[str, Any]  # of the first directory
    configs: dict[str, dict[str, Any]]  # by directory
    environments: dict[str, dict[str, Any]]  # by directory
    times: dict[str, dict[str, Any]]  # by directory; empty of studies that recorded none
    stated: dict[str, dict[str, Any]]  # by directory: study.json
    epochs: list[Row]
    events: list[Row]
    runs: list[Row]
    arrays: dict[str, Path]  # run -> measures/RUN.npz
    attributes: dict[str, dict[str, Any]]  # variant -> target, iterative_rate, kind, group, ...
    test_examples: int = 0  # of the test split; 0: not known, or not the same everywhere
    notes: list[str] = field(default_factory=list)  # what a reader must know: missing, stopped
    missing_shards: list[str] = field(default_factory=list)
    prefixes: dict[str, str] = field(default_factory=dict)  # by directory: before its labels
    unfinished: bool = False  # runs are still to come
    claims: list[Claim] = field(default_factory=list)  # of all configs, about arms that are here
    tests: list[tuple[str, str]] = field(default_factory=list)  # pairs of arms, likewise
    layers: list[Row] = field(default_factory=list)  # layers.csv
    costs: list[Row] = field(default_factory=list)  # costs.csv, a row for each layer and run
    updates: list[Row] = field(default_factory=list)  # updates.csv, where units come back
    known: dict[str, Any] = field(default_factory=dict, init=False)  # of `once`

    @property
    def title(self) -> str:
        """`config.name`, of all studies that the page is about."""
        found = [str(c.get("name") or place) for place, c in self.configs.items()]
        names = list(dict.fromkeys(found))
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def report_option(self, name: str, default: Any) -> Any:
        """`config.report.NAME`, or `default` where the config does not say."""
        return (self.config.get("report") or {}).get(name, default)

    @property
    def in_nats(self) -> bool:
        """Whether losses are cross entropies."""
        return all(c.get("loss", "cross_entropy") == "cross_entropy" for c in self.configs.values())

    @property
    def baseline(self) -> str:
        """The arm that differences refer to."""
        return str(self.report_option("baseline", "none"))

    @functools.cached_property
    def variants(self) -> list[str]:
        """The arms in the order of the config, then of appearance."""
        order = {label: i for i, label in enumerate(self.attributes)}
        seen = dict.fromkeys(row["variant"] for row in [*self.runs, *self.epochs])
        return sorted(seen, key=lambda label: order.get(label, len(order)))

    @functools.cached_property
    def good(self) -> list[Row]:
        """The rows of runs that completed."""
        return [row for row in self.runs if is_completed(row)]

    @functools.cached_property
    def epochs_of(self) -> dict[str, list[Row]]:
        """Rows of `epochs` by arm: asked for by every arm, so grouped once."""
        return by_variant(self.epochs)

    @functools.cached_property
    def events_of(self) -> dict[str, list[Row]]:
        """Rows of `events` by arm."""
        return by_variant(self.events)

    @functools.cached_property
    def good_of(self) -> dict[str, list[Row]]:
        """Rows of `good` by arm."""
        return by_variant(self.good)

    @property
    def overrides(self) -> dict[str, Any]:
        """What each arm sets itself: what a page says of it. What it is: `settings`."""
        return {label: (about.get("overrides") or {}) for label, about in self.attributes.items()}

    def settings(self, variant: str, group: str = "") -> dict[str, Any]:
        """All settings of an arm (`prunejax.record.arms`), or a group of them; {}: not known."""
        known = self.attributes.get(variant, {}).get("settings") or {}
        return dict((known.get(group) or {}) if group else known)

    def relation(self, x: str, y: str, scope: str) -> dict[str, Any]:
        """The summary's relation of two columns over some runs; empty if it has none."""
        alike = (
            r for r in summary(self)["relations"] if (r["x"], r["y"], r["scope"]) == (x, y, scope)
        )
        return next(alike, {})

    def attribute(self, variant: str, name: str, default: Any = None) -> Any:
        """One of the attributes of an arm."""
        return self.attributes.get(variant, {}).get(name, default)

    @functools.cached_property
    def groups(self) -> dict[str, list[str]]:
        """Arms by the settings (other than pruning) in which arms differ; one group if in none."""
        directories = {str(self.attribute(v, "group")) for v in self.variants}
        varied = ["group"] if len(directories) > 1 else []
        for name in GROUPED_BY:
            # What differs from one directory to the next, but not inside, goes without saying, and
            # what parts no two groups of arms; an arm with other data compares with none at all.
            counts = [Counter(str(self.attribute(v, name)) for v in self.variants
                              if str(self.attribute(v, "group")) == directory)
                      for directory in directories]  # fmt: skip
            second = [count.most_common(2)[1][1] for count in counts if len(count) > 1]
            if second and (name == "data" or max(second) > 1):
                varied.append(name)
        groups: dict[str, list[str]] = {}
        for variant in self.variants:
            parts = [GROUPED_BY[name](self.attribute(variant, name)) for name in varied]
            groups.setdefault(", ".join(parts), []).append(variant)
        return groups

    @functools.cached_property
    def baselines(self) -> dict[str, str]:
        """The unpruned arm that each arm is compared with: of its group, or of the study."""
        found: dict[str, str] = {}
        for arms in self.groups.values():
            unpruned = [v for v in arms if v == self.baseline]
            if not unpruned and len(arms) > 1:  # an arm alone is no group to compare in
                unpruned = [v for v in arms if is_at(v, self.baseline)]
                unpruned = unpruned or [v for v in arms if self.attribute(v, "target") is None]
            if unpruned:
                found |= {v: beside(v, self.baseline, unpruned) for v in arms}
            elif self.baseline in self.variants:
                data = self.attribute(self.baseline, "data")
                found |= {v: self.baseline for v in arms if self.attribute(v, "data") == data}
        return found

    @functools.cached_property
    def comparable(self) -> list[str]:
        """The arms on the baseline's data (without it the first arm's): of one test set."""
        first = self.baseline if self.baseline in self.variants else next(iter(self.variants), "")
        data = self.attribute(first, "data")
        return [arm for arm in self.variants if self.attribute(arm, "data") == data]

    @property
    def where(self) -> str:
        """` on DATA`, said of `comparable` arms where others have other data; else nothing."""
        data = {self.attribute(arm, "data") for arm in self.variants}
        return f" on {self.attribute(self.comparable[0], 'data')}" if len(data) > 1 else ""

    @functools.cached_property
    def has_events(self) -> bool:
        """Whether a completed run had an event; else all are stable, which says nothing."""
        return any(number(row.get("events")) > 0 for row in self.good)

    @functools.cached_property
    def has_accuracy(self) -> bool:
        """Whether any run has one; else the study is a regression."""
        return any(row.get("final_test_accuracy") for row in self.runs) or any(
            row.get("test_accuracy") for row in self.epochs
        )

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Columns of the page's tables of arms."""
        return (*(("mean_stability",) if self.has_events else ()), *OUTCOMES)

    def mean_stability(self, variant: str) -> float:
        """Mean over an arm's runs (fraction); NaN without runs, or where no arm has an event."""
        rows = self.good_of.get(variant, []) if self.has_events else []
        return statistics.center([value(row, "mean_stability") for row in rows])

    def gain(self, variant: str, column: str) -> statistics.Comparison:
        """The arm minus its baseline, paired by seed."""
        arms = self.good_of
        baseline = self.baselines.get(variant, "")
        return statistics.paired(*pairs(arms.get(variant, []), arms.get(baseline, []), column))


def with_losses(runs: Sequence[Row], epochs: Sequence[Row]) -> None:
    """Gives runs of a regression, which has no accuracy, the column `final_test_loss`."""
    if any(row.get("test_accuracy") for row in epochs):
        return
    # rows of a run by epoch: the last one stays
    last = {row["run"]: row.get("test_loss", "") for row in epochs}
    for row in runs if any(last.values()) else ():
        row[LOSS] = last.get(row["run"], "") if is_completed(row) else ""


@once
def summary(study: Study) -> dict[str, Any]:
    """The content of `summary.json`; of processes that draw, only those work it out that ask."""
    withheld = UNFINISHED if study.unfinished else ""
    found = summarize(
        study.runs,
        baseline=study.baseline,
        baselines=study.baselines,
        selected=study.report_option("correlate", ()),
        groups=study.groups if len(study.groups) > 1 else None,
        comparisons=study.tests,
        claims=study.claims,
        test_examples=study.test_examples,
        pooled=study.comparable,
        withheld=MECHANICS if study.report_option("mechanics_only", False) else withheld,
    )
    return found | {
        "forecasts": forecasts(study.events),
        "directories": list(study.directories),
        "missing_shards": study.missing_shards,
    }
