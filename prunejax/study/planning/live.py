"""How many units of each layer are live when a run begins, and after each of its events."""

import bisect
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from prunejax.errors import ConfigError
from prunejax.study.planning import event_plan
from prunejax.study.planning.event_plan import Arm

ALL = "*"  # the units of all chosen layers together, where a global ranking shares them out


class Live(NamedTuple):
    """The live units of a run, by layer or only together."""

    names: tuple[str, ...]  # layers whose units may be dead
    counts: Mapping[str, int]  # at the beginning, by name or under ALL
    changes: tuple[tuple[int, Mapping[str, int]], ...]  # (step, counts after it), steps rise
    unknown: bool = False  # scores decide how many are live

    def at(self, step: float) -> dict[str, int]:
        """Live units after the events up to a step."""
        place = bisect.bisect_right(self.changes, step, key=itemgetter(0))  # those on it are in
        return dict(self.changes[place - 1][1] if place else self.counts)


def begin(arm: Arm, parent: Live | None, at: float) -> Live:
    """What is live when a run of the arm begins.

    Args:
      parent: of the run whose masks are taken, None: every unit is live.
      at: the step of that run's state.

    Raises ConfigError: the counts that its events need cannot be known.
    """
    settings, label, groups, params = arm
    of = {g.name: event_plan.units(g, settings, params) for g in groups}
    prunes = settings.prune.schedule != "none"
    own = tuple(event_plan.layer_rules(settings, groups)) if prunes else ()
    together = prunes and settings.prune.scope == "global"
    if parent is None:
        counts = {ALL: sum(of[n] for n in own)} if together else {n: of[n] for n in own}
        return Live(own, counts, ())
    if parent.unknown:
        if prunes:
            raise ConfigError(
                f"config.prune (variant {label!r}): how many weights are live in the run it starts "
                "from is up to scores (prune.schedule = 'threshold', or prune.nm on masks that "
                "were there) or to windows that end (intervention.duration), so its own events "
                "have no counts; leave 'masks' out of start.take, or set prune.schedule = 'none'"
            )
        return parent
    before = parent.at(at)
    if settings.start.shuffle == "global" and ALL not in before:  # over all that have masks
        before = {ALL: sum(before[name] for name in parent.names)}
    names = (*parent.names, *(n for n in own if n not in parent.names))
    if prunes and settings.prune.nm and sum(before.values()) < sum(of[n] for n in parent.names):
        # At most n of m stay: how many in all is up to which were dead.
        return Live(names, {n: of[n] for n in names}, (), unknown=True)
    if ALL in before:
        if prunes and (not together or set(own) != set(parent.names)):
            raise ConfigError(
                f"config.prune (variant {label!r}): what is live in each layer of the run it "
                "starts from is known only in training, since that one prunes globally, or its "
                "masks are shuffled globally; choose the same layers and prune.scope = 'global', "
                "too"
            )
        return Live(parent.names, before, ())
    if together:
        return Live(names, {ALL: sum(before.get(n, of[n]) for n in own)}, ())
    return Live(names, {n: before.get(n, of[n]) for n in names}, ())


def handed_on(live: Live, intervention: ConfigDict) -> Live:
    """What is live for a run that takes the masks of one with this intervention."""
    if intervention.kind == "none":  # its targets are told, and stay; it cannot have taken masks
        return Live((), {}, ())
    ends = intervention.duration >= 0 and bool(live.changes)  # then those units are live again
    return live._replace(unknown=live.unknown or ends)


def dead(arm: Arm, start: Live) -> dict[str, int]:
    """Units of an arm's layers that are dead when it begins, under the names that rows count them.

    None with N:M, whose events count the n of m that stay, whatever was dead.
    """
    if arm.settings.prune.nm or arm.settings.prune.schedule == "none":
        return {}
    names = event_plan.layer_rules(arm.settings, arm.groups)
    chosen = [g for g in arm.groups if g.name in names]
    of = {g.name: event_plan.units(g, arm.settings, arm.params) for g in chosen}
    if ALL in start.counts:
        return {next(iter(names)): sum(of.values()) - start.counts[ALL]}
    return {name: of[name] - start.counts[name] for name in names}


def with_events(start: Live, label: str, rows: Sequence[Any]) -> Live:
    """`start` with the events of the arm.

    Args: start: see `begin`. label: of the arm, for errors. rows: see `step_plan.rows`.

    Raises ConfigError: an event drops more than is live.
    """

    def named(counts: Mapping[str, int]) -> dict[str, int]:
        return {ALL: sum(counts.values())} if ALL in start.counts else dict(counts)

    pooled = ALL not in start.counts and any(ALL in row.drop for row in rows)
    changes = [(row.step, row.drop, row.grow) for row in rows if not pooled or ALL not in row.drop]
    left, after = dict(start.counts), list[tuple[int, dict[str, int]]]()
    for step, drop, grow in sorted(changes, key=itemgetter(0)):
        if not after or after[-1][0] != step:  # one entry for all that falls on a step
            left = dict(left)
            after.append((step, left))
        for name, count in named(drop).items():
            if count > left.get(name, 0):
                where = "of all chosen layers" if name == ALL else f"of layer {name!r}"
                raise ConfigError(
                    f"config.prune.fraction (variant {label!r}): an event at step {step} would "
                    f"remove {count} units {where}, of which {left.get(name, 0)} are live; lower "
                    "the fraction, or give it of what is live (prune.of = 'live')"
                )
        for units, sign in ((named(drop), -1), (named(grow), 1)):
            left.update({n: left[n] + sign * k for n, k in units.items() if n in left})
    if pooled:  # from here on only the sum is known
        together = [(step, {ALL: sum(each.values())}) for step, each in after]
        return Live(start.names, {ALL: sum(start.counts.values())}, tuple(together))
    return start._replace(changes=(*start.changes, *after))
