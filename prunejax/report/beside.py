"""A process beside a study that draws its report: begun by the command, without JAX.

Threads of JAX hold locks that a fork would never see released, so that a study's own process draws
alone (`drawing.workers`). This one loads matplotlib while the study loads JAX, waits, and draws on
all cores. What it does not do, for whatever reason, the study does: the bytes are the same.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prunejax.system import limits

_PROGRAM = f"from {__name__} import serve; serve()"
_PATH = "import sys; sys.path[:] = {!r}; "  # not the current directory where the study has it not
_process: subprocess.Popen[str] | None = None


def _worth() -> bool:
    """Whether there are cores to draw side by side, and a new process would draw alike."""
    # Where matplotlib is loaded, a config file may have changed what reports are drawn with.
    return limits.cores() > 1 and sys.platform == "linux" and "matplotlib" not in sys.modules


@contextmanager
def begun() -> Iterator[None]:
    """There is one for the length of a `with` block, where it is of use."""
    global _process
    if _worth():
        with suppress(OSError):
            # In a session of its own: Ctrl-C is for the study, and it ends with all it forked.
            _process = subprocess.Popen(
                [sys.executable or "python", "-c", _PATH.format(sys.path) + _PROGRAM],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, encoding="utf-8", start_new_session=True,
            )  # fmt: skip
    try:
        yield
    finally:
        end()


def end() -> None:
    """Ends it, whatever it does; twice is harmless."""
    global _process
    if _process is not None:
        with suppress(OSError):
            os.killpg(_process.pid, signal.SIGKILL)
        _process.wait()
        for pipe in (_process.stdin, _process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        _process = None


def ready(figures: Collection[str]) -> bool:
    """Whether it has loaded all that reports need, with these figures; if not, it is ended."""
    said = _heard()
    if not isinstance(said, list) or said[:1] != [__file__] or not {*figures} <= {*said}:
        end()
    return _process is not None


def draw(directory: Path) -> bool:
    """Has the report of a run directory drawn, which `drawn` waits for; False: nobody does."""
    if _process is not None:
        try:
            _say([os.getcwd(), str(directory)], _process.stdin)
        except OSError:  # it is gone, or the current directory is: each would wait for the other
            end()
    return _process is not None


def drawn() -> Path | None:
    """The page that `draw` asked for; None: there is none, and no process any more."""
    page = _heard()
    end()
    return Path(page) if isinstance(page, str) else None


def _say(content: object, pipe: Any) -> None:
    pipe.write(json.dumps(content) + "\n")
    pipe.flush()


def _heard() -> Any:
    """The next line of the process; None: it ended, or says something else."""
    with suppress(OSError, ValueError):
        return json.loads(_process.stdout.readline()) if _process else None  # type: ignore[union-attr]
    return None


def serve() -> None:
    """What the process does: tells what it has loaded, draws one report, tells the page."""
    from prunejax import report
    from prunejax.system import command

    command.collect_less()
    report.load()
    from prunejax.report import gallery  # after it: that loads matplotlib as it has to be

    _say([__file__, *gallery.known()], sys.stdout)
    if line := sys.stdin.readline():  # else the study has ended
        threading.Thread(target=_watch, daemon=True).start()
        folder, directory = json.loads(line)
        os.chdir(folder)
        _say(str(report.build([directory])), sys.stdout)


def _watch() -> None:
    """Ends this process, and those that it forked, when the study's has ended."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)
