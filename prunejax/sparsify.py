"""Pruning inside anybody's optax loop: a transformation that carries the masks in its state."""

import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prunejax import masks as masks_lib
from prunejax import scores as scores_lib
from prunejax import trees

Tree = Any


class SparsifyState(NamedTuple):
    """Optimizer state with its masks, so that checkpoints and shardings come for free."""

    inner: optax.OptState
    masks: Tree
    step: jax.Array  # int32: updates done


def sparsify(
    optimizer: optax.GradientTransformation,
    events: Sequence[tuple[int, int]],
    *,
    rules: str | Iterable[str] = r".*kernel",
    score: Callable[[jax.Array], jax.Array] = scores_lib.magnitude,
    scope: str = "global",
) -> optax.GradientTransformation:
    """Wraps an optimizer so that its updates also prune: parameters stay masked ever after.

        tx = sparsify(optax.adam(1e-3), schedules.cubic(units=n, fraction=0.9, start=0,
                      end=5_000, period=100))

    At the update numbered `step` of an event, the `count` units with the smallest scores of the
    current parameters go; gradients and momentum of dead weights count as zero and cannot revive
    them, and `params + updates` is exactly 0 where the mask is. Works under jit (the mask is
    recomputed in a `lax.cond`, so other steps pay nothing for it).

    Args:
      optimizer: any optax transformation.
      events: (step, count) pairs: units to remove at that update, e.g. of `prunejax.schedules`
        with epochs read as steps.
      rules: path rules (`trees.match`) of the leaves that are pruned.
      score: parameter leaf -> scores; their shape is the granularity (`masks.prune`).
      scope: "global" or "layer" (then each leaf loses `count` units).

    Raises:
      ValueError: no event, a step or count that is negative or no integer, an unknown scope, or a
        rule that matches nothing.
    """
    events = sorted((step, count) for step, count in events if count)
    whole = all(isinstance(x, numbers.Integral) for event in events for x in event)
    if not events or not whole or any(step < 0 or count < 0 for step, count in events):
        raise ValueError(
            f"events {events!r}: (step >= 0, count > 0) pairs of integers, at least one"
        )
    if scope not in masks_lib.SCOPES:
        raise ValueError(f"scope {scope!r} is not one of: {', '.join(masks_lib.SCOPES)}")
    steps = jnp.array([step for step, _ in events], jnp.int32)
    counts = jnp.array([count for _, count in events], jnp.int32)

    def score_tree(params: Tree) -> Tree:
        chosen = trees.select(params, rules)
        return jax.tree.map(lambda c, p: score(p) if c else jnp.float32(0), chosen, params)

    def init(params: Tree) -> SparsifyState:
        shapes = jax.eval_shape(score_tree, params)
        live = jax.tree.map(lambda s: jnp.ones(s.shape, bool), shapes)
        return SparsifyState(optimizer.init(params), live, jnp.int32(0))

    def shrink(masks: Tree, params: Tree, count: jax.Array) -> Tree:
        scores = score_tree(params)
        live = [jnp.sum(m) for m in jax.tree.leaves(masks) if m.ndim]
        if scope == "global":
            return masks_lib.prune(scores, sum(live) - count, masks=masks)
        keep = jax.tree.map(lambda m: jnp.maximum(jnp.sum(m) - count, 0), masks)
        return masks_lib.prune(scores, keep, masks=masks, scope=scope)

    def update(
        gradients: Tree, state: SparsifyState, params: Tree | None = None
    ) -> tuple[Tree, SparsifyState]:
        if params is None:
            raise ValueError("sparsify needs the parameters: tx.update(gradients, state, params)")
        due = jnp.sum(jnp.where(steps == state.step, counts, 0))
        masks = jax.lax.cond(due > 0, lambda: shrink(state.masks, params, due), lambda: state.masks)
        gradients = masks_lib.apply(masks, gradients)
        updates, inner = optimizer.update(gradients, state.inner, params)
        updates = jax.tree.map(lambda m, u, p: jnp.where(m, u, -p), masks, updates, params)
        return updates, SparsifyState(inner, masks, state.step + 1)

    return optax.GradientTransformation(init, update)
