"""What the runs of a study that names methods cost, layer by layer: `costs.csv`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.interventions import Windows
from prunejax.measures.columns import grouped
from prunejax.methods import cost
from prunejax.record.columns import PRUNABLE, SPENT
from prunejax.study.planning.programs import Member
from prunejax.train.step import Program

Row = dict[str, Any]


def work(program: Program) -> dict[str, int]:
    """Kernel path -> multiply-adds in one forward pass of one example."""
    x = jnp.ones((1, *program.image_shape))
    module = program.module.clone(dropout=0.0)
    variables = jax.eval_shape(lambda: dict(module.init(jax.random.key(0), x)))
    rest = {k: v for k, v in variables.items() if k in ("batch_stats", "gates")}
    fixed = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), rest)
    return cost.multiply_adds(lambda p: module.apply(fixed | {"params": p}, x), variables["params"])


def mean_live(rows: Sequence[Mapping[str, Any]], end: int, begins: int, total: int) -> float:
    """Live weights of a layer in the mean over training steps, from its rows.

    Args:
      rows: of the run and layer, see `happened`; in the table's order.
      end: live weights after training.
      begins: training steps done when it began.
      total: training steps in all.
    """
    ordered = sorted(rows, key=lambda row: int(row["step"]))
    if not ordered:
        return float(end)
    first = ordered[0]
    live = int(first["live"]) + int(first.get("targeted") or first.get("dropped") or 0)
    live -= int(first.get("grown") or 0)
    at, area = begins, 0
    for row in ordered:
        step = max(int(row["step"]), begins)  # what is done before training costs no step
        area += live * (step - at)
        at, live = step, int(row["live"])
    # By the steps of its own training: those of its parent are that run's.
    return (area + live * (total - at)) / max(1, total - begins)


def happened(
    run: str, events: Sequence[Mapping[str, Any]], updates: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The rows of what happened to a run, one an event and layer.

    Args: run: its name. events, updates: rows of these tables.
    """
    of = [[row for row in table if row["run"] == run] for table in (updates, events)]
    return of[0] or of[1]  # where there are updates all events are among them, with what grew


def of_run(
    program: Program,
    member: Member,
    windows: Windows,
    events: Sequence[Mapping[str, Any]],
    updates: Sequence[Mapping[str, Any]],
    known: Mapping[str, int],
) -> tuple[list[Row], dict[str, float]]:
    """The rows of `costs.csv` of a run that has ended, and its columns of runs.csv.

    Args:
      program, member: of it.
      windows: its last ones, on the host.
      events, updates: rows of these tables, of others too.
      known: see `work`.
    """
    found: list[Row] = []
    density: dict[str, float] = {}
    mean: dict[str, float] = {}
    total = program.epochs * program.steps_per_epoch
    of = grouped(happened(member.run, events, updates), "layer")
    back = program.forward != "masked" or np.any(member.table.grow)  # else nothing comes back
    # Layers of other arms in the program are no weights of a run that prunes some of its own.
    own_layers = member.layers or [g.name for g in program.groups]
    for g in program.groups if program.weights else ():
        if g.name not in own_layers:
            continue
        live = np.asarray(windows.remaining[g.name]) == 0
        own = of.get(g.layer, [])
        average = mean_live(own, int(live.sum()), member.start.step, total)
        density[g.kernel], mean[g.kernel] = int(live.sum()) / live.size, average / live.size
        ever = windows.ever.get(g.name) if back else None
        found.append(
            member.keys
            | {
                "layer": g.layer,
                "weights": live.size,
                "live": int(live.sum()),
                "mean_live": round(average, 3),
                "ever_live": None if ever is None else int(np.asarray(ever).sum()),
                "units": live.shape[-1],
                "dead_units": int((~live.reshape(-1, live.shape[-1]).any(0)).sum()),
                "multiply_adds": known[g.kernel],
            }
        )
    extra = member.gradient_updates / max(1, total - member.start.step)
    dense_gradient = program.forward != "masked"
    costs = cost.training(known, mean, dense_gradient=dense_gradient, extra_passes=extra)
    columns = dict(zip(SPENT, (costs, cost.inference(known, density)), strict=True))
    if found:
        weights = sum(row["weights"] for row in found)
        columns[PRUNABLE] = 1 - sum(row["live"] for row in found) / weights
    return found, columns
