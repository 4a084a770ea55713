"""What devices exchange where eight of them split a run's parameters; run by `test_collectives`.

Reads the compiled programs of a training step, an event, and a product with the Hessian.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from prunejax.cluster import mesh as mesh_lib
from prunejax.configs import default
from prunejax.study.devices import arrangement, population
from prunejax.study.loop import measuring
from prunejax.study.planning import plan
from prunejax.study.settings import config
from tests.studies import PRUNE, tiny

DEVICES = 8
KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")


def exchanged(compiled):
    """Kind of collective -> entries of each of its results, largest first."""
    text, found = compiled.as_text(), {}
    for kind in KINDS:
        sizes = []
        for results in re.findall(rf"= (\S+|\([^()]*\)) {kind}(?:-start)?\(", text):
            shapes = re.findall(r"\w+\[([\d,]*)\]", results)
            sizes += [math.prod(int(n) for n in s.split(",") if n) for s in shapes]
        found[kind] = sorted(sizes, reverse=True)
    return found


MAGNITUDE = PRUNE | {"layers": ("dense1", "dense2"), "score": "magnitude"}
# Arms whose states hold more for each weight: scores, saved weights, when windows end, what grew.
MORE = {
    "movement": {"prune": {"method": "movement", "fraction": (0.5,), "start": (1,), "end": (2,)}},
    "rigl": {"prune": {"method": "rigl", "fraction": (0.5,), "update_every": 2}},
    "noise": {
        "prune": MAGNITUDE,
        "intervention": {"kind": "gaussian", "duration": 3, "restore": "weights"},
    },
    "adam": {"prune": MAGNITUDE, "optimizer": {"name": "adam", "clip_norm": 1.0}},
}


def built(arm):
    """The population of a run whose single weights are pruned, split over all devices."""
    c = tiny(S=arm)
    c.prune.granularity, c.seeds, c.model.width = "weight", 1, 2.0
    c.population.data_parallel, c.population.shard_params = DEVICES, True
    arms = config.variants(c, default.get_config())
    (batch,) = plan.build(arms)
    data: Any = arrangement.device_data(batch.dataset)
    people = population.Population(
        batch.program, data, "sharded", jax.devices(), batch.members[0], shard_params=True
    )
    return people, batch, arms[0].settings


def split_sizes(people):
    """Entries of each parameter that devices split."""
    params = jax.tree.leaves(people._one.params)
    return [x.size for x in params if mesh_lib.split_spec(x.shape, DEVICES)]


def check_states(name, people):
    """All that is held for each weight is split, whatever part of the state it is in."""
    shapes = {x.shape for x in jax.tree.leaves(people._one.params)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(people.abstract(1)):
        wanted = mesh_lib.split_spec(leaf.shape[1:], DEVICES)
        if leaf.shape[1:] in shapes and wanted:
            place = f"{name}{jax.tree_util.keystr(path)}"
            assert leaf.sharding.spec == PartitionSpec("member", *wanted), place


def check_training(people, states, split):
    """A split parameter is gathered for its forward and its backward pass, its gradient added once.

    XLA for CPUs has no reduce-scatter: it adds up whole gradients, one by one, and keeps a part.
    On accelerators that pair is one reduce-scatter. Optimizer and windows exchange nothing.
    """
    found = exchanged(people.train.lower(states, people.data, np.int32(1)).compile())
    print("training", found, flush=True)
    large = {kind: [n for n in sizes if n >= min(split)] for kind, sizes in found.items()}
    activations = people.program.batch_size * 256  # may be sent in place of a parameter
    wanted = {*split, activations}
    assert {n for sizes in large.values() for n in sizes} <= wanted, large
    assert sum(large["all-reduce"]) <= sum(split) + 2 * activations
    assert sum(large["all-gather"]) <= 2 * (sum(split) + len(split) * activations)
    assert not large["all-to-all"]
    assert not large["collective-permute"]


def check_event(people, states, split):
    """Scores, selection, targets and windows stay where the parameters are."""
    compiled = people._event.lower(states, people.data, np.int32(1)).compile()
    found = exchanged(compiled)
    print("event", found, flush=True)
    assert max(max(sizes, default=0) for sizes in found.values()) < min(split) // 8, found
    for name, where in compiled.output_shardings[1].selected.items():
        shape = (1, *people._one.windows.targeted[name].shape)
        assert math.prod(where.shard_shape(shape)) == math.prod(shape) // DEVICES, name


def check_products(people, batch, settings):
    """What is measured of a run, and a product with its Hessian, is split as its parameters are."""
    state = people.member(people.zeros(1), 0)
    context = measuring.Measurer(batch, settings, print).context(state)
    product = context.hessian.matvec(context.params)
    for given, x, y in zip(
        jax.tree.leaves(state.params),
        jax.tree.leaves(context.params),
        jax.tree.leaves(product),
        strict=True,
    ):
        wanted = mesh_lib.split_spec(given.shape, DEVICES)
        for leaf in (given, x, y):
            assert len(leaf.sharding.device_set) == DEVICES
            assert leaf.sharding.spec == wanted, (leaf.shape, leaf.sharding)


def check():
    for name, arm in MORE.items():
        people, _, _ = built(arm)
        check_states(name, people)
        if name == "movement":
            split = [
                x.size for x in jax.tree.leaves(people._one.params) if x.size >= mesh_lib.SMALL
            ]
            check_training(people, people.abstract(1), split)
    people, batch, settings = built({"prune": MAGNITUDE})
    check_states("masked", people)
    split = split_sizes(people)
    assert len(split) >= 3, split
    states = people.abstract(1)
    check_event(people, states, split)
    check_training(people, states, split)
    check_products(people, batch, settings)


def main():
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    check()
    print("done")


if __name__ == "__main__":
    main()
