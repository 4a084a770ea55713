"""Normal noise that costs little beside a training step: a hash of the element's place, and a
transform of it that fuses with it into one loop over the array.

`jax.random.normal` draws from Threefry, whose twenty rounds a CPU runs as a loop over the whole
array, and inverts the normal distribution element by element, several times as slow. Here
one Threefry key of (seed, counter) and the layer's name key a multiply-xorshift hash of the
element's index, so that noise is a pure function of seed, counter, layer and index, whatever the
layout. The hash is not for secrets; tests/test_noise.py tests what comes out.
"""

import functools
import math
import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import rng

Array = jax.Array
_U = np.uint32

# Minimax in float64: cos(pi t) as a polynomial in t^2 on [0, 1], error 8e-7; log(1 + f) / f on
# sqrt(1/2) - 1 .. sqrt(2) - 1, error 2e-7 of the logarithm.
_COSINE = (0.999999222, -4.93474563, 4.05804541, -1.3323812, 0.229664214, -0.0205827952)
_LOGARITHM = (1.00000325, -0.500019651, 0.333032983, -0.248813396, 0.206046733, -0.189019788,
              0.118274778)  # fmt: skip


def keys(key: Array, names: Sequence[str]) -> dict[str, Array]:
    """A key for `normal` per name: Threefry once for all of them, then a hash of the names.

    Args: key: typed key of this draw, e.g. `rng.at(seed, "noise", step)`. names: of layers.

    Returns: uint32 [4] per name.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    salts = [[zlib.crc32(f"{name}/{word}".encode()) for word in range(4)] for name in names]
    return dict(zip(names, _hash(jnp.array(salts, jnp.uint32), first, second), strict=True))


def normal(key: Array, shape: tuple[int, ...]) -> Array:
    """Draws from N(0, 1), float32 of this shape; largest magnitude 6.6.

    Box and Muller's transform: the elements i and i + half of the first axis share a radius and
    differ by a quarter turn.

    Args: key: uint32 [4] of `keys`. shape: at least one axis; at most 2^32 elements.
    """
    half = (-(-shape[0] // 2), *shape[1:])
    index = jax.lax.iota(jnp.uint32, math.prod(half)).reshape(half)
    # The square root ends what is computed once for both elements of a pair: XLA does not repeat
    # it. The phase is cheaper to repeat than to store.
    radius = _radius(_hash(index, key[0], key[1]))
    phase = _hash(index, key[2], key[3])
    # A full turn is 2^32: the second element of a pair is 2^30 ahead.
    quarter = jax.lax.broadcasted_iota(jnp.uint32, (2, *half), 0) << _U(30)
    pairs = radius[None] * _cosine(phase[None] + quarter)
    # of an odd axis the last partner is drawn in vain
    return pairs.reshape(2 * half[0], *half[1:])[: shape[0]]


def _hash(index: Array, first: Array, second: Array) -> Array:
    """32 bits of an index: Wellons' hash triple32 with a key before each product."""
    x = index + first
    x = (x ^ (x >> _U(17))) * _U(0xED5AD4BB)
    x ^= second
    x = (x ^ (x >> _U(11))) * _U(0xAC4C1B51)
    x += first
    x = (x ^ (x >> _U(15))) * _U(0x31848BAB)
    return x ^ (x >> _U(14))


def _radius(bits: Array) -> Array:
    """sqrt(-2 log u) for u = (bits // 2 + 1/2) / 2^31; at least 0."""
    # The half keeps u above 0, so that its logarithm is finite.
    u = (bits >> _U(1)).astype(jnp.int32).astype(jnp.float32) + np.float32(0.5)
    word = jax.lax.bitcast_convert_type(u, jnp.int32)
    exponent = (word - np.int32(0x3F3504F3)) >> np.int32(23)  # of a mantissa around 1
    f = jax.lax.bitcast_convert_type(word - (exponent << np.int32(23)), jnp.float32) - 1
    whole = (31 - exponent).astype(jnp.float32) * np.float32(2 * math.log(2))
    return jnp.sqrt(whole - 2 * f * _polynomial(_LOGARITHM, f))


def _cosine(turns: Array) -> Array:
    """cos(2 pi turns / 2^32)."""
    # Read as signed: -1 .. 1 half turns, on which the cosine is even.
    t = jax.lax.bitcast_convert_type(turns, jnp.int32).astype(jnp.float32) * np.float32(2.0**-31)
    return _polynomial(_COSINE, t * t)


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    value = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + np.float32(c)
    return value


def reference_std(kernel: Array, targeted: Array) -> Array:
    """Standard deviation (ddof 1) of the weights of the layer's first untargeted filter.

    With single weights as units (all of a vector): of all untargeted weights. 0 if everything is
    targeted, or where it would be that of a single weight, which has no spread.
    """
    if targeted.ndim < kernel.ndim:
        first = jnp.argmin(targeted)  # False sorts first: the lowest untargeted index
        std = jnp.std(jnp.take(kernel, first, axis=-1), ddof=1)  # as PyTorch's std
        # argmin then gives a targeted filter
        none = jnp.all(targeted) | (math.prod(kernel.shape[:-1]) < 2)
    else:
        std = jnp.std(kernel, ddof=1, where=~targeted)
        none = jnp.sum(~targeted) < 2
    return jnp.where(none, 0.0, std)


def add_to(
    kernels: Mapping[str, Array],
    active: Mapping[str, Array],
    targeted: Mapping[str, Array],
    scale: Array,
    seed: Array,
    stream: str,
    counter: Array,
) -> dict[str, Array]:
    """Adds N(0, (scale * reference std)^2) to the active units, by layer name."""

    def add(kernels: Mapping[str, Array]) -> dict[str, Array]:
        found = {}
        # a layer by its name: other layers do not change its draws
        salts = keys(rng.at(seed, stream, counter), tuple(kernels))
        for name, kernel in kernels.items():
            # recomputed at every draw, as released
            sigma = scale * reference_std(kernel, targeted[name])
            change = sigma * normal(salts[name], kernel.shape)
            found[name] = kernel + jnp.where(active[name], change, 0).astype(kernel.dtype)
        return found

    # One branch for all layers: each costs copies of what passes through it.
    some = functools.reduce(jnp.logical_or, (jnp.any(units) for units in active.values()))
    return jax.lax.cond(some, add, dict, dict(kernels))
