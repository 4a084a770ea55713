"""The events of an arm in order: at epochs, by step, rounds before training, drop and regrow.

A `Row` is one event: at which step, how many units of each layer are dropped and how many come
back right after. `event_plan` counts what goes at epochs; rows fill a run's `Table`.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from prunejax import schedules
from prunejax.errors import ConfigError
from prunejax.methods import growth
from prunejax.study.planning import event_plan
from prunejax.study.planning import live as live_lib
from prunejax.study.planning.event_plan import Arm, Layer
from prunejax.study.planning.live import ALL, Live


@dataclasses.dataclass(frozen=True)
class Row:
    """An event: counts per layer name (in the global scope all of them under the first layer)."""

    step: int  # training steps done before it
    drop: Mapping[str, int]
    grow: Mapping[str, int]
    update: bool = False  # a drop-and-grow update: its own score, smallest first
    # where events choose among all units, and with N:M: what is dead after it
    dead: Mapping[str, int] | None = None
    place: int | None = None  # of an event that follows so many epochs: its row; else between


def rows(arm: Arm, per_epoch: int, start: Live) -> list[Row]:
    """The events of an arm, in order.

    Args: start: what is live at the beginning.

    Raises ConfigError: events after the end of training, or growth that cannot be.
    """
    p, total = arm.settings.prune, arm.settings.epochs * per_epoch
    if p.schedule == "none":
        return []
    counts = event_plan.event_counts(arm, start.counts)
    layers = event_plan.layers(arm, start.counts)
    at_epochs = [
        Row(e * per_epoch, {n: int(row[e]) for n, row in counts.items()}, {}, place=e)
        for e in np.flatnonzero(np.any(list(counts.values()), axis=0)).tolist()
    ]
    found = [Row(step, drop, {}) for step, drop in _scheduled(arm, layers, total).items()]
    if p.rounds > 1:
        found += _rounds(arm, layers)
    if p.schedule == "phases":
        return _phases(arm, layers, total)
    if p.schedule == "threshold":
        return [Row(step, {}, {}) for step in range(p.refresh_every, total, p.refresh_every)]
    if p.forward != "masked" or p.nm:
        return _cumulative(p.refresh_every, at_epochs + found, live_lib.dead(arm, start), total)
    if p.grow != "none":
        _check_growth(arm)
        live = live_lib.with_events(start, arm.label, at_epochs + found)
        begin = _left(layers, start, 0)
        if p.regrow > 0:
            again = _with_regrowth(at_epochs + found, p.regrow, begin)
            at_epochs, found = again[: len(at_epochs)], again[len(at_epochs) :]
        if p.update_every:
            units = {name: begin[name] + n for name, n in live_lib.dead(arm, start).items()}
            found += _updates(arm, layers, live, units, total)
    # What falls on the last step of an epoch comes before the event that follows the epoch.
    return sorted(at_epochs + found, key=lambda row: (row.step, bool(row.place)))


def _scheduled(arm: Arm, layers: Mapping[str, Layer], total: int) -> dict[int, dict[str, int]]:
    """Step -> counts of the schedule where `prune.unit` is "step"."""
    p = arm.settings.prune
    if p.unit != "step" or p.schedule in ("scratch", "phases", "threshold"):
        return {}
    found: dict[int, dict[str, int]] = {}
    for name, layer in layers.items():
        for step, count in event_plan.planned(arm, layer, total):
            if count or p.forward != "masked":  # those choose anew, also as many as before
                found.setdefault(step, {})[name] = count
    return {step: event_plan.in_scope(arm, layers, found[step]) for step in sorted(found)}


def _rounds(arm: Arm, layers: Mapping[str, Layer]) -> list[Row]:
    """`prune.rounds` events before training, each removing the same share of what is left."""
    p, label = arm.settings.prune, arm.label
    drops = [dict[str, int]() for _ in range(p.rounds)]
    for name, layer in layers.items():
        with event_plan.told(label, name):
            events = layer.planned("geometric", {}, start=0, end=p.rounds - 1, period=1)
        for number, count in events:
            drops[number][name] = count
    return [
        Row(0, event_plan.in_scope(arm, layers, drop), {}) for drop in drops if sum(drop.values())
    ]


def _phases(arm: Arm, layers: Mapping[str, Layer], total: int) -> list[Row]:
    """AC/DC (Peste et al. 2021): at the steps `prune.phases` units go and all come back in turn."""
    steps, label = list(arm.settings.prune.phases), arm.label
    if len(steps) % 2 == 0 or steps != sorted(set(steps)) or not 0 <= steps[0] <= steps[-1] < total:
        raise ConfigError(
            f"config.prune.phases = {tuple(steps)} (variant {label!r}) must be an odd number of "
            f"rising steps below {total} (go, come back, ..., go)"
        )
    gone = {
        n: layer.units - schedules.kept(layer.units, layer.fraction) for n, layer in layers.items()
    }
    counts = event_plan.in_scope(arm, layers, gone)
    _check_kind(arm, "prune.schedule = 'phases'")
    return [
        Row(step, {} if number % 2 else counts, counts if number % 2 else {})
        for number, step in enumerate(steps)
    ]


def _cumulative(
    every: int, found: Sequence[Row], before: Mapping[str, int], total: int
) -> list[Row]:
    """Events that count what is dead after them: those of the schedule, then one `every` steps."""
    dead, again = Counter(before), list[Row]()
    for row in found:
        dead.update(row.drop)
        again.append(dataclasses.replace(row, dead=dict(dead)))
    last = max((row.step for row in again), default=0)
    # Dead counts stay: only the choice is new.
    later = range(last + every, total, every) if every else ()
    return again + [Row(step, {}, {}, dead=dict(dead)) for step in later]


def _left(layers: Mapping[str, Layer], live: Live, step: float) -> dict[str, int]:
    """Live units at a step, under the names that rows count them."""
    left = live.at(step)
    first = next(iter(layers))
    return {first: left[ALL]} if ALL in left else {name: left[name] for name in layers}


def _with_regrowth(rows: Sequence[Row], share: float, live: Mapping[str, int]) -> list[Row]:
    """The events, each with a share of what it leaves dropped besides and regrown (GraNet's form).

    Args: live: units before the first of them.
    """
    left, again = dict(live), list[Row]()
    for row in rows:
        left.update({name: left[name] - n for name, n in row.drop.items()})
        shares = {name: schedules.share(left[name], share) for name, n in row.drop.items() if n}
        grow = {name: n for name, n in shares.items() if n}
        drop = {name: n + grow.get(name, 0) for name, n in row.drop.items()}
        again.append(dataclasses.replace(row, drop=drop, grow=grow))
    return again


def _updates(
    arm: Arm, layers: Mapping[str, Layer], live: Live, units: Mapping[str, int], total: int
) -> list[Row]:
    """Drop-and-grow updates: every `update_every` steps up to `update_end` of training."""
    p, found = arm.settings.prune, []
    last = schedules.share(total, p.update_end)
    # Not at 0, where masks are new, nor at the end, where the fraction is 0.
    for step in range(p.update_every, last, p.update_every):
        # After the events of its own step, but before the one that follows its epoch.
        left = _left(layers, live, step - 0.5 if p.unit == "epoch" else step)
        dead = {name: units[name] - n for name, n in left.items()}
        if p.redistribute:
            # Layers are ranked together: how many each of them swaps is known only in training.
            left, dead = {ALL: sum(left.values())}, {ALL: sum(dead.values())}
        decay = {"step": step, "end": last, "decay": p.update_schedule}
        # No more than are dead: what a dense layer drops would come back at once, as 0.
        swaps = {
            name: min(growth.swaps(n, p.update_fraction, **decay), dead[name])
            for name, n in left.items()
        }
        found.append(Row(step, swaps, swaps, update=True))
    return found


def _check_kind(arm: Arm, what: str) -> None:
    i, label = arm.settings.intervention, arm.label
    if i.kind != "prune" or i.duration >= 0 or i.twin or i.as_released:
        raise ConfigError(
            f"config.{what} (variant {label!r}): only what is pruned for good can grow back; set "
            "intervention.kind = 'prune', intervention.duration = -1, no intervention.twin and "
            "intervention.as_released = False, or prune.grow = 'none'"
        )


def _check_growth(arm: Arm) -> None:
    p = arm.settings.prune
    _check_kind(arm, f"prune.grow = {p.grow!r}")
    if not p.update_every and not p.regrow:
        raise ConfigError(
            f"config.prune.grow = {p.grow!r} (variant {arm.label!r}) never happens: set "
            "prune.update_every (steps between updates) or prune.regrow (share of what is live)"
        )


def shared_steps(rows_of_arms: Sequence[Sequence[Row]]) -> list[int]:
    """The steps of the rows between epochs that a program's arms share: each as often as some arm
    needs it.
    """
    needed: Counter[int] = Counter()
    for arm in rows_of_arms:  # as often as the arm that needs it most
        needed |= Counter(row.step for row in arm if row.place is None)
    return sorted(needed.elements())


class Filled(NamedTuple):
    """The events of an arm as arrays, one entry a row."""

    steps: np.ndarray  # int32 [rows]
    ids: np.ndarray  # int32 [rows]: own number of the event; -1: a row of other arms
    updates: np.ndarray  # bool [rows]
    counts: np.ndarray  # int32 [rows, layers]
    grow: np.ndarray  # int32 [rows, layers]
    pooled: np.ndarray  # bool [rows]: counts, in the first column, are of all layers together


def fill(
    rows_of_arm: Sequence[Row],
    steps: Sequence[int],
    names: Sequence[str],
    epochs: int,
    per_epoch: int,
    past: int = 0,
) -> Filled:
    """An arm's events: first those at epochs, then the steps that the program's arms share.

    Args:
      rows_of_arm: see `rows`.
      steps: see `shared_steps`.
      names: of the layers, in forward order.
      past: events of its course that are over: their numbers stay theirs, so that a run that goes
        on from a step draws as that run would have.
    """
    base, many = epochs + 1, epochs + 1 + len(steps)
    # One column at least: checkpoints cannot hold empty arrays.
    drops, grow = np.zeros((2, many, max(1, len(names))), np.int32)
    filled = Filled(
        np.concatenate([per_epoch * np.arange(base), np.array(steps, int)]).astype(np.int32),
        # -1 for rows of other arms: what a run draws must not depend on them.
        np.concatenate([np.arange(base), np.full(len(steps), -1)]).astype(np.int32),
        np.zeros(many, bool),
        drops,
        grow,
        np.zeros(many, bool),
    )
    free: dict[int, list[int]] = {}
    for place, step in enumerate(steps):
        free.setdefault(step, []).append(base + place)
    column, number = {name: i for i, name in enumerate(names)} | {ALL: 0}, base + past
    for row in rows_of_arm:
        place = row.place if row.place is not None else free[row.step].pop(0)
        if row.place is None:
            filled.ids[place], number = number, number + 1
        filled.updates[place] = row.update
        filled.pooled[place] = ALL in row.drop
        drop = row.drop if row.dead is None else row.dead
        for table, counts in ((filled.counts, drop), (filled.grow, row.grow)):
            for name, count in counts.items():
                table[place, column[name]] = count
    return filled
