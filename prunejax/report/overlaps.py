"""Do masks depend on the rewind step? Overlap between arms that differ in nothing but it.

Tickets of one level and seed, put back to the states after k and after k' training steps:
`overlaps.csv` and the page's table. Studies without such arms have neither.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prunejax.measures import statistics, tickets
from prunejax.report import levels
from prunejax.report.levels import Masks
from prunejax.report.panels import Table
from prunejax.report.results import Study
from prunejax.report.words import interval

_RUNS = ("run", "rewind_run")  # fields of `start` that name another arm


def _about(study: Study, variant: str) -> tuple[tuple[str, ...], Any]:
    """(rewind steps along an arm's ancestors, oldest first; all else that made it)."""
    if variant not in study.overrides:  # of merged studies, whose arms have other names here
        return (), variant
    overrides = study.overrides[variant]
    start = dict(overrides.get("start") or {})
    steps: tuple[str, ...] = ()
    for field in _RUNS:
        if start.get(field):
            above, start[field] = _about(study, start[field])
            steps += above
    if start.get("rewind_run"):
        steps += (str(start.pop("rewind_at", "start")),)
    rest = {name: value for name, value in overrides.items() if name != "start"}
    return steps, (rest, start)


def _named(steps: Sequence[str]) -> str:
    """One step where all levels were put back to the same."""
    return ", ".join(dict.fromkeys(steps))


def alike(study: Study) -> list[tuple[str, str]]:
    """Pairs of pruned arms that differ in the rewind step alone, theirs or that of an ancestor.

    Arms that take a mask and prune nothing themselves (copies, controls) are left out: their
    overlap is that of the arms that made the masks.
    """
    found = levels.of(study)
    pruned = [v for v in found if study.attribute(v, "target")]
    about = {v: _about(study, v) for v in pruned}
    return [
        (a, b)
        for a, b in itertools.combinations(pruned, 2)
        if about[a][0] != about[b][0] and about[a][1] == about[b][1]
    ]


def _compared(a: Masks, b: Masks, sizes: Mapping[str, int]) -> tuple[float, float]:
    own, other = ({k: int(m[k].sum()) for k in m} for m in (a, b))
    return tickets.jaccard(a, b), tickets.chance_jaccard(own, other, sizes)


def records(study: Study) -> list[Mapping[str, Any]]:
    """The rows of `overlaps.csv`: one a pair of arms, means over the seeds that both have."""
    if "overlaps" not in study.known:
        study.known["overlaps"] = _records(study)
    return list(study.known["overlaps"])


def _records(study: Study) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    found = levels.of(study)
    for a, b in alike(study):
        x, y = found[a], found[b]
        seeds = [seed for seed in x.masks if seed in y.masks]
        if not seeds:
            continue
        each = [_compared(x.masks[seed], y.masks[seed], x.sizes) for seed in seeds]
        index, chance = (list(part) for part in zip(*each, strict=True))
        mean = statistics.mean(index)  # a pair of runs of one seed is the replication
        row: dict[str, Any] = {"variant": a, "other": b}
        row |= {"rewind": _named(_about(study, a)[0]), "other_rewind": _named(_about(study, b)[0])}
        row |= {"seeds": len(seeds), "keep": x.keep, "other_keep": y.keep}
        row |= {"overlap": mean.mean, "overlap_low": mean.low, "overlap_high": mean.high}
        rows.append(row | {"overlap_chance": float(np.mean(chance))})
    return rows


def table(study: Study) -> Table | None:
    """The pairs on the page."""
    rows = [
        (
            f"{row['variant']}, {row['other']}",
            f"{row['rewind']}; {row['other_rewind']}",
            f"{100 * row['keep']:.3g}%; {100 * row['other_keep']:.3g}%",
            f"{row['overlap']:.3f} {interval(row['overlap_low'], row['overlap_high'], digits=3)}",
            f"{row['overlap_chance']:.3f}",
            str(row["seeds"]),
        )
        for row in records(study)
    ]
    if not rows:
        return None
    return Table(
        ("arms", "rewound to", "kept", "overlap", "by chance", "seeds"),
        rows,
        "Masks across rewind steps",
        "Jaccard index of the masks of two arms of one seed that differ in nothing but the state "
        "that survivors are put back to, mean and 95 % interval over seeds; by chance: of random "
        "masks with the same counts by layer. Arms that prune the end of the same training have "
        "the same mask, whatever they are put back to: so it is at the first level of chains that "
        "begin with one dense run. overlaps.csv has every number.",
    )
