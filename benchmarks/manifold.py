"""Spectrum after ten SGD steps, its gaps, and training inside subspaces: the rest of `manifold`.

    PYTHONPATH=. python benchmarks/manifold.py [--seeds=3]

Beside `configs/manifold.py` (masks of single weights): the digits (900 training images, writers
mixed), an MLP 64-16-10, W* after ten steps of SGD, the exact Hessian of the training loss there,
then 600 steps from W0 inside W0 + V c, V the fast modes, the slow ones, or random directions.
A reconstruction, see that file for what is not known of the published method.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import models, rng
from prunejax.data import load
from prunejax.measures import manifold

STEPS, BATCH, RATE, SEED = 600, 64, 0.1, 910
DIMENSIONS = (5, 20, 80, 160)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(SEED, SEED + parser.parse_args().seeds)
    data = load("digits_mixed", train_examples=900)
    x, xt = (jnp.asarray(i) / 255 for i in (data.train_images, data.test_images))
    y, yt = jnp.asarray(data.train_labels), jnp.asarray(data.test_labels)
    module = models.create("mlp", num_classes=10, hidden=(16,), batch_norm=False)
    rates = RATE * (1 + np.cos(np.pi * np.arange(STEPS) / STEPS)) / 2

    def loss(params, indices):
        z = module.apply({"params": params}, x[indices])
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[indices, None], 1))

    whole = jnp.arange(900)
    accuracy = jax.jit(lambda p: jnp.mean(jnp.argmax(module.apply({"params": p}, xt), -1) == yt))
    found = {}
    for seed in seeds:
        start = models.init(module, rng.stream(seed, "init"), data.image_shape)["params"]
        size = sum(leaf.size for leaf in jax.tree.leaves(start))
        order = np.concatenate(
            [jax.random.permutation(rng.at(seed, "order", e), 900)[:896] for e in range(43)]
        )
        batches = jnp.asarray(order[: STEPS * BATCH].reshape(STEPS, BATCH))
        eye = np.eye(size)
        reference = manifold.train(loss, start, eye, batches[:10], rates=rates[:10])
        of = lambda p: loss(p, whole)  # noqa: E731
        s = manifold.spectrum(of, reference)
        lipschitz = manifold.remainder_lipschitz(
            of, reference, radius=1.0, key=rng.stream(seed, "probe"), probes=4
        )
        cuts = manifold.cut(s.values, lipschitz.mean, (0.25, 0.5, 1, 2))
        print(
            f"seed {seed}: loss at W* {float(of(reference)):.2f}, accuracy "
            f"{float(accuracy(reference)):.2f}, gradient norm {s.gradient_norm:.2f}; eigenvalues "
            f"{', '.join(f'{v:.2f}' for v in s.values[:4])} ... {s.values[-1]:.2f}; above 1e-3 "
            f"{int((s.values > 1e-3).sum())}, below -1e-3 {int((s.values < -1e-3).sum())}; ranks "
            f"of the largest gaps {s.largest_gaps(5)}; Lip(R) at radius 1 {lipschitz.mean:.2f}; "
            f"slow modes of the first wide gap by c: {cuts}",
            flush=True,
        )
        dense = manifold.train(loss, start, eye, batches, rates=rates)
        found.setdefault(("dense", size), []).append(float(accuracy(dense)))
        for kind in manifold.KINDS:
            for k in DIMENSIONS:
                end = manifold.train(loss, start, s.basis(kind, k, seed), batches, rates=rates)
                found.setdefault((kind, k), []).append(float(accuracy(end)))
    for (kind, k), values in found.items():
        print(f"{kind:7s} {k:5d} dimensions: accuracy {np.mean(values):.3f} {np.round(values, 3)}")


if __name__ == "__main__":
    main()
