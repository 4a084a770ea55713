"""Forecasts of a pruning event: the change of the loss that slope and curvature predict.

For a displacement d of the parameters (for pruning: d = -w on the targeted coordinates, else 0)

    first order     g'd
    second order    g'd + d'Hd / 2
    measured        L(w + d) - L(w)

g'd and d'Hd come from one pass of nested forward mode; no gradient is formed. LeCun et al. 1990
(optimal brain damage) and Hassibi & Stork 1993 rank weights by this expansion; here the whole
event's displacement goes in at once, so interactions between targeted weights count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from prunejax.curvature import base, kernels, splits, vectors
from prunejax.curvature.callables import lenient, on_host

Tree = Any


@dataclass(frozen=True)
class Forecast:
    """Predicted and measured change of the mean loss under a displacement d.

    Attributes:
      first_order: g'd, nats.
      second_order: g'd + d'Hd / 2, nats.
      curvature: d'Hd, nats.
      measured: L(w + d) - L(w), or None where it was not asked for.
      loss: L(w).
      squared_norm: ||d||^2 on the live subspace.
      examples: the loss is a mean over, 0 without batches.
      live_dim: coordinates that are live.
    """

    first_order: float
    second_order: float
    curvature: float
    measured: float | None
    loss: float
    squared_norm: float
    examples: int
    live_dim: int


@lenient
def removal(params: Tree, targeted: base.Masks) -> Tree:
    """The displacement that zeroes the targeted coordinates: -w there, 0 elsewhere.

    Args:
      params: pytree of floating-point arrays.
      targeted: bools like a mask tree (broadcasting to the parameters), True = to be removed.

    Returns:
      A tree like params in its accumulation dtype.
    """
    live = base.expand_masks(targeted, params)  # True marks what goes: P w is what is taken away
    return base.scale(-1.0, base.project(live, params))


@jax.jit
def _expand(loss: Any, params: Tree, d: Tree, batch: Tree, weight: Any) -> jax.Array:
    """[3]: weight times (L, g'd, d'Hd)."""
    tangent = base.cast_like(d, params)
    value, slope = kernels.pushforward(kernels.scalar(loss, batch), params, tangent)
    bend = kernels.hessian_forms((loss,), params, batch, 1)(tangent)
    return weight * base.upcast(jnp.stack([value, slope, bend.astype(value.dtype)]))


@jax.jit
def _displaced(loss: Any, params: Tree, d: Tree, batch: Tree, weight: Any) -> jax.Array:
    moved = base.cast_like(base.add(params, d), params)  # w - w is exactly 0, as after the event
    return weight * base.upcast(base.call(loss, moved, batch))


@on_host()
def forecast(
    loss: Callable[..., Any],
    params: Tree,
    displacement: Tree,
    batches: base.Batches = None,
    *,
    masks: base.Masks = None,
    measure: bool = True,
) -> Forecast:
    """Predicts the change of the loss from w to w + d to first and second order.

    Args:
      loss: `loss(params)` or `loss(params, batch)`, the mean over the batch. With BatchNorm the
        loss should close over the statistics that the event leaves in place.
      params: pytree of floating-point arrays, before the event.
      displacement: tree like params; `removal(params, targeted)` for pruning.
      batches: None, one batch, or a list of batches, weighted by size.
      masks: True = live; the displacement of dead coordinates does not count.
      measure: also evaluate L(w + d).

    Raises:
      ValueError: the displacement does not fit the parameters.
    """
    params = vectors.check_params(params)
    vectors.check_like(displacement, params, "the displacement")
    live = base.expand_masks(masks, params)
    d = base.project(live, base.upcast(displacement))
    fn = base.as_argument(loss)
    weighted, examples = splits.weighted(batches)
    terms, moved = [0.0, 0.0, 0.0], 0.0
    for batch, weight in weighted:
        part = _expand(fn, params, d, batch, weight)
        terms = [a + float(b) for a, b in zip(terms, part, strict=True)]  # in float64 on the host
        moved += float(_displaced(fn, params, d, batch, weight)) if measure else 0.0
    value, slope, curvature = terms
    return Forecast(
        first_order=slope,
        second_order=slope + curvature / 2,
        curvature=curvature,
        measured=moved - value if measure else None,
        loss=value,
        squared_norm=float(base.squared_norm(d)),
        examples=examples,
        live_dim=base.live_dimension(live, params),
    )
