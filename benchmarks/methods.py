"""Masks of public implementations of pruning methods beside ours: same weights, same batch.

    PYTHONPATH=. python benchmarks/methods.py --peers=DIR

DIR holds checkouts of mil-ad/snip, alecwangcq/GraSP, ganguli-lab/Synaptic-Flow,
google-research/jaxpruner and nollied/rigl-torch under their last names; what is missing is skipped.
Nothing of them is part of this repository. An MLP 64-128-64-10 with biases of 0, 100 digits (10 of
each class), double precision on both sides, all kernels pruned, 5 % kept. Times are ratios, theirs
over ours, the least of 200 repetitions in this process; ours compiled, outputs checked first. One
run is in results/2026-11-28-methods.txt, on cores that others used too: its times are rough.
"""

import argparse
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from methods_before import erk, grasp, snip, synflow
from methods_common import (
    X,
    Y,
    compare,
    count,
    least,
    loss,
    network,
    tree,
    weights,
)
from torch import nn

from prunejax.methods import growth
from prunejax.sparsify import masked, masks_of, sparsify


def rigl(folder):
    """One update of its scheduler, and of ours on its weights, masks and gradient; times."""
    stub = types.ModuleType("torchvision")
    stub.models = types.SimpleNamespace(
        resnet=types.SimpleNamespace(Bottleneck=type("B", (), {}), BasicBlock=type("C", (), {}))
    )
    sys.modules.setdefault("torchvision", stub)
    sys.path.insert(0, str(folder))
    from rigl_torch.RigL import RigLScheduler

    torch.manual_seed(0)
    net = network(weights(3))
    inner = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    end, every, drop = 300, 10, 0.3
    scheduler = RigLScheduler(
        *(net, inner), dense_allocation=0.1, T_end=end, delta=every, alpha=drop,
        ignore_linear_layers=False,
    )  # fmt: skip
    scheduler.step = every - 1
    x, y = torch.tensor(X), torch.tensor(Y)
    nn.functional.cross_entropy(net(x), y).backward()
    linear = [m for m in net if isinstance(m, nn.Linear)]
    start = [np.array(m.weight.detach()).T for m in linear]
    ones = np.ones_like(start[0], bool)
    was = [ones, *(np.array(m).T for m in scheduler.backward_masks[1:])]
    params = tree(start)
    live = {f"l{i}": {"w": jnp.asarray(m), "b": jnp.array(True)} for i, m in enumerate(was)}
    gradients = jax.grad(loss)(params)

    def size(t):
        return {k: {"w": jnp.abs(v["w"]), "b": jnp.float32(0)} for k, v in t.items()}

    swaps = {
        f"l{i}/w": growth.swaps(int(was[i].sum()), drop, step=every, end=end) if i else 0
        for i in range(3)
    }
    update = jax.jit(lambda m, w, g: growth.drop_and_grow(m, size(w), size(g), swaps).masks)
    ours = update(live, params, gradients)
    scheduler()
    theirs = [ones.T, *scheduler.backward_masks[1:]]
    compare("RigL, one update (nollied/rigl-torch)", theirs, ours, f"swaps {list(swaps.values())}")

    def one():
        for hook, w in zip(scheduler.backward_hook_objects[1:], scheduler.W[1:], strict=True):
            hook.dense_grad = torch.ones_like(w)
        scheduler._rigl_step()

    mine = least(lambda: jax.block_until_ready(update(live, params, gradients)))
    print(f"time of an update, theirs / ours: {least(one) / mine:.1f}")

    def their_step():
        inner.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        inner.step()

    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)  # as users train
    tx = sparsify(optax.sgd(0.1, 0.9), "rigl", sparsity=0.9, seed=0, every=every, end=end)
    state = tx.init(params)
    params = masked(params, state)

    @jax.jit
    def our_step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    no, due = state._replace(step=jnp.int32(1)), state._replace(step=jnp.int32(every))
    mine = least(lambda: jax.block_until_ready(our_step(params, no)))
    with_update = least(lambda: jax.block_until_ready(our_step(params, due)))
    plain = optax.sgd(0.1, 0.9)

    @jax.jit
    def dense_step(params, state):
        updates, state = plain.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    start = plain.init(params)
    dense = least(lambda: jax.block_until_ready(dense_step(params, start)))
    print(f"time of a step, theirs / ours: {least(their_step) / mine:.1f}")
    print(
        f"ours, single precision: an update costs {with_update / mine - 1:.2f} steps; a step of "
        f"sparsify takes {mine / dense:.2f} of a plain one; live {count(masks_of(state))}"
    )


PEERS = {
    "snip": snip,
    "GraSP": grasp,
    "Synaptic-Flow": synflow,
    "jaxpruner": erk,
    "rigl-torch": rigl,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, required=True, help="folder of the checkouts")
    folder = parser.parse_args().peers
    jax.config.update("jax_enable_x64", True)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    print(f"jax {jax.__version__}, torch {torch.__version__}, {jax.devices()[0].platform}")
    for name, fn in PEERS.items():
        if (folder / name).is_dir():
            fn(folder / name)
        else:
            print(f"{name}: no checkout in {folder}, skipped")


if __name__ == "__main__":
    main()
