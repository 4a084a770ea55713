"""How small the networks of a program get, and when its runs go on in smaller ones
(`prune.shrink_every`).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from prunejax.data import Dataset, StreamedSet
from prunejax.errors import ConfigError
from prunejax.study.planning.live import ALL
from prunejax.study.planning.outline import Events
from prunejax.study.settings.config import Variant
from prunejax.train import smaller
from prunejax.train.step import Program


def ends(
    program: Program, arms: Sequence[Variant], planned: Mapping[str, Events], seeds: int
) -> dict[tuple[int, ...], int]:
    """Live units of each group of the program at the end of training -> how many runs end so.

    Of arms that remove units in numbers that are known before.

    Args: planned: label -> events and live units. seeds: runs of each arm.
    """
    found: dict[tuple[int, ...], int] = {}
    if program.weights or program.nm:
        return found
    for live in (planned[a.label].live for a in arms):
        counts = live.at(math.inf)
        if not live.unknown and ALL not in counts:
            left = tuple(counts.get(g.name, g.units) for g in program.groups)
            found[left] = found.get(left, 0) + seeds
    return found


def with_cuts(
    program: Program,
    arms: Sequence[Variant],
    planned: Mapping[str, Events],
    per_epoch: int,
    dataset: Dataset | StreamedSet,
) -> Program:
    """The program with `cuts`: how many units of each group are live when, at most, in its arms.

    Args: planned: label -> events and live units.

    Raises ConfigError: the numbers are not known before, or the network cannot be cut.
    """
    every = arms[0].settings.prune.shrink_every
    if not every:
        return program
    where = f"config.prune.shrink_every = {every} (variant {arms[0].label!r})"
    if isinstance(dataset, StreamedSet):
        raise ConfigError(f"{where} needs a data set in memory; this one is streamed")
    known = not any(planned[a.label].live.unknown for a in arms)
    cuts: list[tuple[int, tuple[int, ...]]] = []
    for epoch in range(0, program.epochs, every):
        # After the events on that step.
        live = [planned[a.label].live.at(epoch * per_epoch) for a in arms]
        if not known or any(ALL in counts for counts in live):
            raise ConfigError(f"{where}: how many units each layer has is known only in training")
        # One compiled size for all arms: what the one with most needs.
        sizes = tuple(
            max(1, *(counts.get(g.name, g.units) for counts in live)) for g in program.groups
        )
        if sizes != (cuts[-1][1] if cuts else tuple(g.units for g in program.groups)):
            cuts.append((epoch, sizes))
    try:
        for _, sizes in cuts:
            smaller.of(program, sizes)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from None
    return dataclasses.replace(program, cuts=tuple(cuts))
