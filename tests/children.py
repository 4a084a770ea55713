"""Processes of tests that begin where the imports end: forked from one that has done nothing else.

A test that starts Python, JAX and this package anew, as users do, takes `subprocess`.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.faults"])  # JAX and all that a study needs


class Child:
    """`function(*args)` in a process of its own, to be met as a `subprocess.Popen` is."""

    def __init__(
        self,
        function: Callable[..., Any],
        *args: Any,
        env: Mapping[str, str] | None = None,
        apart: bool = False,
    ) -> None:
        """Starts it.

        Args:
          function: of a module; its `SystemExit` gives the exit code.
          env: its environment; JAX_* must be that of the first child, whose JAX is imported.
          apart: standard error is not written into standard output.
        """
        self._said: tuple[str, str] | None = None
        self._files = [_file() for _ in range(1 + apart)]
        environment = dict(os.environ if env is None else env)
        self._process = _CONTEXT.Process(
            target=_run, args=(function, args, self._files, environment)
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for its end; returns what it wrote to its standard output, and error."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        if self._said is None:
            texts = [file.read_text() for file in self._files]
            self._said = texts[0], "".join(texts[1:])
            for file in self._files:
                file.unlink()
        return self._said


def _file() -> Path:
    descriptor, path = tempfile.mkstemp()
    os.close(descriptor)
    return Path(path)


def _run(
    function: Callable[..., Any], args: tuple[Any, ...], files: list[Path], env: Mapping[str, str]
) -> None:
    for stream, path in (1, files[0]), (2, files[-1]):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(env)
    try:
        function(*args)
    finally:  # as where Python ends by itself, in that order
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
