"""What of a run's network is on a live path at its end: columns of `runs.csv`, `layers.csv`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunejax import groups as groups_lib
from prunejax import interventions, trees
from prunejax.groups import OUTPUT, Group, Link, Live
from prunejax.interventions import Table, Windows

Row = dict[str, Any]


def of(
    links: Sequence[Link], groups: Sequence[Group], shapes: Any, windows: Windows, table: Table
) -> tuple[Row, list[Row]]:
    """Columns and rows of the run with these windows and this table, on the host.

    `effective_sparsity` counts all parameters, as `sparsity` does, and besides the masked ones
    those on no live path; `dead_units` are hidden units on none, masked or not.

    Args:
      links: the model's wiring; nothing for one that states none.
      groups: of its program.
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
