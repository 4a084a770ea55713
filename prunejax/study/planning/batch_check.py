"""Checks of a study's programs and runs together, before anything is compiled."""

from collections.abc import Sequence

from prunejax.errors import ConfigError
from prunejax.study.planning.programs import Batch
from prunejax.train import trackers
from prunejax.train.step import Program


def check(batches: Sequence[Batch]) -> None:
    """Refuses trackers that a program has not the means for, and scores that no state has.
    Raises ConfigError: names the tracker, or the run and what it would take.
    """
    for batch in batches:
        for name in batch.program.trackers:
            trackers.TRACKERS[name].check(batch.program)
    of = {m.run: batch.program for batch in batches for m in batch.members}
    for batch in batches:
        for m in batch.members:
            for source in (m.start.source, m.start.rewind):
                if source is not None and "scores" in source.parts:
                    _scores(m.variant, batch.program, source.run, of[source.run])


def _gathered(program: Program) -> str:
    """What a run's state gathers for scores while it trains; see `handover`."""
    if program.forward == "movement":
        return "what movement learns"
    return "running means of activations" if program.needs_activations else "none"


def _scores(label: str, program: Program, parent: str, of: Program) -> None:
    ours, theirs = _gathered(program), _gathered(of)
    if ours == "none" or ours != theirs:
        raise ConfigError(
            f"config.start (variant {label!r}) takes scores of {parent!r}: its own are {ours}, "
            f"those of that run {theirs}; leave 'scores' out, or prune both by one score that "
            "training gathers (prune.forward = 'movement', prune.score = 'activations')"
        )
    there = {g.kernel for g in of.groups}
    lacking = [g.name for g in program.groups if g.kernel not in there]
    if lacking:
        raise ConfigError(
            f"config.start (variant {label!r}) takes scores of {parent!r}, which has none of "
            f"{', '.join(lacking)}; give both the same prune.layers, or leave 'scores' out"
        )
