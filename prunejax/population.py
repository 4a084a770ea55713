"""How the runs of a study are laid out on devices; the science does not change with it.

A `Population` turns a function of *one* run's state into the same function of many runs stacked
along a leading axis: one after another ("sequential"), vectorized with `vmap`, or spread over
devices ("sharded"; on each device one after another on CPU, vectorized on accelerators).
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prunejax import evaluation, prune, step
from prunejax.evaluation import Metrics
from prunejax.plan import Member
from prunejax.prune import Event
from prunejax.step import Data, Program, TrainState

Array = jax.Array
Tree = Any
LAYOUTS = ("sequential", "vectorized", "sharded")


def _mapped(fn: Callable[..., Tree], member: Tree, shared: tuple[Any, ...]) -> Tree:
    """`fn(m, *shared)` for each member m of the stack, one after another."""
    return jax.lax.map(lambda m: fn(m, *shared), member)


def _vectorized(fn: Callable[..., Tree], member: Tree, shared: tuple[Any, ...]) -> Tree:
    return jax.vmap(lambda m: fn(m, *shared))(member)


class Population:
    """The compiled functions of one program for stacked members in one layout.

    Every function takes and returns states stacked along a leading member axis whose length is a
    multiple of `multiple` (pad with copies: `pad`).
    """

    def __init__(
        self, program: Program, data: Data, layout: str, devices: Sequence[jax.Device]
    ) -> None:
        """Args: layout: one of LAYOUTS. devices: used by "sharded"; the others use the first."""
        self.program, self.layout = program, layout
        self.devices = list(devices) if layout == "sharded" else list(devices)[:1]
        cpu = self.devices[0].platform == "cpu"
        inner = (
            _vectorized if layout == "vectorized" or (layout == "sharded" and not cpu) else _mapped
        )
        mesh = Mesh(np.array(self.devices), ("member",))
        self._sharding = NamedSharding(mesh, PartitionSpec("member"))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self.data: Data = jax.device_put(data, self._replicated)
        members, everywhere = PartitionSpec("member"), PartitionSpec()

        def lift(
            fn: Callable[..., Tree],
            donate: bool = False,
            options: dict[str, Any] | None = None,
        ) -> Callable[..., Tree]:
            """`fn(member_args, *shared)` of one member -> of the stack; compiled once."""

            def stacked(member: Tree, *shared: Any) -> Tree:
                run = lambda m, s: inner(fn, m, s)  # noqa: E731
                if len(self.devices) > 1:
                    run = jax.shard_map(
                        run,
                        mesh=mesh,
                        in_specs=(members, everywhere),
                        out_specs=members,
                        check_vma=False,
                    )
                return run(member, shared)

            return jax.jit(stacked, donate_argnums=(0,) if donate else (), compiler_options=options)

        # Runs once: on CPU optimizing the random draws takes longer than compiling the train step.
        once = {"xla_backend_optimization_level": 1} if cpu else None
        self._initial = lift(lambda m: step.initial_state(program, *m), options=once)
        self.train = lift(lambda s, data, n: step.train_steps(program, s, data, n), donate=True)
        self.train_last = lift(lambda s, data: step.train_last_step(program, s, data), donate=True)
        self._evaluate = lift(
            lambda s, images, labels: evaluation.evaluate(program, s, images, labels)
        )
        self._released = lift(
            lambda s, images, labels, after: evaluation.released_evaluate(
                program, s, images, labels, after
            ),
            donate=True,
        )
        self._event = lift(
            lambda m, data, event: prune.apply_event(program, m[0], data, event, m[1]),
            donate=True,
        )
        self._summary = lift(
            lambda s: (evaluation.train_metrics(s), s.bad_step, s.step, prune.sparsity(program, s))
        )

    @property
    def multiple(self) -> int:
        """The number of members must be a multiple of this."""
        return len(self.devices)

    def place(self, tree: Tree) -> Tree:
        """Puts a stacked tree on the devices of this layout."""
        return jax.device_put(tree, self._sharding)

    def initial(self, members: Sequence[Member]) -> TrainState:
        """The stacked states of members before their first step."""
        args = [(np.uint32(m.seed), m.table, m.hyper) for m in members]
        return self._initial(self.place(stack(args)))

    def evaluate(self, states: TrainState, images: Array, labels: Array) -> Metrics:
        """Mean loss and accuracy of each member over a split [members]."""
        return self._evaluate(states, images, labels)

    def evaluate_test(self, states: TrainState, after_event: bool) -> tuple[TrainState, Metrics]:
        """Test metrics; as released, the windows see every test batch."""
        images, labels = self.data.test_images, self.data.test_labels
        if self.program.features.released:
            return self._released(states, images, labels, jnp.int32(after_event))
        return states, self._evaluate(states, images, labels)

    def event(self, states: TrainState, row: int, replay: Tree) -> tuple[TrainState, Event]:
        """The event in `row` of each member's counts; see `prune.apply_event`."""
        return self._event((states, self.place(replay)), self.data, jnp.int32(row))

    def summary(self, states: TrainState) -> tuple[Metrics, Array, Array, Array]:
        """Training metrics of the epoch, first bad step, steps done, sparsity [members] each."""
        return jax.device_get(self._summary(states))


def stack(trees: Sequence[Tree]) -> Tree:
    """Trees of arrays -> one tree with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def member(tree: Tree, index: int) -> Tree:
    """One member's part of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def pad(members: Sequence[Member], size: int) -> list[Member]:
    """Members repeated up to `size`, so that the last chunk has the shape of the others."""
    return [members[i % len(members)] for i in range(size)]


def chunk_size(population_layout: str, members: int, devices: int, fits: int) -> int:
    """Members that are trained together.

    Args:
      population_layout: one of LAYOUTS.
      members: how many there are.
      devices: that the layout uses.
      fits: members whose states fit into memory at once.
    """
    if population_layout == "sequential":
        return 1
    size = max(1, min(members, fits))
    if population_layout == "sharded":
        size = max(devices, size // devices * devices)
        size = min(size, -(-members // devices) * devices)
    return size


def measure_layout(
    program: Program,
    data: Data,
    layout: str,
    devices: Sequence[jax.Device],
    members: Sequence[Member],
    steps: int,
) -> tuple[float, float]:
    """Seconds per member-step and seconds of compilation of a layout, from `steps` steps."""
    population = Population(program, data, layout, devices)
    states = population.initial(members)
    begin = time.perf_counter()
    states = jax.block_until_ready(population.train(states, population.data, jnp.int32(1)))
    compiled = time.perf_counter()
    jax.block_until_ready(population.train(states, population.data, jnp.int32(steps)))
    seconds = time.perf_counter() - compiled
    return seconds / (steps * len(members)), compiled - begin
