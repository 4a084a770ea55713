"""What a run's end is asked for beside its accuracy: live paths and costs, layer by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from prunejax import groups as groups_lib
from prunejax.cluster import mesh as mesh_lib
from prunejax.record.directory import SharedDirectory
from prunejax.study import costs, structure
from prunejax.study.population import Population
from prunejax.study.programs import Member
from prunejax.train.step import TrainState


class Endings:
    """Columns of `runs.csv` of stacked runs that have ended, and rows of the tables by layer."""

    def __init__(
        self,
        population: Population,
        directory: SharedDirectory,
        states: TrainState,
        begins: Mapping[str, int],
    ) -> None:
        """All processes make it, for states are fetched.

        Args: begins: bytes of the tables that were there before these runs.
        """
        self._program, self._directory = population.program, directory
        self._links = groups_lib.wiring(population.program.module)
        self._shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), states.params
        )
        # Only where a method is named.
        self._work = costs.work(population.program) if "costs" in directory.tables else None
        kept = self._work is not None and "updates" in directory.tables
        self._updates = directory.rows("updates", begins.get("updates", 0)) if kept else []
        self._tables: dict[str, list[dict[str, Any]]] = {"layers": [], "costs": []}
        # At once for all: to take one run from the stack is a program for each shape of it.
        windows = states.windows._replace(targeted={}, saved={}, grown={})
        asked = self._links or self._work is not None
        self._held = mesh_lib.fetch((windows, states.table)) if asked else None

    def of(self, index: int, member: Member, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The columns of the `index`-th run; `events`: its rows of events.csv."""
        if self._held is None:
            return {}
        run = {"run": member.run, "variant": member.variant, "seed": member.seed}
        windows, table = jax.tree.map(lambda x: x[index], self._held)
        groups = self._program.groups
        columns, found = structure.of(self._links, groups, self._shapes, windows, table)
        self._tables["layers"] += [run | row for row in found]
        if self._work is not None:
            rows, spent = costs.of_run(
                self._program, member, windows, events, self._updates, self._work
            )
            self._tables["costs"] += rows
            columns = columns | spent
        return columns

    def append(self) -> None:
        """Writes the rows of the runs seen."""
        for name, rows in self._tables.items():
            if rows:
                self._directory.append(name, rows)
