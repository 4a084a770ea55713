"""Ways to convolve the batches of many members, each with a kernel of its own.

    python benchmarks/gpu_convolutions.py float32 16 rows.jsonl [--smallest]

For every convolution of VGG11 at batch 128: the output and both gradients in one program, as

* grouped: `vmap` of `prunejax.ops.conv.conv`, a convolution with one group of channels per member:
  what the layout "vectorized" compiles to;
* loop: `lax.map` over members inside the program;
* unrolled: the same without a loop;
* patches: one batched matrix product of all nine shifts beside each other (nine times the memory);
* shifts: nine batched matrix products, summed.

All must agree with "unrolled" before a clock is read. One JSON line a layer and way: milliseconds,
operations per second (direct convolutions), and its time over that of "grouped".
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import common  # noqa: F401  (finds the package)
import jax
import jax.numpy as jnp
import numpy as np

from prunejax.ops.conv import conv

Array = jax.Array
# side of the map, channels in and out: the eight convolutions of VGG11
LAYERS = [
    *((32, 3, 64), (16, 64, 128), (8, 128, 256), (8, 256, 256)),
    *((4, 256, 512), (4, 512, 512), (2, 512, 512), (2, 512, 512)),
]
TOLERANCE = {"float32": 1e-2, "bfloat16": 5e-2}  # float32 may be TF32 here


def one(x: Array, w: Array) -> Array:
    return conv(x, w, padding="SAME")


def shifted(x: Array) -> list[Array]:
    """The nine parts of a padded map that a kernel of 3x3 meets, in the order of its entries."""
    side = x.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    return [x[:, :, i : i + side, j : j + side] for i in range(3) for j in range(3)]


def patches(x: Array, w: Array) -> Array:
    m, _, _, channels, out = w.shape
    columns = jnp.concatenate(shifted(x), axis=-1)
    return jnp.einsum("mbhwk,mko->mbhwo", columns, w.reshape(m, 9 * channels, out))


def shifts(x: Array, w: Array) -> Array:
    m, _, _, channels, out = w.shape
    parts = zip(shifted(x), jnp.moveaxis(w.reshape(m, 9, channels, out), 1, 0), strict=True)
    return sum(jnp.einsum("mbhwc,mco->mbhwo", a, k) for a, k in parts)  # type: ignore[return-value]


WAYS: dict[str, Callable[[Array, Array], Array]] = {
    "unrolled": lambda x, w: jnp.stack([one(a, k) for a, k in zip(x, w, strict=True)]),
    "grouped": jax.vmap(one),
    "loop": lambda x, w: jax.lax.map(lambda pair: one(*pair), (x, w)),
    "patches": patches,
    "shifts": shifts,
}


def training(way: Callable[[Array, Array], Array]) -> Any:
    """The output, and the gradients for a cotangent that depends on it."""

    def both(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
        y, pullback = jax.vjp(way, x, w)
        return y, pullback(jnp.cos(y))

    return jax.jit(both)


def clock(fn: Callable[[], Any], least: float) -> float:
    """Seconds a call, the fastest of three reads that span so many seconds each."""
    jax.block_until_ready(fn())
    begin = time.perf_counter()
    jax.block_until_ready(fn())
    calls = max(1, round(least / (time.perf_counter() - begin)))
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(calls):
            found = fn()
        jax.block_until_ready(found)
        best = min(best, (time.perf_counter() - begin) / calls)
    return best


def layer(size: tuple[int, int, int], dtype: str, members: int, batch: int, least: float) -> Any:
    """The rows of one layer."""
    side, channels, out = size
    r = np.random.default_rng(0)
    x = jnp.asarray(r.normal(size=(members, batch, side, side, channels)), dtype)
    w = jnp.asarray(r.normal(size=(members, 3, 3, channels, out)) / np.sqrt(9 * channels), dtype)
    cells = {"layer": f"{side}x{side}, {channels} to {out}", "batch": batch}
    wanted: Any = None
    seconds: dict[str, float] = {}
    for name, way in WAYS.items():
        try:
            run = training(way)
            found = jax.tree.map(lambda a: np.asarray(a, np.float32), run(x, w))
            wanted = found if wanted is None else wanted
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
            error = max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)
            if not error < TOLERANCE[dtype]:
                yield cells | {"way": name, "wrong": f"{error:.2g} from the unrolled loop"}
                continue
            seconds[name] = clock(lambda run=run: run(x, w), least)
        except jax.errors.JaxRuntimeError as error:  # no memory for the patches, say
            yield cells | {"way": name, "wrong": str(error).splitlines()[0][:200]}
    operations = 3 * 2 * 9 * channels * out * side * side * batch * members
    for name, took in seconds.items():
        row = cells | {"way": name, "ms": 1e3 * took, "TFLOP/s": operations / took / 1e12}
        if "grouped" in seconds:
            row["over grouped"] = took / seconds["grouped"]
        yield row


def main() -> None:
    dtype, members, file = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    smallest = "--smallest" in sys.argv
    sizes = [(4, 8, 16), (2, 16, 16)] if smallest else list(dict.fromkeys(LAYERS))
    with open(file, "a") as lines:
        for size in sizes:
            for row in layer(size, dtype, members, *((8, 0.01) if smallest else (128, 0.2))):
                print(json.dumps(row), file=lines, flush=True)


if __name__ == "__main__":
    main()
