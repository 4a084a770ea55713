"""Compiled functions that programs share which differ in their events alone.

Ways of pruning differ in what they do at events. How a run begins, trains and is tested is one
program for all that keep dead weights in the same way, so it is compiled once for them.
"""

import collections
import functools
import os
from typing import Any

import jax
from jax.sharding import Mesh

from prunejax import models
from prunejax.cluster import mesh as mesh_lib
from prunejax.cluster.mesh import MEMBER
from prunejax.interventions import ROWS, Table
from prunejax.study.devices import lifting
from prunejax.train import evaluation, prune, smaller, step, stopping, trackers
from prunejax.train.step import Program, TrainState

_REGIONS = "xla_cpu_copy_insertion_use_region_analysis"
MOST = 8  # programs whose functions are kept


def _with(table: Table, rows: Table | None) -> Table:
    """A run's table with the rows of another one, which events alone read; None: without."""
    return table._replace(**{name: getattr(rows, name, ()) for name in ROWS})


def bare(states: TrainState) -> TrainState:
    """States without the rows of their tables, as shared functions take them.

    How many rows there are depends on the events of all arms of a program.
    """
    return states._replace(table=_with(states.table, None))


def with_rows(states: TrainState, whole: TrainState) -> TrainState:
    """Bare states with the rows of others."""
    return states._replace(table=_with(states.table, whole.table))


class Functions:
    """Those of a program in one layout. Nothing is compiled before its first call."""

    def __init__(self, program: Program, mesh: Mesh, vectorized: bool, states: TrainState) -> None:
        """Args: program: `beside_events` of some. states: shardings of bare stacked states."""
        lift, members = lifting.Lift(mesh, vectorized), mesh_lib.sharding(mesh, MEMBER)
        changing = functools.partial(lift, out=states, donate=True, bare=bare, back=with_rows)
        looking = functools.partial(lift, out=members, bare=bare)

        # Runs once: on CPU optimizing the random draws takes longer than compiling the train step.
        once = models.drawing_options(_on_cpu(mesh))
        self.initial = lift(
            lambda m: step.initial_state(program, *m),
            states,
            options=once,
            bare=lambda m: (m[0], _with(m[1], None), *m[2:]),
            back=lambda found, m: found._replace(table=_with(found.table, m[1])),
        )
        written = _in_place(_on_cpu(mesh))
        skips = lifting.padding_is_idle(vectorized, program.data_parallel)
        trains = functools.partial(changing, options=written)
        self.train = trains(functools.partial(step.train_steps, program, skips=skips), loops=True)
        self.train_last = trains(functools.partial(step.train_last_step, program))
        cuts = {sizes: smaller.of(program, sizes) for _, sizes in program.cuts}
        self.smaller = {
            sizes: tuple(
                trains(functools.partial(smaller.trained, cut, fn))
                for fn in (step.train_steps, step.train_last_step)
            )
            for sizes, cut in cuts.items()
        }
        self.evaluate = looking(functools.partial(evaluation.evaluate, program))
        # Only members that are evaluated one after another gain.
        running = functools.partial(evaluation.evaluate_running, program)
        self.test = looking(running) if skips else self.evaluate
        self.released = lift(
            functools.partial(evaluation.released_evaluate, program),
            (states, members),
            donate=True,
            bare=bare,
            back=lambda found, whole: (with_rows(found[0], whole), found[1]),
        )
        self.scale = changing(functools.partial(prune.with_sparse_fan_in, program))
        self.summary = looking(functools.partial(evaluation.summary, program))
        self.stop = lift(lambda m: stopping.stopped(*m), members)
        self.track = looking(functools.partial(trackers.track, program))


def _on_cpu(mesh: Mesh) -> bool:
    return bool(mesh.devices.flat[0].platform == "cpu")


@functools.cache
def _in_place(cpu: bool) -> dict[str, bool] | None:
    """Compiler options of training: on a CPU no weight is copied before its update, each step.

    Without it XLA does not see that all readers come before. The same values, 0.97 of the time of a
    small network. None where this JAX has no such option, or XLA_FLAGS say something of it.
    """
    if not cpu or _REGIONS in os.environ.get("XLA_FLAGS", ""):
        return None
    try:
        jax.jit(lambda x: x, compiler_options={_REGIONS: True}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return {_REGIONS: True}


_KNOWN: collections.deque[tuple[Any, Functions]] = collections.deque(maxlen=MOST)


def functions(program: Program, mesh: Mesh, vectorized: bool, states: TrainState) -> Functions:
    """The functions of all programs like this one in a layout.

    Args:
      program: of some arms.
      mesh, vectorized: the layout.
      states: shardings of stacked states.
    """
    # Equal programs, not the same one: what events alone read is not in it.
    key = (program.beside_events(), mesh, vectorized, jax.tree.structure(bare(states)))
    for known, found in _KNOWN:
        if known == key:
            return found
    found = Functions(key[0], mesh, vectorized, bare(states))
    _KNOWN.append((key, found))
    return found


def forget() -> None:
    """A study begins: names of losses, probes and trackers may stand for other functions by now."""
    _KNOWN.clear()
