"""Sparse training by the library on scikit-learn's digits, beside the ranges it has to meet.

    PYTHONPATH=. python benchmarks/methods_digits.py [density]

MLP 64-128-64-10, 900 training and 897 test images, 600 steps of SGD (momentum 0.9, rate 0.1 by a
cosine after 5 % of warm-up, decay 1e-4, batch 64), all layers pruned, ERK, masks change every 20
steps until step 450, drop fraction 0.3 by a cosine. Seeds 300 to 307, all trained together by vmap.
"""

import itertools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats
from sklearn.datasets import load_digits

from prunejax import rng
from prunejax.methods import before
from prunejax.sparsify import masked, masks_of, sparsify

SIZES = (64, 128, 64, 10)
SEEDS = jnp.arange(300, 308)
STEPS = 600
EVERY, END = 20, 450
RANGES = {"static": (0.75, 0.88), "set": (0.88, 0.94), "rigl": (0.93, 0.96), "gradual": (0.955, 1)}


def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = (x[order] / 16).astype("f"), y[order]
    return jnp.asarray(x[:900]), jnp.asarray(y[:900]), jnp.asarray(x[900:]), jnp.asarray(y[900:])


X, Y, XT, YT = digits()


def net(seed):
    params = {}
    for i, (a, b) in enumerate(itertools.pairwise(SIZES)):
        w = jax.random.normal(rng.at(seed, "init", i), (a, b)) * jnp.sqrt(2 / a)
        params[f"layer{i}"] = {"kernel": w, "bias": jnp.zeros(b)}
    return params


def logits(params, x):
    for i in range(3):
        x = x @ params[f"layer{i}"]["kernel"] + params[f"layer{i}"]["bias"]
        x = jax.nn.relu(x) if i < 2 else x
    return x


def optimizer():
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.1, STEPS // 20, STEPS)
    return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(rate, 0.9))


def accuracy(seed, method, density, sparse_init):
    parts = {"static": {"seed": seed}, "set": {"seed": seed}, "rigl": {"seed": seed}}.get(
        method, {}
    )
    if method != "static":
        parts |= {"every": EVERY, "end": END}
    params = net(seed)
    tx = sparsify(optimizer(), method, sparsity=round(1 - density, 6), **parts)
    state = tx.init(params)
    if sparse_init:
        params = before.sparse_fan_in(params, masks_of(state))
    params = masked(params, state)

    def step(carry, t):
        params, state = carry
        batch = jax.random.choice(rng.at(seed, "order", t), 900, (64,), replace=False)

        def loss(p):
            out = logits(p, X[batch])
            return optax.softmax_cross_entropy_with_integer_labels(out, Y[batch]).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), jnp.arange(STEPS))
    live = sum(jnp.sum(m) for m in jax.tree.leaves(masks_of(state)) if m.ndim)
    return jnp.mean(jnp.argmax(logits(masked(params, state), XT), 1) == YT), live


def paired(a, b):
    d = a - b
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return f"{100 * d.mean():+.1f} points, 95 % interval {100 * (d.mean() - half):+.1f} to " + (
        f"{100 * (d.mean() + half):+.1f}"
    )


def main():
    density = float(sys.argv[1]) if len(sys.argv) > 1 else 0.05
    total = sum(a * b for a, b in itertools.pairwise(SIZES))
    print(f"density {density}, seeds {SEEDS[0]}-{SEEDS[-1]}, {total} prunable weights")
    for sparse_init in (False, True):
        print("initialization:", "sparse fan-in" if sparse_init else "dense")
        found = {}
        for method, (low, high) in RANGES.items():
            if sparse_init and method == "gradual":
                continue
            began = time.perf_counter()
            run = jax.jit(jax.vmap(lambda s, m=method, i=sparse_init: accuracy(s, m, density, i)))
            acc, live = map(np.asarray, run(SEEDS))
            found[method] = acc
            accept = f"accepted [{low}, {high}]" if density == 0.05 and not sparse_init else ""
            print(
                f"  {method:8s} {acc.mean():.3f} (se {acc.std(ddof=1) / np.sqrt(len(acc)):.3f}) "
                f"{accept}  live {set(live.tolist())}  {time.perf_counter() - began:.0f} s",
                flush=True,
            )
        print("  rigl - set:  ", paired(found["rigl"], found["set"]))
        print("  set - static:", paired(found["set"], found["static"]))


if __name__ == "__main__":
    main()
