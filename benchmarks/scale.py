"""Bytes on each device, and bytes exchanged, where devices split a run's parameters.

    python benchmarks/scale.py --models=mlp:32,vit_s16:1 --devices=1,2,4,8 --save

Reads the compiled training step of one run on simulated CPU devices (nothing is allocated, nothing
runs): what it is given and gives back, what it needs beside that, and the results of its
collectives, all per parameter. `docs/scale.md` makes a model of these numbers.
"""

import argparse
import math
import re
from collections import Counter
from typing import Any

import jax
import numpy as np
from common import study, synthetic, told

from prunejax.study.devices import arrangement
from prunejax.study.devices.population import Population

SHAPES = {"mlp": (8, 8, 1), "vit_s16": (64, 64, 3)}
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1, "f64": 8, "s64": 8}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def exchanged(text: str) -> Counter[str]:
    """Kind of collective -> bytes of its results on one device, each instruction counted once."""
    found: Counter[str] = Counter()
    for kind in KINDS:
        for results in re.findall(rf"= (\S+|\([^()]*\)) {kind}(?:-start)?\(", text):
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
                entries = math.prod(int(n) for n in shape.split(",") if n)
                found[kind] += entries * BYTES.get(dtype, 4)
    return found


def measured(model: str, width: float, devices: int, batch: int) -> dict[str, Any]:
    """One row: a run whose state is split over so many devices."""
    name, shape = model, SHAPES[model]
    built = study(
        {
            "seeds": 1,
            "epochs": 2,
            "batch_size": batch,
            "data.name": synthetic(shape, 4 * batch),
            "model.name": name,
            "model.width": width,
            "optimizer.name": "sgd",
            "prune.granularity": "weight",
            "prune.score": "magnitude",
            "population.data_parallel": devices,
            "population.shard_params": devices > 1,
        },
        {"S": {"prune": {"schedule": "linear", "layers": ("kernel:.*",), "end": (1,)}}},
    )
    people = Population(
        built.program,
        arrangement.device_data(built.dataset),  # type: ignore[arg-type]
        "sharded" if devices > 1 else "sequential",
        jax.devices()[:devices],
        built.members[0],
        shard_params=devices > 1,
    )
    compiled = people.train.lower(people.abstract(1), people.data, np.int32(1)).compile()
    memory, sent = compiled.memory_analysis(), exchanged(compiled.as_text())
    count = sum(x.size for x in jax.tree.leaves(people._one.params))
    row = {"model": model, "width": width, "devices": devices, "batch": batch, "parameters": count}
    row |= {
        "state B": people.state_bytes(1) / count,
        "work B": memory.temp_size_in_bytes / count,
    }
    return row | {f"{kind} B": sent[kind] / count for kind in KINDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mlp:32")
    parser.add_argument("--devices", default="1,2,4,8")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--save", action="store_true", help="write results/DATE-scale.json")
    options = parser.parse_args()
    counts = [int(n) for n in options.devices.split(",")]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(counts))
    entries = [entry.split(":") for entry in options.models.split(",")]
    told(
        (measured(m, float(w), n, options.batch) for m, w in entries for n in counts),
        "scale" if options.save else "",
    )


if __name__ == "__main__":
    main()
