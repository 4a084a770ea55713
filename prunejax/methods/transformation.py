"""A method as an optax transformation: what `sparsify(tx, "rigl", ...)` returns."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prunejax import allocate, rng, scores, trees
from prunejax import masks as masks_lib
from prunejax.methods import before, growth, timetable
from prunejax.methods import updates as updates_lib
from prunejax.methods.table import Method
from prunejax.methods.updates import where

Array = jax.Array
Tree = Any


class SparsifyState(NamedTuple):
    """Optimizer state with its masks, so that checkpoints and shardings come for free."""

    inner: optax.OptState
    masks: Tree
    step: Array  # int32: updates done
    scores: Tree = None  # score parameters of learnt masks, scalars where nothing is pruned
    gradients: Tree = None  # sum of gradients since the window of the next event began
    key: Array | None = None  # data of the key of stream "grow"


def transformation(
    optimizer: optax.GradientTransformation,
    m: Method,
    name: str,
    *,
    rules: str | Iterable[str] | None,
    masks: Tree | None,
    made: Mapping[str, Any],
    events: timetable.Plan | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The transformation of a resolved method, or of `events`; arguments are as in `sparsify`.

    Args: made: its loss, output and seed.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def schedule(params: Tree) -> tuple[timetable.Plan, Tree, dict[str, tuple[int, ...]]]:
        chosen = trees.prunable(params, rules)
        if events is not None:
            shapes = before.shapes_of(params, chosen, needed=len(events.steps) > 0)
            return events, chosen, shapes
        shapes, live = before.shapes_of(params, chosen), None
        if masks is not None:
            given = zip(trees.paths(params), trees.aligned(params, masks, "masks"), strict=True)
            live = {path: _live(name, m, shapes[path]) for path, m in given if path in shapes}
        return timetable.plan(m, shapes, live), chosen, shapes

    def init(params: Tree) -> SparsifyState:
        plan, chosen, shapes = schedule(params)
        if plan.relative or not isinstance(m.score, str):
            found = jax.eval_shape(lambda: _scores(m, chosen, params, None))
            shapes = _units(found, shapes, plan.relative)
        start = before.full(params, shapes, masks)
        if plan.relative:
            found = zip(trees.paths(params), jax.tree.leaves(start), strict=True)
            updates_lib.enough(
                "remove", int(plan.keep.sum()), {k: x for k, x in found if k in shapes}, plan.scope
            )
        if m.initial not in ("dense", "masks"):
            own = {x: getattr(m, x) for x in ("sparsity", "allocation", "rounds", "nm", "axis")}
            start = before.prune(params, m.initial, rules=rules, **own, **made)
        zeros = jax.tree.map(lambda c, p: jnp.zeros(jnp.shape(p) if c else ()), chosen, params)
        summed = jax.tree.map(lambda z, p: z + 0j if jnp.iscomplexobj(p) else z, zeros, params)
        return SparsifyState(
            optimizer.init(params), start, jnp.int32(0), zeros if m.learnt else None,
            summed if m.average > 1 else None,
            jax.random.key_data(rng.stream(made["seed"], "grow")) if m.growth == "random" else None,
        )  # fmt: skip

    def update(
        gradients: Tree, state: SparsifyState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, SparsifyState]:
        if params is None:
            raise ValueError("sparsify needs the parameters: tx.update(gradients, state, params)")
        # Of shapes alone, so the same in every trace: the state needs to hold no plan.
        plan, chosen, _ = schedule(params)
        if m.learnt or m.growth == "gradient":
            _graded(name, chosen, gradients)
        learnt, window = state.scores, state.gradients
        if m.learnt:
            learnt = _learn(m, learnt, gradients, params, chosen)
        if m.average > 1:
            window = _summed(m, plan, state.step, window, gradients, chosen)
        due, row = _now(plan, state.step)

        def event(of: Tree) -> growth.Update:
            ranks = _scores(m, chosen, of, learnt)
            towards = None
            if m.growth == "gradient":
                towards = growth.gradient_growth(gradients if window is None else window, ranks)
            elif m.growth == "random":
                assert state.key is not None
                key = jax.random.wrap_key_data(state.key)
                towards = growth.random_growth(rng.fold(key, state.step), ranks)
            return change(m, plan, row, state.masks, ranks, towards)

        def changed(of: Tree) -> tuple[Tree, Tree]:
            """Masks now, and what has become live."""
            nothing = jax.tree.map(jnp.zeros_like, state.masks)
            if not len(plan.steps):
                return state.masks, nothing
            return jax.lax.cond(due, lambda: event(of)[:2], lambda: (state.masks, nothing))

        if m.dead == "trained":  # masks that fit the parameters after the update
            steered = updates_lib.steered(m, gradients, state.masks, params)
            updates, inner = optimizer.update(steered, state.inner, params, **extra)
            live, grown = changed(updates_lib.applied(params, updates))
        else:
            live, grown = changed(params)
            inner = _forget(m, optimizer, state.inner, params, live, grown, due)
            # No moment is made of dead weights.
            updates, after = optimizer.update(where(live, gradients), inner, params, **extra)
            if m.schedule == "swaps" and not m.gradient_step and len(plan.steps):
                # Selected and not multiplied: an update that is not finite must not pass.
                updates = jax.tree.map(lambda u: jnp.where(due, jnp.zeros_like(u), u), updates)
                waited = growth.with_counters(inner, after, params)
                after = jax.tree.map(lambda x, y: jnp.where(due, x, y), waited, after)
            inner = after
            if m.dead == "frozen":
                updates = where(live, updates)
            else:  # dead weights go to 0, grown ones begin there
                if m.growth is not None:
                    updates = updates_lib.begun(grown, updates, params)
                updates = updates_lib.masked_out(live, updates, params)
        return updates, SparsifyState(inner, live, state.step + 1, learnt, window, state.key)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def change(
    m: Method, plan: timetable.Plan, row: Array, masks: Tree, ranks: Tree, towards: Tree | None
) -> growth.Update:
    """The masks after an event.

    Args:
      m: the method.
      plan: its plan.
      row: which event, an index (a scalar) that may be traced.
      masks: before.
      ranks: what the event keeps the largest of; scalars at leaves that are not pruned.
      towards: growth scores, None without growth.
    """
    keep, swap = jnp.asarray(plan.keep)[row], jnp.asarray(plan.swap)[row]
    if plan.relative:
        left = growth.dropped(masks, ranks, keep[0], scope=plan.scope)
        return growth.update(masks, left, left)
    start = masks
    if plan.reselect:
        start = jax.tree.map(lambda s, x: jnp.ones_like(x) if jnp.ndim(s) else x, ranks, masks)
    if m.score == "threshold":
        assert m.threshold is not None
        over = functools.partial(updates_lib.above, threshold=m.threshold)
        found = jax.tree.map(lambda s, x: over(s) if jnp.ndim(s) else x, ranks, masks)
        kept = jax.tree.map(jnp.logical_and, masks, found)
        return growth.update(masks, kept, found)
    if plan.scope == "nm":
        found = masks_lib.nm(ranks, keep[0], m.nm[1] if m.nm else 1, axis=m.axis, masks=start)
    else:
        columns = range(len(plan.paths))
        counts = keep[0] if plan.scope == "global" else dict(
            zip(plan.paths, [keep[i] for i in columns], strict=True))  # fmt: skip
        if towards is not None:
            swaps = swap[0] if plan.scope == "global" else dict(
                zip(plan.paths, [swap[i] for i in columns], strict=True))  # fmt: skip
            return growth.drop_and_grow(masks, ranks, towards, swaps, keep=counts, scope=plan.scope)
        found = masks_lib.prune(ranks, counts, masks=start, scope=plan.scope)
    return growth.update(masks, jax.tree.map(jnp.logical_and, masks, found), found)


def _live(name: str, mask: Any, shape: tuple[int, ...]) -> int:
    """Live weights of a leaf, counted on the host: they are the same in every trace."""
    if isinstance(mask, jax.core.Tracer):
        raise ValueError(
            f"{name}: masks= are traced, but how many weights they leave decides how many are "
            "swapped; make the transformation outside of jit and vmap"
        )
    trees.fits(name, mask, shape, "its leaf")
    return int(np.count_nonzero(np.broadcast_to(np.asarray(mask, bool), shape)))


def _graded(name: str, chosen: Tree, gradients: Tree) -> None:
    """Refuses leaves without a gradient among those whose gradient decides."""
    given = trees.aligned(chosen, gradients, "the gradients")
    for (path, picked), g in zip(trees.leaves_with_paths(chosen), given, strict=True):
        if picked and g is None:
            raise ValueError(
                f"{name}: leaf {path!r} is pruned by what its gradient is, and has none (None): "
                "train it, or name other leaves with rules="
            )


def _now(plan: timetable.Plan, step: Array) -> tuple[Array, Array]:
    """Whether an event is due at this step, and which."""
    if not len(plan.steps):
        return jnp.array(False), jnp.int32(0)
    steps = jnp.asarray(plan.steps)
    # The last row at or before this step; events beyond the plan are like its last.
    row = jnp.maximum(jnp.searchsorted(steps, step, side="right") - 1, 0)
    due = steps[row] == step
    if plan.again:
        past = step - steps[-1]
        due |= (past > 0) & (past % plan.again == 0)
    return due, row


def _scores(m: Method, chosen: Tree, params: Tree, learnt: Tree | None) -> Tree:
    """What an event keeps the largest of, scalars at leaves that are not pruned."""
    if learnt is not None:
        return jax.tree.map(jnp.abs, learnt) if m.score == "learnt_magnitude" else learnt
    fn = scores.magnitude if isinstance(m.score, str) else m.score
    return jax.tree.map(lambda c, p: fn(p) if c else jnp.float32(0), chosen, params)


def _units(found: Tree, shapes: allocate.Shapes, of_events: bool) -> dict[str, tuple[int, ...]]:
    """Path -> shape of the units that scores `found` are of: single weights, but for events."""
    units = {path: jnp.shape(x) for path, x in trees.leaves_with_paths(found) if path in shapes}
    for path, shape in shapes.items():
        what = f"the score of leaf {path!r}"
        if not of_events and units[path] != shape:
            raise ValueError(
                f"{what} has the shape {units[path]}, the leaf {shape}: methods prune single "
                "weights (of filters: sparsify(tx, events))"
            )
        if not units[path]:
            raise ValueError(
                f"{what} is one number: a score gives a number per unit (its shape is the "
                "granularity), e.g. scores.magnitude or scores.filter_l2"
            )
        like = jax.ShapeDtypeStruct(units[path], bool)
        trees.fits(path, like, tuple(shape), "its leaf (its score's shape is its mask's)")
    return units


def _learn(m: Method, learnt: Tree, gradients: Tree, params: Tree, chosen: Tree) -> Tree:
    """Score parameters after a step; the penalty is of the mean over all of them."""
    sizes = [np.size(p) for c, p in zip(*map(jax.tree.leaves, (chosen, params)), strict=True) if c]
    pull = (m.penalty or 0) / sum(sizes) if m.score == "threshold" else None
    step = functools.partial(updates_lib.learnt, rate=m.score_rate or 0, pull=pull)
    return jax.tree.map(
        lambda c, s, g, w: step(s, w, g) if c else s, chosen, learnt, gradients, params
    )


def _summed(
    m: Method, plan: timetable.Plan, step: Array, window: Tree, gradients: Tree, chosen: Tree
) -> Tree:
    """The sum of gradients over the `average` batches up to the next event."""
    if not len(plan.steps):
        return window
    steps = jnp.asarray(plan.steps)
    inside = jnp.any((steps - m.average < step) & (step <= steps))
    first = jnp.any(steps - m.average + 1 == step)

    def add(c: bool, total: Array, g: Array) -> Array:
        if not c:
            return total
        # A sum, not a mean: only ranks are looked at.
        return jnp.where(inside, jnp.where(first, 0, total) + g.astype(total.dtype), total)

    return jax.tree.map(add, chosen, window, gradients)


def _forget(
    m: Method, optimizer: Any, inner: Any, params: Tree, live: Tree, grown: Tree, due: Array
) -> Any:
    """The optimizer's state at an event, without the moments that it ends."""
    if m.reset == "all":
        gone = jax.tree.map(lambda x: jnp.broadcast_to(due, x.shape), live)
        return growth.zero_moments(inner, gone, optimizer.init(params))
    if m.growth is None and m.schedule != "phases":
        return inner
    return growth.zero_moments(inner, grown, optimizer.init(growth.zero(params, grown)))
