"""Global masks of a ResNet-50-shaped tree (25.5 million weights): ours against the usual ways.

    python benchmarks/masks.py --torch-python=/path/to/venv/bin/python --save
    python benchmarks/masks.py --sparsities=0.9 --values=normal --no-sort   # the quick look

Contenders, all from the same float32 leaves to one boolean mask per leaf:

    ours       `masks.prune(|w|, keep)`, as it is called outside of programs
    program    jit of the same, the count traced: one program for every sparsity
    numpy      `np.partition` of the concatenated |w|, then masks with the same rule for ties
    jnp.sort   `jnp.sort` of the concatenated |w| inside jit, then masks (ties by a running count)
    torch      `torch.nn.utils.prune.global_unstructured` with L1Unstructured on fresh modules
    kthvalue   `torch.kthvalue` of the concatenated |w|, then `>` masks

Masks are compared before any clock is read: numpy and jnp.sort must agree with ours in every bit,
ties included; torch leaves open which ties it keeps, so there only counts, and masks where no two
weights tie at the cut, must agree. Contenders take turns; the fastest round of each counts, in CPU
seconds of all threads on a CPU (other programs disturb them less) and wall seconds elsewhere.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Worker, save, table, timed, with_torch

from prunejax import masks

VALUES = {
    "normal": lambda x, r: x,
    "30% zeros": lambda x, r: np.where(r.random(x.shape) < 0.3, 0, x).astype(np.float32),
    "256 values": lambda x, r: (np.round(x * 1024) / 1024).astype(np.float32),
}


def shapes() -> list[tuple[int, ...]]:
    """Kernels of ResNet-50 for 1000 classes, 25.5 million weights."""
    found: list[tuple[int, ...]] = [(7, 7, 3, 64)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            found += [(1, 1, channels, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            if block == 0:
                found.append((1, 1, channels, 4 * width))
            channels = 4 * width
    return [*found, (2048, 1000)]


def tree(values: str) -> dict[str, np.ndarray]:
    r = np.random.default_rng(0)
    leaves = {}
    for i, shape in enumerate(shapes()):
        x = r.standard_normal(shape, np.float32) * np.float32(r.uniform(0.01, 0.2))
        leaves[f"leaf{i:02}"] = VALUES[values](x, r)
    return leaves


def by_partition(leaves: dict[str, np.ndarray], keep: int) -> list[np.ndarray]:
    flat = np.abs(np.concatenate([x.ravel() for x in leaves.values()]))
    cut = np.partition(flat, flat.size - keep)[flat.size - keep]
    live = flat > cut
    live[np.flatnonzero(flat == cut)[: keep - int(np.count_nonzero(live))]] = True
    ends = np.cumsum([x.size for x in leaves.values()])[:-1]
    parts = zip(np.split(live, ends), leaves.values(), strict=True)
    return [part.reshape(x.shape) for part, x in parts]


@jax.jit
def by_sort(leaves: dict[str, jax.Array], keep: jax.Array) -> list[jax.Array]:
    flat = jnp.abs(jnp.concatenate([x.ravel() for x in leaves.values()]))
    cut = jnp.sort(flat)[flat.size - keep]
    live, ties = flat > cut, flat == cut
    live |= ties & (jnp.cumsum(ties) <= keep - jnp.sum(live))
    ends = np.cumsum([x.size for x in leaves.values()])[:-1]
    parts = zip(jnp.split(live, ends), leaves.values(), strict=True)
    return [part.reshape(x.shape) for part, x in parts]


def ours(leaves: dict[str, jax.Array], keep: Any) -> dict[str, jax.Array]:
    return masks.prune(jax.tree.map(jnp.abs, leaves), keep)


program = jax.jit(ours)


def flat(found: Any) -> np.ndarray:
    return np.concatenate([np.asarray(m).ravel() for m in jax.tree.leaves(found)])


def compare(values: str, sparsities: list[float], options: Any, folder: str) -> list[dict]:
    host = tree(values)
    device = jax.tree.map(jnp.asarray, host)
    torch = None
    if options.torch_python:
        file = Path(folder) / "leaves.npz"
        np.savez(file, **host)  # type: ignore[arg-type]
        torch = Worker(options.torch_python, "masks_torch.py", str(file))
    clock = "cpu" if jax.default_backend() == "cpu" else "wall"
    rows = []
    for sparsity in sparsities:
        keep = masks.keep_count(host, sparsity)
        count = jnp.int32(keep)
        runs: dict[str, Any] = {
            "ours": lambda n=keep: ours(device, n),
            "program": lambda n=count: program(device, n),
            "numpy": lambda n=keep: by_partition(host, n),
        }
        reference = flat(runs["ours"]())
        assert np.count_nonzero(reference) == keep
        for name in ("program", "numpy"):
            assert (reference == flat(runs[name]())).all(), f"{name} disagrees"
        if not options.no_sort:
            sort = jax.block_until_ready(by_sort(device, count))
            assert (reference == flat(sort)).all(), "jnp.sort disagrees"
        seconds = dict.fromkeys(runs, float("inf"))
        ways = ("torch", "kthvalue") if torch else ()
        seconds |= dict.fromkeys(ways, float("inf"))
        for _ in range(options.rounds):
            for name, run in runs.items():
                seconds[name] = min(seconds[name], getattr(timed(run, 1), clock))
            for name in ways:
                assert torch is not None
                answer = torch(how=name, keep=keep)
                seconds[name] = min(seconds[name], answer[clock])
                if name == "torch":
                    assert answer["kept"] == keep, "torch keeps another number"
                if values == "normal" and answer["kept"] == keep and not answer["tied"]:
                    assert answer["sum"] == int(np.flatnonzero(reference).sum()), "torch differs"
        if not options.no_sort:
            seconds["jnp.sort"] = getattr(timed(lambda n=count: by_sort(device, n), 1), clock)
        row = {"values": values, "sparsity": sparsity, "ours, s": seconds["ours"]}
        rows.append(row | {f"{n} / ours": t / seconds["ours"] for n, t in seconds.items()})
        del rows[-1]["ours / ours"]
    if torch:
        torch.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", default=",".join(VALUES), help="normal,30%% zeros,256 values")
    parser.add_argument("--sparsities", default="0.1,0.5,0.9,0.99")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-sort", action="store_true", help="leave jnp.sort out (10 s each)")
    parser.add_argument("--torch-python", default="", help="an interpreter that has torch")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/DATE-masks.json"
    )
    options = parser.parse_args()
    options.torch_python = with_torch(options.torch_python)
    sparsities = [float(x) for x in options.sparsities.split(",")]
    device = jax.tree.map(jnp.asarray, tree("normal"))
    compile_seconds = timed(lambda: program.lower(device, jnp.int32(1)).compile() and 0, 1)
    print(f"program: compiled in {compile_seconds.wall:.1f} s ({compile_seconds.cpu:.1f} CPU s)")
    rows = []
    for values in options.values.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(values, sparsities, options, folder)
    print(table(rows))
    if options.save:
        print(f"saved: {save('masks', rows, compile_seconds=compile_seconds._asdict())}")


if __name__ == "__main__":
    main()
