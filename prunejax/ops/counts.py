"""Counts of units as callers give them: one integer, one a leaf, a tree of them, or by path."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import registry, trees

Array = jax.Array


def per_layer(
    counts: Any, names: list[str], units: list[int], structure: Any, what: str = "keep"
) -> dict[int, Any]:
    """Position of a leaf -> its count, for the leaves `units` that `counts` speaks of.

    Args:
      counts: an integer for every leaf, a tree of integers, or a dict from leaf path to integer.
      names: the paths of all leaves.
      units: positions of the leaves that have units.
      structure: the tree's.
      what: the argument's name, for the message.

    Raises ValueError: an unknown path, or a tree of another structure.
    """
    if isinstance(counts, numbers.Integral) or (hasattr(counts, "shape") and not counts.shape):
        return dict.fromkeys(units, counts)
    if isinstance(counts, Mapping) and all(key in names for key in counts):
        return {i: counts[names[i]] for i in units if names[i] in counts}
    try:
        found = structure.flatten_up_to(counts)
    except ValueError:
        wrong = [key for key in counts if key not in names] if isinstance(counts, Mapping) else []
        raise ValueError(
            f"{what} must be an integer, a tree of integers with the scores' structure, or a dict "
            f"from leaf path to integer; {f'no leaf {wrong[0]!r}, ' if wrong else ''}the leaves "
            f"are: {trees.shown(names)}"
        ) from None
    return {i: found[i] for i in units}


def is_count(count: Any) -> bool:
    """Whether `count` is one integer: Python's (but no truth value), NumPy's, or JAX's."""
    kind = getattr(count, "dtype", None)
    if kind is not None:
        return kind.kind in "iu" and not jnp.shape(count)
    return registry.is_whole(count)


def check(
    count: Any,
    scores: Sequence[Array],
    among: Sequence[Array | None],
    where: str,
    what: str = "keep",
    state: str = "live",
) -> None:
    """Refuses counts that are no counts; what is traced cannot be looked at and is clamped.

    Args:
      count: what the caller gave.
      scores: the arrays whose entries are the units.
      among: which of the units may be chosen, None for all of an array.
      where: the leaf, or the tree, for the message.
      what: the argument's name.
      state: what the units that may be chosen are: "live" or "dead".

    Raises ValueError: no integer, or more than there is.
    """
    if not is_count(count):
        raise ValueError(
            f"{what} = {count!r} for {where} is no integer: it is a count of units; for a fraction "
            "use masks.keep_count(scores, sparsity)"
        )
    if isinstance(count, jax.core.Tracer):
        return
    pairs = zip(scores, among, strict=True)
    seen = [x.size if m is None or isinstance(m, jax.core.Tracer) else m for x, m in pairs]
    total = sum(n if isinstance(n, int) else live(n) for n in seen)
    if not 0 <= int(count) <= total:
        hint = "" if scores else " (scores that are scalars are never pruned)"
        raise ValueError(
            f"{what} = {int(count)} for {where}: there are {total} {state} units{hint}"
        )


def kind(total: int) -> Any:
    """The integers that count `total` entries: int32, from 2^31 on int64.
    Raises ValueError: they need 64 bits, and jax_enable_x64 is off.
    """
    if total < 2**31:
        return jnp.int32
    if jax.dtypes.canonicalize_dtype(jnp.int64) != jnp.int64:
        raise ValueError(
            f"{total} entries cannot be counted in 32 bits; switch on jax_enable_x64, or select "
            "per leaf"
        )
    return jnp.int64


def among(masks: Sequence[Array], together: bool) -> list[Array]:
    """True entries of each array, or one number of all of them; scalars that can be traced.

    Args: masks: bool [...] each. together: whether they are added up.
    """
    if not together:
        return [jnp.sum(m, dtype=kind(m.size)) for m in masks]
    found = jnp.zeros((), kind(sum(m.size for m in masks)))
    for m in masks:
        found += jnp.sum(m, dtype=found.dtype)
    return [found]


def live(mask: Any) -> int:
    """How many entries of `mask` [...] are True, exact at any size; TypeError if it is traced."""
    if isinstance(mask, jax.core.Tracer):
        raise TypeError(
            "masks are traced here, and are counted on the host: count and report outside of jit "
            "and vmap"
        )
    if not _on_host(mask):
        with jax.enable_x64(True):  # 2^31 of them do not fit into 32 bits
            return int(jnp.count_nonzero(mask))
    return int(np.count_nonzero(np.asarray(mask)))


def _on_host(mask: Any) -> bool:
    """Whether NumPy can count, without a program for every shape."""
    return not isinstance(mask, jax.Array) or (
        mask.is_fully_addressable and all(d.platform == "cpu" for d in mask.devices())
    )
