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

HPARAMS = "hparams"  # the plugin
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
        if self._scalars is None:
            shutil.rmtree(self._directory, ignore_errors=True)  # a view: the tables are the record
            self._scalars = scalars.Scalars()
            self._settings = scalars.hyperparameters(json.loads(config), stated)
            fenced = "```\n" + config + "\n```"
            self._write("study", [_text("config", fenced)])
        pending: dict[str, list[bytes]] = {}
        for run, step, values in self._scalars.new(tables):
            pending.setdefault(run, []).append(_event(step, values))
        for run, events in pending.items():
            found = _RUN.match(run)
            if found and run not in self._known:
                settings = self._settings.get(found["variant"], {})
                events = [_hyperparameters(settings | {"seed": int(found["seed"])}), *events]
            self._known.add(run)
            self._write(run, events)

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


def _hyperparameters(settings: Mapping[str, Any]) -> bytes:
    """A run's settings for TensorBoard's page "HParams"."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2

    content = plugin_data_pb2.HParamsPluginData(version=0)
    content.session_start_info.start_time_secs = time.time()
    for name, setting in settings.items():
        value = content.session_start_info.hparams[name]
        if isinstance(setting, bool):
            value.bool_value = setting
        elif isinstance(setting, str):
            value.string_value = setting
        else:
            value.number_value = setting
    event = event_pb2.Event(wall_time=time.time(), step=0)
    shown = event.summary.value.add(tag="_hparams_/session_start_info")
    shown.metadata.plugin_data.plugin_name = HPARAMS
    shown.metadata.plugin_data.content = content.SerializeToString()
    return event.SerializeToString()
