"""Batches cut into pieces of one size, so that one compiled kernel serves all."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from prunejax.curvature import base

Tree = Any
DEFAULT_CHUNK = 32  # examples at once: activations of that many, gradients of one on CPU


@partial(jax.jit, static_argnames="size")
def _piece(batch: Tree, start: Any, real: Any, size: int) -> Tree:
    """`size` examples from `start` on; from `real` of them on copies of the last one."""
    rows = start + jnp.minimum(jnp.arange(size), real - 1)
    return jax.tree.map(lambda x: x[rows], batch)


def _on_one_device(x: Any) -> bool:
    known = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    return known and len(x.devices()) == 1


def chunks(batches: base.Batches, size: int | None) -> list[tuple[Tree, int]]:
    """Batches cut into pieces of one size: `(piece, examples that count)`.

    A short piece is filled up with copies of its last example, so that every piece has the same
    shape and one compiled kernel serves all.

    Raises:
      ValueError: the size is not positive, or a batch has no examples.
    """
    found = base.batch_list(batches)
    if found[0] is None:
        raise ValueError("per-example gradients need examples; batches is None")
    sizes = [base.batch_size(batch) for batch in found]
    size = min(DEFAULT_CHUNK if size is None else size, max(sizes))
    if size < 1:
        raise ValueError(f"chunk must be at least 1, got {size}")
    pieces = []
    for batch, n in zip(found, sizes, strict=True):
        on_device = all(_on_one_device(x) for x in jax.tree.leaves(batch))
        for start in range(0, n, size):
            real = min(size, n - start)
            if on_device:
                pieces.append((_piece(batch, start, real, size=size), real))
                continue
            piece = base.rows(batch, start, start + real)
            if real < size:
                piece = jax.tree.map(
                    lambda x, missing=size - real: jnp.concatenate(
                        [jnp.asarray(x), jnp.repeat(jnp.asarray(x[-1:]), missing, axis=0)]
                    ),
                    piece,
                )
            pieces.append((piece, real))
    return pieces
