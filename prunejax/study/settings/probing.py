"""A study's probes: which ones, when, and the rows and arrays that they leave."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from prunejax import registry
from prunejax.data import Dataset, StreamedSet
from prunejax.errors import ConfigError
from prunejax.record.directory import SharedDirectory
from prunejax.train.evaluation import Metrics
from prunejax.train.probes import ALWAYS, PROBES, Seen, tables

WHEN = ("epochs", "events", "end")
# What rows say, and the entry of WHEN that asks for it.
MOMENTS = {"epoch": "epochs", "end": "end", "before": "events", "after": "events"}


def check(settings: ConfigDict) -> None:
    """Refuses unknown probes and moments.
    Raises ConfigError: names the field, the value, and what is allowed.
    """
    names, at = tuple(settings.probes.names), tuple(settings.probes.at)
    for field, values, known in (("names", names, PROBES), ("at", at, WHEN)):
        for value in values:
            registry.one_of(value, known, f"config.probes.{field}: {value!r} is not one of")
        if len(set(values)) < len(values):
            raise ConfigError(f"config.probes.{field} = {values!r} names something twice")
    try:
        tables(names)
    except ValueError as error:
        raise ConfigError(f"config.probes.names: {error}") from None
    more = [name for name in names if name not in ALWAYS]
    if more and settings.intervention.as_released:
        raise ConfigError(
            f"config.probes.names: {more[0]!r} does not go with config.intervention."
            "as_released: the released evaluation changes the network while it looks; leave it out"
        )


def named(settings: ConfigDict, dataset: Dataset | StreamedSet) -> tuple[str, ...]:
    """The probes of a program besides loss and accuracy.
    Raises ConfigError: one needs classes, and the data set has numbers; one gives no sums.
    """
    names = tuple(name for name in settings.probes.names if name not in ALWAYS)
    for name in names:
        if PROBES[name].classes and not dataset.has_classes:
            raise ConfigError(
                f"config.probes.names: {name!r} counts classes, and the targets of "
                f"{settings.data.name!r} are numbers; leave it out"
            )
        try:
            few, more = (_sums(name, dataset, batch) for batch in (2, 3))
        except (TypeError, AttributeError, LookupError) as error:
            raise ConfigError(
                f"config.probes.names: {name!r} gives no sums of a batch: "
                + " ".join(str(error).split())[:200]
            ) from error
        if few != more:
            raise ConfigError(
                f"config.probes.names: {name!r} gives {few} for a batch of 2 examples and {more} "
                "for one of 3; sums over examples are needed, which are added over batches"
            )
    return names


def _sums(name: str, dataset: Dataset | StreamedSet, batch: int) -> Any:
    """The shapes that a probe gives for a batch."""
    numbers = jax.ShapeDtypeStruct((batch,), np.float32)
    outputs = jax.ShapeDtypeStruct((batch, dataset.num_classes), np.float32)
    positions = jax.ShapeDtypeStruct((batch,), np.int32)
    labels = positions if dataset.has_classes else outputs
    found = jax.eval_shape(
        lambda o, y, loss, w, at: PROBES[name].sums(Seen(o, y, loss, w, at, dataset.test_examples)),
        *(outputs, labels, numbers, numbers, positions),
    )
    return jax.tree.map(lambda x: x.shape, found)


def _rows(name: str, found: Any) -> list[Mapping[str, Any]]:
    columns = set(PROBES[name].columns)
    rows = list(found) if isinstance(found, Iterable) else [found]
    for row in rows:
        if not isinstance(row, Mapping) or set(row) != columns or any(map(np.ndim, row.values())):
            given = ", ".join(row) if isinstance(row, Mapping) else repr(row)
            raise ConfigError(
                f"config.probes.names: the rows of {name!r} have {given}; a list of dicts with its "
                f"columns, a number each, is needed: {', '.join(PROBES[name].columns)}"
            )
    return rows


class Probing:
    """Records what the probes saw of a chunk's members."""

    def __init__(
        self, names: Sequence[str], at: Iterable[str], directory: SharedDirectory, examples: int
    ) -> None:
        """Args: names: of `Program.probes`. at: of WHEN. examples: in the test split."""
        self._names, self._at = tuple(names), frozenset(at)
        self._directory, self._examples = directory, examples

    def record(
        self,
        members: Sequence[tuple[int, Any]],
        seen: Mapping[str, Metrics | None],
        epoch: int,
        steps: Any,
    ) -> None:
        """Rows and arrays of what was seen, if it was asked for.

        Args:
          members: with their place in the stack.
          seen: by a moment of MOMENTS; None: it was not tested.
          epoch, steps: where training is; steps by place.
        """
        for when, metrics in seen.items():
            if metrics is not None and MOMENTS[when] in self._at:
                self._record(members, metrics, when, epoch, steps)

    def _record(
        self, members: Sequence[tuple[int, Any]], metrics: Metrics, when: str, epoch: int,
        steps: Any,
    ) -> None:  # fmt: skip
        rows: dict[str, list[dict[str, Any]]] = {}
        for i, m in members:
            keys = m.keys | {"epoch": epoch, "step": steps[i], "when": when}
            arrays: dict[str, np.ndarray] = {}
            for name in self._names:
                probe, total = PROBES[name], metrics.probed[name]
                total = jax.tree.map(lambda x, i=i: np.asarray(x)[i], total)
                if probe.rows is not None:
                    found = _rows(name, probe.rows(total, self._examples))
                    rows.setdefault(probe.table, []).extend(keys | row for row in found)
                if probe.arrays is not None:
                    arrays |= probe.arrays(total, self._examples)
            if arrays:
                place = f"{m.run}-{when}" + ("" if when == "end" else f"-step{steps[i]}")
                self._directory.save_arrays(place, **arrays)
        for table, some in rows.items():
            self._directory.append(table, some)
