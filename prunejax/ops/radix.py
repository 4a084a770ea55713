"""The k-th largest of very many numbers from histograms of their bits, without a sort.

Numbers become unsigned integers of the same order. A histogram of their leading digit tells which
digit the k-th largest has; a second histogram, of the numbers that agree so far, settles the next
digit, and so on: two passes for 32 bits on a CPU. Histograms add up over leaves and devices, so
nothing is gathered. `prunejax.ops.ranking` is the interface.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

Array = jax.Array

METHODS = ("scatter", "compare")  # ways to count digits: for CPUs, for accelerators

SLICE = 1 << 16  # numbers counted at a time by scatter: their digits stay in the cache
_IDLE = 64  # bins for the numbers out of the race; a single one would serialize its stores


def widened(x: Array) -> Array:
    """The same numbers in a format that has infinities and whole bytes.

    8-bit floating formats differ in their special values, and bfloat16 holds them all; integers
    of fewer than 8 bits become 8-bit ones.
    """
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.bfloat16) if x.dtype.itemsize == 1 else x
    if jnp.issubdtype(x.dtype, jnp.integer) and jnp.iinfo(x.dtype).bits < 8:
        return x.astype(jnp.int8)
    return x


def opposite(x: Array) -> Array:
    """Numbers in the opposite order of `x` [...]: NaN stays NaN, which goes first all the same."""
    x = jnp.asarray(x)
    whole = x.dtype == jnp.bool_ or jnp.issubdtype(x.dtype, jnp.integer)
    return ~x if whole else -x  # -0 is the least unsigned number as 0 is; the complement is not


def sortable(x: Array) -> Array:
    """Unsigned integers in the order of the numbers `x` (`widened`), equal where they are equal.

    For floating point: the bits of a positive number with the sign bit set, the complement of
    the bits of a negative one; both zeros become one integer, and every NaN becomes 0, below
    `-inf`. Subnormal numbers keep their order even where arithmetic flushes them to zero.
    """
    x = widened(x)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint8)
    if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        return x
    width = x.dtype.itemsize * 8
    kind: Any = jnp.dtype(f"uint{width}")
    sign = jnp.asarray(1 << (width - 1), kind)
    bits = lax.bitcast_convert_type(x, kind)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return bits ^ sign
    infinity = lax.bitcast_convert_type(jnp.asarray(jnp.inf, x.dtype), kind)
    ordered = jnp.where(bits > sign, ~bits, bits | sign)  # -0.0 is `sign` itself and joins 0.0
    return jnp.where((bits & ~sign) > infinity, jnp.zeros((), kind), ordered)


def digit_width(method: str, total: int) -> int:
    """Bits a pass settles: wide digits save passes, but their histograms have to pay off."""
    return 2 if method == "compare" else 16 if total >= 1 << 20 else 11


def kth(
    histograms: Callable[[Any, Array | None], list[Array]],
    k: Array,
    *,
    bits: int,
    width: int,
    rolled: bool = False,
) -> tuple[Array, Array, Array]:
    """The k-th largest of the keys that `histograms` counts.

    Args:
      histograms: `(shift, cut) -> ` one histogram (`tally`) per leaf, of the digit that starts at
        bit `shift`, over the keys whose bits above it equal `cut` (None: all keys).
      k: rank, 1 is the largest; a rank beyond the last means the last.
      bits: keys are below 2^bits.
      width: bits of a digit.
      rolled: one loop for all digits, compiled once; else the first digit, and few others, are
        settled outside of a loop, which runs a little faster.

    Returns:
      The key; how many of the keys that equal it belong to the k largest (0 if k is 0); how many
      keys equal it, per leaf.
    """

    def settle(shift: Any, k: Array, cut: Array | None, digits: int) -> tuple[Array, Array, Array]:
        counts = histograms(shift, cut)
        histogram = sum(counts[1:], start=counts[0])
        if cut is None or rolled:
            k = jnp.minimum(k, jnp.sum(histogram, dtype=k.dtype))
        digit, above = _find(histogram[:digits], k)
        cut = digit.astype(kind) if cut is None else (cut << width) | digit.astype(kind)
        return (k - above).astype(k.dtype), cut, jnp.stack([h[digit] for h in counts])

    kind: Any = jnp.uint64 if bits > 32 else jnp.uint32
    *shifts, first = range(0, bits, width)
    rolled &= bool(shifts)
    if rolled:
        zero = jnp.zeros_like(k, kind)
        shifts, first = [*shifts, first], first + width
        equal = jnp.zeros_like(k, shape=len(jax.eval_shape(histograms, zero, zero)))
        cut = zero
    else:
        k, cut, equal = settle(first, k, None, 1 << (bits - first))
    if len(shifts) <= 2 and not rolled:
        for shift in reversed(shifts):
            k, cut, equal = settle(shift, k, cut, 1 << width)
    else:
        # The shift is carried, so that in `shard_map` it has the type of the other values.
        start = jnp.full_like(cut, first - width)
        k, cut, equal, _ = lax.fori_loop(
            0,
            len(shifts),
            lambda _, now: (*settle(now[3], now[0], now[1], 1 << width), now[3] - width),
            (k, cut, equal, start),
        )
    return cut, k, equal


def _find(histogram: Array, k: Array) -> tuple[Array, Array]:
    """The largest digit such that at least k entries have it or more; how many have more.

    In two steps, over blocks of digits and within one, which compiles and runs faster than a
    cumulative sum over all digits.
    """
    side = 1 << (histogram.size.bit_length() // 2)
    blocks = histogram.reshape(-1, side)
    block, above = _last(jnp.sum(blocks, axis=1), k)
    digit, more = _last(blocks[block], k - above)
    return block * side + digit, above + more


def _last(counts: Array, k: Array) -> tuple[Array, Array]:
    index = jnp.arange(counts.size, dtype=jnp.uint32)
    beyond = jnp.sum(jnp.where(index[:, None] < index[None], counts[None], 0), axis=1)
    # these digits come first: their number is the place
    place = jnp.sum(beyond + counts >= k, dtype=jnp.uint32) - 1
    return place, beyond[place]


def tally(
    keys: Array,
    active: Array | None,
    shift: Any,
    cut: Array | None,
    *,
    width: int,
    count: Any,
    method: str,
) -> Array:
    """Histogram (2^width counts of dtype `count`) of one digit of a leaf's keys.

    Args:
      keys: unsigned integers of any shape.
      active: booleans of the same shape, the keys that take part; None: all.
      shift: see `kth`.
      cut: see `kth`.
      width: bits of the digit.
      count: integer dtype of the counts.
      method: "compare" sums one comparison per digit, plain reductions; "scatter" adds one at
        each digit's place.
    """
    digit = digits(keys, active, shift, cut, width=width)
    if method == "compare":
        return jnp.stack([jnp.sum(digit == d, dtype=count) for d in range(1 << width)])
    return _added(_empty(keys, width, count), digit)[: 1 << width]


def digits(
    keys: Array, active: Array | None, shift: Any, cut: Array | None, *, width: int
) -> Array:
    """The digit of every key; from 2^width on where a key is out of the race (see `tally`)."""
    shift = jnp.asarray(shift, keys.dtype)
    digit = (keys >> shift).astype(jnp.uint32) & ((1 << width) - 1)
    if cut is not None:
        # Two shifts: their sum may exceed the bits of a key.
        agrees = (keys >> shift) >> width == cut.astype(keys.dtype)
        active = agrees if active is None else agrees & active
    if active is None:
        return digit
    return jnp.where(active, digit, (1 << width) | (digit & (_IDLE - 1)))


def _empty(like: Array, width: int, count: Any) -> Array:
    # `zeros_like`, not `zeros`: inside `shard_map` a constant has another type.
    return jnp.zeros_like(like, count, shape=((1 << width) + _IDLE,))


def _added(histogram: Array, digit: Array) -> Array:
    # integers: the order of additions does not matter
    return histogram.at[digit].add(1, mode="promise_in_bounds")


def accumulate(digits: Callable[[Any], Array], slices: Any, *, like: Array, width: int) -> Array:
    """Histogram of `digits(0)` .. `digits(slices - 1)`, by adding one at each digit's place.

    Args:
      digits: the digits of a slice, an array of one shape.
      slices: how many, at least 1.
      like: a scalar of the counts' dtype.
      width: bits of a digit.
    """

    def add(i: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        # The digits travel one turn ahead: XLA then writes them as an array of their own, row by
        # row, which is faster than fusing them into the scatter's list of indices.
        histogram, digit = carry
        return _added(histogram, digit), digits(jnp.minimum(i, slices - 1))

    carry = _empty(like, width, like.dtype), digits(0)
    return lax.fori_loop(1, slices + 1, add, carry)[0][: 1 << width]


def on_one_device(x: Array) -> bool:
    """Whether one device surely holds all of `x`.

    Where several might share it, a loop over slices would add up the histograms of the devices
    after every slice and not once.
    """
    if jax.device_count() == 1:
        return True
    if not isinstance(x, jax.core.Tracer):
        return len(x.sharding.device_set) == 1
    mesh = jax.typeof(x).sharding.mesh
    return bool(mesh.axis_types) and not _shared_axes(mesh)  # in `shard_map`


def surely_spread(x: Array) -> bool:
    """Whether `x` is traced on a mesh whose devices may share it, not in a program at large."""
    return isinstance(x, jax.core.Tracer) and _shared_axes(jax.typeof(x).sharding.mesh)


def _shared_axes(mesh: Any) -> bool:
    axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return any(size > 1 and kind != AxisType.Manual for size, kind in axes)
