"""Tr(C) of a network: ours against one backward pass per example (PyTorch and JAX).

    python benchmarks/gradient_moment.py --torch-python=/path/to/venv/bin/python
    python benchmarks/gradient_moment.py --models=resnet20 --examples=64 --torch-python=  # none

Contenders, on the same weights, BatchNorm statistics (eval mode, of the data) and examples:

    ours        `curvature.gradient_second_moment`, also with mean=True, centered=True, and with
                devices=jax.devices(), one per core, as studies have them
    vmap(grad)  per-example gradients of a chunk stored, squared, summed
    jax 1       a compiled gradient of one example, in a Python loop
    torch 1     zero_grad, forward, backward, sum of squares for each example: the paper's code
    torch.func  vmap(grad) of `torch.func`, chunk by chunk: how one writes it in PyTorch today
    gradient    for scale: the ordinary gradient of the mean loss over all examples, in chunks

Chunks are of `--chunk` examples, ours of the size that the library takes where none is given.

Before a clock is read, the squared norms of 16 examples in float64 by one backward pass each (in
JAX and in PyTorch) must agree with ours to 1e-4. What the timed ones lose in float32 stands in the
table: `differs` is the largest difference from ours, of the same round, over ours. Each contender
is compiled on the first chunk (`first s`); they run in turns, the fastest round of each counts.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np

from prunejax import curvature, losses, models, trees
from prunejax.curvature import vectors

Norms = Callable[[Any], np.ndarray | None]


def contenders(
    name: str, params: Any, statistics: Any, chunk: int, dtype: str = "float32"
) -> dict[str, Norms]:
    """Name -> a function from a batch to the squared gradient norms of its examples."""
    module = models.create(name, num_classes=10, dtype=dtype)

    def per_example(params: Any, batch: Any) -> jax.Array:
        variables = {"params": params, "batch_stats": statistics}
        return losses.cross_entropy(module.apply(variables, batch[0], train=False), batch[1])

    def single(params: Any, example: Any) -> Any:
        return jax.grad(
            lambda p: per_example(p, jax.tree.map(lambda leaf: leaf[None], example))[0]
        )(params)

    stored = jax.jit(jax.vmap(lambda p, e: vectors.squared_norm(single(p, e)), in_axes=(None, 0)))
    one = jax.jit(lambda p, e: vectors.squared_norm(single(p, e)))
    mean = jax.jit(jax.grad(lambda p, b: per_example(p, b).mean()))

    def pieces(batch: Any) -> list[Any]:
        return [vectors.index(batch, slice(i, i + chunk)) for i in range(0, len(batch[1]), chunk)]

    def ours(**options: Any) -> Norms:
        return lambda batch: (
            curvature.gradient_second_moment(per_example, params, batch, **options).squared_norms
        )

    def singly(batch: Any) -> np.ndarray:
        return np.array([float(one(params, e)) for e in zip(*batch, strict=True)])

    return {
        "ours": ours(),
        "ours, devices": ours(devices=jax.devices()),
        "ours, mean": ours(mean=True),
        "ours, centered": ours(centered=True),
        "vmap(grad)": lambda b: np.concatenate([np.asarray(stored(params, p)) for p in pieces(b)]),
        "jax 1": singly,
        "gradient": lambda b: jax.block_until_ready([mean(params, p) for p in pieces(b)]) and None,
    }


def check_exactly(
    name: str, params: Any, statistics: Any, batch: Any, worker: common.Worker | None
) -> None:
    """Ends the program unless norms by single backward passes in float64 are ours."""
    given = jax.device_get((params, statistics))
    with jax.enable_x64(True):
        wide, fixed = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), given)
        exact = jnp.asarray(batch[0], jnp.float64), batch[1]
        runs = contenders(name, wide, fixed, len(batch[1]), "float64")
        wanted = np.asarray(runs["ours"](exact))
        found = {"jax 1": runs["jax 1"](exact)}
    if worker:
        asked = {"double": True, "examples": len(batch[1])}
        found["torch 1"] = np.asarray(worker(**asked)["norms"])
        found["torch.func"] = np.asarray(worker(**asked, chunk=len(batch[1]))["norms"])
    for label, norms in found.items():
        error = float(np.max(np.abs(norms / wanted - 1)))
        print(f"{name}: {label} in float64 differs from ours by {error:.1e}", flush=True)
        if not error < 1e-4:
            raise SystemExit(f"{name}: the norms of {label!r} are not ours")


def timed(run: Callable[[], np.ndarray | None]) -> dict[str, Any]:
    """Norms, wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    norms = run()
    taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return {"norms": norms, **taken}


def compare(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of every contender on all examples."""
    _, params, statistics, batch = common.network(name, options.examples)
    chunk = options.chunk
    found = contenders(name, params, statistics, chunk)
    runs = {
        k: (lambda n, f=f: timed(lambda: f(vectors.index(batch, slice(n)))))
        for k, f in found.items()
    }
    worker = None
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "variables.npz")
        arrays = dict(trees.leaves_with_paths(params) + trees.leaves_with_paths(statistics))
        np.savez(path, x=batch[0], y=batch[1], **arrays)
        if options.torch_python:
            script = "gradient_moment_torch.py"
            worker = common.Worker(options.torch_python, script, name, path, str(options.threads))
            print("torch", worker.about, flush=True)
            runs["torch 1"] = lambda n: worker(examples=n)
            runs["torch.func"] = lambda n: worker(examples=n, chunk=chunk)
        check_exactly(name, params, statistics, vectors.index(batch, slice(16)), worker)
        runs = {label: run for label, run in runs.items() if label not in options.skip}
        first = {label: run(chunk)["wall"] for label, run in runs.items()}
        taken = dict.fromkeys(runs, common.Seconds(np.inf, np.inf))
        differs: dict[str, float] = {}
        for _ in range(options.rounds):
            answers = {label: run(options.examples) for label, run in runs.items()}
            reference = np.asarray(answers["ours"]["norms"])
            for label, new in answers.items():
                old = taken[label]
                taken[label] = common.Seconds(min(old.wall, new["wall"]), min(old.cpu, new["cpu"]))
                if new["norms"] is not None:
                    differs[label] = float(np.max(np.abs(new["norms"] / reference - 1)))
        if worker:
            worker.close()
    print(f"{name}: Tr(C) = {reference.mean():.6g}")
    return [
        {
            "model": name,
            "contender": label,
            "examples": options.examples,
            "chunk": chunk,
            "wall s": seconds.wall,
            "cpu s": seconds.cpu,
            "x wall": seconds.wall / taken["ours"].wall,
            "x cpu": seconds.cpu / taken["ours"].cpu,
            "first s": first[label],
            "differs": differs.get(label),
        }
        for label, seconds in taken.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="vgg11_bn,resnet20")
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of PyTorch, and devices of JAX"
    )
    parser.add_argument("--skip", type=lambda s: s.split(":"), default=[], help="with colons")
    parser.add_argument(
        "--torch-python", default=sys.executable, metavar="PYTHON", help="empty for no PyTorch"
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")
    options = parser.parse_args()
    if jax.config.jax_platforms in (None, "cpu"):
        jax.config.update("jax_num_cpu_devices", options.threads)
    jax.config.update("jax_default_matmul_precision", "highest")  # no TF32 on our side either
    rows: list[dict[str, Any]] = []
    for name in options.models.split(","):
        found = compare(name, options)
        rows += found
        print(common.table(found), flush=True)
    if options.save:
        names = "-".join(options.models.split(","))
        print(f"written to {common.save(f'gradient-moment-{names}', rows)}")


if __name__ == "__main__":
    main()
