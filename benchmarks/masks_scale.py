"""Masks of many leaves: compilation, layers each by itself, members: ratios of one run.

    python benchmarks/masks_scale.py --save

    leaves      CPU seconds to compile `masks.prune` for 300 leaves of two shapes over those for 16,
                global and by layer
    layers      the kernels of ResNet-50, each ranked by itself: `numpy.partition` leaf by leaf with
                the same rule for ties, over `masks.prune(..., scope="layer")`, as it is called and
                inside `jit`; from weights (both take their own absolute values) and from scores
    members     8 members of 1.2 million weights each: `lax.map` of `masks.prune` over its `vmap`

Masks are compared in every bit before a clock is read; contenders take turns and the fastest round
of each counts, in CPU seconds on a CPU and wall seconds elsewhere.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import save, table, timed
from jax import lax
from masks import tree

from prunejax import masks

CLOCK = "cpu" if jax.default_backend() == "cpu" else "wall"


def compiled(leaves: int, scope: str) -> float:
    """Seconds that compilation takes."""
    shapes = [(3, 3, 64, 64), (1, 1, 64, 256)]
    scores = {f"{i:03}": jax.ShapeDtypeStruct(shapes[i % 2], "float32") for i in range(leaves)}
    keep: Any = jax.ShapeDtypeStruct((), "int32")
    keep = keep if scope == "global" else dict.fromkeys(scores, keep)
    fn = jax.jit(lambda s, k: masks.prune(jax.tree.map(jnp.abs, s), k, scope=scope))
    lowered = fn.lower(scores, keep)
    return getattr(timed(lambda: lowered.compile() and 0, 1), CLOCK)


def fastest(runs: dict[str, Any], rounds: int) -> dict[str, dict[str, float]]:
    """Per clock and contender the seconds of its fastest round."""
    seconds = {clock: dict.fromkeys(runs, float("inf")) for clock in dict.fromkeys((CLOCK, "wall"))}
    for _ in range(rounds):
        for name, run in runs.items():
            taken = timed(run, 1)
            for clock, least in seconds.items():
                least[name] = min(least[name], getattr(taken, clock))
    return seconds


def alone(scores: np.ndarray, keep: int) -> np.ndarray:
    """The mask of one leaf by `numpy.partition`, with the same rule for ties."""
    flat = scores.ravel()
    cut = np.partition(flat, flat.size - keep)[flat.size - keep]
    live = flat > cut
    live[np.flatnonzero(flat == cut)[: keep - int(np.count_nonzero(live))]] = True
    return live.reshape(scores.shape)


def layers(rounds: int, sparsity: float, jit: bool, scored: bool) -> dict[str, dict[str, float]]:
    host = tree("normal")
    if scored:
        host = {name: np.abs(x) for name, x in host.items()}
    device = jax.tree.map(jnp.asarray, host)
    keep = {name: masks.keep_count({name: x}, sparsity) for name, x in host.items()}
    score = (lambda x: x) if scored else jnp.abs
    fn = lambda s, k: masks.prune(jax.tree.map(score, s), k, scope="layer")  # noqa: E731
    fn, counts = (jax.jit(fn), jax.tree.map(jnp.int32, keep)) if jit else (fn, keep)

    def partition() -> list[np.ndarray]:
        return [alone(x if scored else np.abs(x), keep[name]) for name, x in host.items()]

    ours = fn(device, counts)
    for a, b in zip(ours.values(), partition(), strict=True):
        assert (np.asarray(a) == b).all(), "numpy disagrees"
    return fastest({"ours": lambda: fn(device, counts), "other": partition}, rounds)


def members(rounds: int, count: int = 8) -> dict[str, dict[str, float]]:
    r = np.random.default_rng(0)
    shapes = [(3, 3, 128, 256), (1000, 300), (3, 3, 64, 128), (512, 1024)]
    scores = [jnp.asarray(r.standard_normal((count, *s), np.float32)) for s in shapes]
    ks = jnp.asarray(r.integers(0, 1_000_000, count), jnp.int32)
    mapped = jax.jit(lambda s, k: lax.map(lambda a: masks.prune(*a), (s, k)))
    vectorized = jax.jit(jax.vmap(masks.prune))
    for a, b in zip(mapped(scores, ks), vectorized(scores, ks), strict=True):
        assert (a == b).all(), "vmap and lax.map differ"
    runs = {"ours": lambda: vectorized(scores, ks), "other": lambda: mapped(scores, ks)}
    return fastest(runs, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/DATE-masks-scale.json")
    options = parser.parse_args()
    rows = []
    for scope in ("global", "layer"):
        few, many = compiled(16, scope), compiled(300, scope)
        what = f"compilation, {scope}: 300 leaves over 16"
        row = {"what": what, "ratio": many / few, "ours, s": many, "other, s": few}
        rows.append(row | {"by wall": ""})
    found = {
        f"layers at sparsity {s}, from {'scores' if scored else 'weights'}"
        f"{', jit' if jit else ''}": layers(options.rounds, s, jit, scored)
        for s in (0.5, 0.9)
        for jit in (False, True)
        for scored in (False, True)
    }
    found["members, vmap"] = members(options.rounds)
    for what, seconds in found.items():
        ours, other = seconds[CLOCK]["ours"], seconds[CLOCK]["other"]
        wall = seconds["wall"]["other"] / seconds["wall"]["ours"]
        row = {"what": what, "ratio": other / ours, "ours, s": ours, "other, s": other}
        rows.append(row | {"by wall": wall})
    print(table(rows))
    if options.save:
        print(f"saved: {save('masks-scale', rows)}")


if __name__ == "__main__":
    main()
