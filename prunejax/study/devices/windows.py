"""Windows of batches that are read from streams, and where the devices here hold them."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding

from prunejax.data.streaming import Batch, Stream

Span = tuple[int, int]  # first and one past the last


class Feed:
    """The batches of one stream from any step on; those that follow are prepared ahead."""

    def __init__(self, stream: Stream, threads: int) -> None:
        self._stream, self._threads = stream, threads
        self._ahead: Iterator[Batch] = iter(())
        self._next = -1

    def __call__(self, number: int) -> Batch:
        """Batch `number`; cheap where it follows the one before."""
        if number != self._next:
            # A jump, as of a run that resumes: what was prepared ahead is of no use.
            self._ahead = self._stream.iterate(number, threads=self._threads)
        self._next = number + 1
        return next(self._ahead)


def filled(parts: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Equal parts stacked, and zeros up to `length` of them."""
    found = np.zeros((length, *parts[0].shape), parts[0].dtype)
    for into, one in zip(found, parts, strict=False):
        into[...] = one
    return found


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> list[Span]:
    """First and one past the last entry along each leading axis."""
    return [s.indices(n)[:2] for s, n in zip(index, shape, strict=False)]


def spans(where: NamedSharding, lead: tuple[int, ...]) -> list[list[Span]]:
    """What each device of this process holds of an array of those leading axes."""
    held = where.addressable_devices_indices_map(lead)
    return [_bounds(index, lead) for index in held.values() if index is not None]


def placed(
    where: NamedSharding, lead: tuple[int, ...], like: np.ndarray, block: Callable[..., np.ndarray]
) -> jax.Array:
    """`[*lead, ...]` on the devices from what `block(*bounds)` gives of it.

    Args:
      where: its sharding.
      lead: its leading axes.
      like: gives the other axes: all but its first.
      block: called with (first, one past last) along each leading axis, for each device here.
    """

    def one(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return block(*_bounds(index, lead))

    return jax.make_array_from_callback((*lead, *like.shape[1:]), where, one)


def part(rows: Sequence[Span], size: int) -> tuple[int, int]:
    """The smallest of equal parts (i, n) of a batch that has all these rows."""
    low, high = min(first for first, _ in rows), max(last for _, last in rows)
    width = high - low
    return (0, 1) if size % width or low % width else (low // width, size // width)
