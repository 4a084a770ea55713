"""Drop and grow: what sparse training does to masks while it trains, as pure functions.

    u = drop_and_grow(masks, magnitudes, jax.tree.map(jnp.abs, gradients), swaps=30)
    params = zero(params, u.grown)
    opt_state = zero_moments(opt_state, u.grown)

SET grows at random (`random_growth`), RigL by the magnitude of the dense gradient: the gradient of
the loss at the masked parameters, itself not masked.
"""

import functools
import math
import numbers
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prunejax import masks as masks_lib
from prunejax import registry, rng, scores, trees
from prunejax.ops import counts as counting

Array = jax.Array
Tree = Any


def cosine(part: Fraction) -> float:
    """`(1 + cos(pi t/T)) / 2` (Evci et al. 2020); 0 at the end."""
    return (1 + math.cos(math.pi * part)) / 2


def constant(part: Fraction) -> int:
    """1 throughout."""
    del part
    return 1


def linear(part: Fraction) -> Fraction:
    """`1 - t/T`."""
    return 1 - part


DECAYS: dict[str, Callable[[Fraction], Any]] = {
    "cosine": cosine,
    "constant": constant,
    "linear": linear,
}
SHIPPED = dict(DECAYS)


def swaps(live: int, fraction: float, *, step: int, end: int, decay: str = "cosine") -> int:
    """How many weights an update at `step` swaps: `floor(f_t live)`, f_t = fraction * decay.

    >>> [swaps(100, 0.3, step=t, end=400) for t in (0, 100, 200, 400)]
    [30, 25, 15, 0]

    Args:
      live: live weights of the layer, or of all where swaps cross layers.
      fraction: f_0 in [0, 1], read as the decimal number that was written.
      step: of the update, 0 .. end.
      end: T, the step at which a decaying fraction is 0.
      decay: a name in DECAYS.

    Raises:
      ValueError: a fraction or a step out of range, an unknown decay, or one that gives no factor.
    """
    rule = registry.lookup(DECAYS, decay, "decay of the drop fraction")
    if not isinstance(fraction, numbers.Real) or not 0 <= fraction <= 1:
        raise ValueError(f"drop = {fraction!r} is not in [0, 1]: it is the share that is swapped")
    whole = registry.is_whole(step) and registry.is_whole(end)
    if not whole or not 0 <= step <= end:
        raise ValueError(
            f"an update at step {step}: drop fractions are defined for integers of 0 to {end}"
        )
    found = rule(Fraction(step, max(end, 1)))
    try:  # cosines of thirds come out beside the exact number, which floor must not see
        part = found if isinstance(found, numbers.Rational) else round(float(found), 12)
        inside = 0 <= part * Fraction(str(fraction)) <= 1
    except (TypeError, ValueError):
        inside = False
    if not inside:
        raise ValueError(
            f"decay {decay!r} gives {found!r} at step {step} of {end}; a number is needed by which "
            f"the share that is swapped, drop = {fraction}, stays in [0, 1]"
        )
    return math.floor(round(Fraction(str(fraction)) * live * part, 9))


class Update(NamedTuple):
    """What one update did; boolean trees of the masks' structure."""

    masks: Tree  # after it
    grown: Tree  # made live by it, also what it had dropped itself: they start at 0
    dropped: Tree  # live before, dead after


def update(before: Tree, kept: Tree, after: Tree) -> Update:
    """The record of an update from masks `before` to `after`; `kept` were live throughout."""
    grown = jax.tree.map(lambda k, a: a & ~k, kept, after)
    return Update(after, grown, jax.tree.map(lambda b, a: b & ~a, before, after))


def drop_and_grow(
    masks: Tree, drop: Tree, growth: Tree, swaps: Any, *, keep: Any = None, scope: str = "layer"
) -> Update:
    """Drops the live weights of the smallest scores, then makes as many dead ones live.

    Candidates for growth are all that are dead after the drop, so that a dropped weight may return
    (and then starts at 0). Ties and NaN as in `masks.prune` and `masks.grow`; counts are exact.

    Args:
      masks: before; a scalar leaf is never pruned.
      drop: scores, the smallest of the live go, e.g. |w|; scalars at leaves that are not pruned.
      growth: scores, the largest of the dead come, e.g. |gradient|.
      swaps: how many, an integer, a dict by path or a tree (layer scope), traced or not.
      keep: live weights afterwards, like `swaps`; None: as many as before. Fewer makes it gradual
        pruning with regrowth.
      scope: "layer" or "global": global drops and growths move weights between layers.

    Raises:
      ValueError: as in `masks.prune` and `masks.grow`.
    """
    masks = _whole(masks, drop)
    kept = dropped(masks, drop, swaps, keep=keep, scope=scope)
    return update(masks, kept, masks_lib.grow(growth, kept, swaps, scope=scope))


def dropped(
    masks: Tree, scores: Tree, counts: Any, *, keep: Any = None, scope: str = "layer"
) -> Tree:
    """Masks without the `counts` live units of the smallest scores, exactly that many.

    Args and errors as in `drop_and_grow`, whose first half it is.
    """
    masks = _whole(masks, scores)
    leaves, structure = jax.tree.flatten(scores)
    flags = {i: m for i, m in enumerate(jax.tree.leaves(masks)) if jnp.ndim(leaves[i])}
    if scope == "global":
        live = counting.among([*flags.values()], together=True)[0] if keep is None else keep
        return masks_lib.prune(scores, _less(live, counts), masks=masks, scope=scope)
    of = functools.partial(
        counting.per_layer, names=trees.paths(scores), units=[*flags], structure=structure
    )
    final = dict(zip(flags, counting.among([*flags.values()], together=False), strict=True))
    final |= {} if keep is None else of(keep)
    gone = of(counts, what="swaps")
    left = [_less(final[i], gone.get(i, 0)) if i in flags else 0 for i in range(len(leaves))]
    return masks_lib.prune(scores, jax.tree.unflatten(structure, left), masks=masks, scope=scope)


def _less(n: Any, gone: Any) -> Any:
    return n - (jnp.asarray(gone, n.dtype) if isinstance(n, jax.Array) else gone)


def _whole(masks: Tree, scores: Tree) -> Tree:
    """Masks in the shapes of scores, as they are where those are scalars."""
    given = zip(jax.tree.leaves(scores), trees.aligned(scores, masks, "masks"), strict=True)
    found = [
        jnp.broadcast_to(jnp.asarray(m, bool), jnp.shape(s)) if jnp.ndim(s) else jnp.asarray(m)
        for s, m in given
    ]
    return jax.tree.unflatten(jax.tree.structure(scores), found)


def random_growth(key: Array, like: Tree) -> Tree:
    """Uniform scores for SET: by leaf path from the key of a stream (`rng.at(seed, "grow", step)`).

    Args:
      key: a typed key.
      like: a tree of scores; its scalars (leaves that are not pruned) stay scalars.
    """

    def draw(path: str, s: Array) -> Array:
        if not jnp.ndim(s):
            return jnp.float32(0)
        return jax.random.uniform(rng.fold(key, path), jnp.shape(s))

    return trees.map_with_path(draw, like)


def gradient_growth(gradients: Tree, like: Tree) -> Tree:
    """|gradient| for RigL, where `like` has scores; scalars elsewhere."""
    pairs = zip(jax.tree.leaves(like), trees.aligned(like, gradients, "gradients"), strict=True)
    found = [scores.magnitude(g) if jnp.ndim(s) else jnp.float32(0) for s, g in pairs]
    return jax.tree.unflatten(jax.tree.structure(like), found)


def zero(tree: Tree, where: Tree) -> Tree:
    """`tree` with 0 where the flags are True."""
    return masks_lib.apply(jax.tree.map(jnp.logical_not, where), tree)


def with_counters(state: Any, others: Any, params: Tree) -> Any:
    """Moments of one optimizer state with the counters of another: a step not taken, but counted.

    Learning-rate schedules inside the optimizer so stay in step with the loop.
    """
    leaves, structure = jax.tree.flatten(state)
    moment = [at is not None for at in trees.owners(state, params)]
    pairs = zip(leaves, jax.tree.leaves(others), moment, strict=True)
    return jax.tree.unflatten(structure, [x if m else y for x, y, m in pairs])


def zero_moments(state: Any, where: Tree, fresh: Any = None) -> Any:
    """An optimizer's state with every moment as at the beginning where the flags are True.

    Momentum, Adam's two moments and histories of several parameters (L-BFGS) are reached, inside
    `optax.masked` and `optax.partition` too; what has no entry per weight stays (factored moments
    as Adafactor's, those that `optax.flatten` lays end to end).

    Args:
      state: of any optax transformation.
      where: flags of the parameters' structure, each of its parameter's shape (or 1 along some
        axes) or a scalar.
      fresh: what the optimizer's `init` gives: not all that is kept by weight begins at 0, as
        Adagrad's sums and the copy of the parameters in schedule-free training. None: 0.
    """
    flags = jax.tree.leaves(where)
    leaves, structure = jax.tree.flatten(state)
    first = [0] * len(leaves) if fresh is None else jax.tree.leaves(fresh)

    def forget(x: Any, start: Any, at: int | None) -> Any:
        if at is None:
            return x
        shape, flag = jnp.shape(x), flags[at]
        if not jnp.ndim(flag):
            flag = jnp.broadcast_to(flag, shape)
        elif not trees.ends_like(shape, jnp.shape(flag)):
            return x
        return jnp.where(flag, jnp.asarray(start, jnp.result_type(x)), x)

    found = zip(leaves, first, trees.owners(state, where), strict=True)
    return jax.tree.unflatten(structure, [forget(*each) for each in found])
