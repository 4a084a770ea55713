"""What an evaluation looks at: `PROBES`, by the names of `config.probes.names`.

A probe is a sum over the examples of the test split, taken batch by batch in the compiled
evaluation (in memory, streamed, in every layout), and what becomes of it on the host: rows of a
table of its own, or arrays. `loss` and `accuracy` are probes whose numbers stand in `epochs.csv`
and `events.csv`; every study has them.

    PROBES["confidence"] = Probe(                      # in a config file of your own
        sums=lambda seen: jnp.sum(seen.weight * jax.nn.softmax(seen.outputs).max(-1)),
        table="confidence", columns=("confidence",),
        rows=lambda total, examples: [{"confidence": total / examples}],
    )
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import losses

Array = jax.Array
Tree = Any
Row = dict[str, Any]


class Seen(NamedTuple):
    """A batch as probes see it; what has weight 0 fills the last batch and must not count."""

    outputs: Array  # [batch, n], evaluation mode, masks applied
    labels: Array  # [batch] classes, or [batch, n] numbers
    losses: Array  # [batch], of the study's loss
    weight: Array  # float32 [batch]: 1, or 0 for what only fills the batch
    positions: Array  # int32 [batch]: of the examples in the split
    examples: int  # in the split


class Probe(NamedTuple):
    """One entry of `PROBES`.

    Attributes:
      sums: of a batch -> arrays that are added over batches; shapes must not depend on the batch.
      table: the file `TABLE.csv` gets the rows; "" for a probe without.
      columns: of a row, after run, variant, seed, epoch, step and when.
      rows: (sums of a run on the host, examples in the split) -> rows of these columns.
      arrays: the same -> arrays, for `measures/RUN-end.npz`, `RUN-epoch-stepN.npz`,
        `RUN-before-stepN.npz` and `RUN-after-stepN.npz` (of several events on a step the last).
      classes: it needs targets that are classes.
    """

    sums: Callable[[Seen], Tree]
    table: str = ""
    columns: tuple[str, ...] = ()
    rows: Callable[[Tree, int], list[Row]] | None = None
    arrays: Callable[[Tree, int], Mapping[str, np.ndarray]] | None = None
    classes: bool = False


def _loss(seen: Seen) -> Array:
    # Not times the weight: where the filling example's loss is infinite, 0 * inf is NaN.
    return jnp.sum(jnp.where(seen.weight > 0, seen.losses, 0.0))


def _accuracy(seen: Seen) -> Array:
    hits = losses.hits(seen.outputs, seen.labels) & (seen.weight > 0)
    return jnp.sum(hits).astype(jnp.int32)  # adds up exactly, in any order


def _classes(seen: Seen) -> dict[str, Array]:
    """Examples and right answers of each class, int32 [outputs]."""
    zero = jnp.zeros(seen.outputs.shape[-1], jnp.int32)
    counts = seen.weight > 0  # bools, so that counts are integers
    right = losses.hits(seen.outputs, seen.labels) & counts
    return {
        "count": zero.at[seen.labels].add(counts.astype(jnp.int32)),
        # What fills the batch has a label as well, and adds 0 to it.
        "correct": zero.at[seen.labels].add(right.astype(jnp.int32)),
    }


def _class_rows(sums: Mapping[str, np.ndarray], examples: int) -> list[Row]:
    del examples
    pairs = zip(sums["count"], sums["correct"], strict=True)
    # A class without examples has no recall: no row.
    return [{"class": c, "count": n, "correct": k} for c, (n, k) in enumerate(pairs) if n]


def _predictions(seen: Seen) -> dict[str, Array]:
    """int32 [examples] each: every batch adds to the entries of its own examples."""
    zero = jnp.zeros(seen.examples, jnp.int32)
    place = lambda x: zero.at[seen.positions].add(  # noqa: E731
        jnp.where(seen.weight > 0, x, 0).astype(jnp.int32)
    )
    # Filling points at example 0 and adds 0: each entry is one example's.
    return {"predicted": place(losses.predicted(seen.outputs)), "labels": place(seen.labels)}


PROBES: dict[str, Probe] = {
    "loss": Probe(_loss),
    "accuracy": Probe(_accuracy),
    "classes": Probe(_classes, "classes", ("class", "count", "correct"), _class_rows, classes=True),
    "predictions": Probe(_predictions, arrays=lambda sums, _: dict(sums), classes=True),
}
SHIPPED = dict(PROBES)
ALWAYS = ("loss", "accuracy")  # what tables of epochs and events are made of
KEYS = ("run", "variant", "seed", "epoch", "step", "when")  # of every row
# Tables of a study, a measure or a page, whether this one has them or not.
TAKEN = (
    *("epochs", "events", "runs", "layers", "updates", "costs", "trackers", "measures"),
    *("recalls", "tickets", "overlaps", "barriers", "paths", "predictors"),
)


def tables(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The tables that the named probes fill, with all columns.

    Raises:
      ValueError: two probes fill one table with other columns, or a table of the study's.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        probe = PROBES[name]
        if not probe.table:
            continue
        columns = (*KEYS, *probe.columns)
        if probe.table in TAKEN or found.setdefault(probe.table, columns) != columns:
            raise ValueError(
                f"probe {name!r} writes {probe.table}.csv, which has other columns already; give "
                "it a table of its own"
            )
    return found
