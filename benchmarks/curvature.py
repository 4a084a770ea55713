"""Curvature products, traces and eigenpairs against matfree, PyHessian, curvlinops and the paper.

    python benchmarks/curvature.py --torch-python=/path/to/venv/bin/python
    python benchmarks/curvature.py --parts=eigen
    python benchmarks/curvature.py --models=resnet20 --examples=256 --probes=4 --rounds=1

Parts:

    costs  one gradient, Hessian-vector product and quadratic form of one batch: seconds and
           floating-point operations (of XLA's cost analysis, so independent of the load)
    trace  v'Hv of given random signs over all examples, cross-entropy, eval-mode BatchNorm:
               ours        `Hessian.quadratic_forms` (forward only, one reverse pass shared)
               ours, drawn `estimate_trace`, which also draws its own probes
               matfree     its Monte-Carlo trace on forward-over-reverse products, compiled, of the
                           same networks; as many probes at once as turns out fastest
               pyhessian   PyTorch, reverse over reverse
               curvlinops  PyTorch, vmap of forward over reverse, --columns probes at once
           Same weights, statistics, examples, batches and probes. Before a clock is read, two
           forms of 32 examples in float64 must agree with ours to 1e-4 of their mean size.
           matfree's, of the same program, must do so in float32 in the first timed round. What
           the forms that are timed lose in float32 stands in the table: `differs` from ours.
    eigen  the 100 eigenpairs of largest magnitude of a small trained network, Lanczos against the
           release's power iteration (ours), both in float32, against the dense matrix in float64

The contenders run in turns; the fastest round of each counts. Each is compiled before on the first
batch and one chunk of probes, `first s`; so `--rounds=1` passes over the data once.
`--peer-probes` times the others on fewer probes (per-probe seconds are compared).
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import jax
from curvature_common import fastest, loss_of, signs, timed
from curvature_eigen import eigen
from curvature_trace import trace

from prunejax import curvature


def costs(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds and operations per vector: one gradient, product and form of one batch."""
    _, params, statistics, batch = common.network(name, options.batch)
    loss = loss_of(name, statistics)
    v, many = jax.tree.map(lambda s: s[0], signs(params, 1)), signs(params, 16)

    def shared(p: Any, s: Any, b: Any, vectorize: bool = False) -> jax.Array:
        return curvature.Hessian(loss, p, b).quadratic_forms(s, vectorize=vectorize)

    functions: dict[str, tuple[Callable[..., Any], tuple[Any, ...], int]] = {
        "gradient": (jax.grad(loss), (params, batch), 1),
        "product": (lambda p, u, b: curvature.hvp(loss, p, u, b), (params, v, batch), 1),
        "form": (lambda p, u, b: curvature.quadratic_form(loss, p, u, b), (params, v, batch), 1),
        "16 forms": (shared, (params, many, batch), 16),
    }
    programs, gflop, memory = {}, {}, {}
    for label, (f, arguments, count) in functions.items():
        compiled = jax.jit(f).lower(*arguments).compile()
        memory[label] = compiled.memory_analysis().temp_size_in_bytes / 2**20
        gflop[label] = compiled.cost_analysis()["flops"] / count / 1e9
        programs[label] = lambda c=compiled, a=arguments: timed(lambda: jax.tree.leaves(c(*a))[0])
    # The cost analysis counts the body of a loop once: take the vectorized program's operations.
    at_once = jax.jit(partial(shared, vectorize=True)).lower(params, many, batch).compile()
    gflop["16 forms"] = at_once.cost_analysis()["flops"] / 16 / 1e9
    taken = fastest(programs, options.rounds + 1)
    return [
        {
            "part": "costs",
            "model": name,
            "per vector": label,
            "batch": options.batch,
            "wall s": seconds.wall / functions[label][2],
            "cpu s": seconds.cpu / functions[label][2],
            "x gradient": seconds.wall / functions[label][2] / taken["gradient"].wall,
            "gflop": gflop[label],
            "gflop x product": gflop[label] / gflop["product"],
            "temporary mb": memory[label],
        }
        for label, seconds in taken.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="costs,trace,eigen")
    parser.add_argument("--models", default="resnet20,vgg11_bn")
    parser.add_argument("--examples", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--probes", type=int, default=64)
    parser.add_argument("--peer-probes", type=int, default=0, help="0: as many as ours")
    parser.add_argument("--chunk", type=int, default=16, help="probes of ours per compiled call")
    parser.add_argument("--columns", type=int, default=8, help="probes of curvlinops at once")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--skip", type=lambda s: s.split(":"), default=[], help="with colons")
    parser.add_argument(
        "--torch-python", default=sys.executable, metavar="PYTHON", help="empty for no PyTorch"
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")
    options = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")  # no TF32 on our side either
    rows: list[dict[str, Any]] = []
    more: dict[str, Any] = {"options": vars(options)}
    for part in options.parts.split(","):
        if part == "eigen":
            found, more["eigen"] = eigen(options.pairs)
            rows += found
            print({k: v for k, v in more["eigen"].items() if k != "residuals"})
            print(common.table(found), flush=True)
            continue
        for name in options.models.split(","):
            found = {"costs": costs, "trace": trace}[part](name, options)
            rows += found
            print(common.table(found), flush=True)
    if options.save:
        # Parts and models that are run apart are kept apart.
        apart = [] if options.models == parser.get_default("models") else options.models.split(",")
        name = "-".join(["curvature", *options.parts.split(","), *apart])
        print(f"written to {common.save(name, rows, **more)}")


if __name__ == "__main__":
    main()
