"""A study as a graph of runs: what a run takes from another, and which must come first.

The edges of a run lead to runs of the same seed: the one it starts from (`start.run`), the one
whose state is put back after its events before training (`start.rewind_run`), and the one whose
targets it replays (`intervention.twin`).
"""

import dataclasses
import graphlib
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from prunejax import registry
from prunejax.errors import ConfigError

PARTS = ("weights", "statistics", "optimizer", "masks", "scores", "step")
END = -1


@dataclasses.dataclass(frozen=True)
class Source:
    """What a run takes from a state of another."""

    run: str
    step: int  # names the state: training steps done, END for the one after all events
    done: int  # training steps done in it
    parts: frozenset[str]
    file: str = ""  # a ticket file (see `ticket_file`) instead of a run's state


@dataclasses.dataclass(frozen=True)
class Start:
    """How a run begins; by default from its own initial weights."""

    source: Source | None = None
    rewind: Source | None = None  # after the events before training
    fresh: bool = False  # weights drawn anew
    shuffle: str = "no"  # the masks that are taken: no | layer | global
    redraw: str = ""  # rule over the parameters that are drawn anew at last

    @property
    def step(self) -> int:
        """Training steps that count as done when training begins."""
        for source in (self.rewind, self.source):  # what is put back last decides
            if source is not None and "step" in source.parts:
                return source.done
        return 0

    @property
    def runs(self) -> set[str]:
        """The runs that have to come first."""
        return {s.run for s in (self.source, self.rewind) if s is not None and not s.file}


def ordered(arms: Mapping[str, ConfigDict]) -> list[str]:
    """Labels, every arm after those that it needs.
    Raises ConfigError: an arm needs one that is not there, or itself by some way round.
    """
    needs: dict[str, list[str]] = {}
    for label, settings in arms.items():
        named = {
            "start.run": settings.start.run,
            "start.rewind_run": settings.start.rewind_run,
            "intervention.twin": settings.intervention.twin,
        }
        for field, name in named.items():
            if name:
                registry.known(f"{field} (variant {label!r})", [name], arms)
        needs[label] = [name for name in named.values() if name]
    return _after_needs(needs)


def _after_needs(needs: Mapping[str, Iterable[str]]) -> list[str]:
    """Names, each after those that it needs."""
    known = {name: [other for other in others if other in needs] for name, others in needs.items()}
    try:
        return list(graphlib.TopologicalSorter(known).static_order())
    except graphlib.CycleError as error:
        way = " -> ".join(reversed(error.args[1]))
        raise ConfigError(f"variants need each other in a circle: {way}; break it") from None


def check(arms: Mapping[str, ConfigDict]) -> None:
    """Refuses starts that cannot be.
    Raises ConfigError: names the variant, the field and what is allowed.
    """
    ordered(arms)
    for label, settings in arms.items():
        s = settings.start
        for name in ("take", "rewind"):
            for part in s[name]:
                told = f"config.start.{name} (variant {label!r}): {part!r} is not one of"
                registry.one_of(part, PARTS, told)
        if s.run and s.ticket:
            raise ConfigError(
                f"config.start (variant {label!r}) has run = {s.run!r} and ticket = {s.ticket!r}: "
                "a run begins from one of them; leave the other empty"
            )
        if s.ticket and settings.prune.schedule != "none":
            raise ConfigError(
                f"config.start.ticket (variant {label!r}) does not go with prune.schedule = "
                f"{settings.prune.schedule!r}: train the ticket in an arm of its own, and start "
                "the pruned one from that"
            )
        if s.ticket and {"optimizer", "scores", "step"} & set(s.take):
            raise ConfigError(
                f"config.start.take (variant {label!r}): a ticket file has no optimizer, no scores "
                "and no step; take some of: weights, statistics, masks"
            )
        taken = s.run or s.ticket
        if taken and "masks" in s.take and settings.intervention.kind != "prune":
            raise ConfigError(
                f"config.start.take (variant {label!r}) has masks, which act by pruning; "
                f"intervention.kind = {settings.intervention.kind!r} must be 'prune'"
            )
        if s.shuffle != "no" and not (taken and "masks" in s.take):
            raise ConfigError(
                f"config.start.shuffle = {s.shuffle!r} (variant {label!r}): no masks are taken "
                "that could be shuffled; set start.run and 'masks' in start.take"
            )
        if "masks" in s.rewind:
            raise ConfigError(
                f"config.start.rewind (variant {label!r}) has masks: those of before the events "
                "would undo them; leave it out"
            )
        for name, other in (("take", s.run), ("rewind", s.rewind_run)):
            if not other:
                continue
            kinds = arms[other].optimizer.name, settings.optimizer.name
            if "optimizer" in s[name] and kinds[0] != kinds[1]:
                raise ConfigError(
                    f"config.start.{name} (variant {label!r}) has 'optimizer': that of {other!r} "
                    f"is {kinds[0]!r}, this one's {kinds[1]!r}, and their states do not fit each "
                    "other; leave it out, or give both the same optimizer.name"
                )
            if not _fits(arms[other].model.to_dict(), settings.model.to_dict()):
                raise ConfigError(
                    f"variant {label!r} takes a state of {other!r} but differs in 'model'; states "
                    "fit the same model only (dropout and dtype may differ)"
                )
            if arms[other].prune.granularity != settings.prune.granularity:
                raise ConfigError(
                    f"config.prune.granularity = {settings.prune.granularity!r} (variant "
                    f"{label!r}) differs from that of {other!r}, whose state it takes; give both "
                    "the same"
                )


def _fits(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    free = ("dropout", "dtype", "unbiased_variance")
    return all(theirs[k] == ours[k] for k in ours if k not in free)


def point(text: str, per_epoch: int, total: int, field: str) -> int:
    """Training steps done in the state that a text names: start, end (`END`), epoch:N or step:N.
    Raises ConfigError: it names none, or one that training does not reach.
    """
    if text in ("start", "end"):
        return 0 if text == "start" else END
    found = re.fullmatch(r"(epoch|step):(\d+)", text)
    if not found:
        raise ConfigError(f"config.{field} = {text!r} is none of: start, end, epoch:N, step:N")
    step = int(found[2]) * (per_epoch if found[1] == "epoch" else 1)
    if step > total:
        raise ConfigError(
            f"config.{field} = {text!r} is step {step}, but that run ends after {total}"
        )
    return step


def depths(needs: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """How many runs have to come before each run, one after another.

    Args: needs: run -> the runs that it needs, without circles; others than the keys are there.
    """
    found: dict[str, int] = {}
    for run in _after_needs(needs):
        found[run] = 1 + max((found[x] for x in needs[run] if x in needs), default=-1)
    return {run: found[run] for run in needs}


def families(needs: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Run -> the first name (in sorted order) among all that it is connected with."""
    root = {run: run for run in needs}

    def find(run: str) -> str:
        while root[run] != run:
            root[run] = root[root[run]]  # shorter for whoever asks next
            run = root[run]
        return run

    for run, others in needs.items():
        for other in others:
            a, b = sorted((find(run), find(other)))
            root[b] = a
    return {run: find(run) for run in needs}


def kept(starts: Mapping[str, Start], asked: Mapping[str, Sequence[int]]) -> dict[str, set[int]]:
    """Run -> the steps whose states it leaves: those that others take, and those asked for."""
    found: dict[str, set[int]] = {run: set(asked[run]) for run in starts}
    for start in starts.values():
        for source in (start.source, start.rewind):
            if source is not None and not source.file:
                found[source.run].add(source.step)
    return found


def start_of(
    settings: ConfigDict, seed: int, lengths: Mapping[str, tuple[int, int]], label: str
) -> Start:
    """How a run of an arm begins.

    Args:
      lengths: label -> (steps per epoch, steps in all) of every arm.
      label: of the arm, for errors.
    """
    s = settings.start
    source = rewind = None
    if s.run:
        step = point(s.at, *lengths[s.run], f"start.at (variant {label!r})")
        source = _source(s.run, seed, step, lengths, s.take)
    if s.rewind_run:
        step = point(s.rewind_at, *lengths[s.rewind_run], f"start.rewind_at (variant {label!r})")
        rewind = _source(s.rewind_run, seed, step, lengths, s.rewind)
    if s.ticket:
        file = s.ticket.replace("{seed}", str(seed))
        source = Source("", 0, 0, frozenset(s.take), file)
    found = Start(source, rewind, s.fresh, s.shuffle, s.redraw)
    total = lengths[label][1]
    if found.step >= total:
        raise ConfigError(
            f"variant {label!r} would begin at step {found.step}, where its training ends (step "
            f"{total}): take no 'step', or an earlier state, or set more epochs"
        )
    return found


def _source(
    label: str, seed: int, step: int, lengths: Mapping[str, Any], parts: Iterable[str]
) -> Source:
    done = lengths[label][1] if step == END else step
    return Source(f"{label}-{seed}", step, done, frozenset(parts))


def named_seed(seed: int, stream: str) -> int:
    """The seed of other streams of a run."""
    return zlib.crc32(f"{seed}/{stream}".encode())


def named(seed: int, stream: str) -> int | None:
    """The same; None without a name: the run's own."""
    return named_seed(seed, stream) if stream else None
