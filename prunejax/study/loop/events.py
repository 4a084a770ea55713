"""The events of a chunk of members as they happen: tests around them, targets, rows."""

import dataclasses

import jax
import numpy as np

from prunejax import interventions
from prunejax.measures import emptied
from prunejax.record.directory import SharedDirectory
from prunejax.record.progress import Progress
from prunejax.study.devices.population import Population
from prunejax.study.loop import rows as rows_lib
from prunejax.study.loop.saving import Saving
from prunejax.study.loop.targets import Targets
from prunejax.study.planning.programs import Member
from prunejax.study.settings.probing import Probing
from prunejax.train.evaluation import Metrics
from prunejax.train.prune import Event
from prunejax.train.step import TrainState


@dataclasses.dataclass
class Events:
    """The members' events, and where what they did is recorded."""

    real: list[tuple[int, Member]]  # with their places in the stack
    padded: list[Member]
    population: Population
    directory: SharedDirectory
    targets: Targets
    saving: Saving
    progress: Progress
    probing: Probing

    def __post_init__(self) -> None:
        self.members = [m for _, m in self.real]
        table = self.members[0].table  # the members of a program share the steps of its events
        self.between: dict[int, list[int]] = {}  # step -> rows that are none at an epoch's end
        # Rows in which nobody here is asked for anything are those of other chunks' arms.
        for row in sorted({row for m in self.members for row in m.events if m.is_between(row)}):
            self.between.setdefault(int(table.steps[row]), []).append(row)

    @property
    def own(self) -> bool:
        """Whether there will be events, none of them replayed."""
        return any(len(m.events) for m in self.members) and not self.targets.twins

    def test(
        self, states: TrainState, after_event: bool, only: np.ndarray | None = None
    ) -> tuple[TrainState, Metrics]:
        """Test metrics; `only`: see `Population.evaluate_test`."""
        with self.saving.long(f"test {after_event}"):
            return self.population.evaluate_test(states, after_event, only)

    def at_epoch(
        self, states: TrainState, epoch: int, pre: Metrics
    ) -> tuple[TrainState, Metrics | None]:
        """The event that follows an epoch, and the test after it; None: there is none."""
        if not any(epoch + 1 in m.events for m in self.members):
            return states, None
        return self._event(states, epoch, epoch + 1, pre)

    def due(self, states: TrainState, epoch: int, step: int) -> TrainState:
        """The events that fall on a step between epochs (of step 0, all before training)."""
        rows = list(self.between.get(step, ()))
        if step == 0 and any(0 in m.events for m in self.members):
            rows.insert(0, 0)
        for row in rows:
            # Stacked members are tested together, also those that do not ask.
            pre = None
            if any(row in m.events and m.is_tested(row) for m in self.members):
                states, pre = self.test(states, after_event=False)
            states, _ = self._event(states, epoch, row, pre)
        return states

    def _after(
        self, states: TrainState, row: int, pre: Metrics, info: Event
    ) -> tuple[TrainState, Metrics]:
        """The test after an event: those that it left as they were answer as before."""
        if self.population.program.features.released:  # a test moves the windows of all
            return self.test(states, after_event=True)
        changed = np.array([row in m.events for m in self.padded]) | info.targeted.any(axis=1)
        states, post = self.test(states, after_event=True, only=changed)
        rows = lambda x: changed.reshape(-1, *[1] * (x.ndim - 1))  # noqa: E731
        return states, jax.tree.map(lambda new, old: np.where(rows(new), new, old), post, pre)

    def _event(
        self, states: TrainState, epoch: int, row: int, pre: Metrics | None
    ) -> tuple[TrainState, Metrics | None]:
        """The event of a row and its records; tested after it if it was before."""
        self.saving.keep()
        with self.saving.long("event"):
            replay = None
            if self.targets.twins:
                replay = self.targets.replay(self.padded, row, states.windows.targeted)
            states, info = self.population.event(states, row, replay)
            places = [i for i, _ in self.real]
            # Also those of twins: a run's file says what it did, wherever that came from.
            self.targets.add(row, {name: x[places] for name, x in info.selected.items()})
        post = None
        if pre is not None:
            states, post = self._after(states, row, pre, info)
        _, bad, steps, _ = self.population.summary(states)
        program = self.population.program
        hidden = program.forward != "masked"
        # Runs with a loss that is not finite leave no rows from there on.
        asked = [(i, m) for i, m in self.real if bad[i] < 0 and row in m.events]
        rows = [
            cells
            for i, m in asked
            if m.is_tested(row) or not (hidden or m.table.grow[row].any())  # else updates.csv
            for before, after in [(pre, post) if m.is_tested(row) else (None, None)]
            for cells in rows_lib.of_event(
                program, m, i, epoch, step=steps[i], before=before, after=after, info=info
            )
        ]
        kinds = {m.variant: interventions.NAMES[int(m.table.kind)] for m in self.members}
        for text in emptied.at_event(rows, kinds):
            self.progress.message(text)
        self.directory.append("events", rows)
        looked = [(i, m) for i, m in asked if m.is_tested(row)]
        self.probing.record(looked, {"before": pre, "after": post}, epoch, steps)
        if info.growth is not None:
            updates = [
                cells
                for i, m in asked
                if hidden or m.table.grow.any()  # not of arms whose neighbours' units come back
                for cells in rows_lib.of_update(program.groups, m, i, epoch, row, steps[i], info)
            ]
            self.directory.append("updates", updates)
        return states, post
