"""The run directory as all processes of a study use it: process 0 reads and writes for all."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from prunejax.cluster import distributed
from prunejax.errors import WorkdirError
from prunejax.record.mirror import Mirror
from prunejax.record.run_directory import RunDirectory

P = ParamSpec("P")
R = TypeVar("R")
SHARE, LATE = 16, 60.0  # of the chunks that are done; seconds


def _on_main(
    method: Callable[Concatenate[RunDirectory, P], R],
) -> Callable[Concatenate["SharedDirectory", P], R]:
    """The method of the shared directory: process 0 calls it, every process gets the result."""

    @functools.wraps(method)
    def call(self: "SharedDirectory", *args: P.args, **kwargs: P.kwargs) -> R:
        # By name: the method that the run directory has when it is called.
        found: R = self.on_main(lambda held: getattr(held, method.__name__)(*args, **kwargs))
        return found

    return call


class SharedDirectory:
    """`RunDirectory` with the same calls, made by every process at the same points.

    What is read is the same everywhere, and so is the error if something cannot be written.
    """

    def __init__(self, path: Path, tables: Mapping[str, Sequence[str]]) -> None:
        """Use `SharedDirectory.open`."""
        self.path, self.tables = path, tables
        self.mirror: Mirror | None = None  # of one process alone
        self._held: RunDirectory | None = None
        self._sent, self._sent_at = 0, time.monotonic()  # chunks that were done; when

    @classmethod
    def open(
        cls,
        path: Path,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        tables: Mapping[str, Sequence[str]],
        ignore: Sequence[str] = (),
        mirror: Mirror | None = None,
    ) -> "SharedDirectory":
        """As `RunDirectory.open`; of a workdir behind a URL its copy, which `publish` sends.

        Raises:
          WorkdirError: as of `RunDirectory.open`.
          RecordError: it cannot be sent anywhere.
        """
        directory = cls(path, tables)
        directory.mirror = mirror

        def hold() -> None:
            directory._held = RunDirectory.open(path, config, environment, tables, ignore)

        try:
            distributed.on_main(hold)
        except WorkdirError as error:
            if mirror is None:
                raise
            raise WorkdirError(f"{mirror.url}: {error}") from error
        if mirror is not None:
            try:
                mirror.claim()
            except BaseException:
                directory.discard()
                directory.close()
                raise
        return directory

    def publish(self, chunks: int | None = None) -> None:
        """Sends what stands to where the workdir's URL says; nothing of one that is a path.

        Args: chunks: how many are done. To send is to list all files, those of the chunks before as
        well: of many short ones not each is sent, but one in `SHARE` of those that are done, and
        all that take longer than `LATE` seconds.
        """
        if self.mirror is None:
            return
        now = time.monotonic()
        if chunks is not None:
            few = chunks - self._sent < max(1, chunks // SHARE)
            if few and now - self._sent_at < LATE:
                return
            self._sent = chunks
        self.mirror.push()
        self._sent_at = now

    def on_main(self, fn: Callable[[RunDirectory], Any]) -> Any:
        """`fn(run directory)` in process 0; every process gets the result."""

        def call() -> Any:
            assert self._held is not None
            return fn(self._held)

        return distributed.on_main(call)

    @property
    def finished(self) -> bool:
        """As `RunDirectory.finished`."""
        return self.on_main(lambda held: held.finished)

    # The same calls, with arguments and results of process 0; what each does stands there.
    append = _on_main(RunDirectory.append)
    rows = _on_main(RunDirectory.rows)
    marks = _on_main(RunDirectory.marks)
    verify = _on_main(RunDirectory.verify)
    truncate = _on_main(RunDirectory.truncate)
    save_arrays = _on_main(RunDirectory.save_arrays)
    save_json = _on_main(RunDirectory.save_json)
    load_json = _on_main(RunDirectory.load_json)

    def discard(self) -> None:
        """As `RunDirectory.discard`, without waiting: maybe not all processes were refused."""
        if self._held is not None:
            self._held.discard()

    def close(self) -> None:
        """Lets go of the directory."""
        if self._held is not None:
            self._held.close()

    def __enter__(self) -> "SharedDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
