"""The network, the batch and the comparison that `methods.py` makes."""

import importlib.util
import itertools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from sklearn.datasets import load_digits
from torch import nn

from prunejax.methods import before

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
