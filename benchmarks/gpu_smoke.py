"""Stage "smoke": the default study runs, stops, continues; are its bytes the same?

For each set of flags (none; XLA's deterministic operations): the study whole, without flags the
study again in a new process, and the study stopped by SIGTERM after its first epoch and continued.
Tables are compared byte for byte; where they differ the largest relative difference is given. What
determinism and the precision of products cost is the time of a training step under each.
"""

import csv
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from gpu_stage import ROOT, Stage, UnfinishedError, last_line, stop

FLAGS = {
    "plain": "",
    # No atomic sums in an order of chance; no algorithm chosen by a clock.
    "deterministic": "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0",
}
TABLES = ("epochs", "events", "runs")
# environment, by what it asks for
STEPS = {
    "plain": {},
    "deterministic": {"XLA_FLAGS": FLAGS["deterministic"]},
    "highest precision": {"JAX_DEFAULT_MATMUL_PRECISION": "highest"},
}


def command(stage: Stage, workdir: Path) -> list[Any]:
    """The default study, quick: two seeds, six epochs."""
    # One measure and the forecast stand for all: each compiles its own programs.
    measures = "('hessian_trace',)"
    small = ["--config.seeds=1", "--config.measures.forecast=False"] if stage.cpu else []
    return [
        *(
            sys.executable,
            "-m",
            "prunejax.main",
            f"--config={ROOT}/prunejax/configs/digits.py:quick",
        ),
        *(f"--workdir={workdir}", "--config.checkpoint.every_epochs=1"),
        *(f"--config.measures.names={'()' if stage.cpu else measures}", *small),
    ]


def rows_of(table: Path) -> int:
    """Whole lines below the header."""
    return max(0, table.read_bytes().count(b"\n") - 1) if table.exists() else 0


def interrupted(stage: Stage, workdir: Path, log: str, environment: dict[str, str]) -> str:
    """Stops the study when its first epoch is written, continues it; what went wrong, or ""."""
    stage.need(1.0 if stage.cpu else 40.0)
    process = stage.start(command(stage, workdir), log, **environment)
    try:
        while process.poll() is None and not rows_of(workdir / "epochs.csv"):
            if stage.left() < 0:
                raise UnfinishedError
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=max(60.0, stage.left()))
    finally:
        stop(process)
    if code != 75:
        return f"SIGTERM during training: exit code {code}, not 75"
    before = rows_of(workdir / "epochs.csv")
    if code := stage.run(command(stage, workdir), log, **environment):
        return f"continuing: exit code {code}: {last_line(stage.logs / f'{log}.log')}"
    if before >= rows_of(workdir / "epochs.csv"):
        return "the study was over before the signal came"
    return ""


def same(one: Path, two: Path) -> tuple[bool, float]:
    """Are the tables byte for byte the same? And the largest relative difference of a number."""
    equal, largest = True, 0.0
    for name in TABLES:
        files = [path / f"{name}.csv" for path in (one, two)]
        digests = {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        equal &= len(digests) == 1
        tables = [list(csv.reader(file.read_text().splitlines())) for file in files]
        if len(digests) == 1:
            continue
        if len(tables[0]) != len(tables[1]):
            return False, math.inf
        for row, other in zip(*tables, strict=True):
            largest = max([largest, *map(apart, row, other)])
    return equal, largest


def apart(a: str, b: str) -> float:
    """Relative difference of two cells; infinite where texts differ."""
    if a == b:
        return 0.0
    try:
        x, y = float(a), float(b)
    except ValueError:
        return math.inf
    return abs(x - y) / max(abs(x), abs(y)) if math.isfinite(x) and math.isfinite(y) else math.inf


def studies(stage: Stage, label: str) -> None:
    """The three runs under one set of flags."""
    # As the caller set it, and these. No cache of programs on a GPU: a new process chooses anew.
    environment = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAGS[label]}".strip()}
    folder = stage.out / "smoke" / label
    whole, log = folder / "whole", f"smoke-{label}"
    again = ["again"] if label == "plain" and not stage.cpu else []
    for name in ("whole", *again, "continued"):
        if stage.found(flags=label, run=name):
            continue
        workdir = folder / name
        shutil.rmtree(workdir, ignore_errors=True)
        begin, failed = time.perf_counter(), ""
        if name == "continued":
            failed = interrupted(stage, workdir, log, environment)
        elif code := stage.run(command(stage, workdir), log, 40.0, **environment):
            failed = f"exit code {code}: {last_line(stage.logs / f'{log}.log')}"
        row: dict[str, Any] = {"flags": label, "run": name}
        row["seconds"] = time.perf_counter() - begin
        if failed:
            row["failed"] = failed
        elif name == "whole":
            row["environment"] = json.loads((workdir / "environment.json").read_text())["devices"]
            if not (workdir / "report.html").exists():
                row["failed"] = "no report.html"
        elif whole.exists():
            row["same bytes"], row["largest difference"] = same(whole, workdir)
            if label == "deterministic" and not row["same bytes"]:
                row["failed"] = f"{name}: other bytes under deterministic flags"
        stage.add(**row)


def steps(stage: Stage) -> None:
    """Milliseconds of a VGG11 step under each set of flags, and over the plain one."""
    for label, environment in STEPS.items():
        if stage.found(step=label) or (stage.cpu and label == "highest precision"):
            continue
        model, more = ("mlp", "0.02") if stage.cpu else ("vgg11_bn", "0.5")
        name = f"smoke-step-{label.replace(' ', '-')}"
        code = stage.run(
            stage.python(
                "training.py",
                *(f"--models={model}", "--members=1", "--rounds=3", f"--seconds={more}"),
                *(
                    "--batches=16",
                    "--steps=16",
                    f"--save={name}",
                    f"--folder={stage.out / 'smoke'}",
                ),
            ),
            name,
            60.0,
            **environment,
        )
        row: dict[str, Any] = {"step": label, "network": model}
        if code:
            row["failed"] = f"exit code {code}: {last_line(stage.logs / f'{name}.log')}"
        else:
            file = max((stage.out / "smoke").glob(f"*-{name}.json"))
            row["ms a step"] = min(r["ms a step"] for r in json.loads(file.read_text())["results"])
            plain = stage.found(step="plain")
            row["over plain"] = row["ms a step"] / plain[0]["ms a step"] if plain else 1.0
        stage.add(**row)


def body(stage: Stage) -> None:
    """The studies under both sets of flags, then what the flags cost."""
    for label in FLAGS:
        studies(stage, label)
    steps(stage)
    claims = []
    for label in FLAGS:
        known = [r for r in stage.found(flags=label) if "same bytes" in r]
        holds = bool(known) and all(r["same bytes"] for r in known)
        claims.append(f"{label} flags: {'the same bytes' if holds else 'NOT the same bytes'}")
    stage.record["claims"] = claims
    print("  " + "; ".join(claims), flush=True)


if __name__ == "__main__":
    stage = Stage("smoke", __doc__)
    stage.main(body)
