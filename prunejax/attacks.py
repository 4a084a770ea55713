"""Accuracy under attack: projected gradient descent in a box (Madry et al., ICLR 2018)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import losses

Array = jax.Array
Outputs = Callable[[Array], Array]


def projected_gradient(
    outputs: Outputs,
    x: Array,
    labels: Array,
    low: Array,
    high: Array,
    *,
    key: Array,
    steps: int = 20,
    restarts: int = 1,
    rate: float = 2.5,
) -> Array:
    """Inputs of the box at which the cross entropy is largest, of all that were seen.

    Signed gradient steps of `rate (high - low) / 2 / steps`, cut to the box. The first restart
    begins at x, the others at uniform points.

    Args:
      outputs: x -> logits [n, classes].
      x: [n, ...].
      labels: int32 [n].
      low, high: the box, of x's shape.
      key: of the points that restarts begin at.
      steps: 0 gives the largest of the points that restarts begin at.
      restarts: at least 1.
      rate: total way of a coordinate, in half widths of the box.
    """

    def loss(z: Array) -> Array:
        return losses.objective("cross_entropy", outputs(z), labels)

    gradient = jax.grad(lambda z: jnp.sum(loss(z)))
    size = rate * (high - low) / 2 / max(steps, 1)
    wide = (-1,) + (1,) * (x.ndim - 1)

    def better(best: tuple[Array, Array], z: Array) -> tuple[Array, Array]:
        values = loss(z)
        more = values > best[1]
        return jnp.where(more.reshape(wide), z, best[0]), jnp.maximum(values, best[1])

    def restart(best: tuple[Array, Array], number: Array) -> tuple[Any, None]:
        drawn = jax.random.uniform(
            jax.random.fold_in(key, number), x.shape, minval=low, maxval=high
        )
        start = jnp.clip(jnp.where(number == 0, x, drawn), low, high)

        def step(carry: Any, _: Array) -> tuple[Any, None]:
            z, found = carry
            z = jnp.clip(z + size * jnp.sign(gradient(z)), low, high)
            return (z, better(found, z)), None

        (_, best), _ = jax.lax.scan(step, (start, better(best, start)), jnp.arange(steps))
        return best, None

    nothing = (x, jnp.full(x.shape[0], -jnp.inf))
    best, _ = jax.lax.scan(restart, nothing, jnp.arange(restarts))
    return best[0]


@partial(jax.jit, static_argnames=("steps", "restarts"))
def survives(
    outputs: Any, x: Array, labels: Array, low: Array, high: Array, key: Array, steps: int,
    restarts: int,
) -> Array:  # fmt: skip
    """Bool [n]: classified right at x and at the worst input that the attack found."""
    worst = projected_gradient(
        outputs, x, labels, low, high, key=key, steps=steps, restarts=restarts
    )
    right = losses.correct(outputs(x), labels)
    return right & losses.correct(outputs(worst), labels)
