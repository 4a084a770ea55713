"""Random streams derived by name, so that no two purposes ever share bits.

`jax.random.split(key, n)[j]` equals `jax.random.fold_in(key, j)`: a stream taken by a small
number can silently repeat another one (a "random" mask that follows the initial weights, say).
Here every stream is the run's seed folded with the CRC-32 of the stream's *name*, and every use
of a stream folds in a counter (step, epoch, event).
"""

import functools
import numbers
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STREAMS = (
    *("init", "order", "augment", "dropout", "labels", "subset", "imbalance"),
    *("signal_noise", "input noise", "gaussian", "attack"),
    *("mask", "grow", "score", "score batch", "shuffle", "noise", "noise at events", "probe"),
)


def stream(seed: int | jax.Array, name: str) -> jax.Array:
    """The typed key (a scalar) of the stream `name` of the run with this seed.

    Args:
      seed: an integer scalar, may be traced (a run's seed is data, not code).
      name: the purpose, one of `STREAMS` inside the package; any text for other users.

    Raises ValueError: the seed is no integer (a key is none).
    """
    kind = getattr(seed, "dtype", None)
    whole = (
        isinstance(seed, numbers.Integral) if kind is None else jnp.issubdtype(kind, jnp.integer)
    )
    if not whole or jnp.ndim(seed):
        text = " ".join(repr(seed).split())  # arrays may take several lines
        raise ValueError(f"seed {text} must be one integer; streams are derived from it by name")
    # of 32 bits, as `fold_in` takes; `hash` differs between processes
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def at(seed: int | jax.Array, name: str, *counters: int | str | jax.Array) -> jax.Array:
    """The key of stream `name` at the given counters and names: `at(seed, "mask", event, layer)`.

    A layer goes by its name: by its number among the layers that a program may target, what a
    run draws would depend on the other arms of its study. `seed` and the integers of `counters`
    are scalars that may be traced, the key is a scalar.
    """
    return fold(stream(seed, name), *counters)


def fold(key: jax.Array, *counters: int | str | jax.Array) -> jax.Array:
    """`at` for those who keep the stream's key: arguments and the scalar key as in `at`."""
    for counter in counters:
        number = zlib.crc32(counter.encode()) if isinstance(counter, str) else counter
        key = jax.random.fold_in(key, number)
    return key


def each(key: jax.Array, names: Sequence[str]) -> dict[str, jax.Array]:
    """Name -> the scalar `fold(key, name)`, at once: compiled once, not once for each name."""
    if not names:
        return {}
    numbers = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    return {name: keys[i] for i, name in enumerate(names)}


def uniform(key: jax.Array, like: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Draws [...] from [0, 1) for each array of `like` [...], by its own key of `each`."""
    keys = each(key, list(like))
    return {name: jax.random.uniform(keys[name], x.shape) for name, x in like.items()}


def permutation(key: jax.Array, n: int) -> np.ndarray:
    """`jax.random.permutation(key, n)` [n] as a host array, the same numbers.

    That compiles a program for every n; this one for every power of two, by a sort on the host:
    classes of a data set have as many sizes as there are classes.
    """
    # Counter-based bits do not depend on how many are drawn (JAX's default).
    fixed: Any = jax.config
    several = fixed.jax_threefry_partitionable and "fry" in str(key.dtype)
    size = 1 << max(0, n - 1).bit_length() if several else n
    found = np.arange(n)
    for _ in range(_rounds(n)):
        key, own = jax.random.split(key)  # as JAX's own shuffle splits
        bits = np.asarray(jax.random.bits(own, (size,), jnp.uint32))[:n]
        found = found[np.argsort(bits, kind="stable")]  # as XLA's: equal keys keep their order
    return found


def order(key: jax.Array, n: int) -> jax.Array:
    """`jax.random.permutation(key, n)` int32 [n] in programs, the same numbers.

    Its sort of pairs takes a call for each comparison on a CPU. Numbers that hold such a pair are
    sorted in a fifth of that time.
    """

    def shuffled(key: jax.Array) -> jax.Array:
        return jax.random.permutation(key, n).astype(jnp.int32)

    return jax.lax.platform_dependent(key, cpu=functools.partial(_by_places, n=n), default=shuffled)


def _rounds(n: int) -> int:
    """How often JAX sorts by random keys, of which some may be equal."""
    return int(np.ceil(3 * np.log(max(1, n)) / np.log(np.iinfo(np.uint32).max)))


def _by_places(key: jax.Array, n: int) -> jax.Array:
    found = jnp.arange(n, dtype=jnp.int32)
    for i in range(_rounds(n)):
        key, own = jax.random.split(key)
        places = argsort(jax.random.bits(own, (n,), jnp.uint32))
        found = found[places] if i else places
    return found


def argsort(numbers: jax.Array) -> jax.Array:
    """`jnp.argsort` (stable) int32 [n] of `numbers` uint32 [n], by one sort of 64-bit numbers."""
    with jax.enable_x64(True):
        places = jnp.arange(len(numbers), dtype=jnp.uint64)  # equal numbers go by their places
        pairs = numbers.astype(jnp.uint64) << np.uint64(32) | places
        # Stable (a merge sort of XLA's): 0.7 of the time of the other for numbers never seen yet.
        return jax.lax.sort(pairs, is_stable=True).astype(jnp.int32)
