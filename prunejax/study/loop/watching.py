"""What is watched of a chunk of members beside the test set: training loss, stops, trackers."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from prunejax.cluster import mesh as mesh_lib
from prunejax.record import columns as columns_lib
from prunejax.record.directory import SharedDirectory
from prunejax.study.devices import ahead
from prunejax.study.devices.population import Population
from prunejax.study.loop.measuring import Found, Hook
from prunejax.study.loop.saving import Saving
from prunejax.study.planning.programs import Member
from prunejax.train import trackers
from prunejax.train.evaluation import Metrics
from prunejax.train.step import TrainState

SMALL = 2 << 20  # bytes of a member's state


def _apart(people: Population) -> bool:
    """Whether other threads may compute beside: on a CPU, where no devices wait for each other."""
    shared = people.program.data_parallel > 1 or jax.process_count() > 1
    return people.mesh.devices.flat[0].platform == "cpu" and not shared


def side_by_side(people: Population) -> int:
    """How many members programs of one device may look at at once: more than 1 on a CPU only."""
    return min(people.multiple, ahead.MOST) if _apart(people) else 1


@dataclasses.dataclass
class Watch:
    """The members of a chunk, watched at the ends of epochs."""

    members: Sequence[Member]  # the real ones
    padded: Sequence[Member]  # as they are stacked
    places: Sequence[int]  # of those that are no padding
    population: Population
    directory: SharedDirectory
    saving: Saving
    measure: Hook | None = None

    def __post_init__(self) -> None:
        self._running: dict[tuple[int, int], Future[Found]] = {}

    def over(self, states: TrainState) -> np.ndarray:
        """Bool [size]: which members have stopped by their training loss."""
        if not self.population.program.stops:
            return np.zeros(len(self.padded), bool)
        return np.asarray(mesh_lib.fetch(states.stopped)) >= 0

    def _fit(self, states: TrainState) -> Metrics:
        """Loss and accuracy on the whole training set, evaluation mode [size]."""
        data = self.population.data
        with self.saving.long("training set"):
            return self.population.evaluate(states, data.train_images, data.train_labels)

    def stop(self, states: TrainState, epoch: int, asks: np.ndarray) -> TrainState:
        """Stops the members whose training loss has come down and that have no event to come.

        Args: asks: bool [size], whom the end of this epoch evaluates.
        """
        if not self.population.program.stops:
            return states
        done = (epoch + 1) * self.population.program.steps_per_epoch
        # A run stops only behind its last event: all that stop have their final sparsity. Those on
        # an epoch's last step come before its evaluation.
        ready = [
            all(m.table.steps[e] <= done if m.is_between(e) else e <= epoch + 1 for e in m.events)
            for m in self.padded
        ]
        loss = self._fit(states).loss
        with self.saving.long("stopping"):
            return self.population.stop(states, loss, np.array(ready) & asks)

    def track(self, states: TrainState, epoch: int, silent: np.ndarray | None = None) -> None:
        """Rows of `trackers.csv`, but for members that are `silent`."""
        names = self.population.program.trackers
        if not names:
            return
        with self.saving.long("trackers"):
            found = self.population.track(states)
        steps = mesh_lib.fetch(states.step)
        columns = trackers.columns(names)
        rows = [
            m.keys | {"epoch": epoch, "step": steps[i]} | dict(zip(columns, found[i], strict=True))
            for i, m in zip(self.places, self.members, strict=True)
            if silent is None or not silent[i]
        ]
        self.directory.append("trackers", rows)

    def validation(self, states: TrainState) -> Metrics | None:
        """Loss and accuracy on the validation split [size]; None without one."""
        data = self.population.data
        if not data.validation_labels.shape[0]:
            return None
        with self.saving.long("validation"):
            return self.population.evaluate(states, data.validation_images, data.validation_labels)

    def rehearse(self, states: TrainState) -> None:
        """Has what measures need compiled while the members begin to train.

        Of small networks on a CPU, where one member more costs neither memory nor time.
        """
        each = self.population.state_bytes(len(self.padded)) / len(self.padded)
        if self.measure is not None and each <= SMALL and _apart(self.population):
            self.measure.rehearse(lambda: self.population.member(states, 0))

    def measure_all(self, states: TrainState, bad: Any, epoch: int) -> None:
        """`measures`, if any, of every member that is not `bad`."""
        for index, place in enumerate(self.places):
            if self.measure is not None and bad[place] < 0:
                self.measures(states, index, epoch, bad)

    def measures(self, states: TrainState, index: int, epoch: int, bad: Any) -> dict[str, float]:
        """The measures of the `index`-th member after an epoch, once: a checkpoint remembers them.

        On a CPU as many members are measured at once as train at once.

        Args: bad: by place, 0 or more for members that will not be asked for.
        """
        assert self.measure is not None
        m, known = self.members[index], self.saving.measured
        key = f"{m.run}/{epoch}"
        if key not in known:
            which = f"{index + 1} of {len(self.members)}"
            with self.saving.long("measuring", f"measuring {m.run} ({which})"):
                left = (  # looked at as far as they are begun, not all of them for each
                    i
                    for i in range(index + 1, len(self.members))
                    if bad[self.places[i]] < 0 and f"{self.members[i].run}/{epoch}" not in known
                )
                found = self._found(states, index, epoch, left)
                columns = self.measure.record(found, m, epoch)
            known[key] = {name: float(value) for name, value in columns.items()}
        return known[key]

    def _found(self, states: TrainState, index: int, epoch: int, following: Iterable[int]) -> Found:
        assert self.measure is not None
        # Alone until everything is compiled, lest two threads compile the same.
        beside = side_by_side(self.population) - 1 if self.measure.compiled else 0
        if not beside and (index, epoch) not in self._running:
            return self.measure.compute(self.population.member(states, self.places[index]))
        for i in (index, *itertools.islice(following, beside)):
            if (i, epoch) not in self._running:
                state = self.population.member(states, self.places[i])
                self._running[i, epoch] = self.measure.begin(state)
        return self._running.pop((index, epoch)).result()

    def ends(self, states: TrainState) -> list[dict[str, Any]]:
        """The cells of `runs.csv` about fit and stop, a dict for each member."""
        asked = self.directory.tables["runs"]
        found: list[dict[str, Any]] = [{} for _ in self.members]
        if columns_lib.FIT[0] in asked:
            fit, totals = self._fit(states), mesh_lib.fetch(states.totals)
            # The last epoch's: it joins `past` only when another one begins.
            sums = totals.past + totals.loss / np.maximum(totals.examples, 1)
            for i, row in zip(self.places, found, strict=True):
                row |= dict(zip(columns_lib.FIT, (fit.loss[i], fit.accuracy[i]), strict=True))
                row[columns_lib.LOSS_SUM] = sums[i]
        if columns_lib.STOPPED in asked:
            stopped = mesh_lib.fetch(states.stopped)
            for i, row in zip(self.places, found, strict=True):
                row[columns_lib.STOPPED] = stopped[i] if stopped[i] >= 0 else None
        return found
