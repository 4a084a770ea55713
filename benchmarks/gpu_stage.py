"""What the stages of `gpu.sh` share: arguments, a deadline, dated records that grow row by row.

A stage starts the programs that use the GPU and never uses JAX itself: a process that holds a GPU
takes most of its memory. Nothing but the standard library is imported here.

    python benchmarks/gpu_stage.py device OUT [--cpu] [--data]   writes OUT/device.json, or refuses
    python benchmarks/gpu_stage.py summary OUT STAGE ... prints and writes which stage ended how
"""

import argparse
import contextlib
import datetime
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
UNFINISHED, REFUSED = 75, 2
# Before a program is stopped for good it may save what it has.
GRACE = 45.0

DEVICE = """
import json, sys
sys.path.insert(0, {here!r})
import common
import jax
about = common.environment() | {{"platform": jax.devices()[0].platform}}
stats = jax.devices()[0].memory_stats() or {{}}
print(json.dumps(about | {{"memory_bytes": stats.get("bytes_limit")}}))
"""


# What stages import, by the name of its package.
NEEDED = {
    "absl-py": "absl.flags", "flax": "flax", "jax": "jax", "jinja2": "jinja2",
    "matplotlib": "matplotlib.figure", "ml-collections": "ml_collections.config_flags",
    "numpy": "numpy", "optax": "optax", "orbax-checkpoint": "orbax.checkpoint",
    "pytest": "pytest", "scikit-learn": "sklearn.datasets", "scipy": "scipy.stats",
    "tensorboard": "tensorboard.compat.proto.event_pb2",
}  # fmt: skip
FOR_DATA = {"tensorflow-datasets": "tensorflow_datasets", "array-record": "array_record",
            "pillow": "PIL.Image"}  # fmt: skip
IMPORTS = """
import importlib, json, sys
found = {}
for package, module in json.loads(sys.argv[1]).items():
    try:
        importlib.import_module(module)
    except Exception as error:
        found[package] = (str(error) or type(error).__name__).splitlines()[0]
print(json.dumps(found))
"""


class UnfinishedError(Exception):
    """The time of this call is up; the same command continues."""


class Stage:
    """One stage of one call: what it measured before, and where to add to it."""

    def __init__(self, name: str, doc: str | None) -> None:
        parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
        parser.add_argument("--out", type=Path, required=True, help="folder of all results")
        parser.add_argument("--cpu", action="store_true", help="the smallest form, on the CPU")
        parser.add_argument("--data", default="", help="prepared TFDS sets")
        parser.add_argument("--seconds", type=float, default=540.0, help="that this call may take")
        parser.add_argument("--torch-python", default=sys.executable, help="has torch")
        parser.add_argument("--figure-minutes", type=float, default=15.0, help="of figure2 in all")
        self.options = parser.parse_args()
        self.name, self.out, self.cpu = name, self.options.out.resolve(), self.options.cpu
        self.deadline = time.monotonic() + self.options.seconds
        self.logs = self.out / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.failures: list[str] = []
        before = newest(self.out, name)
        self.file = before or self.out / f"{datetime.date.today().isoformat()}-{name}.json"
        self.record: dict[str, Any] = json.loads(self.file.read_text()) if before else {}
        # What failed is tried again.
        self.rows = [r for r in self.record.get("rows", []) if "failed" not in r]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(UNFINISHED))

    def left(self) -> float:
        """Seconds until this call should end."""
        return self.deadline - time.monotonic()

    def need(self, seconds: float) -> None:
        """Raises UnfinishedError unless so much time is left."""
        if self.left() < seconds:
            raise UnfinishedError

    def found(self, **key: Any) -> list[dict[str, Any]]:
        """The rows with these entries."""
        return [r for r in self.rows if key.items() <= r.items()]

    def add(self, **row: Any) -> None:
        """Keeps a row: on the screen and in the file, at once."""
        if "failed" in row:
            self.failures.append(str(row["failed"]))
        # JSON has no word for these.
        wild = (k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v))
        row |= {k: str(row[k]) for k in list(wild)}
        self.rows.append(row)
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
        print("  " + ", ".join(f"{k} {v}" for k, v in shown.items()), flush=True)
        self.write("unfinished")

    def write(self, ended: str) -> None:
        """The record as it is now."""
        device = json.loads((self.out / "device.json").read_text())
        kept = {k: v for k, v in self.record.items() if k not in ("ended", "rows")}
        self.record = {"stage": self.name, **device, **kept, "ended": ended, "rows": self.rows}
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.record, indent=1) + "\n")
        part.replace(self.file)

    def start(self, command: Sequence[Any], log: str, **environment: str) -> subprocess.Popen:
        """A program in a session of its own; what it prints goes to OUT/logs/LOG.log."""
        with open(self.logs / f"{log}.log", "a") as file:
            print(f"$ {' '.join(map(str, command))}", file=file, flush=True)
            return subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, command: Sequence[Any], log: str, need: float = 20.0, **environment: str) -> int:
        """Runs a program to its end and returns its exit code.

        Raises:
          UnfinishedError: less than `need` seconds are left (on the GPU), or it took too long.
        """
        self.need(1.0 if self.cpu else need)
        process = self.start(command, log, **environment)
        try:
            return process.wait(timeout=max(1.0, self.left()))
        except subprocess.TimeoutExpired:
            raise UnfinishedError from None
        finally:
            stop(process)

    def python(self, script: str, *arguments: Any) -> list[Any]:
        """The command that runs a script of this folder."""
        return [sys.executable, HERE / script, *arguments]

    def main(self, body: Callable[["Stage"], None]) -> None:
        """Runs the stage and ends the process: 0 done, 1 something failed, 75 out of time."""
        try:
            body(self)
            ended, code = ("failed: " + self.failures[0], 1) if self.failures else ("done", 0)
        except UnfinishedError:
            ended, code = "unfinished", UNFINISHED
        except Skipped as reason:
            ended, code = f"skipped: {reason}", 0
        self.write(ended)
        sys.exit(code)


class Skipped(Exception):
    """The stage cannot run here; the text says why."""


def stop(process: subprocess.Popen) -> None:
    """Ends a program and all that it started; first gently."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def newest(out: Path, stage: str) -> Path | None:
    """The stage's last record."""
    return max(out.glob(f"????-??-??-{stage}.json"), default=None)


def last_line(log: Path) -> str:
    """What a program said at its end."""
    lines = [x for x in log.read_text(errors="replace").splitlines() if x.strip()]
    return lines[-1].strip()[:300] if lines else "(nothing)"


def lacking(needed: dict[str, str]) -> dict[str, str]:
    """Packages of these whose module cannot be imported here, and why."""
    command = [sys.executable, "-c", IMPORTS, json.dumps(needed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:  # one of them took the process with it
        return {"the imports": (done.stderr.strip().splitlines() or [str(done.returncode)])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def device(out: Path, cpu: bool, data: bool) -> int:
    """Writes what the stages run on; refuses a folder of another device, and a machine without.

    The last stage should not be the first to find that a package is missing.
    """
    lacks = lacking(NEEDED | (FOR_DATA if data else {}))
    if lacks:
        print(f"gpu.sh: bring along (--wheels): {'; '.join(f'{k}: {v}' for k, v in lacks.items())}")
        return REFUSED
    program = DEVICE.format(here=str(HERE))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        print(f"gpu.sh: JAX does not start here: {done.stderr.strip().splitlines()[-1]}")
        return REFUSED
    about = json.loads(done.stdout.splitlines()[-1])
    if about["platform"] == "cpu" and not cpu:
        print("gpu.sh: JAX finds no GPU here; --cpu runs every stage in its smallest form")
        return REFUSED
    if smi := shutil.which("nvidia-smi"):
        query = [smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        about["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    file = out / "device.json"
    if file.exists():
        before = json.loads(file.read_text())["device"]
        if before != about["device"]:
            print(f"gpu.sh: {out} has results of {before!r}, here is {about['device']!r}: "
                  "give another --out")  # fmt: skip
            return REFUSED
    file.write_text(json.dumps(about, indent=1) + "\n")
    print(
        f"{about['device']}, jax {about['versions']['jax']}, Python {about['versions']['python']}"
    )
    return 0


def summary(out: Path, stages: Sequence[str]) -> int:
    """One line a stage; 0 where all are done, 1 where one failed, else 75."""
    records = {}
    for stage in stages:
        file = newest(out, stage)
        records[stage] = json.loads(file.read_text()) | {"file": file.name} if file else {}
    ends = {stage: record.get("ended", "not run") for stage, record in records.items()}
    found = [
        {
            "stage": stage,
            "ended": ends[stage],
            "rows": len(r.get("rows", [])),
            "file": r.get("file"),
        }
        for stage, r in records.items()
    ]
    for row in found:
        print(f"{row['stage']:<11}{row['ended']}; {row['rows']} rows in {row['file']}")
    target = out / f"{datetime.date.today().isoformat()}-summary.json"
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(f"in {out}; summary: {target.name}")
    if any(end.startswith("failed") for end in ends.values()):
        return 1
    return 0 if all(e.startswith(("done", "skipped")) for e in ends.values()) else UNFINISHED


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    if sys.argv[1] == "device":
        sys.exit(device(folder, "--cpu" in sys.argv, "--data" in sys.argv))
    sys.exit(summary(folder, sys.argv[3:]))
