"""Batches: one or many, streams of them, pieces of one size.

`batches` is one batch (array, tuple, dict or any other pytree, examples along the leading axis of
every leaf) or a *list* of batches, which may differ in size and in nothing else: means are weighted
by size. A list of bare arrays is refused, `[X, Y]` of a data loader is one batch and not two. An
iterator of batches, or a function that returns an iterable of them, stands for its list.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import all_leaves

from prunejax.curvature import vectors
from prunejax.trees import leaves_with_paths

Tree = Any
Batches = Any  # None, one batch, a list, an iterator, or a function that returns an iterable
DEFAULT_CHUNK = 32  # examples at once: activations of that many, gradients of one on CPU
_add = jax.jit(vectors.add)
_scale = jax.jit(vectors.scale)


class _Listed(list):
    """Batches that have been looked at."""


def batch_list(batches: Batches) -> list[Tree]:
    """The batches as a list; `[None]` for a loss without data.
    Raises ValueError: an empty list, a list of bare arrays, batches that are not alike.
    """
    if isinstance(batches, _Listed):
        return batches
    if is_factory(batches):
        batches = iter(batches())
    if not isinstance(batches, list | Iterator):
        return _Listed([batches])
    found = _Listed(batches)
    if not found:
        raise ValueError("batches is an empty list; give at least one batch")
    bare = [batch for batch in found if batch is not None and all_leaves([batch])]
    if bare and isinstance(batches, list):
        raise ValueError(
            f"batches is a list of {len(found)} with a bare array of shape {np.shape(bare[0])} in "
            "it; one batch is a tuple (X, Y), a list holds such tuples; several batches that are "
            "arrays themselves are given as iter([...])"
        )
    for number, batch in enumerate(found):
        check_alike(batch, found[0], number)
    return found


def check_alike(batch: Tree, first: Tree, number: int) -> None:
    """ValueError unless a batch differs from the first one in nothing but its size."""
    ours_is: Any = jax.tree.structure(batch)
    if ours_is != jax.tree.structure(first):
        raise ValueError(
            f"batch {number} has structure {vectors.short(batch)}, batch 0 "
            f"{vectors.short(first)}; all batches must have one structure; [X, Y] is given as the "
            "tuple (X, Y)"
        )
    pairs = zip(leaves_with_paths(batch), jax.tree.leaves(first), strict=True)
    for (path, ours), theirs in pairs:
        kinds = [(jnp.result_type(x), np.shape(x)[1:]) for x in (ours, theirs)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"batch {number} at {path!r} has {kinds[0][0]} entries of shape {kinds[0][1]}, "
                f"batch 0 {kinds[1][0]} of {kinds[1][1]}; batches may differ in size only; [X, Y] "
                "is given as the tuple (X, Y)"
            )


def is_factory(batches: Batches) -> bool:
    """Whether `batches` is a function that returns batches (and not a pytree that is callable)."""
    return callable(batches) and all_leaves([batches])


def batch_size(batch: Tree) -> int:
    """Examples in a batch: the length of the leading axis; 1 where there is no batch.
    Raises ValueError: no leaves, a scalar leaf, leaves that disagree, or no examples.
    """
    if batch is None:
        return 1
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or () in sizes:
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
        raise ValueError(
            f"the leaves of a batch must share a leading example axis, got shapes {shapes}; "
            "several batches are given as a list, vectors and directions before the batches"
        )
    size = int(sizes.pop()[0])
    if not size:
        raise ValueError("a batch has no examples; leave it out")
    return size


class Stream:
    """Batches that can be passed over again and again, each with its weight.

    Args:
      batches: None (a loss without data), one batch, a list of batches, an iterator (kept as a
        list), or a function that returns a fresh iterable of batches.
      weights: one number >= 0 per batch, default its number of examples.
    """

    def __init__(self, batches: Any, weights: Any = None) -> None:
        self._source: Callable[[], Iterable[Tree]]
        self._last: Iterator[Tree] | None = None  # of the pass before
        self.examples: int | None = None
        self.single: tuple[Tree] | None = None  # the one batch there is
        if is_factory(batches):
            self._source = batches
        else:
            found = batch_list(batches)
            self._source = lambda: found
            sizes = [batch_size(batch) for batch in found]
            self.examples = None if batches is None else sum(sizes)
            self.single = (found[0],) if len(found) == 1 else None
        self.weighted = weights is not None
        self._weights = None if weights is None else np.ravel(weights).astype(float).tolist()
        if self._weights is not None and (
            not 0 < sum(self._weights) < np.inf or min(self._weights) < 0  # NaN is in no range
        ):
            raise ValueError(f"weights must be >= 0 with a positive, finite sum, got {weights}")

    def first(self) -> Tree:
        """The first batch."""
        return next(self._pass())

    def _pass(self) -> Iterator[Tree]:
        """The batches from the first one on.
        Raises ValueError: the function gave an iterator that a pass before has taken from.
        """
        found = iter(self._source())
        if found is self._last:
            raise ValueError(
                "the function that gives batches gave one iterator twice, which has only what is "
                "left of it; make a new one in each call, or give the iterator itself"
            )
        self._last = found
        return found

    def mean(self, part: Callable[[Tree, float], Tree]) -> Tree:
        """The weighted mean of `part(batch, weight)`, which multiplies by its weight itself."""
        if self.single and self._weights is None:
            return part(self.single[0], 1.0)  # not times n and through n, which would round
        total, first, sizes = None, None, []
        for i, batch in enumerate(self._pass()):
            first = batch if i == 0 else first
            check_alike(batch, first, i)
            sizes.append(batch_size(batch))
            weights = sizes if self._weights is None else self._weights
            term = part(batch, float(weights[i]) if i < len(weights) else 0.0)
            total = term if total is None else _add(total, term)
        if not sizes:
            raise ValueError("the stream of batches is empty; give at least one batch")
        if self._weights is not None and len(self._weights) != len(sizes):
            raise ValueError(f"{len(self._weights)} weights for {len(sizes)} batches; one for each")
        if self.examples not in (None, sum(sizes)):
            raise ValueError(
                f"a pass over the batches had {sum(sizes)} examples, one before it "
                f"{self.examples}; the function must give the same batches each time"
            )
        self.examples = sum(sizes)
        return _scale(1.0 / sum(sizes if self._weights is None else self._weights), total)


@partial(jax.jit, static_argnames="size")
def _piece(batch: Tree, start: Any, real: Any, size: int) -> Tree:
    """`size` examples from `start` on; from `real` of them on copies of the last one."""
    # Real examples: zeros might give NaN, which a weight of 0 does not stop.
    return vectors.index(batch, start + jnp.minimum(jnp.arange(size), real - 1))


def _on_one_device(x: Any) -> bool:
    known = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    return known and len(x.devices()) == 1


def spread(tree: Tree) -> bool:
    """Whether some array of a tree is on several devices."""
    return any(isinstance(x, jax.Array) and not _on_one_device(x) for x in jax.tree.leaves(tree))


def chunks(
    batches: Batches, size: int | None, together: int = 1, devices: int = 1
) -> list[tuple[Tree, int]]:
    """Batches cut into pieces of one size: `(piece, examples that count)`.

    A short piece is filled up with copies of its last example, so that every piece has the same
    shape and one compiled kernel serves all.

    Args:
      batches: one batch or a list of batches, with examples.
      size: examples of a chunk, `DEFAULT_CHUNK` where None.
      together: the most chunks of a piece.
      devices: that the pieces are for; fewer are then together, so that each device has some.

    Raises ValueError: the size is not positive, or a batch has no examples.
    """
    found = batch_list(batches)
    if found[0] is None:
        raise ValueError("per-example gradients need examples; batches is None")
    sizes = [batch_size(batch) for batch in found]
    size = chunk_size(size, sizes)
    each = -(-sum(-(-n // size) for n in sizes) // devices)
    size *= min(together, each, -(-max(sizes) // size))
    pieces = []
    for batch, n in zip(found, sizes, strict=True):
        on_device = all(_on_one_device(x) for x in jax.tree.leaves(batch))
        for start in range(0, n, size):
            real = min(size, n - start)
            if on_device:
                pieces.append((_piece(batch, start, real, size=size), real))
                continue
            piece = vectors.index(batch, slice(start, start + real))
            if real < size:
                piece = jax.tree.map(
                    lambda x, missing=size - real: jnp.concatenate(
                        [jnp.asarray(x), jnp.repeat(jnp.asarray(x[-1:]), missing, axis=0)]
                    ),
                    piece,
                )
            pieces.append((piece, real))
    return pieces


def placed(tree: Tree, device: jax.Device | None) -> Tree:
    """A copy of the tree on a device; None: the tree itself, wherever it is."""
    return tree if device is None else jax.device_put(tree, device)


def side_by_side(
    run: Callable[[int, Tree, Any], jax.Array],
    pieces: Sequence[tuple[Tree, np.ndarray, int]],
    devices: Sequence[jax.Device | None],
) -> np.ndarray:
    """What `run(turn, piece, weight)` gives of the examples that count: [N], float64.

    Args:
      run: gives numbers of the examples of a piece, computed on device number `turn`.
      pieces: (piece, its weights [size], examples that count); the devices take them in turn.
      devices: see `placed`.
    """
    parts: list[jax.Array] = []
    for i, (piece, weight, _) in enumerate(pieces):
        if i >= len(devices):  # a device works in the memory of one piece at a time
            jax.block_until_ready(parts[i - len(devices)])
        turn = i % len(devices)
        parts.append(run(turn, *placed((piece, weight), devices[turn])))
    # copies that filled a piece up are left out
    real = [np.asarray(x, np.float64)[:n] for x, (_, _, n) in zip(parts, pieces, strict=True)]
    return np.concatenate(real)


def chunk_size(size: int | None, sizes: Sequence[int]) -> int:
    """Examples of a chunk of batches of these sizes. Raises ValueError: it is not positive."""
    size = min(DEFAULT_CHUNK if size is None else size, max(sizes))
    if size < 1:
        raise ValueError(f"chunk must be at least 1, got {size}")
    return size


def weighted(batches: Batches) -> tuple[list[tuple[Tree, float]], int]:
    """Each batch with its share of all examples, and how many these are (0 without data)."""
    found = batch_list(batches)
    sizes = [batch_size(batch) for batch in found]
    shares = [size / sum(sizes) for size in sizes]
    return list(zip(found, shares, strict=True)), 0 if found[0] is None else sum(sizes)
