"""Pruning inside anybody's optax loop: a transformation that carries the masks in its state."""

import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prunejax import masks as masks_lib
from prunejax import scores as scores_lib
from prunejax import sparsity, trees

Tree = Any


class SparsifyState(NamedTuple):
    """Optimizer state with its masks, so that checkpoints and shardings come for free."""

    inner: optax.OptState
    masks: Tree
    step: jax.Array  # int32: updates done


def sparsify(
    optimizer: optax.GradientTransformation,
    events: Sequence[tuple[int, int]] = (),
    *,
    rules: str | Iterable[str] | None = None,
    score: Callable[[jax.Array], jax.Array] = scores_lib.magnitude,
    scope: str = "global",
    masks: Tree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that its updates also prune: parameters stay masked ever after.

        tx = sparsify(optax.adam(1e-3), schedules.cubic(units=n, fraction=0.9, start=0,
                      end=5_000, period=100))

    At the update numbered `step` of an event, the `count` units with the smallest scores of the
    current parameters go; gradients and momentum of dead weights count as zero and cannot revive
    them, and `params + updates` is exactly 0 where the mask is and the parameter was finite: an
    update is added, and no number added to NaN or infinity gives 0. `masked(params, state)` does
    that too. Works under jit (the mask is recomputed in a `lax.cond`, so other steps pay nothing
    for it) and vmap; extra arguments of `update` go to the optimizer.

    It has to be the outermost transformation: what comes after it in an `optax.chain` would move
    dead weights (put clipping and the like into `optimizer`). `optax.MultiSteps` goes around it;
    events then count its updates.

    Args:
      optimizer: any optax transformation.
      events: (step, count) pairs: units to remove at that update, e.g. of `prunejax.schedules`
        with epochs read as steps. May be empty where `masks` are given, which are then kept.
      rules: path rules (`trees.match`) of the leaves that are pruned. None: `trees.kernels`, every
        leaf with more than one axis but norms and biases.
      score: parameter leaf -> scores; their shape is the granularity (`masks.prune`).
      scope: "global" or "layer" (then each leaf loses `count` units).
      masks: masks to begin with, of the parameters' structure, each broadcasting against its
        parameter: of a ticket, or `masks.of` a sparse checkpoint. None: everything is live.

    Raises:
      ValueError: no event and no masks, a step or count that is negative or no integer, an unknown
        scope. From `init`: a rule that matches nothing, a scalar score, masks that do not fit, or
        events that remove more units than there are.
    """
    events = sorted((step, count) for step, count in events if count)
    whole = all(isinstance(x, numbers.Integral) for event in events for x in event)
    nothing = not events and masks is None
    if nothing or not whole or any(step < 0 or count < 0 for step, count in events):
        raise ValueError(
            f"events {events!r}: (step >= 0, count > 0) pairs of integers, at least one"
            + (" (or masks= to be kept)" if nothing else "")
        )
    if scope not in masks_lib.SCOPES:
        raise ValueError(f"scope {scope!r} is not one of: {', '.join(masks_lib.SCOPES)}")
    steps = np.array([step for step, _ in events], np.int32)
    counts = np.array([count for _, count in events], np.int32)
    optimizer = optax.with_extra_args_support(optimizer)

    def score_tree(params: Tree) -> Tree:
        chosen = trees.kernels(params) if rules is None else trees.select(params, rules)
        return jax.tree.map(lambda c, p: score(p) if c else jnp.float32(0), chosen, params)

    def init(params: Tree) -> SparsifyState:
        chosen = trees.kernels(params) if rules is None else trees.select(params, rules)
        shapes = jax.eval_shape(score_tree, params)
        for (path, picked), shape in zip(
            trees.leaves_with_paths(chosen), jax.tree.leaves(shapes), strict=True
        ):
            if picked and not shape.shape:
                raise ValueError(
                    f"the score of leaf {path!r} is one number: a score gives a number per unit "
                    "(its shape is the granularity), e.g. scores.magnitude or scores.filter_l2"
                )
        given = [True] * len(jax.tree.leaves(params))
        if masks is not None:
            given = trees.aligned(params, masks, "masks")
        live = [
            _start(path, mask, s.shape, jnp.shape(p))
            for (path, p), mask, s in zip(
                trees.leaves_with_paths(params), given, jax.tree.leaves(shapes), strict=True
            )
        ]
        _enough(
            events, scope, [s.shape for s in jax.tree.leaves(shapes)], live, trees.paths(params)
        )
        tree = jax.tree.unflatten(jax.tree.structure(params), live)
        return SparsifyState(optimizer.init(params), tree, jnp.int32(0))

    def shrink(masks: Tree, params: Tree, count: jax.Array) -> Tree:
        scores = score_tree(params)
        pairs = zip(jax.tree.leaves(scores), jax.tree.leaves(masks), strict=True)
        live = [jnp.sum(m, dtype=jnp.int32) for s, m in pairs if s.ndim]
        # A leaf that is not pruned may have come with a mask of its own: it is not looked at.
        flat = [
            m if s.ndim else jnp.array(True)
            for s, m in zip(jax.tree.leaves(scores), jax.tree.leaves(masks), strict=True)
        ]
        structure = jax.tree.structure(scores)
        now = jax.tree.unflatten(structure, flat)
        if scope == "global":
            pruned = masks_lib.prune(scores, sum(live) - count, masks=now)
        else:
            keep = jax.tree.map(lambda m: jnp.maximum(jnp.sum(m, dtype=jnp.int32) - count, 0), now)
            pruned = masks_lib.prune(scores, keep, masks=now, scope=scope)
        return jax.tree.map(lambda s, new, old: new if s.ndim else old, scores, pruned, masks)

    def update(
        gradients: Tree, state: SparsifyState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, SparsifyState]:
        if params is None:
            raise ValueError("sparsify needs the parameters: tx.update(gradients, state, params)")
        live = state.masks
        if events:
            due = jnp.sum(jnp.where(steps == state.step, counts, 0))
            live = jax.lax.cond(due > 0, lambda: shrink(live, params, due), lambda: state.masks)
        gradients = _where(live, gradients)
        updates, inner = optimizer.update(gradients, state.inner, params, **extra)
        updates = _where(live, updates, jax.tree.map(jnp.negative, params))
        return updates, SparsifyState(inner, live, state.step + 1)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def masked(params: Tree, state: Any) -> Tree:
    """`params` with dead weights exactly 0, whatever they were: NaN and infinities too.

    Args:
      params: the parameters after `optax.apply_updates`.
      state: the optimizer's state, which holds a `SparsifyState` (at any depth).
    """
    return masks_lib.apply(masks_of(state), params)


def masks_of(state: Any) -> Tree:
    """The masks that an optimizer's state carries.

    Raises:
      ValueError: it holds none, or several.
    """
    inside = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, SparsifyState))
    found = [x for x in inside if isinstance(x, SparsifyState)]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} states of sparsify in this {type(state).__name__}, one is needed: give "
            "the state that sparsify(...).init returned, or one that holds it"
        )
    return found[0].masks


def _start(path: str, mask: Any, units: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    """The first mask of a leaf: of the shape of its units, or as it was given."""
    sparsity.fits(path, mask, shape, "its leaf")
    mask = jnp.asarray(mask, bool)
    if not units:
        return mask
    sparsity.fits(path, mask, units, "its scores (masks and scores need the same granularity)")
    return jnp.broadcast_to(mask, units)


def _enough(
    events: Sequence[tuple[int, int]],
    scope: str,
    shapes: Sequence[tuple[int, ...]],
    live: Sequence[jax.Array],
    paths: Sequence[str],
) -> None:
    """Refuses events that remove more than there is; masks under a trace count as whole."""
    asked = sum(count for _, count in events)
    there = {
        path: m.size if isinstance(m, jax.core.Tracer) else int(jnp.count_nonzero(m))
        for path, shape, m in zip(paths, shapes, live, strict=True)
        if shape
    }
    if asked and not there:
        raise ValueError(
            "no leaf is pruned: none has more than one axis; name leaves with rules=, of: "
            + trees.shown(paths)
        )
    small = min(there, key=lambda path: there[path], default="")
    most, where = (
        (sum(there.values()), "there are")
        if scope == "global" or not there
        else (there[small], f"leaf {small!r}, the smallest, has")
    )
    if asked > most:
        raise ValueError(
            f"events remove {asked} units in all{' from each leaf' if scope == 'layer' else ''}, "
            f"but {where} {most}; remove fewer, or name other leaves with rules="
        )


def _where(masks: Tree, tree: Tree, other: Tree | None = None) -> Tree:
    """`tree` where masks are live, else `other` (0); None, the gradient of no number, stays."""

    def choose(mask: jax.Array, x: Any, y: Any = None) -> Any:
        if x is None:
            return None
        if mask.ndim not in (0, jnp.ndim(x)):
            mask = jnp.broadcast_to(mask, jnp.shape(x))
        y = jnp.zeros((), jnp.result_type(x)) if y is None else y.astype(jnp.result_type(x))
        return jnp.where(mask, x, y)

    structure: Any = jax.tree.structure(masks)
    parts = [structure.flatten_up_to(t) for t in (tree, *(() if other is None else (other,)))]
    return structure.unflatten(map(choose, jax.tree.leaves(masks), *parts))
