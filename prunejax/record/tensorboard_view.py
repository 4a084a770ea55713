"""TensorBoard event files made from the CSV tables, without TensorFlow.

Each run is a TensorBoard run; the horizontal axis is the training step. Files are opened, added
to and closed, so no thread and no handle outlives a call.
"""

import csv
import io
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_KEYS = frozenset({"run", "variant", "seed", "epoch", "step", "layer"})
# Layers pruned in one epoch share these: one value for the event, not one per layer.
_SHARED = frozenset({"pre_accuracy", "post_accuracy", "pre_loss", "post_loss", "instability"})


class TensorBoardView:
    """Writes what is new in the tables to `DIRECTORY/RUN/`; the first call starts afresh."""

    def __init__(self, directory: Path) -> None:
        """`directory` is the `tb/` of a run directory; everything in it belongs to this view."""
        self._directory = directory
        self.reset()

    def reset(self) -> None:
        """Makes the next `update` start afresh, after the tables were cut back."""
        self._offsets: dict[str, int] | None = None  # bytes of each table already shown
        self._columns: dict[str, list[str]] = {}
        self._last_step: dict[str, int] = {}
        self._last_event: dict[str, int] = {}

    def update(self, tables: Mapping[str, Path], config: str) -> None:
        """Adds the new rows of `tables` (name -> CSV file); `config` is shown as text."""
        if self._offsets is None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._offsets = {}
            fenced = "```\n" + config + "\n```"
            self._write("study", [_text("config", fenced)])
        pending: dict[str, list[bytes]] = {}
        for table, file in tables.items():
            for row in self._new_rows(table, file):
                step, values = self._scalars(table, row)
                if values:
                    pending.setdefault(row["run"], []).append(_event(step, values))
        for run, events in pending.items():
            self._write(run, events)

    def _new_rows(self, table: str, file: Path) -> Iterator[dict[str, str]]:
        assert self._offsets is not None
        with file.open("rb") as handle:
            handle.seek(self._offsets.get(table, 0))
            content = handle.read()
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
        repeated = table == "events" and self._last_event.get(run) == step
        if table == "epochs":
            self._last_step[run] = step
        elif table == "events":
            self._last_event[run] = step
        values = {}
        for column, text in row.items():
            if column in _KEYS or (repeated and column in _SHARED):
                continue
            try:
                values[_tag(table, column, row)] = float(text)
            except ValueError:
                continue  # empty, or a word
        return step, values

    def _write(self, run: str, events: list[bytes]) -> None:
        # Imported here: it costs half a second, which a study without TensorBoard should not pay.
        from tensorboard.summary.writer.record_writer import RecordWriter

        directory = self._directory / run.replace("/", "_")
        found = sorted(directory.glob("events.out.tfevents.*"))
        if not found:
            directory.mkdir(parents=True, exist_ok=True)
            found = [directory / f"events.out.tfevents.{int(time.time()):010d}.prunejax"]
            events = [_event(0, {}, file_version="brain.Event:2"), *events]
        with found[0].open("ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event)


def _tag(table: str, column: str, row: Mapping[str, str]) -> str:
    """`train_loss` of the epochs becomes "train/loss"; the rest goes under its table's heading."""
    if table == "events":
        return f"prune/{column}" if column in _SHARED else f"prune/{row['layer']}/{column}"
    if table == "epochs":
        split, _, rest = column.partition("_")
        if split in ("train", "test", "validation"):
            return f"{split}/{rest}"
        return f"prune/{column}" if column == "sparsity" else f"schedule/{column}"
    layer = f"{row['layer']}/" if "layer" in row else ""
    return f"{table.removesuffix('s')}/{layer}{column}"


def _event(step: int, values: Mapping[str, float], **fields: str) -> bytes:
    from tensorboard.compat.proto import event_pb2

    event = event_pb2.Event(wall_time=time.time(), step=step, **fields)
    for tag, value in values.items():
        event.summary.value.add(tag=tag, simple_value=value)
    return event.SerializeToString()


def _text(tag: str, content: str) -> bytes:
    from tensorboard.compat.proto import event_pb2, tensor_pb2, types_pb2

    event = event_pb2.Event(wall_time=time.time(), step=0)
    value = event.summary.value.add(tag=tag)
    value.metadata.plugin_data.plugin_name = "text"
    value.tensor.CopyFrom(
        tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[content.encode()])
    )
    return event.SerializeToString()
