"""Tr(C) of a network: ours against one backward pass per example (PyTorch and JAX).

    python benchmarks/gradient_moment.py --torch-python=/path/to/venv/bin/python
    python benchmarks/gradient_moment.py --models=resnet20 --examples=64 --torch-python=  # none

Contenders, on the same weights, BatchNorm statistics (eval mode) and examples:

    ours        `curvature.gradient_second_moment`, also with mean=True, centered=True
    vmap(grad)  per-example gradients of a chunk stored, squared, summed
    jax 1       a compiled gradient of one example, in a Python loop
    torch 1     zero_grad, forward, backward, sum of squares for each example: the paper's code
    gradient    for scale: the ordinary gradient of the mean loss over all examples, in chunks

The squared norms must agree to 1e-4 before any clock is read. The contenders run in turns; the
fastest round of each counts. Compilation (the first run) is reported apart.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import curvature, losses, models, rng, trees
from prunejax.curvature import base

HERE = Path(__file__).parent


def variables_of(name: str) -> tuple[Any, Any, Any]:
    """A module, its parameters and BatchNorm statistics that are not the trivial ones."""
    module = models.create(name, num_classes=10)
    variables = dict(models.init(module, rng.at(0, "init"), (32, 32, 3)))
    params = variables.pop("params")
    generator = np.random.default_rng(1)

    def statistic(path: str, leaf: jax.Array) -> jax.Array:
        low, high = (0.5, 1.5) if path.endswith("var") else (-0.2, 0.2)
        return jnp.asarray(generator.uniform(low, high, leaf.shape), leaf.dtype)

    variables["batch_stats"] = trees.map_with_path(statistic, variables["batch_stats"])
    return module, params, variables


def contenders(
    name: str, examples: int, chunk: int, path: str
) -> dict[str, Callable[[], np.ndarray | None]]:
    """Name -> a run over all examples that returns their squared gradient norms."""
    module, params, variables = variables_of(name)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(examples, 32, 32, 3)).astype(np.float32)
    y = generator.integers(0, 10, examples)
    batch = (jnp.asarray(x), jnp.asarray(y))
    arrays = {
        p: np.asarray(leaf)
        for tree in (params, variables["batch_stats"])
        for p, leaf in trees.leaves_with_paths(tree)
    }
    np.savez(path, x=x, y=y, **arrays)

    def per_example(params: Any, batch: Any) -> jax.Array:
        logits = module.apply({"params": params, **variables}, batch[0], train=False)
        return losses.cross_entropy(logits, batch[1])

    def single(params: Any, example: Any) -> Any:
        return jax.grad(
            lambda p: per_example(p, jax.tree.map(lambda leaf: leaf[None], example))[0]
        )(params)

    stored = jax.jit(jax.vmap(lambda p, e: base.squared_norm(single(p, e)), in_axes=(None, 0)))
    one = jax.jit(lambda p, e: base.squared_norm(single(p, e)))
    mean = jax.jit(jax.grad(lambda p, b: per_example(p, b).mean()))
    pieces = [base.rows(batch, i, i + chunk) for i in range(0, examples, chunk)]
    singles = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(examples)]

    def moment(**options: Any) -> np.ndarray:
        return curvature.gradient_second_moment(
            per_example, params, batch, chunk=chunk, **options
        ).squared_norms

    return {
        "ours": moment,
        "ours, mean": lambda: moment(mean=True),
        "ours, centered": lambda: moment(centered=True),
        "vmap(grad)": lambda: np.concatenate([np.asarray(stored(params, p)) for p in pieces]),
        "jax 1": lambda: np.array([float(one(params, e)) for e in singles]),
        "gradient": lambda: jax.block_until_ready([mean(params, p) for p in pieces]) and None,
    }


class Torch:
    """The PyTorch process; costs no processor time between runs."""

    def __init__(self, python: str, name: str, path: str, threads: int) -> None:
        worker = [python, str(HERE / "gradient_moment_torch.py"), name, path, str(threads)]
        self.process = subprocess.Popen(
            worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the PyTorch process ended; --torch-python needs torch and numpy")
        return json.loads(line)

    def run(self) -> dict[str, Any]:
        """One round over all examples."""
        assert self.process.stdin
        print("run", file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def timed(run: Callable[[], np.ndarray | None]) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    norms = run()
    return {
        "norms": norms,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
    }


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "variables.npz")
        found = contenders(name, options.examples, options.chunk, path)
        runs = {label: (lambda run=run: timed(run)) for label, run in found.items()}
        worker = None
        if options.torch_python:
            worker = Torch(options.torch_python, name, path, options.threads)
            runs["torch 1"] = worker.run
        if options.skip:
            runs = {label: run for label, run in runs.items() if label not in options.skip}
        first = {label: run() for label, run in runs.items()}
        reference = np.asarray(first["ours"]["norms"])
        errors = {
            label: float(np.max(np.abs(np.asarray(r["norms"]) / reference - 1)))
            for label, r in first.items()
            if r["norms"] is not None and label != "ours"
        }
        for label, error in errors.items():
            if not error < 1e-4:
                raise SystemExit(f"{name}: norms of {label!r} differ from ours by {error:.1e}")
        taken: dict[str, dict[str, float]] = {}
        for _ in range(options.rounds):
            for label, run in runs.items():
                new, old = run(), taken.setdefault(label, {"wall": np.inf, "cpu": np.inf})
                for clock in old:
                    old[clock] = min(old[clock], new[clock])
        if worker:
            worker.close()
    return {
        "model": name,
        "examples": options.examples,
        "chunk": options.chunk,
        "value": float(reference.mean()),
        "largest_relative_difference": errors,
        "seconds": taken,
        "first_run_wall": {label: r["wall"] for label, r in first.items()},
        "torch": worker.about if worker else None,
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['model']}, {result['examples']} examples, chunks of {result['chunk']}, "
        f"Tr(C) = {result['value']:.6g}",
        f"{'':<16}{'wall s':>9}{'cpu s':>9}{'x wall':>8}{'x cpu':>8}{'first s':>9}{'differs':>9}",
    ]
    ours = result["seconds"]["ours"]
    for label, t in result["seconds"].items():
        error = result["largest_relative_difference"].get(label)
        lines.append(
            f"{label:<16}{t['wall']:>9.2f}{t['cpu']:>9.2f}{t['wall'] / ours['wall']:>8.2f}"
            f"{t['cpu'] / ours['cpu']:>8.2f}{result['first_run_wall'][label]:>9.1f}"
            f"{'' if error is None else f'{error:.0e}':>9}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="vgg11_bn,resnet20")
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--skip", type=lambda s: s.split(":"), default=[], help="with colons")
    parser.add_argument(
        "--torch-python", default=sys.executable, metavar="PYTHON", help="empty for no PyTorch"
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")
    options = parser.parse_args()
    results = []
    for name in options.models.split(","):
        results.append(compare(name, options))
        print(table(results[-1]), flush=True)
    if options.save:
        today = datetime.date.today().isoformat()
        record = {
            "date": today,
            "device": jax.devices()[0].device_kind,
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "versions": {"python": platform.python_version(), "jax": jax.__version__},
            "results": results,
        }
        target = HERE / "results" / f"gradient_moment_{today}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(record, indent=2) + "\n")
        print(f"written to {target}")


if __name__ == "__main__":
    main()
