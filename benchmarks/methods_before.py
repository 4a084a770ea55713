"""The part of `methods.py` on masks before training: SNIP, GraSP, SynFlow, ERK."""

import itertools
import sys

import jax.numpy as jnp
import numpy as np
import torch
from methods_common import (
    KEEP,
    SIZES,
    X,
    Y,
    apply,
    compare,
    loss,
    module,
    network,
    removed,
    tree,
    weights,
)
from torch import nn

from prunejax import allocate
from prunejax.methods import before


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
