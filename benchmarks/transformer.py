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
import os
import sys
import tempfile
import time
from typing import Any

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prunejax import losses, models, rng, trees
from prunejax.models.vit import ViT


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


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per contender."""
    module, ours = gradient(ViT, options)
    params = models.init(module, rng.at(0, "init"), (32, 32, 3))["params"]
    generator = np.random.default_rng(0)
    x = generator.normal(size=(options.batch, 32, 32, 3)).astype(np.float32)
    y = generator.integers(0, 10, options.batch)
    batch = jnp.asarray(x), jnp.asarray(y)
    begun = time.perf_counter()
    value, slopes = jax.block_until_ready(ours(params, *batch))
    first = {"ours": time.perf_counter() - begun}
    norm = float(np.sqrt(sum(np.sum(np.square(np.float64(g))) for g in jax.tree.leaves(slopes))))
    taken = {"ours": common.Seconds(np.inf, np.inf)}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "variables.npz")
        np.savez(path, x=x, y=y, **dict(trees.leaves_with_paths(params)))
        sizes = [str(n) for n in (options.depth, options.heads, options.threads)]
        worker = common.Worker(options.torch_python, "transformer_torch.py", path, *sizes)
        print("torch", worker.about, flush=True)
        for way in ("eager", "compiled"):
            begun = time.perf_counter()
            answer = worker(way=way, repeats=1)
            first[way], taken[way] = time.perf_counter() - begun, taken["ours"]
            for what, own in (("loss", float(value)), ("norm", norm)):
                if not abs(answer[what] - own) < 1e-4 * abs(own):
                    raise SystemExit(f"{way}: {what} {answer[what]}, ours {own}")
        for _ in range(options.rounds):
            for label in taken:
                if label == "ours":
                    new = common.timed(lambda: ours(params, *batch), 5)
                else:
                    answer = worker(way=label, repeats=5)
                    new = common.Seconds(answer["wall"], answer["cpu"])
                old = taken[label]
                taken[label] = common.Seconds(min(old.wall, new.wall), min(old.cpu, new.cpu))
        worker.close()
    if options.parts:
        for label, kind in KINDS.items():
            if label != "ours":
                other = gradient(kind, options)[1]
                jax.block_until_ready(other(params, *batch))
                taken[label] = common.timed(lambda f=other: f(params, *batch), 5 * options.rounds)
        ten = steps(ours, 10)
        jax.block_until_ready(ten(params, *batch))
        whole = common.timed(lambda: ten(params, *batch), options.rounds)
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
    options = parser.parse_args()
    rows = compare(options)
    print(common.table(rows))
    if options.save:
        print(f"written to {common.save('transformer', rows, options=vars(options))}")


if __name__ == "__main__":
    main()
