"""Per-example losses and metrics, and the one weighted mean that averages them.

Everything is per example first: partial batches, padding and per-example gradients then need no
second definition.
"""

import jax
import jax.numpy as jnp


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float | jax.Array = 0.0
) -> jax.Array:
    """Cross entropy of each example, with label smoothing s over K classes.

    `-(1 - s) log p[label] - (s / K) sum_k log p[k]`: the target is the mixture of the label and
    the uniform distribution over all classes (Szegedy et al. 2016, section 7).

    Args:
      logits: [..., classes]; computed in float32 at least.
      labels: int [...].
      smoothing: s, a fraction in [0, 1); may be traced.

    Returns:
      float32 [...], in nats.

    Raises:
      ValueError: smoothing outside [0, 1).
    """
    known = not isinstance(smoothing, jax.Array)
    if known and not 0.0 <= smoothing < 1.0:
        raise ValueError(f"label smoothing {smoothing}: must be at least 0 and less than 1")
    log_p = jax.nn.log_softmax(_at_least_float32(logits), axis=-1)
    loss = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    if not known or smoothing:
        loss = (1.0 - smoothing) * loss - smoothing * log_p.mean(axis=-1)
    return loss


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the largest logit is the label's: bool [...], so that sums are exact counts.

    Of equal logits the first class counts as predicted. An example with a NaN logit is wrong.

    Args:
      logits: [..., classes].
      labels: int [...].
    """
    return (jnp.argmax(logits, axis=-1) == labels) & ~jnp.isnan(logits).any(axis=-1)


def mse(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over the outputs of (output - target)^2, per example: float32 [...].

    Args:
      outputs: [..., n].
      targets: float [..., n], or int [...], which stands for the one-hot vector of a class.
    """
    outputs = _at_least_float32(outputs)
    if jnp.issubdtype(targets.dtype, jnp.integer) and targets.ndim == outputs.ndim - 1:
        targets = jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype)
    if targets.shape != outputs.shape:
        raise ValueError(f"outputs {outputs.shape} and targets {targets.shape}: shapes differ")
    return jnp.square(outputs - targets).mean(axis=-1)


def weighted_mean(values: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """`sum(weights * values) / sum(weights)`; a value of weight 0 does not count, even if NaN.

    Args:
      values: [...].
      weights: the same shape, at least 0, not all 0; None for equal weights.
    """
    if weights is None:
        return jnp.mean(values)
    if weights.shape != values.shape:
        raise ValueError(f"values {values.shape} and weights {weights.shape}: shapes differ")
    return jnp.sum(jnp.where(weights == 0, 0, weights * values)) / jnp.sum(weights)


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
