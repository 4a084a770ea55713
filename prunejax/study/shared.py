"""Compiled functions that programs share which differ in their events alone.

Ways of pruning differ in what they do at events. How a run begins, trains and is tested is one
program for all that keep dead weights in the same way, so it is compiled once for them.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from prunejax.cluster import mesh as mesh_lib
from prunejax.cluster.mesh import MEMBER
from prunejax.interventions import ROWS, Table
from prunejax.study import lifting
from prunejax.study.programs import Member
from prunejax.train import evaluation, prune, smaller, step, stopping, trackers
from prunejax.train.step import Program, TrainState

Tree = Any
MOST = 8  # programs whose functions are kept
Rows = dict[str, Any]


def parted(table: Table) -> tuple[Table, Rows]:
    """What of a run's table acts in training, and its rows, which events alone read."""
    return table._replace(**dict.fromkeys(ROWS, ())), {name: getattr(table, name) for name in ROWS}


def without_rows(states: TrainState) -> tuple[TrainState, Rows]:
    """States as shared functions take them, and the rows of their tables."""
    table, rows = parted(states.table)
    return states._replace(table=table), rows


def with_rows(states: TrainState, rows: Rows) -> TrainState:
    """States whole again."""
    return states._replace(table=states.table._replace(**rows))


def beginning(like: Member, size: int, where: NamedSharding) -> Tree:
    """Shapes, and where they lie, of what `size` members like this one give to `initial`."""
    seed, table, *rest = lifting.arguments(like)

    def stacked(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *np.shape(x)), np.asarray(x).dtype, sharding=where)

    return jax.tree.map(stacked, (seed, parted(table)[0], *rest))


class Bare:
    """A compiled function of stacked states that are given to it without the rows of their tables.

    How many rows there are depends on the events of all arms of a program.
    """

    def __init__(
        self, fn: Any, back: Callable[[Tree, Rows], Tree] = lambda found, _: found
    ) -> None:
        """Args: fn: of bare states, and more. back: of its result and the rows, what is given."""
        self._fn, self._back = fn, back

    def __call__(self, states: TrainState, *rest: Any) -> Tree:
        """As the jitted function, for whole states."""
        bare, rows = without_rows(states)
        return self._back(self._fn(bare, *rest), rows)

    def lower(self, states: TrainState, *rest: Any) -> Any:
        """As that of the jitted function."""
        return self._fn.lower(without_rows(states)[0], *rest)

    def compile(self, pool: Any, states: TrainState, *rest: Any) -> None:
        """See `ahead.Compiled`."""
        self._fn.compile(pool, without_rows(states)[0], *rest)


class Functions:
    """Those of a program in one layout. Nothing is compiled before its first call."""

    def __init__(self, program: Program, mesh: Mesh, vectorized: bool, states: TrainState) -> None:
        """Args: program: `beside_events` of some. states: shardings of bare stacked states."""
        lift, members = lifting.Lift(mesh, vectorized), mesh_lib.sharding(mesh, MEMBER)

        def changing(fn: Callable[..., TrainState]) -> Bare:
            return Bare(lift(fn, states, donate=True), with_rows)

        # Runs once: on CPU optimizing the random draws takes longer than compiling the train step.
        once = {"xla_backend_optimization_level": 1} if _on_cpu(mesh) else None
        self.initial = lift(lambda m: step.initial_state(program, *m), states, options=once)
        skips = lifting.padding_is_idle(vectorized, program.data_parallel)

        def trained(s: TrainState, data: Any, steps: Any) -> TrainState:
            own = stopping.unless_padding(s, steps) if skips else steps
            return step.train_steps(program, s, data, own)

        self.train = changing(trained)
        self.train_last = changing(functools.partial(step.train_last_step, program))
        cuts = {sizes: smaller.of(program, sizes) for _, sizes in program.cuts}
        self.smaller = {
            sizes: tuple(
                changing(functools.partial(fn, cut))
                for fn in (smaller.train_steps, smaller.train_last_step)
            )
            for sizes, cut in cuts.items()
        }
        self.evaluate = Bare(lift(functools.partial(evaluation.evaluate, program), members))
        # Only members that are evaluated one after another gain.
        self.test = self.evaluate
        if skips:
            self.test = Bare(lift(functools.partial(evaluation.evaluate_running, program), members))
        self.released = Bare(
            lift(
                functools.partial(evaluation.released_evaluate, program),
                (states, members),
                donate=True,
            ),
            lambda found, rows: (with_rows(found[0], rows), found[1]),
        )
        self.scale = changing(functools.partial(prune.with_sparse_fan_in, program))
        self.summary = Bare(
            lift(
                lambda s: (
                    evaluation.train_metrics(program, s),
                    s.bad_step,
                    s.step,
                    evaluation.sparsity(program, s),
                ),
                members,
            )
        )
        self.stop = lift(lambda m: stopping.stopped(*m), members)
        self.track = Bare(lift(functools.partial(trackers.track, program), members))


def _on_cpu(mesh: Mesh) -> bool:
    return bool(mesh.devices.flat[0].platform == "cpu")


_KNOWN: collections.deque[tuple[Any, Functions]] = collections.deque(maxlen=MOST)


def functions(program: Program, mesh: Mesh, vectorized: bool, states: TrainState) -> Functions:
    """The functions of all programs like this one in a layout.

    Args:
      program: of some arms.
      mesh, vectorized: the layout.
      states: shardings of stacked states.
    """
    bare, _ = without_rows(states)
    # Equal programs, not the same one: what events alone read is not in it.
    key = (program.beside_events(), mesh, vectorized, jax.tree.structure(bare))
    for known, found in _KNOWN:
        if known == key:
            return found
    found = Functions(key[0], mesh, vectorized, bare)
    _KNOWN.append((key, found))
    return found


def forget() -> None:
    """A study begins: names of losses, probes and trackers may stand for other functions by now."""
    _KNOWN.clear()
