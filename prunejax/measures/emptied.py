"""Layers of which an event leaves nothing, in words; from rows of events.csv (and without JAX).

A layer without a live unit passes nothing on. Noise in a layer where every unit was a target has
no spread to follow (`interventions.reference_std`) and is none.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prunejax.measures.columns import number

Row = Mapping[str, Any]
DONE = {"prune": "pruned", "zero": "set to zero"}  # kinds that empty a layer


def at_event(rows: Iterable[Row], kinds: Mapping[str, str]) -> list[str]:
    """A line for each run and layer that the event of `rows` emptied.

    Args: rows: with run, variant, epoch, layer and live. kinds: variant -> intervention.kind.
    """
    return [
        f"{row['run']}: layer {row['layer']} is empty {_when(row)}: all of it is "
        f"{DONE[kinds[row['variant']]]}"
        for row in rows
        if _is_empty(row, kinds)
    ]


def notes(rows: Sequence[Row], kinds: Mapping[str, str]) -> list[str]:
    """A sentence for each layer that was emptied, or all of whose units got no noise.

    Arms of which the same is to be said stand in one sentence.

    Args: rows: of events.csv. kinds: variant -> intervention.kind.
    """
    first: dict[tuple[str, str], dict[str, Row]] = {}  # (arm, layer) -> run -> its first such row
    units: dict[tuple[str, str], float] = {}  # (run, layer) -> how many there are
    hit: dict[tuple[str, str], float] = {}  # (run, layer) -> targets so far, each unit once
    for row in rows:
        key = (row["run"], row["layer"])
        targeted = number(row["targeted"])
        units.setdefault(key, number(row["live"]) + targeted)
        hit[key] = hit.get(key, 0) + targeted
        silent = kinds.get(row["variant"]) == "gaussian" and hit[key] >= units[key] > 0
        if silent or _is_empty(row, kinds):
            first.setdefault((row["variant"], row["layer"]), {}).setdefault(row["run"], row)
    alike: dict[tuple[str, str, str], list[str]] = {}
    for (arm, layer), runs in first.items():
        row = min(runs.values(), key=lambda row: number(row["epoch"]))
        count = f"{len(runs)} run{'s' if len(runs) > 1 else ''} of {arm}"
        alike.setdefault((layer, _when(row), kinds[arm]), []).append(count)
    return [_sentence(*about, counts) for about, counts in alike.items()]


def _sentence(layer: str, when: str, kind: str, counts: Sequence[str]) -> str:
    what = f"all of it is {DONE[kind]}" if kind in DONE else (
        "all of it was a target, so that its noise has no spread to follow and none is added"
    )  # fmt: skip
    state = "is emptied" if kind in DONE else "gets no noise"
    return f"Layer {layer} {state} in {', '.join(counts)}, first {when}: {what}."


def _is_empty(row: Row, kinds: Mapping[str, str]) -> bool:
    return kinds.get(row["variant"]) in DONE and number(row["live"]) == 0


def _when(row: Row) -> str:
    epoch = int(number(row["epoch"]))
    return "before training" if epoch < 0 else f"after epoch {epoch}"
