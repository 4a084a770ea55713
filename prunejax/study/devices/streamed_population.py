"""A population whose batches are read while it trains: for sets that memory does not hold.

The training steps, the events and the sums of evaluation are those of sets in memory. What differs
is where a batch comes from: there of the whole set on the device, here of a window of some batches
that this process has read, one window ahead of the devices.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from prunejax import scores as scores_lib
from prunejax.cluster import mesh as mesh_lib
from prunejax.cluster.mesh import DATA, MEMBER
from prunejax.data import StreamedSet
from prunejax.data.streaming import Batch, Stream, available_threads
from prunejax.study.devices import ahead, windows
from prunejax.study.devices.population import Population
from prunejax.study.planning.plan import Member
from prunejax.train import evaluation, step
from prunejax.train.evaluation import Metrics
from prunejax.train.prune import Event
from prunejax.train.step import Data, Program, TrainState

Tree = Any
# Of the images of a window of one member: a call is worth some hundred microseconds of the host.
WINDOW_BYTES = 2**23


class StreamedPopulation(Population):
    """`Population` on a `StreamedSet`; every layout, and several processes, as there.

    A batch of a run is a function of its seed and step, so that a run resumes anywhere and runs
    of one seed share what is read. Each process reads only what its devices need. `data` holds
    the few training examples of the saliency score, and nothing else.
    """

    spans = False  # what is read ahead ends with an epoch

    def __init__(
        self,
        program: Program,
        source: StreamedSet,
        layout: str,
        devices: Sequence[jax.Device],
        like: Member,
        *,
        shard_params: bool = False,
    ) -> None:
        """As `Population`, with a set in place of its arrays."""
        alone = dataclasses.replace(program, forecast=False)  # forecasts read the test set, too
        held = _held(program, source)
        super().__init__(alone, held, layout, devices, like, shard_params=shard_params)
        program = dataclasses.replace(self.program, forecast=program.forecast)
        self.program, self._source = program, source
        share = program.data_parallel
        self._eval_size = -(-program.eval_batch_size // share) * share  # divides over devices
        self._test: Stream | None = None
        self._feeds: dict[int, windows.Feed] = {}
        self._of_members = mesh_lib.sharding(self.mesh, MEMBER, None, DATA)
        self._of_all = mesh_lib.sharding(self.mesh, None, DATA)

        self._window = _batches_of(program, program.batch_size, program.steps_per_epoch)
        self._test_window = _batches_of(
            program, self._eval_size, -(-source.test_examples // self._eval_size)
        )
        steps = self._lift.stacked(
            lambda m, n: step.train_steps(program, m[0], step.Window(*m[1]), n)
        )
        self._steps = jax.jit(
            lambda states, window, n: steps((states, window), (n,)),
            donate_argnums=(0,),
            out_shardings=self._states,
        )
        self.train = self._train
        looked = partial(evaluation.batch_sums, program, examples=source.test_examples)
        self._sums = self._lift(_summed(looked), self._members)
        self._forecast = self._lift(
            _summed(lambda pair, *batch: evaluation.expansion(program, *pair)(*batch[:3])),
            self._members,
        )
        self._copied = jax.jit(
            lambda states: jax.tree.map(jnp.copy, states), out_shardings=self._states
        )

    # -- training -----------------------------------------------------------------------------

    def _train(self, states: TrainState, data: Data, steps: Any) -> TrainState:
        """`steps` training steps that stay inside one epoch."""
        del data
        first = int(mesh_lib.fetch(states.step)[0])  # members advance together
        seeds = [int(seed) for seed in mesh_lib.fetch(states.seeds.data)]
        last = first + int(steps)
        for number in range(first, last, self._window):
            count = min(self._window, last - number)
            window = self._read(seeds, number, count)
            # One window ahead and no further: else batches would pile up on the devices.
            jax.block_until_ready(states.step)
            states = self._steps(states, window, np.int32(count))
        return states

    def _read(self, seeds: Sequence[int], first: int, count: int) -> step.Window:
        """The members' batches of `count` steps, stacked: each process reads what it needs.

        The window is as long as ever; what follows these steps in it is zero and not looked at.
        """
        size = self.program.batch_size
        lead = (len(seeds), self._window, size)
        spans = windows.spans(self._of_members, lead)
        here = sorted(
            {seeds[m] for low, high in (span[0] for span in spans) for m in range(low, high)}
        )
        part = windows.part([span[2] for span in spans], size)
        if set(self._feeds) != set(here):
            threads = max(1, available_threads() // len(here))
            self._feeds = {
                seed: windows.Feed(
                    self._source.training(seed, size, augment=self.program.augment, part=part),
                    threads,
                )
                for seed in here
            }
        read = [
            {seed: feed(number) for seed, feed in self._feeds.items()}
            for number in range(first, first + count)
        ]
        offset = part[0] * (size // part[1])

        def place(key: str) -> jax.Array:
            def block(members: windows.Span, _: windows.Span, rows: windows.Span) -> np.ndarray:
                some = slice(rows[0] - offset, rows[1] - offset)
                of = [[b[seeds[m]][key][some] for b in read] for m in range(*members)]
                return np.stack([windows.filled(batches, self._window) for batches in of])

            return windows.placed(self._of_members, lead, read[0][here[0]][key], block)

        begins = mesh_lib.put(np.full(len(seeds), first, np.int32), self._members)
        return step.Window(place("image"), place("label"), begins)

    # -- evaluation ---------------------------------------------------------------------------

    def _over_test(self, fn: Callable[..., Tree], of: Tree, total: Tree) -> Tree:
        """`total = fn((of, total), *window, batches)` for the windows of the evaluation split."""
        size = self._eval_size
        part = windows.part([span[1] for span in windows.spans(self._of_all, (1, size))], size)
        if self._test is None:
            self._test = self._source.evaluation(size, part=part)
        offset = part[0] * (size // part[1])
        total = mesh_lib.put(total, self._members)
        long = self._test_window
        lead, batches = (long, size), self._test.iterate()
        for number in itertools.count():
            read = list(itertools.islice(batches, long))
            if not read:
                break

            def place(key: str, read: Sequence[Batch] = read) -> jax.Array:
                def block(_: windows.Span, rows: windows.Span) -> np.ndarray:
                    some = slice(rows[0] - offset, rows[1] - offset)
                    return windows.filled([batch[key][some] for batch in read], long)

                return windows.placed(self._of_all, lead, read[0][key], block)

            window = [place(key) for key in ("image", "label", "weight")]
            window.append(self._positions(number))
            jax.block_until_ready(total)
            total = fn((of, total), *window, np.int32(len(read)))
        return mesh_lib.fetch(total)

    def evaluate_test(
        self, states: TrainState, after_event: bool, only: np.ndarray | None = None
    ) -> tuple[TrainState, Metrics]:
        """Metrics on the evaluation split, each example counted once; of all members."""
        del after_event, only
        members, n = states.step.shape[0], self._source.test_examples
        zero = jax.tree.map(lambda x: np.zeros((members, *x.shape), x.dtype), self._no_sums())
        return states, evaluation.metrics(
            self.program, self._over_test(self._sums, states, zero), n
        )

    def _no_sums(self) -> Tree:
        """Shapes of the sums of one member."""
        images: Any = jax.ShapeDtypeStruct((1, *self.program.image_shape), np.uint8)
        labels: Any = jax.ShapeDtypeStruct((1,), np.int32)
        n = self._source.test_examples
        return jax.eval_shape(
            lambda state: evaluation.zeros(self.program, state, images, labels, n), self._one
        )

    def _positions(self, number: int) -> jax.Array:
        """Of the examples of a window of the evaluation split, in it."""
        lead = (self._test_window, self._eval_size)
        each = lead[0] * lead[1]
        here = np.arange(number * each, (number + 1) * each, dtype=np.int32).reshape(lead)
        return jax.make_array_from_callback(lead, self._of_all, lambda index: here[index])

    def event(self, states: TrainState, row: int, replay: Tree = None) -> tuple[TrainState, Event]:
        """As `Population.event`; a forecast is a pass of its own over the evaluation split."""
        if not self.program.forecast:
            return super().event(states, row, replay)
        before = self._copied(states)  # the event takes its argument's memory
        states, event = super().event(states, row, replay)
        happens = event.targeted.any(axis=1)  # of members: NaN for others
        if happens.any():
            zero = np.zeros((len(happens), 2), np.float32)
            sums = self._over_test(self._forecast, (before, states), zero)
            predicted = sums / np.float32(self._source.test_examples)
            predicted[~happens] = np.nan
            event = event._replace(predicted=predicted)
        return states, event

    # -- memory -------------------------------------------------------------------------------

    def soon(self, size: int, *, events: bool) -> Iterator[ahead.Task]:
        """As `Population.soon`."""
        states = self.abstract(size)
        yield self._summary, (states,)
        if events:
            yield self._event, (states, self.data, np.int32(1))

    def counted(self, size: int, evaluation: bool) -> list[ahead.Task]:
        """As `Population.counted`."""
        shape = self.program.image_shape

        def abstract(where: NamedSharding, *lead: int) -> list[jax.ShapeDtypeStruct]:
            images = jax.ShapeDtypeStruct((*lead, *shape), np.uint8, sharding=where)
            return [images, jax.ShapeDtypeStruct(lead, np.int32, sharding=where)]

        states = self.abstract(size)
        batches = abstract(self._of_members, size, self._window, self.program.batch_size)
        begins = jax.ShapeDtypeStruct((size,), np.int32, sharding=self._members)
        window = step.Window(batches[0], batches[1], begins)
        tasks: list[ahead.Task] = [(self._steps, (states, window, np.int32(1)))]
        if evaluation:
            totals = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=self._members),
                self._no_sums(),
            )
            lead = (self._test_window, self._eval_size)
            some = abstract(self._of_all, *lead)
            some += [
                jax.ShapeDtypeStruct(lead, kind, sharding=self._of_all)
                for kind in (np.float32, np.int32)
            ]
            tasks.append(self._sums.task((states, totals), *some, np.int32(1)))
        return tasks

    def data_bytes(self, size: int) -> int:
        """As `Population.data_bytes`: two windows, one in use, one that waits."""
        each = int(np.prod(self.program.image_shape)) * self.program.batch_size * self._window
        on_device = -(-size // self.multiple) * each // self.program.data_parallel
        return super().data_bytes(size) + 2 * on_device


def _held(program: Program, source: StreamedSet) -> Data:
    """The first training examples where a score asks for their gradient; empty splits."""
    images, labels = np.zeros((0, *source.image_shape), np.uint8), np.zeros(0, np.int32)
    splits: Mapping[str, np.ndarray] = {
        f"{split}_{what}": array
        for split in ("train", "test", "validation")
        for what, array in (("images", images), ("labels", labels))
    }
    held = Data(**splits)
    needed = any("gradient" in scores_lib.SCORES[name].needs for name in program.scores)
    if needed or program.features.growth:
        count = min(program.saliency_examples, program.train_examples)
        train_images, train_labels = source.first("train", count)
        held = held._replace(train_images=train_images, train_labels=train_labels)
    return held


def _batches_of(program: Program, batch: int, most: int) -> int:
    """How many batches of so many examples a window has.

    A function of the study alone, not of the machine: XLA compiles a window of one batch otherwise
    than longer ones, and a last digit differs then.
    """
    example = int(np.prod(program.image_shape))  # bytes: pixels
    return max(1, min(most, WINDOW_BYTES // (batch * example)))


def _summed(fn: Callable[..., Tree]) -> Callable[..., Tree]:
    """`((of, total), *window, count) -> total + sum of fn(of, *batch)` over its batches."""

    def summed(m: Any, *window: Any) -> Tree:
        *batches, count = window
        return evaluation.over_window(partial(fn, m[0]), m[1], tuple(batches), count)

    return summed
