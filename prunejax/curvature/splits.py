"""A split's batches: streams of them, pieces of one size, stacks for a scan, means over all."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from prunejax.curvature import base

Tree = Any
DEFAULT_CHUNK = 32  # examples at once: activations of that many, gradients of one on CPU


_add = jax.jit(base.add)
_scale = jax.jit(base.scale)


class Stream:
    """Batches that can be passed over again and again, each with its weight.

    Args:
      batches: None (a loss without data), one batch, a list of batches, an iterator (kept as a
        list), or a function that returns a fresh iterable of batches.
      weights: one number >= 0 per batch, default its number of examples.
    """

    def __init__(self, batches: Any, weights: Any = None) -> None:
        self._source: Callable[[], Iterable[Tree]]
        self.examples: int | None = None
        self.single: tuple[Tree] | None = None  # the one batch there is
        if base.is_factory(batches):
            self._source = batches
        else:
            found = base.batch_list(batches)
            self._source = lambda: found
            sizes = [base.batch_size(batch) for batch in found]
            self.examples = None if batches is None else sum(sizes)
            self.single = (found[0],) if len(found) == 1 else None
        self._weights = None if weights is None else [float(w) for w in weights]
        if self._weights is not None and (min(self._weights) < 0 or sum(self._weights) <= 0):
            raise ValueError(f"weights must be >= 0 with a positive sum, got {self._weights}")

    @property
    def weighted(self) -> bool:
        """Whether the caller gave weights."""
        return self._weights is not None

    def first(self) -> Tree:
        """The first batch."""
        return next(iter(self._source()))

    def mean(self, part: Callable[[Tree, float], Tree]) -> Tree:
        """The weighted mean of `part(batch, weight)`, which multiplies by its weight itself."""
        if self.single and self._weights is None:
            return part(self.single[0], 1.0)  # not times n and through n, which would round
        total, sizes = None, []
        first = None
        for i, batch in enumerate(self._source()):
            first = batch if i == 0 else first
            base.check_alike(batch, first, i)
            sizes.append(base.batch_size(batch))
            term = part(batch, self._weight(i, sizes[-1]))
            total = term if total is None else _add(total, term)
        if not sizes:
            raise ValueError("the stream of batches is empty; give at least one batch")
        if self._weights is not None and len(self._weights) != len(sizes):
            raise ValueError(f"{len(self._weights)} weights for {len(sizes)} batches; one for each")
        self.examples = sum(sizes)
        return _scale(1.0 / sum(sizes if self._weights is None else self._weights), total)

    def _weight(self, i: int, size: int) -> float:
        if self._weights is None:
            return float(size)
        return self._weights[i] if i < len(self._weights) else 0.0


@partial(jax.jit, static_argnames="size")
def _piece(batch: Tree, start: Any, real: Any, size: int) -> Tree:
    """`size` examples from `start` on; from `real` of them on copies of the last one."""
    # Real examples: zeros might give NaN, which a weight of 0 does not stop.
    rows = start + jnp.minimum(jnp.arange(size), real - 1)
    return jax.tree.map(lambda x: x[rows], batch)


def _on_one_device(x: Any) -> bool:
    known = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    return known and len(x.devices()) == 1


def spread(tree: Tree) -> bool:
    """Whether some array of a tree is on several devices."""
    return any(isinstance(x, jax.Array) and not _on_one_device(x) for x in jax.tree.leaves(tree))


def chunks(batches: base.Batches, size: int | None, together: int = 1) -> list[tuple[Tree, int]]:
    """Batches cut into pieces of one size: `(piece, examples that count)`.

    A short piece is filled up with copies of its last example, so that every piece has the same
    shape and one compiled kernel serves all.

    Args:
      batches: one batch or a list of batches, with examples.
      size: examples of a chunk, `DEFAULT_CHUNK` where None.
      together: the most chunks of a piece.

    Raises:
      ValueError: the size is not positive, or a batch has no examples.
    """
    found = base.batch_list(batches)
    if found[0] is None:
        raise ValueError("per-example gradients need examples; batches is None")
    sizes = [base.batch_size(batch) for batch in found]
    size = chunk_size(size, sizes)
    size *= min(together, -(-max(sizes) // size))
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


def chunk_size(size: int | None, sizes: Sequence[int]) -> int:
    """Examples of a chunk of batches of these sizes.

    Raises:
      ValueError: it is not positive.
    """
    size = min(DEFAULT_CHUNK if size is None else size, max(sizes))
    if size < 1:
        raise ValueError(f"chunk must be at least 1, got {size}")
    return size


def weighted(batches: base.Batches) -> tuple[list[tuple[Tree, float]], int]:
    """Each batch with its share of all examples, and how many these are (0 without data)."""
    found = base.batch_list(batches)
    sizes = [base.batch_size(batch) for batch in found]
    shares = [size / sum(sizes) for size in sizes]
    return list(zip(found, shares, strict=True)), 0 if found[0] is None else sum(sizes)


def named(values: Any) -> dict[str, jax.Array]:
    """What an evaluation returns as a dict of scalars; a single scalar is called "loss"."""
    found = values if isinstance(values, dict) else {"loss": values}
    for name, value in found.items():
        if isinstance(value, tuple) or jnp.shape(value) != ():
            raise ValueError(
                "evaluate must return scalars (means over the batch), one or a dict of them; "
                f"{name!r} has shape {jax.tree.map(jnp.shape, value)}"
            )
    return found


def stacked_groups(batches: base.Batches, batch_size: int | None) -> list[Tree]:
    """Batches of equal size stacked along a new leading axis, for a scan; at least one group.

    Raises:
      ValueError: batch_size is not positive, or is given with a list of batches.
    """
    found = base.batch_list(batches)
    if found[0] is None:
        return [None]
    if batch_size is not None:
        if found[0] is not batches:
            raise ValueError("batch_size cuts one batch; a list of batches is cut already")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        n = base.batch_size(batches)
        found = [base.rows(batches, i, min(i + batch_size, n)) for i in range(0, n, batch_size)]
    sizes = [base.batch_size(batch) for batch in found]
    return [
        jax.tree.map(
            lambda *leaves: jnp.stack(leaves),
            *[batch for batch, n in zip(found, sizes, strict=True) if n == size],
        )
        for size in dict.fromkeys(sizes)  # in order of appearance: the order of the sums
    ]


def over_split(evaluate: Callable[[Tree], Any], groups: list[Tree]) -> dict[str, jax.Array]:
    """Name -> mean over all examples of `evaluate(batch)`, means over batches weighted by size.

    Args:
      evaluate: the means, scalars, over one batch (or, for the group None, over all there is).
      groups: from `stacked_groups`.
    """
    totals: Any = None
    count = 0
    for group in groups:
        if group is None:
            return base.upcast(named(evaluate(None)))
        length, size = jax.tree.leaves(group)[0].shape[:2]

        def add(total: Any, batch: Tree) -> tuple[Any, None]:
            return base.add(total, named(evaluate(batch))), None

        first = jax.tree.map(lambda x: x[0], group)
        shapes = jax.eval_shape(lambda batch: base.upcast(named(evaluate(batch))), first)
        # At least float32, whatever `evaluate` returns.
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        # a batch's mean counts by its examples
        total = base.scale(size, jax.lax.scan(add, zeros, group)[0])
        totals = total if totals is None else base.add(totals, total)
        count += length * size
    return base.scale(1.0 / count, totals)


def examples(groups: list[Tree]) -> int:
    """Examples of a split, 0 where there is no data."""
    sizes = [jax.tree.leaves(group)[0].shape[:2] for group in groups if group is not None]
    return sum(count * size for count, size in sizes)
