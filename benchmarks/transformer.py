"""The gradient of a small vision transformer beside PyTorch's: same weights, same batch.

    python benchmarks/transformer.py --torch-python=/path/to/venv/bin/python [--save]

A ViT of `--depth` blocks (`--heads` heads of `--head-units`, MLP of four times the width) on 32x32
images in patches of 4, cross-entropy, float32. PyTorch runs eager and compiled, with its fused
attention; ours is `jax.grad` under `jax.jit`. Loss and gradient norm must agree to 1e-4 before a
clock is read. Contenders run in turns, the fastest call of each counts; `first s` is the first one,
with compilation. `--parts` prints, besides, what each kind of operation costs in our gradient when
it is replaced by something that costs nothing (attention by its values, GELU by ReLU, LayerNorm by
its input), what the products alone cost, and a step of SGD of ten in one program, which is how
studies take them: such a program takes its memory from the system once.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prunejax import losses, models, rng, trees
from prunejax.models.vit import ViT
from prunejax.system import working_memory

SIZES = ("depth", "heads", "head-units", "batch")


class ValuesOnly(ViT):
    """Attention without attending: what queries, keys and the softmax cost is left out."""

    def _attention(self, x: jax.Array, block: str, heads: int) -> jax.Array:
        inside = heads * self.scaled(self.head_units)
        x = self._dense(x, 3 * inside, f"{block}_attention_in")
        return self._dense(x[..., 2 * inside :], x.shape[-1] // 3, f"{block}_attention_out")


class Rectified(ViT):
    """ReLU in place of GELU."""

    def _mlp(self, x: jax.Array, train: bool, block: str, hidden: int) -> jax.Array:
        units = x.shape[-1]
        return self._dense(nn.relu(self._dense(x, hidden, f"{block}_dense1")), units,
                           f"{block}_dense2")  # fmt: skip


class Unnormalized(ViT):
    """LayerNorm's scale and bias alone."""

    def _norm(self, x: jax.Array, name: str) -> jax.Array:
        return nn.LayerNorm(epsilon=1e-6, name=name)(x[:1, :1]) * 0 + x


class Products(ValuesOnly, Rectified, Unnormalized):
    """The matrix products alone."""


KINDS = {
    "ours": ViT,
    "no attention": ValuesOnly,
    "relu": Rectified,
    "no norm": Unnormalized,
    "products alone": Products,
}


def gradient(kind: Any, options: argparse.Namespace) -> Any:
    """`(params, x, y) -> (loss, gradient)`, compiled, of one kind of network."""
    module = kind(num_classes=10, depth=options.depth, heads=options.heads, patch=4,
                  head_units=options.head_units,
                  mlp_units=4 * options.heads * options.head_units)  # fmt: skip

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return losses.cross_entropy(module.apply({"params": params}, x, train=False), y).mean()

    return module, jax.jit(jax.value_and_grad(loss))


def steps(graded: Any, count: int) -> Any:
    """`(params, x, y) -> params` after so many steps of SGD on one batch, compiled."""

    def taken(params: Any, x: jax.Array, y: jax.Array) -> Any:
        def step(_: Any, params: Any) -> Any:
            return jax.tree.map(lambda p, g: p - 1e-3 * g, params, graded(params, x, y)[1])

        return jax.lax.fori_loop(0, count, step, params)

    return jax.jit(taken)


class Ours:
    """Our gradient, of weights and a batch that are the same in every process."""

    def __init__(self, options: argparse.Namespace) -> None:
        module, self.graded = gradient(ViT, options)
        self.params = models.init(module, rng.at(0, "init"), (32, 32, 3))["params"]
        generator = np.random.default_rng(0)
        self.x = generator.normal(size=(options.batch, 32, 32, 3)).astype(np.float32)
        self.y = generator.integers(0, 10, options.batch)
        self.batch = jnp.asarray(self.x), jnp.asarray(self.y)

    def __call__(self, repeats: int) -> dict[str, float]:
        """Loss, norm of the gradient, and seconds of the fastest of so many calls."""
        found: list[Any] = []

        def call() -> Any:
            found[:] = self.graded(self.params, *self.batch)
            return found

        taken = common.timed(call, repeats)
        norm = np.sqrt(sum(np.sum(np.square(np.float64(g))) for g in jax.tree.leaves(found[1])))
        return {"loss": float(found[0]), "norm": float(norm), "wall": taken.wall, "cpu": taken.cpu}


def serve(options: argparse.Namespace) -> None:
    """Answers lines of JSON, {"repeats": n}, as `transformer_torch.py` does."""
    ours = Ours(options)
    print(json.dumps({"devices": jax.device_count()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(ours(json.loads(line)["repeats"])), flush=True)


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per contender."""
    ours = Ours(options)
    sizes = [str(n) for n in (options.depth, options.heads, options.threads)]
    own = [f"--{k}={getattr(options, k.replace('-', '_'))}" for k in SIZES]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "variables.npz")
        np.savez(path, x=ours.x, y=ours.y, **dict(trees.leaves_with_paths(ours.params)))
        other = common.Worker(sys.executable, "transformer.py", "--serve", *own)
        worker = common.Worker(options.torch_python, "transformer_torch.py", path, *sizes)
        print("torch", worker.about, flush=True)
        ways: dict[str, Callable[[int], dict[str, Any]]] = {
            "ours": ours,
            "ours, memory not kept": lambda repeats: other(repeats=repeats),
            "eager": lambda repeats: worker(way="eager", repeats=repeats),
            "compiled": lambda repeats: worker(way="compiled", repeats=repeats),
        }
        first, found = {}, {}
        for label, way in ways.items():
            begun = time.perf_counter()
            found[label] = way(1)
            first[label] = time.perf_counter() - begun
            apart = 1e-4 if label in ("eager", "compiled") else 0.0
            for what in ("loss", "norm"):
                mine, theirs = found["ours"][what], found[label][what]
                if not abs(theirs - mine) <= apart * abs(mine):
                    raise SystemExit(f"{label}: {what} {theirs}, ours {mine}")
        taken = dict.fromkeys(ways, common.Seconds(np.inf, np.inf))
        for _ in range(options.rounds):
            for label, way in ways.items():
                new, old = way(5), taken[label]
                taken[label] = common.Seconds(min(old.wall, new["wall"]), min(old.cpu, new["cpu"]))
        worker.close()
        other.close()
    if options.parts:
        arguments = ours.params, *ours.batch
        for label, kind in KINDS.items():
            if label != "ours":
                part = gradient(kind, options)[1]
                jax.block_until_ready(part(*arguments))
                taken[label] = common.timed(lambda f=part: f(*arguments), 5 * options.rounds)
        ten = steps(ours.graded, 10)
        jax.block_until_ready(ten(*arguments))
        whole = common.timed(lambda: ten(*arguments), options.rounds)
        taken["ours, a step of ten"] = common.Seconds(whole.wall / 10, whole.cpu / 10)
    return [
        {
            "contender": label,
            "batch": options.batch,
            "wall s": seconds.wall,
            "cpu s": seconds.cpu,
            "speed of ours, wall": seconds.wall / taken["ours"].wall,
            "speed of ours, cpu": seconds.cpu / taken["ours"].cpu,
            "first s": first.get(label),
        }
        for label, seconds in taken.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-units", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", action="store_true", help="what each kind of operation costs")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--torch-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options)
    kept = working_memory.keep()
    print(f"memory kept: {kept}", flush=True)
    rows = compare(options)
    print(common.table(rows))
    if options.save:
        file = common.save("transformer", rows, memory_kept=kept, options=vars(options))
        print(f"written to {file}")


if __name__ == "__main__":
    main()
