"""Members trained in different layouts and compared; run as a program: on simulated CPU devices."""

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prunejax import models
from prunejax.cluster import mesh
from prunejax.configs import default
from prunejax.record.checkpoint import Checkpoints
from prunejax.study.devices import arrangement, layout, population
from prunejax.study.planning import plan
from prunejax.study.settings import config
from prunejax.train import step
from tests.studies import FEW, PRUNE, tiny

# Losses of a member in two layouts agree this well with SGD; its targets and masks are the same.
# Adam divides a gradient by its size: where the true one is zero it makes steps of the learning
# rate out of rounding. Scores see those weights, so targets differ, and then all else does. In
# float64 nothing of that is left: `check_that_adam_differs_by_rounding_alone`.
TOLERANCE = 1e-4


def batch(data_parallel=1):
    """Members that differ in seed, intervention table and learning rate; one global ranking."""
    prune = PRUNE | {"layers": ("dense1", "dense2"), "score": "l2", "scope": "global"}
    window = {"duration": 3, "mask_norm": False}
    c = tiny(
        none={},
        S={"prune": prune, "optimizer": {"learning_rate": 0.1}},
        zero={"prune": prune, "intervention": window | {"kind": "zero", "restore": "weights"}},
        noise={
            "prune": prune | {"target": "random"},
            "intervention": window | {"kind": "gaussian"},
        },
    )
    c.seeds, c.epochs, c.model.name = 1, 4, "few2"
    c.prune.scope = "global"
    c.probes.names = ("loss", "accuracy", "classes")
    c.optimizer.name, c.optimizer.learning_rate = "sgd", 0.05
    (found,) = plan.build(config.variants(c, default.get_config()))
    members = [dataclasses.replace(m, seed=i) for i, m in enumerate(found.members)]
    program = dataclasses.replace(found.program, data_parallel=data_parallel)
    return program, arrangement.device_data(found.dataset), members


def make(name, devices, data_parallel=1, shard_params=False):
    """A population of `batch`'s program, and the members."""
    program, data, members = batch(data_parallel)
    people = population.Population(
        program, data, name, devices, members[0], shard_params=shard_params
    )
    return people, members


def trace(people, members, saved=None):
    """What each member does: per epoch its losses, targets and live parameters.

    Args:
      saved: a directory: the states go through a checkpoint there in the middle.
    """
    size = 1 if people.layout == "sequential" else len(members)
    stacks = [members[i : i + size] for i in range(0, len(members), size)]
    found = []
    for stack in stacks:
        states, epochs = people.initial(stack), []
        for epoch in range(people.program.epochs):
            states = people.train(states, people.data, np.int32(3))
            states = people.train_last(states, people.data)
            if epoch == 1 and saved is not None:
                checkpoints = Checkpoints(saved, keep=1)
                checkpoints.save(states, {})
                restored = checkpoints.restore(people.abstract(len(stack)))
                assert restored is not None
                states = restored.states
                same = jax.tree.map(
                    lambda a, w: a.sharding.is_equivalent_to(w, a.ndim), states, people._states
                )
                assert all(jax.tree.leaves(same))
            train = people.summary(states)[0]
            states, event = people.event(states, epoch + 1)
            live = jax.vmap(lambda s: step.masks(people.program, s))(mesh.fetch(states))
            _, bad, _, sparsity = people.summary(states)
            states, test = people.evaluate_test(states, after_event=True)
            assert (bad < 0).all()
            counted, examples = test.probed["classes"], people.data.test_labels.size
            right = counted["correct"].sum(axis=-1)
            np.testing.assert_allclose(right / examples, test.accuracy, rtol=1e-6)
            exact = (event.selected, event.live, live, sparsity, counted["count"])
            epochs.append((exact, (train.loss, test.loss)))
        whole = jax.tree.map(lambda *x: np.stack(x, axis=1), *epochs)
        found += [jax.tree.map(lambda leaf, i=i: leaf[i], whole) for i in range(len(stack))]
    return found


def compare(found, wanted):
    """Targets, live units and masks are the same, losses nearly."""
    assert len(found) == len(wanted)
    for (exact, losses), (exactly, near) in zip(found, wanted, strict=True):
        jax.tree.map(np.testing.assert_array_equal, exact, exactly)
        np.testing.assert_allclose(losses, near, rtol=TOLERANCE)


def gathered(compiled):
    """Entries of every array that a compiled program gathers from several devices."""
    sizes = [0]
    for shape in re.findall(
        r"= \(?\w+\[([\d,]*)\][^=]*? all-gather(?:-start)?\(", compiled.as_text()
    ):
        sizes.append(int(np.prod([int(n) for n in shape.split(",") if n] or [1])))
    return sizes


def check_that_gathers_are_seen(devices):
    """A program that must gather 1024 entries is found to do so."""
    split = mesh.make(devices, 2)
    x = jax.ShapeDtypeStruct(
        (split.shape["member"], 64, 16), np.float32, sharding=mesh.sharding(split, "member", "data")
    )
    twice = jax.jit(lambda x: 2 * x, out_shardings=mesh.sharding(split, "member"))
    assert max(gathered(twice.lower(x).compile())) == 1024


def check_that_devices_do_not_wait(people, states):
    """Nor is any other program that runs while members are measured one whose parts wait."""
    data = people.data
    for fn, args in (
        (people.train, (states, data, np.int32(3))),
        (people.train_last, (states, data)),
        (people._event, (states, data, np.int32(1))),
        (people._evaluate, (states, data.test_images, data.test_labels)),
        (people._summary, (states,)),
    ):
        text = fn.lower(*args).compile().as_text()
        found = re.findall(r"all-reduce|all-gather|all-to-all|collective-permute", text)
        assert not found, (fn, found)


def check_that_a_member_is_taken_where_it_lies(people, members, split):
    """No program of several devices is run for it: threads that measure would hold one of them."""
    states = people.initial(members)
    whole = mesh.fetch(states)
    if not split and people.program.data_parallel == 1:
        check_that_devices_do_not_wait(people, states)
    if not split:
        people._member = None
    for i in range(len(members)):
        one = people.member(states, i)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a, b[i]), one, whole)
        assert split or len({d for x in jax.tree.leaves(one) for d in x.devices()}) == 1


def check_that_members_may_differ(devices):
    """An event of one member only, whose scores take a gradient: no device waits for the others.

    On a CPU a collective permutation has all devices meet, in whatever branch it stands.
    """
    prune = {"schedule": "one_shot", "unit": "step", "fraction": (0.5,), "granularity": "weight"}
    prune |= {"score": "weight_saliency"}
    c = tiny(
        a={"prune": prune | {"start": (3,), "end": (3,)}},
        b={"prune": prune | {"start": (5,), "end": (5,)}},
    )
    c.seeds, c.prune.granularity, c.prune.saliency_examples = 1, "weight", 64
    c.model.name = "few1"
    c.optimizer.name, c.optimizer.learning_rate = "sgd", 0.05
    (found,) = plan.build(config.variants(c, default.get_config()))
    rows = sorted({row for m in found.members for row in m.events})
    assert len(rows) == 2
    live = []
    for count, name, share in ((1, "vectorized", 1), (4, "sharded", 2)):
        program = dataclasses.replace(found.program, data_parallel=share)
        data: Any = arrangement.device_data(found.dataset)
        people = population.Population(program, data, name, devices[:count], found.members[0])
        states = people.initial(found.members)
        for row in rows:
            states, _ = people.event(people.train(states, people.data, np.int32(1)), row)
        live.append(jax.vmap(lambda s, p=program: step.masks(p, s))(mesh.fetch(states)))
    jax.tree.map(np.testing.assert_array_equal, *live)


def check_that_adam_differs_by_rounding_alone(devices):
    """In float64 weights, moments and losses are 1e-9 near after steps with a clip and dropout.

    A wrong share of a batch, clip, mask of dropout or correction of a bias would show there, too.
    """
    c = tiny(none={})
    c.seeds, c.optimizer.name, c.optimizer.clip_norm, c.model.dropout = 1, "adam", 0.5, 0.2
    c.model.name = "mlp128_64"
    (found,) = plan.build(config.variants(c, default.get_config()))
    data: Any = arrangement.device_data(found.dataset)
    ends, begin = [], None
    with jax.enable_x64(True):
        module = found.program.module.clone(dtype=np.float64)
        for share in (1, 2):
            program = dataclasses.replace(found.program, module=module, data_parallel=share)
            people = population.Population(
                program, data, "vectorized", devices[:share], found.members[0]
            )
            begin = people.initial(found.members) if begin is None else begin
            wide = jax.tree.map(
                lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, mesh.fetch(begin)
            )
            states = people.train(people.put(wide), people.data, np.int32(3))
            ends.append(mesh.fetch((states.params, states.opt_state, states.totals.loss)))
    apart = max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), *ends)))
    print("Adam in float64, largest difference:", apart, flush=True)
    assert 0 < apart < 1e-9


def check():
    """Meshes of two and of four devices give what one device gives."""
    models.MODELS.update(FEW)
    check_that_gathers_are_seen(jax.devices())
    people, members = make("sequential", jax.devices()[:1])
    single = trace(people, members)
    for count, name, share, split in (
        (2, "sharded", 1, False),
        (4, "sharded", 2, True),
        (4, "vectorized", 4, False),
    ):
        people, members = make(name, jax.devices()[:count], share, split)
        assert people.mesh.size == count
        with tempfile.TemporaryDirectory() as directory:
            compare(trace(people, members, Path(directory) / "checkpoints"), single)
        check_that_a_member_is_taken_where_it_lies(people, members, split)
        print(count, name, share, split, "agrees", flush=True)
        if split:
            size = people.multiple
            event = people._event.lower(people.abstract(size), people.data, np.int32(1)).compile()
            largest = max(leaf.size for leaf in jax.tree.leaves(people._one.params))
            print("largest gather", max(gathered(event)), "of", largest, flush=True)
            assert max(gathered(event)) < largest
    check_that_members_may_differ(jax.devices())
    check_that_adam_differs_by_rounding_alone(jax.devices())
    check_that_idle_devices_share()
    print("done")


def check_that_idle_devices_share():
    """`auto` also tries one run on all devices, and takes it where it is faster."""
    program, data, members = batch()
    settings = default.get_config()
    layout.LONG, layout.PREFERENCE = 0.0, 0.0  # every study is long, the last candidate wins
    decision, people = layout.decide(program, data, members[:1], settings)
    assert (decision.layout, decision.devices, decision.share) == ("sharded", 4, 4), decision
    assert "sharded (a run over 4 devices) (measured per run and step: sequential" in decision.why
    assert people.multiple == 1
    for leaf in jax.tree.leaves(people.member(people.zeros(1), 0)):
        assert len(leaf.devices()) == 1  # so that measures compute it once
    again = layout.build(program, data, members[0], settings, decision)
    assert again.program == people.program


def main():
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    check()


if __name__ == "__main__":
    main()
