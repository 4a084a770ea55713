"""A copy of the launchers with stand-ins for what they start, for tests."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Stands in for a Python: "-m venv DIR" puts a copy of itself there; "-m pip" and "-m prunejax.main"
# are logged; FAIL_PIP and the shell text MAIN say how these end.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *"-c import sys; print(sys.version)"*) echo "stand-in ${VERSION:-1}" ;;
  "-m venv "*)
    echo "venv" >>"$LOG"
    [ -z "${FAIL_VENV-}" ] || exit 1
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip "*)
    echo "pip ${*: -1}" >>"$LOG"
    if [ -n "${KILL_PIP-}" ]; then kill -KILL "$PPID"; exit 0; fi
    exit "${FAIL_PIP:-0}" ;;
  *"create_server"*) echo 23456 ;;
  "-m prunejax.main"*)
    shift 2
    echo "main $*" >>"$LOG"
    for flag in "$@"; do case $flag in --process_id=*) id=${flag#*=} ;; esac; done
    eval "${MAIN-}" ;;
  "-m "*)
    echo "$*" >>"$LOG"
    case "$2" in "${FAIL_TOOL-none}") exit 1 ;; esac ;;
esac
exit 0
"""


class Clone:
    """A clone of the repository as far as launchers see it, at `root`."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "clone of prunejax"
        self.log = directory / "log"
        self.programs = directory / "bin"
        self.here = directory / "here"
        for path in (self.root, self.programs, self.here):
            path.mkdir(parents=True)
        shutil.copytree(ROOT / "launch", self.root / "launch")
        shutil.copytree(ROOT / ".ci", self.root / ".ci")
        (self.root / "pyproject.toml").write_text('[project]\nname = "prunejax"\n')
        (self.root / "configs").mkdir()
        (self.root / "configs" / "digits.py").touch()
        self.program("python3", PYTHON)
        for program in ("sbatch", "gcloud", "kubectl"):  # a test must never reach a real cluster
            self.program(program, "#!/bin/sh\necho 'no stand-in' >&2; exit 99\n")

    def program(self, name: str, text: str) -> None:
        """Puts a program on the PATH of `run`."""
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def start(
        self, script: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts a launcher in the directory `here`."""
        path = f"{self.programs}:{os.environ['PATH']}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PRUNEJAX", "SLURM"))}
        return subprocess.Popen(
            ["bash", str(self.root / script), *arguments],
            cwd=self.here,
            env=clean | {"PATH": path, "LOG": str(self.log)} | dict(environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Job control of a test runner may have switched these off for its children.
            preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (2, 15)],
        )

    def run(
        self, script: str, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a launcher to its end."""
        process = self.start(script, *arguments, environment=environment)
        output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def logged(self) -> list[str]:
        """What the stand-ins were asked for since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines
