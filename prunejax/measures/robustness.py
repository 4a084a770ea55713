"""Measures of `suite.MEASURES` about small changes of the inputs; see `losses`, `bounds`,
`smoothing`.

Each is a function of a `suite.Context`. Radii and noise are in pixels of 0..1 for images, and the
boxes of attacks and bounds end where pixels do; for other inputs in units of the inputs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import losses
from prunejax.curvature import vectors
from prunejax.measures import bounds, smoothing
from prunejax.measures import steps as steps_lib

Columns = dict[str, float]
Arrays = dict[str, np.ndarray]
ATTACKED = ("pgd_accuracy", "interval_certified", "crown_certified", "unstable_relus")
SMOOTHED = ("smoothed_accuracy", "smoothed_certified", "smoothed_abstentions")
PGD_STEPS, RESTARTS = 20, 2
DRAWS = 500  # of the noise, beside those that choose the class


@functools.lru_cache(maxsize=16)
def _outputs(module: Any) -> Any:
    """One function for a module, so that its networks share what is compiled."""
    return lambda variables, x: module.apply(variables, x)


@functools.lru_cache(maxsize=16)
def _bounded(module: Any, shape: tuple[int, ...], classes: int) -> Any:
    """`(variables, labels, low, high) -> certified by intervals, by CROWN, unstable ReLUs`."""

    def run(variables: Any, labels: jax.Array, low: jax.Array, high: jax.Array) -> Any:
        steps = steps_lib.steps_of(module, variables, shape)
        rows = bounds.margins_of(labels, classes)
        plain = bounds.interval(steps, low, high, rows)
        tight = bounds.crown(steps, low, high, rows)
        return bounds.certified(plain), bounds.certified(tight), tight.unstable

    return jax.jit(run)


def _network(context: Any) -> Any:
    if context.network is None:
        raise ValueError("robustness needs a network of the package")
    return context.network()


def attacked(context: Any) -> tuple[Columns, Arrays]:
    """Accuracy in a box of half width `measures.attack_radius` around each example.

    Columns: `pgd_accuracy`, the share that stays right under projected gradient descent (20 steps,
    2 restarts) at every point that it sees, an upper bound of the robust accuracy;
    `interval_certified` and `crown_certified`, shares that are proven right (MLP, ConvNet, VGG;
    else empty), lower bounds, of the network in float32 also where it computes in bfloat16;
    `unstable_relus`, the share of ReLUs whose sign CROWN does not settle.
    """
    of = _network(context)
    key = vectors.named_key(context.key, "attack")
    outputs = jax.tree_util.Partial(_outputs(of.module), of.variables)
    found: dict[str, list[np.ndarray]] = {name: [] for name in ATTACKED}
    for number, (x, labels) in enumerate(of.batches):
        radius, least, most = (
            jax.lax.broadcast_to_rank(jnp.asarray(values), x.ndim)
            for values in (context.options["attack_radius"] * of.unit, of.low, of.high)
        )
        low = jnp.maximum(x - radius, least).astype(x.dtype)
        high = jnp.minimum(x + radius, most).astype(x.dtype)
        # what the attack draws goes with how examples are batched
        own = jax.random.fold_in(key, number)
        right = losses.survives(outputs, x, labels, low, high, own, PGD_STEPS, RESTARTS)
        found["pgd_accuracy"].append(np.asarray(right))
        if isinstance(of.module, steps_lib.KINDS):
            run = _bounded(of.module, x.shape[1:], of.module.num_classes)
            proven = run(of.variables, labels, low, high)
            for name, values in zip(ATTACKED[1:], proven, strict=True):
                found[name].append(np.asarray(values))
    # Examples count alike, whatever batch they stood in.
    columns = {k: float(np.concatenate(v).mean()) for k, v in found.items() if v}
    return columns, {f"{k}_by_example": np.concatenate(v) for k, v in found.items() if v}


def smoothed(context: Any) -> tuple[Columns, Arrays]:
    """The smoothed classifier (Cohen et al. 2019) with noise `measures.smoothing_sigma`.

    Columns: `smoothed_accuracy`, the share with the right class (abstentions are wrong);
    `smoothed_certified`, the share for which it is right in a ball of radius sigma (L2, inputs);
    `smoothed_abstentions`.
    """
    of = _network(context)
    key = vectors.named_key(context.key, "smoothing")
    outputs = jax.tree_util.Partial(_outputs(of.module), of.variables)
    # One number for all channels: the certificate is about isotropic noise in the inputs.
    sigma = float(context.options["smoothing_sigma"] * np.mean(of.unit))
    parts = [
        smoothing.smooth(
            outputs, x, of.module.num_classes, sigma, key=jax.random.fold_in(key, i), draws=DRAWS
        )
        for i, (x, _) in enumerate(of.batches)
    ]
    labels = np.concatenate([np.asarray(labels) for _, labels in of.batches])
    whole = smoothing.Smoothed(
        classes=np.concatenate([p.classes for p in parts]),
        radii=np.concatenate([p.radii for p in parts]),
        probabilities=np.concatenate([p.probabilities for p in parts]),
        confidence=parts[0].confidence,
    )
    return {
        "smoothed_accuracy": whole.certified(labels),
        "smoothed_certified": whole.certified(labels, sigma),
        "smoothed_abstentions": whole.abstentions,
    }, {"smoothed_radii": whole.radii, "smoothed_classes": whole.classes}
