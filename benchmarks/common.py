"""What benchmarks share: a clock, a table, the environment, a dated file of results."""

import datetime
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

RESULTS = Path(__file__).parent / "results"


class Seconds(NamedTuple):
    """Fastest of several calls; `cpu` counts all threads of the process."""

    wall: float
    cpu: float


def timed(fn: Callable[[], Any], repeats: int) -> Seconds:
    """Wall and CPU seconds of the fastest of `repeats` calls (compile before you call this)."""
    best = Seconds(float("inf"), float("inf"))
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(fn())
        took = Seconds(time.perf_counter() - wall, time.process_time() - cpu)
        best = Seconds(min(best.wall, took.wall), min(best.cpu, took.cpu))
    return best


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as aligned text; floats with three significant digits."""
    text = [[str(key) for key in rows[0]]]
    text += [[f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in text]
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    """Versions, device, processor and load: what a number needs beside it."""
    versions = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "optax", "numpy"):
        versions[name] = importlib.metadata.version(name)
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
        model = names[0] if names else model
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load": os.getloadavg()[0],
        "versions": versions,
    }


def save(name: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> Path:
    """Writes benchmarks/results/DATE-name.json: date, environment, `more`, rows."""
    today = datetime.date.today().isoformat()
    record = {"date": today, **environment(), **more, "results": list(rows)}
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{today}-{name}.json"
    target.write_text(json.dumps(record, indent=2) + "\n")
    return target
