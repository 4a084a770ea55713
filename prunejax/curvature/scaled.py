"""The loss around the parameters in scaled coordinates u: L(w + s ∘ u), over all batches.

The scale s of a coordinate is 1 ("absolute"), |w| ("magnitude": what follows does not change when
single weights are rescaled, as in Kwon et al. 2021, arXiv 2102.11600), or |w| + 1
("magnitude_plus_one": Keskar et al. 2017, arXiv 1609.04836). It is 0 on dead coordinates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import base, kernels, splits, vectors
from prunejax.registry import lookup

Tree = Any
SCALINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "absolute": jnp.ones_like,
    "magnitude": jnp.abs,
    "magnitude_plus_one": lambda w: jnp.abs(w) + 1,
}


def moved(params: Tree, scales: Tree, u: Tree) -> Tree:
    """W + s ∘ u in the dtypes of the parameters."""
    moved = jax.tree.map(lambda w, s, x: w + s * x, base.upcast(params), scales, u)
    return base.cast_like(moved, params)  # cast back once, at the end


@jax.jit
def _value_and_slope(
    loss: Any, params: Tree, scales: Tree, u: Tree, batch: Tree, weight: Any
) -> tuple[jax.Array, Tree]:
    """Weighted loss at w + s ∘ u and its gradient with respect to u."""
    value, grad = jax.value_and_grad(kernels.scalar(loss, batch))(moved(params, scales, u))
    slope = jax.tree.map(jnp.multiply, scales, base.upcast(grad))
    return weight * base.upcast(value), base.scale(weight, slope)


@jax.jit
def _value(loss: Any, params: Tree, scales: Tree, u: Tree, batch: Tree, weight: Any) -> jax.Array:
    return weight * base.upcast(kernels.scalar(loss, batch)(moved(params, scales, u)))


@dataclass(frozen=True)
class ScaledLoss:
    """The loss over all batches as a function of u."""

    loss: Any
    params: Tree
    scales: Tree
    weighted: list[tuple[Tree, float]]
    examples: int
    live_dim: int

    def zero(self) -> Tree:
        """The parameters themselves: u = 0."""
        return jax.tree.map(jnp.zeros_like, self.scales)

    def value(self, u: Tree) -> float:
        """L(w + s ∘ u)."""
        return sum(  # in float64 on the host
            float(_value(self.loss, self.params, self.scales, u, batch, weight))
            for batch, weight in self.weighted
        )

    def value_and_slope(self, u: Tree) -> tuple[float, Tree]:
        """L(w + s ∘ u) and its gradient with respect to u."""
        total, slopes = 0.0, None
        for batch, weight in self.weighted:
            value, slope = _value_and_slope(self.loss, self.params, self.scales, u, batch, weight)
            total += float(value)
            slopes = slope if slopes is None else base.add(slopes, slope)
        return total, slopes


def scaled_loss(
    loss: Callable[..., Any],
    params: Tree,
    batches: base.Batches,
    scaling: str,
    masks: base.Masks,
) -> ScaledLoss:
    """The mean loss over all batches around `params`; ValueError for an unknown scaling."""
    params = vectors.check_params(params)
    live = base.expand_masks(masks, params)
    scale_of = lookup(SCALINGS, scaling, "scaling")
    weighted, examples = splits.weighted(batches)
    return ScaledLoss(
        loss=base.as_argument(loss),
        params=params,
        scales=base.project(live, jax.tree.map(scale_of, base.upcast(params))),
        weighted=weighted,
        examples=examples,
        live_dim=base.live_dimension(live, params),
    )


def check_positive(**numbers: float) -> None:
    """ValueError, with the name, for a number that is not positive and finite."""
    for name, number in numbers.items():
        if not (np.isfinite(number) and number > 0):
            raise ValueError(f"{name} must be positive and finite, got {number}")
