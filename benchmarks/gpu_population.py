"""One population of a paper's study on random images: its times, its memory; one JSON line.

    python benchmarks/gpu_population.py vgg11_bn 16 float32 OUT.json [--smallest]

Times are those of the calls that a study makes: a training step, an evaluation of the test set, an
event with its two evaluations. Memory is what `Population.memory` predicts, and what was in use at
the worst moment: the allocator's peak on a GPU, on a CPU how far the process grew.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np

from prunejax.configs import default, digits
from prunejax.configs.paper import fig2_resnet18, fig2_vgg11
from prunejax.study.devices import arrangement, memory
from prunejax.study.devices.lifting import pad
from prunejax.study.devices.population import Population
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib

STUDIES: dict[str, Any] = {"vgg11_bn": fig2_vgg11, "resnet18": fig2_resnet18, "mlp": digits}


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (at most) of this process in bytes; NaN where there is no /proc."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * float(line.split()[1])
    except OSError:
        pass
    return math.nan


def clock(fn: Callable[[], Any], least: float) -> float:
    """Seconds a call after the first, over reads of at least so many seconds."""
    jax.block_until_ready(fn())
    calls = 1
    while True:
        begin = time.perf_counter()
        for _ in range(calls):
            found = fn()
        jax.block_until_ready(found)
        took = time.perf_counter() - begin
        if took >= least or calls >= 1000:
            return took / calls
        calls = max(2 * calls, math.ceil(1.2 * calls * least / max(took, 1e-6)))


def batch_of(model: str, dtype: str, smallest: bool) -> plan.Batch:
    """The study's batch with the unpruned runs, on random images of its data set's size."""
    config = STUDIES[model].get_config()
    if model != "mlp":
        sizes = (64, 32) if smallest else (50_000, 10_000)
        config.data.name = common.synthetic((32, 32, 3), *sizes)
    config.model.name, config.model.dtype = model, dtype
    config.model.width = 0.125 if smallest else 1.0
    if smallest:
        config.batch_size = config.eval_batch_size = 16
    batches = plan.build(config_lib.variants(config, default.get_config()))
    return max(batches, key=lambda b: sum(m.variant == "none" for m in b.members))


def measure(model: str, members: int, dtype: str, smallest: bool) -> dict[str, Any]:
    """Everything about one population."""
    least = 0.01 if smallest else 0.5
    batch = batch_of(model, dtype, smallest)
    data = arrangement.device_data(batch.dataset)
    device = jax.devices()[0]
    people = Population(batch.program, data, "vectorized", [device], batch.members[0])
    begin = time.perf_counter()
    ((_, predicted),) = memory.fitting([people], members, math.inf)
    compiled = time.perf_counter() - begin
    before = resident("VmRSS")
    state = {"s": people.initial(pad(batch.members, members)[0])}
    steps = min(32, people.program.steps_per_epoch)

    def train() -> Any:
        state["s"] = people.train(state["s"], people.data, np.int32(steps))
        return state["s"]

    step = clock(train, least) / steps
    evaluation = clock(lambda: people.evaluate_test(state["s"], after_event=False)[1], least)

    def peak() -> float:
        stats = device.memory_stats() or {}
        return stats.get("peak_bytes_in_use", resident("VmHWM") - before)

    measured = peak()  # before events, which the prediction leaves out

    def event() -> Any:
        state["s"], found = people.event(state["s"], 0)
        return found

    seconds = clock(event, least)
    return {
        "network": model,
        "dtype": dtype,
        "members": members,
        "ms a step": 1e3 * step,
        "images/s": members * batch.program.batch_size / step,
        "s an evaluation": evaluation,
        "s an event": seconds,
        "compile, s": compiled,
        "steps an epoch": batch.program.train_examples / batch.program.batch_size,
        "epochs": batch.program.epochs,
        # All members stop for an event of any of them.
        "epochs with events": len({int(row) for m in batch.members for row in m.events}),
        "predicted": predicted._asdict() | {"total": predicted.total},
        "measured": measured,
        "with events": peak(),
        "clock": "allocator" if device.memory_stats() else "process",
    }


def main() -> None:
    model, members, dtype, file = sys.argv[1:5]
    found = measure(model, int(members), dtype, "--smallest" in sys.argv)
    Path(file).write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
