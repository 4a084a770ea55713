"""What of a chunk is saved when: checkpoints, also before what takes long and after what failed."""

import dataclasses
import errno
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import jax

from prunejax.cluster import mesh as mesh_lib
from prunejax.errors import Interrupted, RecordError
from prunejax.record.checkpoint import Checkpoints
from prunejax.record.directory import SharedDirectory
from prunejax.record.progress import Progress
from prunejax.record.run_directory import RunDirectory
from prunejax.study.loop.targets import Targets
from prunejax.study.planning.programs import Member
from prunejax.system import signals
from prunejax.train import stopping
from prunejax.train.step import TrainState

LONG = 1.0  # seconds: a signal does not wait for what took longer the last time
WORTH_SAVING = 10.0  # seconds since the last checkpoint that nothing should cost
COST = 50.0  # and that many times as long as a checkpoint takes: 2 % of the time at most


@dataclasses.dataclass
class Policy:
    """When a checkpoint is written, and who asks for an end."""

    every_epochs: int
    every_minutes: float
    at_events: bool
    keep: int
    stop_requested: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic

    def late(self, saved_at: float) -> bool:
        """Whether it is time again, after a checkpoint at `saved_at`."""
        return 0 < 60 * self.every_minutes <= self.clock() - saved_at

    def after(self, epoch: int, members: Sequence[Member]) -> bool:
        """Whether one is due after so many epochs."""
        due = bool(self.every_epochs) and epoch % self.every_epochs == 0
        return due or (self.at_events and any(epoch in m.events for m in members))


def finals(directory: SharedDirectory, index: int) -> Checkpoints:
    """Where the states lie in which the runs of a chunk ended."""
    return Checkpoints(directory.path / "checkpoints" / f"final-{index}", keep=1)


def verify(directory: SharedDirectory, done: int) -> None:
    """Checks what the runs of the first `done` chunks left beside the tables.
    Raises WorkdirError: files are missing or were changed.
    """

    def check(held: RunDirectory) -> None:
        for index in range(done):
            held.arrays.check(finals(directory, index).facts().get("files", {}))

    directory.on_main(check)


@dataclasses.dataclass
class Saving:
    """The checkpoints of a chunk and the states that the next one may hold."""

    directory: SharedDirectory
    checkpoints: Checkpoints
    targets: Targets
    progress: Progress
    clock: Callable[[], float]
    places: Sequence[int]  # of the members in the stack
    measured: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.saved_at = self.clock()
        self._safe: tuple[TrainState, int] | None = None
        self._marks: dict[str, Any] = {}  # of the tables, as they go with those states
        self._cost = 0.0  # seconds of the last checkpoint
        self._took: dict[str, float] = {}  # seconds of the last call of what is not training
        self.directory.on_main(lambda held: held.arrays.go_on())

    def rows_written(self) -> None:
        """The tables are those that belong to the states from here on."""
        self._marks = self.directory.marks()

    def reached(self, states: TrainState, epoch: int) -> None:
        """These states could be saved: the study would go on from them to the same bytes."""
        self._safe = states, epoch

    @property
    def _saveable(self) -> tuple[TrainState, int] | None:
        """The states last reached, if no later call was given their buffers."""
        if self._safe is None or any(x.is_deleted() for x in jax.tree.leaves(self._safe[0])):
            return None
        return self._safe

    def save(self, states: TrainState, epoch: int) -> None:
        """Writes a checkpoint.
        Raises RecordError: it cannot be written; earlier ones are intact.
        """
        begin = time.perf_counter()
        with self.progress.excluded("saving"):
            self.targets.save()  # first: resuming relies on their files
            left = self.directory.on_main(lambda held: held.arrays.names())
            facts = {"epoch": epoch, **self._marks, "measured": self.measured, "files": left}
            self.checkpoints.save(states, facts | {"places": list(self.places)})
            self.directory.publish()  # last: what is sent is whole
        self.saved_at, self._cost = self.clock(), time.perf_counter() - begin

    def resume(self, states: TrainState, facts: Mapping[str, Any]) -> int:
        """The epoch at which a checkpoint's states go on; what was measured is known again.

        Raises:
          RecordError: a file of targets is missing, or the stack is that of another version.
          WorkdirError: a file that was there is missing or damaged.
        """
        own = list(self.places)
        # Earlier versions did not tell: theirs stood in their order, device after device.
        otherwise = facts.get("places", sorted(own)) != own
        if otherwise or (mesh_lib.fetch(states.stopped)[own] == stopping.PADDING).any():
            raise RecordError(
                errno.EIO,
                f"the newest checkpoint in {self.checkpoints.directory} is of a version that "
                "stacks runs otherwise. Continue with that version, or remove the directory to "
                "train its runs anew",
            )
        self.targets.require()
        known = facts.get("files", ())  # earlier versions did not tell
        self.directory.on_main(lambda held: held.arrays.go_on(known))
        self.measured = facts["measured"]
        return int(facts["epoch"])

    def final(self, index: int, states: TrainState, facts: Mapping[str, Any]) -> None:
        """Writes the states in which the runs of a chunk ended, and what else they left.

        Before runs.csv says that they are done.
        """
        self.targets.save(whole=True)
        left = self.directory.on_main(lambda held: held.arrays.ended(self.targets.names()))
        finals(self.directory, index).save(states, {**facts, "files": left})

    def keep(self) -> None:
        """Saves what would be lost if the next call failed or a signal came, if that is much.

        For calls that take the states' buffers, and for long ones. Not of several processes,
        whose clocks differ.
        """
        late = self.clock() - self.saved_at > max(WORTH_SAVING, COST * self._cost)
        if late and self._saveable is not None and jax.process_count() == 1:
            self.save(*self._saveable)

    @contextmanager
    def rescued(self) -> Iterator[None]:
        """Whatever goes wrong inside, a checkpoint is tried first; others of several processes
        would not join.
        """
        try:
            yield
        except Interrupted:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if self._saveable is not None and jax.process_count() == 1:
                with suppress(Exception):  # told is what went wrong first
                    self.save(*self._saveable)
                    error.add_note("What was trained is saved; the same command continues.")
            raise

    @contextmanager
    def long(self, what: str, text: str = "") -> Iterator[None]:
        """Around what may compile or otherwise take long: a signal ends the study at once.

        The first call, which compiles, and what has a text are no training time for the progress
        line. Training that would be lost is saved before. Of several processes all wait, so that
        they end at the same step.

        Args:
          what: the same for calls that take about the same time after the first one.
          text: for the progress line.
        """
        first = what not in self._took
        long = self._took.get(what, math.inf) > LONG and jax.process_count() == 1
        if long:
            self.keep()
        begin = time.perf_counter()
        aside = self.progress.excluded(text) if first or text else nullcontext()
        with aside, signals.at_once() if long else nullcontext():
            yield
        self._took[what] = time.perf_counter() - begin
