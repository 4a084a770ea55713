"""The numbers of a study's tables by run and step, as trackers show them."""

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prunejax.record import arms
from prunejax.record.summary import Apart

_PLACES = ("when", "layer", "class")  # what tells rows of one step apart
_KEYS = frozenset({"run", "variant", "seed", "epoch", "step", *_PLACES})
# Layers pruned at one event share these: one value for the event, not one per layer.
_SHARED = frozenset({"pre_accuracy", "post_accuracy", "pre_loss", "post_loss", "instability"})


class Scalars:
    """Reads what is new in the tables; the first call reads all of it."""

    def __init__(self) -> None:
        """Nothing was read yet."""
        self._offsets: dict[str, int] = {}  # bytes of each table already read
        self._columns: dict[str, list[str]] = {}
        self._last_step: dict[str, int] = {}
        self._events: dict[str, Apart] = {}

    def new(self, tables: Mapping[str, Path]) -> Iterator[tuple[str, int, dict[str, float]]]:
        """Run, step and numbers by tag of each new row, table by table; whole lines only.

        Args: tables: name -> CSV file.
        """
        for table, file in tables.items():
            for row in self.new_rows(table, file):
                step, values = self._scalars(table, row)
                if values:
                    yield row["run"], step, values

    def new_rows(self, table: str, file: Path) -> Iterator[dict[str, str]]:
        """The whole rows of a table that were not asked for before."""
        with file.open("rb") as handle:
            handle.seek(self._offsets.get(table, 0))
            content = handle.read()
        # A row that is being written is read the next time, whole.
        whole = content[: content.rfind(b"\n") + 1]
        self._offsets[table] = self._offsets.get(table, 0) + len(whole)
        rows = csv.reader(io.StringIO(whole.decode()))
        if table not in self._columns:
            self._columns[table] = next(rows, [])
        for row in rows:
            yield dict(zip(self._columns[table], row, strict=True))

    def _scalars(self, table: str, row: Mapping[str, str]) -> tuple[int, dict[str, float]]:
        """The step of a row and its numbers by tag."""
        run = row["run"]
        step = int(row.get("step") or self._last_step.get(run, 0))
        repeated = table == "events" and not self._events.setdefault(run, Apart()).begins(row)
        if table == "epochs":
            self._last_step[run] = step
        left_out = _KEYS | _SHARED if repeated else _KEYS
        found = {column: x for column, x in numbers(row).items() if column not in left_out}
        return step, {_tag(table, column, row): x for column, x in found.items()}


def numbers(row: Mapping[str, str]) -> dict[str, float]:
    """The cells that are numbers, neither empty nor words, by column."""
    found = {}
    for column, text in row.items():
        with contextlib.suppress(ValueError):
            found[column] = float(text)
    return found


def _tag(table: str, column: str, row: Mapping[str, str]) -> str:
    """`train_loss` of the epochs becomes "train/loss"; the rest goes under its table's heading."""
    if table == "events":
        return f"prune/{column}" if column in _SHARED else f"prune/{row['layer']}/{column}"
    if table == "epochs":
        split, _, rest = column.partition("_")
        if split in ("train", "test", "validation"):
            return f"{split}/{rest}"
        return f"prune/{column}" if column == "sparsity" else f"schedule/{column}"
    places = [row[key] for key in _PLACES if key in row]
    head = table.removesuffix("es" if table.endswith("sses") else "s")
    return "/".join([head, *places, column])


def hyperparameters(
    config: Mapping[str, Any], stated: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Variant -> its settings by dotted name, of the fields that any variant changes.

    Values are numbers, truth values or text: a tuple is written as JSON.

    Args:
      config: the resolved config, with `variants` as changes of the fields beside them.
      stated: what `study.json` says of each variant: its `preset` is what a method sets, which
        the config does not say.
    """
    variants: Mapping[str, Any] = config.get("variants") or {}
    fields = list(
        dict.fromkeys(field for own in variants.values() for field in arms.flat(own or {}))
    )
    whole = {label: arms.flat(arms.settings(config, label, stated)) for label in variants}
    return {
        label: {field: _plain(settings.get(field)) for field in fields}
        for label, settings in whole.items()
    }


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
