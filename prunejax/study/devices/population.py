"""How the runs of a study are laid out on devices; the science does not change with it.

A `Population` turns a function of *one* run's state into the same function of many runs stacked
along a leading axis: one after another ("sequential"), vectorized with `vmap`, or spread over
devices ("sharded"; on each device one after another on CPU, vectorized on accelerators). In each
layout, `data_parallel` devices may share one member (`prunejax.cluster.mesh`).
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from prunejax.cluster import mesh as mesh_lib
from prunejax.cluster.mesh import MEMBER
from prunejax.study.devices import ahead, lifting, shared
from prunejax.study.planning.programs import Member
from prunejax.train import prune, smaller, step, stopping
from prunejax.train.evaluation import Metrics
from prunejax.train.prune import Event
from prunejax.train.step import Data, Program, TrainState

Array = jax.Array
Tree = Any
LAYOUTS = ("sequential", "vectorized", "sharded")


class Population:
    """The compiled functions of one program for stacked members in one layout.

    Every function takes and returns states stacked along a leading member axis whose length is a
    multiple of `multiple` (`lifting.pad` fills up with copies). With several processes all of them
    call it.
    """

    def __init__(
        self,
        program: Program,
        data: Data,
        layout: str,
        devices: Sequence[jax.Device],
        like: Member,
        *,
        shard_params: bool = False,
    ) -> None:
        """Nothing is compiled yet.

        Args:
          program: what the members share; `program.data_parallel` devices share a member.
          data: the splits; every device gets a copy.
          layout: one of LAYOUTS.
          devices: all of them are used by "sharded", the first `data_parallel` by the others.
          like: any member, for the shapes.
          shard_params: split large arrays of a state over the devices that share the member.

        Raises:
          ConfigError: the devices do not divide, or there are none to split over.
        """
        used = mesh_lib.used_by(layout, devices, program.data_parallel, shard_params)
        split = mesh_lib.Split(program.data_parallel) if shard_params else None
        program = dataclasses.replace(program, split=split)
        self.program, self.layout, self._like = program, layout, like
        self.mesh = mesh_lib.make(used, program.data_parallel)
        self.cpu = used[0].platform == "cpu"
        self.vectorized = lifting.vectorizes(layout, self.cpu)
        self._lift = lifting.Lift(self.mesh, self.vectorized)
        self._members = mesh_lib.sharding(self.mesh, MEMBER)
        self.data: Data = mesh_lib.put(data, mesh_lib.sharding(self.mesh))

        self._one: TrainState = jax.eval_shape(
            lambda m: step.initial_state(program, *m), lifting.arguments(like)
        )
        whole, parts = (mesh_lib.stacked(self.mesh, self._one, s) for s in (False, shard_params))
        self._states: TrainState = whole._replace(
            params=parts.params,
            opt_state=parts.opt_state,
            windows=parts.windows,
            learnt=parts.learnt,  # a score for each weight
        )
        # What an event targeted lies where its parameters do.
        event: Tree = Event(*[self._members] * len(Event._fields))  # type: ignore[arg-type]
        event = event._replace(selected=self._states.windows.targeted)

        of: Any = shared.functions(program, self.mesh, self.vectorized, self._states)
        self._initial, self._evaluate, self._released = of.initial, of.evaluate, of.released
        self._test = of.test
        self._summary, self._stop, self._track, self.scale = of.summary, of.stop, of.track, of.scale
        self.train, self.train_last, self._smaller = of.train, of.train_last, of.smaller
        self._event = self._lift(
            functools.partial(prune.apply_event, program),
            (self._states, event),
            donate=True,  # the new state takes the old one's memory
        )
        self._twin_event = self._lift(
            lambda m, data, event: prune.apply_event(program, m[0], data, event, m[1]),
            (self._states, event),
            donate=True,
        )
        take = lambda s, i: jax.tree.map(lambda leaf: leaf[i], s)  # noqa: E731
        self._take = jax.jit(take)
        apart = jax.tree.map(_without_members, self._states)
        self._member = jax.jit(take, out_shardings=apart)

    def on(self, data: Data) -> "Population":
        """The same compiled functions on other data of the same shapes."""
        other = copy.copy(self)
        other.data = mesh_lib.put(data, mesh_lib.sharding(self.mesh))
        return other

    def training(self, epoch: int) -> tuple[Any, Any]:
        """`train` and `train_last` for an epoch: of the network with the units that it has then."""
        sizes = smaller.sizes(self.program, epoch)
        return (self.train, self.train_last) if sizes is None else self._smaller[sizes]

    @property
    def spans(self) -> bool:
        """Whether one call may train several epochs: of one whole batch each, of one network."""
        p = self.program
        return p.train_examples == p.batch_size and not p.cuts

    @property
    def multiple(self) -> int:
        """The number of members must be a multiple of this."""
        return self.mesh.shape[MEMBER]

    def initial(self, members: Sequence[Member], real: Collection[int] | None = None) -> TrainState:
        """The stacked states of members before their first step.

        Args: real: the places of those that are no padding; None: all.
        """
        begins = lifting.stack([lifting.arguments(m) for m in members])
        states: TrainState = self._initial(mesh_lib.put(begins, self._members))
        if real is None or len(real) == len(members):
            return states
        stopped = [-1 if i in real else stopping.PADDING for i in range(len(members))]
        return states._replace(stopped=mesh_lib.put(np.array(stopped, np.int32), self._members))

    def soon(self, size: int, *, events: bool) -> Iterator[ahead.Task]:
        """What comes before and after the steps of `size` members, and its arguments.

        See `ahead.prepare`; the steps themselves are compiled where their memory is measured.

        Args: events: whether there are any (not counting those of twins).
        """
        states, data = self.abstract(size), self.data
        begins = lambda x: _stacked(size, x, self._members)  # noqa: E731
        yield self._initial, (jax.tree.map(begins, lifting.arguments(self._like)),)
        if self.program.last_batch < self.program.batch_size:
            yield self.train_last, (states, data)
        yield self._summary, (states,)
        if not self.program.features.released:
            yield self._test, (states, data.test_images, data.test_labels)
        if events:
            yield self._event, (states, data, np.int32(1))

    def put(self, states: TrainState) -> TrainState:
        """Stacked states from the host."""
        return mesh_lib.put(states, self._states)

    def abstract(self, size: int) -> TrainState:
        """Shapes and shardings of the stacked states of `size` members."""
        return jax.tree.map(functools.partial(_stacked, size), self._one, self._states)

    def zeros(self, size: int) -> TrainState:
        """States of zeros: as large and as slow as real ones, without the time to make them."""
        shapes = self.abstract(size)
        hosts = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        return mesh_lib.put(hosts, self._states)

    def counted(self, size: int, evaluation: bool) -> list[ahead.Task]:
        """The jitted functions whose memory counts while `size` members train, with arguments.

        They are compiled once all the same. Args: evaluation: whether that counts as well.
        """
        states, test = self.abstract(size), (self.data.test_images, self.data.test_labels)
        tasks = [self.train.task(states, self.data, np.int32(1))]
        if evaluation and self.program.features.released:
            tasks.append(self._released.task(states, *test, np.int32(0)))
        elif evaluation:
            tasks.append(self._test.task(states, *test))
        return tasks

    def data_bytes(self, size: int) -> int:
        """Bytes on one device of the data, and of what is read ahead for `size` members."""
        del size
        return sum(leaf.nbytes for leaf in self.data)

    def state_bytes(self, size: int) -> int:
        """Bytes of the states of `size` members on one device."""
        leaves = jax.tree.leaves(self.abstract(size))
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in leaves
        )

    def evaluate(
        self, states: TrainState, images: Array, labels: Array, running: bool = False
    ) -> Metrics:
        """Mean loss and accuracy [members] of a split; `running`: those that stopped may be NaN."""
        evaluate = self._test if running else self._evaluate
        return mesh_lib.fetch(evaluate(states, images, labels))

    def evaluate_test(
        self, states: TrainState, after_event: bool, only: np.ndarray | None = None
    ) -> tuple[TrainState, Metrics]:
        """Test metrics; as released, the windows see every test batch.

        Args: only: bool [members], those that are looked at: others may be left out, NaN.
        """
        images, labels = self.data.test_images, self.data.test_labels
        if not self.program.features.released:
            seen = states
            if only is not None:  # left out as padding is, by the same program
                stopped = np.where(only, mesh_lib.fetch(states.stopped), stopping.PADDING)
                seen = states._replace(stopped=mesh_lib.put(stopped, self._members))
            return states, self.evaluate(seen, images, labels, running=True)
        states, metrics = self._released(states, images, labels, np.int32(after_event))
        return states, mesh_lib.fetch(metrics)

    def event(self, states: TrainState, row: int, replay: Tree = None) -> tuple[TrainState, Event]:
        """The event in `row` of each member's counts; see `prune.apply_event`.

        Args:
          states: of all members.
          row: of the counts.
          replay: stacked targets for the twins among the members; None: there are none.
        """
        if replay is None:
            states, event = self._event(states, self.data, np.int32(row))
        else:
            pair = (states, mesh_lib.put(replay, self._states.windows.targeted))
            states, event = self._twin_event(pair, self.data, np.int32(row))
        return states, mesh_lib.fetch(event)

    def stop(self, states: TrainState, loss: Any, ready: Any) -> TrainState:
        """Members whose loss [members] is low enough stop here if they are ready [members]."""
        flags = mesh_lib.put((np.asarray(loss), np.asarray(ready)), self._members)
        return states._replace(stopped=self._stop((shared.bare(states), *flags)))

    def track(self, states: TrainState) -> np.ndarray:
        """[members, columns] of the program's trackers."""
        data = self.data
        return mesh_lib.fetch(self._track(states, data.train_images, data.train_labels))

    def summary(self, states: TrainState) -> tuple[Metrics, Array, Array, Array]:
        """Training metrics of the epoch, first bad step, steps done, sparsity [members] each."""
        return mesh_lib.fetch(self._summary(states))

    def member(self, states: TrainState, index: int) -> TrainState:
        """One member's state: on one device, unless several split its parameters.

        Where it can be, it is taken from the device that holds it. Threads may compute on any
        device meanwhile, and devices that wait for each other would wait for those threads, too.
        """
        held = mesh_lib.held(states, index)
        if held is not None:
            return self._take(*held)
        state = self._member(states, index)
        if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state)):
            return jax.tree.map(lambda leaf: leaf.addressable_data(0), state)
        return state


def _stacked(size: int, x: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    """Shape of `size` arrays like one, and where they lie."""
    return jax.ShapeDtypeStruct((size, *np.shape(x)), np.result_type(x), sharding=where)


def _without_members(where: NamedSharding) -> NamedSharding:
    return NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
