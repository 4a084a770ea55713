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
import importlib.util
import itertools
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from sklearn.datasets import load_digits
from torch import nn

from prunejax import allocate
from prunejax.methods import before, growth
from prunejax.sparsify import masked, masks_of, sparsify

SIZES = (64, 128, 64, 10)
KEEP = 0.05
REPEATS = 200


def weights(seed):
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(SIZES)
    return [rng.normal(size=(a, b)) * np.sqrt(2 / a) for a, b in pairs]


def batch():
    x, y = load_digits(return_X_y=True)
    chosen = before.balanced_batch(y, per_class=10, seed=0)
    return x[chosen] / 16, y[chosen].astype(int)


X, Y = batch()


def tree(kernels):
    biases = [jnp.zeros(w.shape[1]) for w in kernels]
    return {f"l{i}": {"w": jnp.asarray(w), "b": biases[i]} for i, w in enumerate(kernels)}


def apply(p, x):
    for i in range(3):
        x = x @ p[f"l{i}"]["w"] + p[f"l{i}"]["b"]
        x = jax.nn.relu(x) if i < 2 else x
    return x


def loss(p, temperature=1.0):
    return optax.softmax_cross_entropy_with_integer_labels(
        apply(p, jnp.asarray(X, p["l0"]["w"].dtype)) / temperature, jnp.asarray(Y)
    ).mean()


def network(kernels, linear=nn.Linear, end=()):
    parts = []
    for i, w in enumerate(kernels):
        layer = linear(*w.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(w.T))
            layer.bias.zero_()
        parts += [layer, nn.ReLU()] if i < 2 else [layer]
    return nn.Sequential(*parts, *end)


def module(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def removed(kept, total):
    """A fraction that leaves exactly `kept`, whose count is rounded up."""
    return 1 - (kept - 0.5) / total


def compare(what, theirs, live, note=""):
    """Prints how many of the kept weights both keep. `theirs`: (out, in) arrays as in PyTorch."""
    theirs = [np.asarray(m, bool).T for m in theirs]
    ours = [np.asarray(live[f"l{i}"]["w"]) for i in range(3)]
    differ = sum(int((a != b).sum()) for a, b in zip(theirs, ours, strict=True))
    kept = [sum(int(m.sum()) for m in side) for side in (theirs, ours)]
    print(
        f"{what}: theirs keeps {kept[0]}, ours {kept[1]}; {differ} entries differ. {note}",
        flush=True,
    )


def snip(folder):
    """Its `SNIP` scores weights drawn anew (Xavier); that draw is switched off to compare."""
    peer = module(folder / "snip.py", "peer_snip")
    draw, nn.init.xavier_normal_ = nn.init.xavier_normal_, lambda w: w
    try:
        kernels = weights(0)
        loader = [(torch.tensor(X), torch.tensor(Y))]
        found = peer.SNIP(network(kernels, end=(nn.LogSoftmax(1),)), KEEP, loader, "cpu")
    finally:
        nn.init.xavier_normal_ = draw
    kept = sum(int(m.sum()) for m in found)
    total = sum(w.size for w in kernels)
    live = before.prune(tree(kernels), "snip", sparsity=removed(kept, total), loss=loss)
    compare("SNIP (mil-ad/snip)", found, live, "It rounds the number kept down, we round it up.")


def grasp(folder):
    peer = module(folder / "pruner" / "GraSP.py", "peer_grasp")
    kernels = weights(1)
    net = network(kernels)
    order = np.random.default_rng(0).permutation(len(Y))
    loader = [(torch.tensor(X[order]), torch.tensor(Y[order]))] * 2
    found = list(
        peer.GraSP(
            *(net, 1 - KEEP, loader, "cpu"), num_classes=10, samples_per_class=10, reinit=False
        ).values()
    )
    kept = sum(int(m.sum()) for m in found)
    total = sum(w.size for w in kernels)
    live = before.prune(
        tree(kernels), "grasp", sparsity=removed(kept, total), loss=lambda p: loss(p, 200.0)
    )
    compare("GraSP (alecwangcq/GraSP)", found, live, "It keeps one more than asked: its threshold.")


def synflow(folder):
    sys.path.insert(0, str(folder))
    for name in ("Layers", "Layers.layers"):
        sys.modules.pop(name, None)
    from Layers import layers as peer_layers

    pruners = module(folder / "Pruners" / "pruners.py", "peer_pruners")
    generator = module(folder / "Utils" / "generator.py", "peer_generator")
    kernels = weights(2)
    total = sum(w.size for w in kernels)
    kept = int(np.ceil(KEEP * total))
    # Theirs keeps KEEP^(i/T) of the weights after round i, ours (kept / total)^(i/T): one weight
    # apart in most rounds, and a round's choice follows from the last one's.
    cases = [
        ("synflow", pruners.SynFlow, KEEP, 100),
        ("synflow", pruners.SynFlow, kept / total, 100),
        ("snip", pruners.SNIP, KEEP, 1),
        ("grasp", pruners.GraSP, KEEP, 1),
    ]
    for part, peer, share, rounds in cases:
        net = network(kernels, peer_layers.Linear)
        for m in net.modules():
            if isinstance(m, peer_layers.Linear):
                m.weight_mask, m.bias_mask = m.weight_mask.double(), m.bias_mask.double()
        chosen = peer(generator.masked_parameters(net))
        loader = [(torch.tensor(X), torch.tensor(Y))]
        for i in range(rounds):
            chosen.score(net, nn.CrossEntropyLoss(), loader, "cpu")
            chosen.mask(share ** ((i + 1) / rounds), "global")
        found = [m.weight_mask for m in net.modules() if isinstance(m, peer_layers.Linear)]
        given = {
            "synflow": {"output": lambda p: apply(p, jnp.ones((1, 64)))},
            "snip": {"loss": loss},
            "grasp": {"loss": lambda p: loss(p, 200.0)},
        }[part]
        live = before.prune(tree(kernels), part, sparsity=1 - KEEP, **given)
        asked = f"{rounds} rounds, its share {share:.6f}"
        compare(f"{part} (ganguli-lab/Synaptic-Flow), {asked}", found, live)
    sys.path.remove(str(folder))


def erk(folder):
    peer = module(folder / "jaxpruner" / "sparsity_distributions.py", "peer_distributions")
    shapes = {
        "digits": {f"l{i}": s for i, s in enumerate(itertools.pairwise(SIZES))},
        "convolutions": {
            "a": (3, 3, 3, 16),
            "b": (3, 3, 16, 64),
            "c": (1, 1, 64, 8),
            "d": (64, 10),
        },
    }
    for name, of in shapes.items():
        for sparsity in (0.5, 0.8, 0.95, 0.98):
            given = {(k,): np.array(s) for k, s in of.items()}
            shares = peer.get_sparsities_erdos_renyi(given, sparsity)
            size = {k: int(np.prod(s)) for k, s in of.items()}
            theirs = {k: size[k] - peer.get_n_zeros(size[k], shares[(k,)]) for k in of}
            ours = allocate.counts(of, sparsity, "erk")
            total = sum(size.values())
            print(
                f"ERK (jaxpruner), {name} at {sparsity}: largest difference of a layer "
                f"{max(abs(theirs[k] - ours[k]) for k in of)}; of {total}, theirs keeps "
                f"{sum(theirs.values())}, ours {sum(ours.values())}, asked "
                f"{(1 - sparsity) * total:.1f}",
                flush=True,
            )


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


def count(live):
    return sum(int(jnp.sum(m)) for m in jax.tree.leaves(live) if m.ndim)


def least(fn):
    fn()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        fn()
        times.append(time.perf_counter() - began)
    return min(times)


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
