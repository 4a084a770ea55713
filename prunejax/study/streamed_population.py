"""A population whose batches are read while it trains: for sets that memory does not hold.

The train step, the events and the sums of evaluation are those of sets in memory. What differs is
who fetches a batch: there the compiled program, here this process, one step ahead of the devices.
"""

import dataclasses
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
from prunejax.study import ahead
from prunejax.study.plan import Member
from prunejax.study.population import Memory, Population
from prunejax.train import evaluation, step
from prunejax.train.evaluation import Metrics
from prunejax.train.prune import Event
from prunejax.train.step import Data, Program, TrainState

Tree = Any


class StreamedPopulation(Population):
    """`Population` on a `StreamedSet`; every layout, and several processes, as there.

    A batch of a run is a function of its seed and step, so that a run resumes anywhere and runs
    of one seed share what is read. Each process reads only what its devices need. `data` holds
    the few training examples of the saliency score, and nothing else.
    """

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
        split = mesh_lib.Split(program.data_parallel) if shard_params else None
        program = dataclasses.replace(program, split=split)
        alone = dataclasses.replace(program, forecast=False)  # forecasts read the test set, too
        held = _held(program, source)
        super().__init__(alone, held, layout, devices, like, shard_params=shard_params)
        self.program, self._source = program, source
        share = program.data_parallel
        self._eval_size = -(-program.eval_batch_size // share) * share
        self._test: Stream | None = None
        self._feeds: dict[int, _Feed] = {}
        self._of_members = mesh_lib.sharding(self.mesh, MEMBER, DATA)
        self._of_all = mesh_lib.sharding(self.mesh, DATA)

        one_step = self._lift.stacked(lambda m: step.train_batch(program, *m))
        self._step = jax.jit(
            lambda states, images, labels: one_step((states, images, labels)),
            donate_argnums=(0,),
            out_shardings=self._states,
        )
        self.train = self._train
        looked = partial(evaluation.batch_sums, program, examples=source.test_examples)
        self._sums = self._lift(_added(looked), self._members)
        self._forecast = self._lift(
            _added(lambda pair, *batch: evaluation.expansion(program, *pair)(*batch[:3])),
            self._members,
        )
        self._copied = jax.jit(
            lambda states: jax.tree.map(jnp.copy, states), out_shardings=self._states
        )

    # -- training -----------------------------------------------------------------------------

    def _train(self, states: TrainState, data: Data, steps: Any) -> TrainState:
        """`steps` training steps that stay inside one epoch."""
        del data
        first = int(mesh_lib.fetch(states.step)[0])
        seeds = [int(seed) for seed in mesh_lib.fetch(states.seeds.data)]
        for number in range(first, first + int(steps)):
            images, labels = self._batch(seeds, number)
            # One step ahead and no further: else batches would pile up on the devices.
            jax.block_until_ready(states.step)
            states = self._step(states, images, labels)
        return states

    def _batch(self, seeds: Sequence[int], number: int) -> tuple[jax.Array, jax.Array]:
        """The members' batches of a step, stacked: each process reads what its devices need."""
        size = self.program.batch_size
        spans = _spans(self._of_members, (len(seeds), size))
        here = sorted(
            {seeds[m] for low, high in (span[0] for span in spans) for m in range(low, high)}
        )
        part = _part([span[1] for span in spans], size)
        if set(self._feeds) != set(here):
            threads = max(1, available_threads() // len(here))
            self._feeds = {
                seed: _Feed(
                    self._source.training(seed, size, augment=self.program.augment, part=part),
                    threads,
                )
                for seed in here
            }
        read = {seed: feed(number) for seed, feed in self._feeds.items()}
        offset = part[0] * (size // part[1])

        def place(key: str) -> jax.Array:
            def block(members: tuple[int, int], rows: tuple[int, int]) -> np.ndarray:
                some = slice(rows[0] - offset, rows[1] - offset)
                return np.stack([read[seeds[m]][key][some] for m in range(*members)])

            return _placed(self._of_members, (len(seeds), size), read[here[0]][key], block)

        return place("image"), place("label")

    # -- evaluation ---------------------------------------------------------------------------

    def _over_test(self, fn: Callable[..., Tree], of: Tree, total: Tree) -> Tree:
        """`total = fn((of, total), *batch)` for each batch of the evaluation split, on the host."""
        size = self._eval_size
        part = _part([span[0] for span in _spans(self._of_all, (size,))], size)
        if self._test is None:
            self._test = self._source.evaluation(size, part=part)
        offset = part[0] * (size // part[1])
        total = mesh_lib.put(total, self._members)
        for number, read in enumerate(self._test.iterate()):

            def place(host: np.ndarray) -> jax.Array:
                return _placed(
                    self._of_all, (size,), host, lambda r: host[r[0] - offset : r[1] - offset]
                )

            batch = [place(read[key]) for key in ("image", "label", "weight")]
            batch.append(self._positions(number))
            jax.block_until_ready(total)
            total = fn((of, total), *batch)
        return mesh_lib.fetch(total)

    def evaluate_test(self, states: TrainState, after_event: bool) -> tuple[TrainState, Metrics]:
        """Metrics on the evaluation split, each example counted once."""
        del after_event
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
        """Of the examples of a batch of the evaluation split, in it."""
        size = self._eval_size
        here = np.arange(number * size, (number + 1) * size, dtype=np.int32)
        return jax.make_array_from_callback((size,), self._of_all, lambda index: here[index])

    def event(self, states: TrainState, row: int, replay: Tree = None) -> tuple[TrainState, Event]:
        """As `Population.event`; a forecast is a pass of its own over the evaluation split."""
        if not self.program.forecast:
            return super().event(states, row, replay)
        before = self._copied(states)  # the event takes its argument's memory
        states, event = super().event(states, row, replay)
        happens = event.targeted.any(axis=1)
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

    def _lowered(self, states: TrainState, with_evaluation: bool) -> list[Any]:
        members, shape = states.step.shape[0], self.program.image_shape

        def abstract(where: NamedSharding, *lead: int) -> list[jax.ShapeDtypeStruct]:
            images = jax.ShapeDtypeStruct((*lead, *shape), np.uint8, sharding=where)
            return [images, jax.ShapeDtypeStruct(lead, np.int32, sharding=where)]

        size = self.program.batch_size
        programs = [self._step.lower(states, *abstract(self._of_members, members, size))]
        if with_evaluation:
            totals = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(
                    (members, *x.shape), x.dtype, sharding=self._members
                ),
                self._no_sums(),
            )
            batch = abstract(self._of_all, self._eval_size)
            batch += [
                jax.ShapeDtypeStruct((self._eval_size,), kind, sharding=self._of_all)
                for kind in (np.float32, np.int32)
            ]
            programs.append(self._sums.lower((states, totals), *batch))
        return programs

    def memory(self, size: int, with_evaluation: bool = True) -> Memory:
        """As `Population.memory`, and two batches on each device: one in use, one that waits."""
        found = super().memory(size, with_evaluation)
        each = int(np.prod(self.program.image_shape)) * self.program.batch_size
        on_device = -(-size // self.multiple) * each // self.program.data_parallel
        devices = len(self.mesh.local_devices) if self._cpu else 1
        return found._replace(data=found.data + 2 * devices * on_device)


class _Feed:
    """The batches of one stream from any step on; those that follow are prepared ahead."""

    def __init__(self, stream: Stream, threads: int) -> None:
        self._stream, self._threads = stream, threads
        self._ahead: Iterator[Batch] = iter(())
        self._next = -1

    def __call__(self, number: int) -> Batch:
        if number != self._next:
            self._ahead = self._stream.iterate(number, threads=self._threads)
        self._next = number + 1
        return next(self._ahead)


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


def _added(fn: Callable[..., Tree]) -> Callable[..., Tree]:
    """`((of, total), *batch) -> total + fn(of, *batch)`."""
    return lambda m, *batch: jax.tree.map(jnp.add, m[1], fn(m[0], *batch))


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """First and one past the last entry along each leading axis."""
    return [s.indices(n)[:2] for s, n in zip(index, shape, strict=False)]


def _spans(where: NamedSharding, lead: tuple[int, ...]) -> list[list[tuple[int, int]]]:
    """What each device of this process holds of an array of those leading axes."""
    held = where.addressable_devices_indices_map(lead)
    return [_bounds(index, lead) for index in held.values() if index is not None]


def _placed(
    where: NamedSharding, lead: tuple[int, ...], like: np.ndarray, block: Callable[..., np.ndarray]
) -> jax.Array:
    """`[*lead, ...]` on the devices from what `block(*bounds)` gives of it.

    Args:
      where: its sharding.
      lead: its leading axes.
      like: gives the other axes: all but its first.
      block: called with (first, one past last) along each leading axis, for each device here.
    """

    def one(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return block(*_bounds(index, lead))

    return jax.make_array_from_callback((*lead, *like.shape[1:]), where, one)


def _part(rows: Sequence[tuple[int, int]], size: int) -> tuple[int, int]:
    """The smallest of equal parts (i, n) of a batch that has all these rows."""
    low, high = min(first for first, _ in rows), max(last for _, last in rows)
    width = high - low
    return (0, 1) if size % width or low % width else (low // width, size // width)
