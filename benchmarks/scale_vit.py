"""ViT-S/16 over simulated devices that split its parameters, beside one device: masks and traffic.

    XLA_FLAGS=--xla_backend_optimization_level=0 python benchmarks/scale_vit.py --save

One run with N:M masks (2 of 4, before training) and one with RigL (10 % of the weights live, a swap
after every second step) train a few steps on one device and on eight. Compared: the masks after
each event, once from the state that each of the two has by itself and once from the same state; the
mean loss. Read from the compiled programs of eight: bytes of a state on each device, and the
results of collectives. A parameter may be gathered for its forward and for its backward pass, in a
training step and where an event takes gradients; nothing else of that size may be.
"""

import argparse
import math
from typing import Any

import jax
import numpy as np
from common import study, synthetic, told
from scale import exchanged

from prunejax import models, trees
from prunejax.cluster import mesh as mesh_lib
from prunejax.study.devices import arrangement
from prunejax.study.devices.population import Population
from prunejax.study.planning.programs import Member

ARMS = {
    "nm": {"method": "nm", "nm": (2, 4)},
    "rigl": {"method": "rigl", "fraction": (0.9,), "update_every": 2, "update_end": 1.0},
}
TOLERANCE = 1e-4  # of losses, relative: what README says of SGD


def built(arm: str, options: argparse.Namespace, devices: int) -> tuple[Population, Member]:
    """The run on so many devices, its parameters split if there are several."""
    batch = study(
        {
            "seeds": 1,
            "epochs": 1,
            "batch_size": options.batch,
            "data.name": synthetic((64, 64, 3), options.steps * options.batch, options.batch),
            "model.name": options.model,
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 0.05,
            "prune.granularity": "weight",
            "prune.layers": ("kernel:block.*",),
            "prune.saliency_examples": options.batch,
            "population.data_parallel": devices,
            "population.shard_params": devices > 1,
        },
        {arm: {"prune": ARMS[arm]}},
    )
    people = Population(
        batch.program,
        arrangement.device_data(batch.dataset),  # type: ignore[arg-type]
        "sharded" if devices > 1 else "sequential",
        jax.devices()[:devices],
        batch.members[0],
        shard_params=devices > 1,
    )
    return people, batch.members[0]


def masks(state: Any) -> dict[str, np.ndarray]:
    return {n: np.asarray(left) == 0 for n, left in mesh_lib.fetch(state.windows.remaining).items()}


def apart(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> int:
    return sum(int((a[n] != b[n]).sum()) for n in a)


def collectives(people: Population) -> dict[str, Any]:
    """What the compiled training step and event exchange, in whole copies of all weights."""
    states, one = people.abstract(1), people._one
    leaves = jax.tree.leaves(one.params)
    count = sum(x.size for x in leaves)
    found: dict[str, Any] = {"state B a weight": people.state_bytes(1) / count}
    for name, program, last in (("step", people.train, 1), ("event", people._event, 0)):
        compiled = program.lower(states, people.data, np.int32(last)).compile()
        sent, memory = exchanged(compiled.as_text()), compiled.memory_analysis()
        found[f"{name}: work B a weight"] = memory.temp_size_in_bytes / count
        for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
            found[f"{name}: {kind}"] = sent[kind] / (4 * count)
    return found


def run(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    (single, member), (many, _) = (built(arm, options, n) for n in (1, options.devices))
    own = {people: people.initial([member]) for people in (single, many)}
    row: dict[str, Any] = {"arm": arm, "devices": options.devices}
    leaves = trees.leaves_with_paths(single._one.params)
    row["weights"] = sum(math.prod(x.shape) for _, x in leaves)
    row["events"], row["live"], done = 0, [], 0
    row["weights apart, same state"], row["weights apart, own states"] = [], []
    for event in member.events:
        steps = int(member.table.steps[event])
        if steps > done:
            for people in own:
                own[people] = people.train(own[people], people.data, np.int32(steps - done))
            done = steps
        # From the same state: that of one device, laid out over all.
        common = many.put(mesh_lib.fetch(own[single]))
        tables = {}
        for people in own:
            own[people], tables[people] = people.event(own[people], int(event))
        common, same = many.event(common, int(event))
        wanted = masks(own[single])
        row["weights apart, same state"].append(apart(wanted, masks(common)))
        row["weights apart, own states"].append(apart(wanted, masks(own[many])))
        for other in (same, tables[many]):  # counts are rows of events.csv: equal whatever ties do
            np.testing.assert_array_equal(tables[single].targeted, other.targeted)
            np.testing.assert_array_equal(tables[single].live, other.live)
        row["live"].append(int(tables[single].live.sum()))
        row["events"] += 1
    if done < options.steps:
        for people in own:
            own[people] = people.train(own[people], people.data, np.int32(options.steps - done))
    losses = [float(people.summary(states)[0].loss[0]) for people, states in own.items()]
    row["loss"], row["loss apart"] = losses[0], abs(losses[1] / losses[0] - 1)
    if not row["loss apart"] < TOLERANCE:
        raise SystemExit(f"{arm}: losses {losses} differ by more than {TOLERANCE}")
    del own
    row |= collectives(many)
    if row["step: all-gather"] > 2 or row["event: all-gather"] > 2:
        raise SystemExit(f"{arm}: more is gathered than for one forward and one backward pass")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=12, help="blocks; ViT-S has 12")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--arms", default="nm,rigl")
    parser.add_argument("--save", action="store_true", help="write results/DATE-scale-vit.json")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", options.devices)
    kind, fixed = models.MODELS["vit_s16"]
    options.model = "vit_s16"
    if options.depth != fixed["depth"]:
        options.model = f"vit_s16 of {options.depth} blocks"
        models.MODELS[options.model] = (kind, fixed | {"depth": options.depth})
    rows = ({"model": options.model} | run(arm, options) for arm in options.arms.split(","))
    told(rows, "scale-vit" if options.save else "")


if __name__ == "__main__":
    main()
