"""What a run's end is asked for beside its accuracy: live paths and costs, layer by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prunejax import groups as groups_lib
from prunejax import interventions, trees
from prunejax.cluster import mesh as mesh_lib
from prunejax.groups import OUTPUT, Group, Link, Live
from prunejax.interventions import Table, Windows
from prunejax.measures.columns import grouped
from prunejax.record.directory import SharedDirectory
from prunejax.study.devices.population import Population
from prunejax.study.loop import costs
from prunejax.study.planning.programs import Member
from prunejax.train.step import TrainState

Row = dict[str, Any]


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
        updates = directory.rows("updates", begins.get("updates", 0)) if kept else []
        self._updates = grouped(updates, "run")  # once: each run looks at its own
        self._tables: dict[str, list[Row]] = {"layers": [], "costs": []}
        # At once for all: to take one run from the stack is a program for each shape of it.
        windows = states.windows._replace(targeted={}, saved={}, grown={})
        asked = self._links or self._work is not None
        self._held = mesh_lib.fetch((windows, states.table)) if asked else None

    def of(self, index: int, member: Member, events: Sequence[Mapping[str, Any]]) -> Row:
        """The columns of the `index`-th run; `events`: its rows of events.csv."""
        if self._held is None:
            return {}
        windows, table = jax.tree.map(lambda x: x[index], self._held)
        groups = self._program.groups
        columns, found = live_paths(self._links, groups, self._shapes, windows, table)
        self._tables["layers"] += [member.keys | row for row in found]
        if self._work is not None:
            rows, spent = costs.of_run(
                *(self._program, member, windows, events),
                self._updates.get(member.run, []),
                self._work,
            )
            self._tables["costs"] += rows
            columns = columns | spent
        return columns

    def append(self) -> None:
        """Writes the rows of the runs seen."""
        for name, rows in self._tables.items():
            if rows:
                self._directory.append(name, rows)


def live_paths(
    links: Sequence[Link], groups: Sequence[Group], shapes: Any, windows: Windows, table: Table
) -> tuple[Row, list[Row]]:
    """Columns and rows of the run with these windows and this table, on the host.

    `effective_sparsity` counts all parameters, as `sparsity` does, and besides the masked ones
    those on no live path; `dead_units` are hidden units on none, masked or not.

    Args:
      links: the model's wiring; nothing for one that states none.
      shapes: of the parameters.
      windows, table: of the run.
    """
    if not links:
        return {}, []
    masks = interventions.mask_tree(groups, shapes, windows, table)
    gates = interventions.gates(groups, windows, table)
    found = groups_lib.live(links, shapes, masks, gates=gates)
    hidden = {k.target for k in links if k.kernel} - {OUTPUT}  # a sum counts once
    dead = sum(int(np.sum(~found.units[stream])) for stream in hidden)
    own = {p: np.broadcast_to(m, found.leaves[p].shape) for p, m in trees.leaves_with_paths(masks)}
    rows = [_row(link, found, own) for link in links if link.kernel]
    return {"effective_sparsity": found.sparsity, "dead_units": dead}, rows


def _row(link: Link, found: Live, masks: dict[str, np.ndarray]) -> Row:
    """Of one layer: units of the stream that it writes, and its kernel's weights."""
    part = slice(*link.columns) if link.columns else slice(None)
    kernel, live = masks[link.kernel][..., part], found.leaves[link.kernel][..., part]
    units = found.units[link.target]
    return {
        "layer": link.target if link.columns else link.kernel.rpartition("/")[0],
        "units": units.size,
        "masked_units": int(np.sum(~kernel.any(axis=tuple(range(kernel.ndim - 1))))),
        "dead_units": int(np.sum(~units)),
        "weights": kernel.size,
        "live_weights": int(np.count_nonzero(kernel)),
        "effective_weights": int(np.count_nonzero(live)),
    }
