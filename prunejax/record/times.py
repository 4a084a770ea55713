"""How long a study took: `times.json` of the run directory, all its starts together.

Its own file, because it is the one record that differs from one repetition to the next.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from prunejax.errors import Interrupted
from prunejax.record.directory import SharedDirectory

FILE = "times.json"


class Times:
    """Counts wall time, and adds it to the file whenever a chunk ends or is interrupted.

    Of a process that is killed, the time since then is not in the file.
    """

    def __init__(self, directory: SharedDirectory, devices: int) -> None:
        """Starts the clock. `devices`: how many are held for the study, of all processes.

        Raises WorkdirError: the file is damaged.
        """
        self._directory, self._devices = directory, devices
        self._last, self._begun = time.monotonic(), _now()
        directory.load_json(FILE)  # what cannot be added to is told before the training

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Saves after what is inside, also where a signal ends it."""
        try:
            yield
        except Interrupted:
            self.save()
            raise
        self.save()

    def save(self) -> None:
        """Adds the time since the start, or since the last call. Every process calls it."""
        now = time.monotonic()
        before = self._directory.load_json(FILE) or {}
        wall = now - self._last
        self._last = now
        self._directory.save_json(
            FILE,
            {
                "begun": before.get("begun", self._begun),
                "ended": _now(),
                "wall_seconds": round(before.get("wall_seconds", 0) + wall, 1),
                "devices": self._devices,
                "device_seconds": round(before.get("device_seconds", 0) + wall * self._devices, 1),
            },
        )


def _now() -> str:
    """UTC, to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
