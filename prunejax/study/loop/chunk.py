"""Trains one chunk of members from start (or checkpoint) to end: the only training loop."""

import bisect
import dataclasses
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np

from prunejax.cluster import distributed
from prunejax.cluster import mesh as mesh_lib
from prunejax.errors import Interrupted
from prunejax.record import checkpoint
from prunejax.record.checkpoint import Checkpoints
from prunejax.record.directory import SharedDirectory
from prunejax.record.progress import Progress, standing, whose
from prunejax.record.summary import summarize
from prunejax.study.devices import ahead, lifting
from prunejax.study.devices.population import Population
from prunejax.study.loop import rows as rows_lib
from prunejax.study.loop.endings import Endings
from prunejax.study.loop.events import Events
from prunejax.study.loop.handover import Handover
from prunejax.study.loop.measuring import Hook
from prunejax.study.loop.pacing import Calendar, Pace
from prunejax.study.loop.saving import Policy as Policy
from prunejax.study.loop.saving import Saving
from prunejax.study.loop.targets import Targets
from prunejax.study.loop.watching import Watch
from prunejax.study.planning.programs import Member
from prunejax.study.settings import lineage
from prunejax.study.settings.probing import Probing
from prunejax.system import signals
from prunejax.train import smaller
from prunejax.train.step import TrainState


@dataclasses.dataclass
class Chunk:
    """Members that are trained together, and where their records go."""

    index: int
    members: Sequence[Member]  # the real ones; the stack is padded up to `size`
    size: int
    population: Population
    directory: SharedDirectory
    checkpoints: Checkpoints
    policy: Policy
    progress: Progress
    probing: Probing
    measure: Hook | None = None
    measure_epochs: frozenset[int] = frozenset()
    every: int = 1  # epochs between evaluations

    def __post_init__(self) -> None:
        self._padded, self._places = lifting.pad(self.members, self.size, self.population.multiple)
        self._real = list(zip(self._places, self.members, strict=True))
        self._pace = Pace()
        known = self.every, self.measure_epochs, self.policy
        self._calendar = Calendar(self.population, self.members, *known)
        self._warm: set[str] = set()
        self._targets = Targets(self.directory.path / "targets", self.members)
        kept = self.directory, self.checkpoints, self._targets, self.progress
        self._saving = Saving(*kept, self.policy.clock, self._places)
        told = self.directory, self._targets, self._saving, self.progress, self.probing
        self._events = Events(self._real, self._padded, self.population, *told)
        self._handover = Handover(self.directory, self._real, self.population)
        # Steps at which calls end, each once: looked up by the next one, not gone through.
        self._stops = sorted({*self._events.between, *self._handover.steps})
        # The last step at which something happens. Diverged runs go on to it: what others take of
        # them must not depend on which runs are beside them.
        rows = (m.table.steps[row] for m in self.members for row in m.events)
        self._acts = max((0, *self._stops, *rows))
        stack = self.members, self._padded, self._places, self.population
        self._watch = Watch(*stack, self.directory, self._saving, self.measure)
        self._standing = ""  # loss and accuracy, for the progress line

    # -- the loop ---------------------------------------------------------------------------

    def run(self) -> None:
        """Trains to the end and appends every row; raises Interrupted after saving on request."""
        with self._saving.rescued(), signals.deferred():
            states, epoch = self._begin()
            program = self.population.program
            while epoch < program.epochs:
                self._saving.reached(states, epoch)
                last = self._calendar.last(epoch)
                states = self._train_epochs(states, epoch, last)
                epoch = last
                if not self._calendar.due(epoch):
                    epoch += 1
                    self._saving.reached(states, epoch)
                    self._maybe_save(states, epoch, epoch_done=True)
                    continue
                first = "end of an epoch" not in self._warm  # it compiles what no other call has
                self._warm.add("end of an epoch")
                with self.progress.excluded() if first else nullcontext():
                    states, stopped = self._end_epoch(states, epoch)
                epoch += 1
                self._saving.rows_written()
                self._saving.reached(states, epoch)
                if stopped:
                    left = (program.epochs - epoch) * program.steps_per_epoch * len(self.members)
                    self.progress.advance(left, "stopped", timed=False)
                    self._skip(states)
                    break
                self._maybe_save(states, epoch, epoch_done=True)
            self._finish(states)

    def _begin(self) -> tuple[TrainState, int]:
        """The states with which training begins, or goes on from a checkpoint, and their epoch."""
        ahead.prepare(self.population.soon(self.size, events=self._events.own))
        restored = self.checkpoints.restore(self.population.abstract(self.size))
        marks = self.directory.load_json("progress.json")
        self._begins = marks["sizes"]  # of the tables: as long as they were without these members
        states, epoch = None, 0
        for text in restored.damaged if restored else ():
            self.progress.message(f"damaged checkpoint skipped: {text}")
        if restored is not None and restored.states is not None:
            states, marks = restored.states, restored.facts
            epoch = self._saving.resume(states, marks)
            many = self._done(states) * len(self.members)
            self.progress.advance(many, "continuing from a checkpoint", timed=False)
        self.directory.truncate(marks["sizes"], marks.get("digests"))  # what follows is made anew
        if states is None:
            states = self.population.initial(self._padded, self._places)
            states = self._handover.begin(states, self._padded)
            self._handover.leave(states, 0)  # "start" is before the events of step 0
            states = self._events.due(states, -1, 0)
            states = self._handover.rewind(states, self._padded)  # masks stay, weights go back
            if any(bool(m.table.fan_in) for m in self.members):
                states = self.population.scale(states)  # by the masks that training begins with
            self._watch.track(states, -1)
            self._watch.rehearse(states)
            done = self._done(states)
            epoch = done // self.population.program.steps_per_epoch
            if done:
                self._handover.leave(states, done)  # as any state: before the events of its step
                states = self._events.due(
                    states, (done - 1) // self.population.program.steps_per_epoch, done
                )
                self.progress.advance(done * len(self.members), "begins later", timed=False)
        self._saving.rows_written()
        ahead.apart(checkpoint.load)  # while the first epochs train
        return states, epoch

    def _done(self, states: TrainState) -> int:
        """Training steps done; the members of a chunk advance together."""
        return int(mesh_lib.fetch(states.step)[self._places[0]])

    def _train_epochs(self, states: TrainState, epoch: int, last: int) -> TrainState:
        """From an epoch on to the end of the `last`: the same one, unless `Population.spans`."""
        program, per_epoch = self.population.program, self.population.program.steps_per_epoch
        steps = (last + 1 - epoch) * per_epoch
        full = steps - (1 if program.last_batch < program.batch_size else 0)
        done = self._done(states) - epoch * per_epoch  # above 0 in a resumed epoch
        (train, train_last), data = self.population.training(epoch), self.population.data
        size = smaller.sizes(program, epoch) or ""  # a smaller network is another compilation
        begun = epoch * per_epoch
        while done < full:
            after = bisect.bisect_right(self._stops, begun + done)  # a call ends at the next stop
            ends = [s - begun - done for s in self._stops[after : after + 1]]
            count = min(self._pace.steps, full - done, *ends)
            begin, warm = time.perf_counter(), f"training{size}" in self._warm
            with self._once(f"training{size}"):
                states = jax.block_until_ready(train(states, data, np.int32(count)))
            seconds = time.perf_counter() - begin
            self._reached(states, epoch, begun + done + count)
            self._pace.took(count, seconds)
            done += count
            if done < full:  # it takes more than one call: how it goes so far
                with self._once("how it goes"):
                    so_far = self.population.summary(states)[0]
                    self._stand(so_far.loss, "train", so_far.accuracy)
            self.progress.advance(count * len(self.members), self._text(last), timed=warm)
            states = self._arrived(states, begun + done)
            if done < steps:
                self._maybe_save(states, epoch, epoch_done=False)
        if done == full < steps:
            warm = f"last batch{size}" in self._warm
            with self._once(f"last batch{size}"):
                states = jax.block_until_ready(train_last(states, data))
            self._reached(states, epoch, begun + steps)
            self.progress.advance(len(self.members), self._text(epoch), timed=warm)
            states = self._arrived(states, begun + steps)
        return states

    def _reached(self, states: TrainState, epoch: int, step: int) -> None:
        """As `Saving.reached`, but for states whose events are still to come: a study that went on
        from those would take them as done.
        """
        if step not in self._events.between:
            self._saving.reached(states, epoch)

    def _arrived(self, states: TrainState, step: int) -> TrainState:
        """What falls on a step: first the states that others take, then the events."""
        self._handover.leave(states, step)
        if step in self._events.between:
            epoch = (step - 1) // self.population.program.steps_per_epoch
            states = self._events.due(states, epoch, step)
            self._saving.rows_written()
            self._saving.reached(states, epoch)
        return states

    def _skip(self, states: TrainState) -> None:
        """Leaves what others take at later steps, of runs that all stopped: only these count on."""
        done = self._done(states)
        for step in [s for s in self._handover.steps if s > done]:
            self._handover.leave(states._replace(step=states.step + (step - done)), step)

    def _end_epoch(self, states: TrainState, epoch: int) -> tuple[TrainState, bool]:
        """Evaluation, measures, events, rows. Returns the states and whether all runs stopped."""
        train, bad, steps, sparsity = self.population.summary(states)
        over = self._watch.over(states)
        asks = np.array([self._calendar.asks(m, epoch) for m in self._padded])
        released = self.population.program.features.released
        if released:  # its evaluation changes the windows
            self._saving.keep()
        states, pre = self._events.test(states, after_event=False)  # right before the event
        if epoch in self.measure_epochs and epoch + 1 < self.population.program.epochs:
            # Those that are over are measured at their end, as all are, and no more on the way.
            self._watch.measure_all(states, np.where(over, 0, bad), epoch)
        states, post = self._events.at_epoch(states, epoch, pre)
        if post is None and released:  # the released loop evaluates twice in every epoch
            states, post = self._events.test(states, after_event=True)
        if post is not None:  # what is live may have changed
            _, _, steps, sparsity = self.population.summary(states)
        post = pre if post is None else post  # epochs.csv tests what the event left
        validation = self._watch.validation(states)  # of the network after the event, as the test
        for i, m in self._real:
            if bad[i] >= epoch * self.population.program.steps_per_epoch:
                self.progress.message(f"{m.run}: stopped, the loss is not finite at step {bad[i]}")
        silent = np.asarray(bad >= 0) | over | ~asks  # the last row of those that are over is there
        whole = [(i, m) for i, m in self._real if not silent[i]]
        of = partial(rows_lib.of_epoch, epoch=epoch, train=train, test=post, validation=validation)
        rows = [of(m, i, step=steps[i], sparsity=sparsity[i]) for i, m in whole]
        self.directory.append("epochs", rows)
        self._watch.track(states, epoch, silent)
        self.probing.record(whole, {"epoch": post}, epoch, steps)
        self._stand(train.loss, "test", post.accuracy)
        states = self._watch.stop(states, epoch, asks)  # last: the epoch it stopped in has a row
        over, last = self._watch.over(states), epoch + 1 == self.population.program.epochs
        ending = [(i, m) for i, m in whole if last or over[i]]
        self.probing.record(ending, {"end": post}, epoch, steps)
        idle = (bad >= 0) & ((epoch + 1) * self.population.program.steps_per_epoch >= self._acts)
        return states, bool(np.all((idle | over)[self._places]))

    # -- parts ------------------------------------------------------------------------------

    def _once(self, what: str) -> AbstractContextManager[None]:
        """The first time is compilation: no training time, and a signal need not wait for it."""
        if what in self._warm:
            return nullcontext()
        self._warm.add(what)
        return self._saving.long(what)

    def _stand(self, loss: Any, split: str, accuracy: Any) -> None:
        self._standing = standing(loss[self._places], split, accuracy[self._places])

    def _text(self, epoch: int) -> str:
        which = [(m.variant, m.seed) for m in self.members]
        return f"{whose(which)}, epoch {epoch + 1}/{self.population.program.epochs}{self._standing}"

    def _maybe_save(self, states: TrainState, epoch: int, epoch_done: bool) -> None:
        """Saves when the policy says so; on request of a signal saves and raises Interrupted."""
        policy = self.policy
        stop = distributed.any_process(policy.stop_requested())
        due = distributed.any_process(policy.late(self._saving.saved_at))
        due |= epoch_done and policy.after(epoch, self.members)
        if stop or due:
            self._saving.save(states, epoch)
        if stop:
            raise Interrupted

    def _finish(self, states: TrainState) -> None:
        """The members' rows in runs.csv, their final states, and the end of their checkpoints."""
        _, bad, _, _ = self.population.summary(states)
        epochs, events = rows_lib.by_run(self.directory, self._begins, self.members)
        last = self.population.program.epochs - 1
        fit, rows = self._watch.ends(states), list[rows_lib.Row]()
        endings = Endings(self.population, self.directory, states, self._begins)
        for k, (i, m) in enumerate(self._real):
            status = "done" if bad[i] < 0 else f"non-finite loss at step {bad[i]}"
            row: dict[str, Any] = m.keys | summarize(epochs[m.run], events[m.run], status)
            if bad[i] < 0:
                row |= fit[k] | endings.of(i, m, events[m.run])
            if self.measure is not None and bad[i] < 0:
                row |= self._watch.measures(states, k, last, bad)
                self._maybe_save(states, last + 1, epoch_done=False)
            rows.append(dict.fromkeys(self.directory.tables["runs"]) | row)
        self._handover.leave(states, lineage.END)  # for children; the row comes after it
        runs = {"runs": [m.run for m in self.members], "places": self._places}
        self._saving.final(self.index, states, runs | {"size": self.size})
        endings.append()
        self.directory.append("runs", rows)  # last: whoever has a row is not trained again
