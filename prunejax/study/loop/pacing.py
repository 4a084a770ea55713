"""How many training steps and epochs one call takes; no effect on results."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

from prunejax.cluster import distributed
from prunejax.study.devices.population import Population
from prunejax.study.loop.saving import Policy
from prunejax.study.planning.programs import Member

CALL_SECONDS = 1.0  # aim for one call of training steps: how long a signal may have to wait


class Pace:
    """Steps of the next call, the same in all processes; adapted to CALL_SECONDS."""

    def __init__(self) -> None:
        """8 steps at first."""
        self.steps = 8

    def took(self, steps: int, seconds: float) -> None:
        """Of the last call; all processes tell."""
        self.steps = distributed.on_main(partial(self._next, steps, seconds))

    def _next(self, steps: int, seconds: float) -> int:
        if seconds < CALL_SECONDS / 4:
            return min(2 * self.steps, 1 << 20)
        if seconds > 2 * CALL_SECONDS:  # between the two bounds nothing changes
            return max(1, int(steps * CALL_SECONDS / seconds))
        return self.steps


@dataclass(frozen=True)
class Calendar:
    """Which epochs of a chunk end with something to do."""

    population: Population
    members: Sequence[Member]
    every: int  # epochs between evaluations
    measured: Collection[int]  # epochs after which members are measured
    policy: Policy

    def due(self, epoch: int) -> bool:
        """Whether an epoch ends with tests and rows: every so many, with events, and the last."""
        return any(self.asks(m, epoch) for m in self.members)

    def asks(self, member: Member, epoch: int) -> bool:
        """The same of one member: what it records must not depend on which others are beside it."""
        due = (epoch + 1) % self.every == 0 or epoch + 1 == self.population.program.epochs
        return due or epoch in self.measured or epoch + 1 in member.events

    def last(self, epoch: int) -> int:
        """The last of the epochs that train without a pause, from this one on."""
        while self.population.spans and not (
            self.due(epoch) or self.policy.after(epoch + 1, self.members)
        ):
            epoch += 1
        return epoch
