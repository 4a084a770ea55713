"""TensorBoard event files made from the CSV tables, without TensorFlow.

Each run is a TensorBoard run; the horizontal axis is the training step. Files are opened, added
to and closed, so no thread and no handle outlives a call.
"""

import json
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunejax.record import scalars

_RUN = re.compile(r"(?P<variant>.*)-(?P<seed>\d+)$", re.DOTALL)


class TensorBoardView:
    """Writes what is new in the tables to `DIRECTORY/RUN/`; the first call starts afresh."""

    def __init__(self, directory: Path) -> None:
        """`directory` is the `tb/` of a run directory; everything in it belongs to this view."""
        self._directory = directory
        self.reset()

    def reset(self) -> None:
        """Makes the next `update` start afresh, after the tables were cut back."""
        self._scalars: scalars.Scalars | None = None
        self._settings: dict[str, dict[str, Any]] = {}
        self._known: set[str] = set()  # runs whose settings are shown

    def update(
        self, tables: Mapping[str, Path], config: str, stated: Mapping[str, Any] | None = None
    ) -> None:
        """Adds the new rows of `tables` (name -> CSV file).

        Args:
          tables: name -> CSV file.
          config: the resolved config as JSON: shown as text; the fields that variants change are
            the hyperparameters of a run.
          stated: what `study.json` says of each variant, for those that a method sets.
        """
        # Imported here: it costs half a second, which a study without TensorBoard should not pay.
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.text.summary_v2 import text_pb

        if self._scalars is None:
            shutil.rmtree(self._directory, ignore_errors=True)  # a view: the tables are the record
            self._scalars = scalars.Scalars()
            self._settings = scalars.hyperparameters(json.loads(config), stated)
            self._write("study", [_event(0, text_pb("config", f"```\n{config}\n```"))])
        pending: dict[str, list[bytes]] = {}
        for run, step, values in self._scalars.new(tables):
            numbers = [Summary.Value(tag=tag, simple_value=x) for tag, x in values.items()]
            pending.setdefault(run, []).append(_event(step, Summary(value=numbers)))
        for run, events in pending.items():
            found = _RUN.match(run)
            if found and run not in self._known:
                settings = self._settings.get(found["variant"], {})
                whole = hparams_pb(settings | {"seed": int(found["seed"])})
                events = [_event(0, whole), *events]
            self._known.add(run)
            self._write(run, events)

    def _write(self, run: str, events: list[bytes]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        directory = self._directory / run.replace("/", "_")
        found = sorted(directory.glob("events.out.tfevents.*"))
        if not found:
            directory.mkdir(parents=True, exist_ok=True)
            found = [directory / f"events.out.tfevents.{int(time.time()):010d}.prunejax"]
            events = [_event(0, file_version="brain.Event:2"), *events]
        with found[0].open("ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event)


def _event(step: int, summary: Any = None, **fields: str) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    event = Event(wall_time=time.time(), step=step, summary=summary, **fields)
    return bytes(event.SerializeToString())
