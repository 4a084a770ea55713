"""XTrace and stochastic Lanczos quadrature of a network's Hessian, beside matfree's.

    python benchmarks/spectrum.py [--models=mlp,resnet20] [--examples=256] [--save]

Both sides see the same network, examples (one batch, cross-entropy, eval-mode BatchNorm) and start
vectors, and make the same number of Hessian products, ours and matfree's forward over reverse:

    xtrace   Tr(H) from `--products` products: `estimate_trace(method="xtrace")` beside
             `stochtrace.leave_one_out_xtrace`, Rademacher vectors
    slq      Tr(H²) from `--starts` start vectors of `--steps` products each: the quadrature of
             `estimate_density` beside `funm.monte_carlo_funm_sym` on `decomp.tridiag_sym` with full
             reorthogonalization

matfree's side is what its users write: one `jax.jit` of the estimator with parameters, data and key
as arguments, that draws its start vectors (ours, so that estimates can be compared), takes them one
after another (`jax.lax.map`) or all at once (`jax.vmap`): the faster counts.
Before a clock is read the estimates of a run must agree to `--tolerance` (relative to the
larger one; in float32, Lanczos of 32 steps amplifies rounding). Contenders run in turns, the
fastest round of each counts; `first s` is the first call, with compilation. Ours gives standard
errors, the spectrum and its error band besides; matfree's program is one, ours stops between
products to look at what it has.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import jax
import numpy as np
from curvature_common import fastest, loss_of, timed

from prunejax import curvature
from prunejax.curvature import vectors


def stack(params: Any, key: Any, count: int) -> Any:
    """The start vectors that our estimators draw, as one tree with a leading axis."""
    draw = partial(vectors.sample, key, like=params, distribution="rademacher", dtype="float32")
    return jax.lax.map(lambda i: draw(i=i), jax.numpy.arange(count))


def product(loss: Any, params: Any, batch: Any, v: Any) -> Any:
    """H v, as a user of matfree writes it."""
    return jax.jvp(jax.grad(lambda p: loss(p, batch)), (params,), (v,))[1]


def xtrace(
    operator: Any, loss: Any, batch: Any, options: argparse.Namespace
) -> dict[str, Callable[[], float]]:
    """The contenders of Tr(H): the same sketch vectors, half as many as products."""
    from matfree import stochtrace

    params = operator.like
    own = vectors.named_key(jax.random.key(0), "sketch")
    integrand = stochtrace.leave_one_out_xtrace(apply_resphering=False)

    @jax.jit
    def theirs(params: Any, batch: Any, key: Any) -> jax.Array:
        starts = stack(params, key, options.products // 2)
        return jax.numpy.mean(integrand(partial(product, loss, params, batch), starts))

    key = jax.random.key(0)
    return {
        "ours": lambda: (
            curvature.estimate_trace(
                operator,
                key=key,
                method="xtrace",
                probes=options.products,
                distribution="rademacher",
            ).value
        ),
        "matfree": lambda: float(theirs(params, batch, own)),
    }


def slq(
    operator: Any, loss: Any, batch: Any, options: argparse.Namespace
) -> dict[str, Callable[[], float]]:
    """The contenders of Tr(H²) by quadrature."""
    from matfree import decomp, funm

    params = operator.like
    own = vectors.named_key(jax.random.key(0), "probe")
    tridiagonal = decomp.tridiag_sym(options.steps, custom_vjp=False)
    integrand = funm.monte_carlo_funm_sym(funm.dense_funm_sym_eigh(jax.numpy.square), tridiagonal)

    def theirs(params: Any, batch: Any, key: Any, over: Any) -> jax.Array:
        one = lambda v: integrand(partial(product, loss, params, batch), v)  # noqa: E731
        return jax.numpy.mean(over(one, stack(params, key, options.starts)))

    one_by_one = jax.jit(partial(theirs, over=jax.lax.map))
    at_once = jax.jit(partial(theirs, over=lambda f, v: jax.vmap(f)(v)))
    key = jax.random.key(0)

    def ours() -> float:
        found = curvature.estimate_density(
            operator, key=key, steps=options.steps, starts=options.starts
        )
        return found.live_dim * found.expectation(np.square)[0]

    return {
        "ours": ours,
        "matfree, in turn": lambda: float(one_by_one(params, batch, own)),
        "matfree, at once": lambda: float(at_once(params, batch, own)),
    }


PARTS = {"xtrace": xtrace, "slq": slq}


def compare(part: str, name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per contender, after all have given the same estimate."""
    _, params, statistics, batch = common.network(name, options.examples)
    loss = loss_of(name, statistics)
    operator = curvature.Hessian(loss, params, batch)
    runs = PARTS[part](operator, loss, batch, options)
    first, value = {}, {}
    for label, run in runs.items():
        begun = time.perf_counter()
        value[label] = run()
        first[label] = time.perf_counter() - begun
    for label in runs:
        error = abs(value[label] - value["ours"]) / max(abs(value[label]), abs(value["ours"]))
        if not error < options.tolerance:
            raise SystemExit(f"{name}, {part}: {label} gives {value[label]}, ours {value['ours']}")
    taken = fastest({label: partial(timed, run) for label, run in runs.items()}, options.rounds)
    made = {"xtrace": options.products, "slq": options.steps * options.starts}[part]
    return [
        {
            "part": part,
            "model": name,
            "contender": label,
            "examples": options.examples,
            "products": made,
            "wall s": seconds.wall,
            "cpu s": seconds.cpu,
            "x wall": seconds.wall / taken["ours"].wall,
            "x cpu": seconds.cpu / taken["ours"].cpu,
            "first s": first[label],
            "estimate": value[label],
            "differs": abs(value[label] - value["ours"]) / abs(value["ours"]),
        }
        for label, seconds in taken.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="xtrace,slq")
    parser.add_argument("--models", default="mlp,resnet20")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--products", type=int, default=32, help="of xtrace")
    parser.add_argument("--steps", type=int, default=32, help="products of a start vector of slq")
    parser.add_argument("--starts", type=int, default=4, help="of slq")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=2e-2)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")
    options = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    rows: list[dict[str, Any]] = []
    for part in options.parts.split(","):
        for name in options.models.split(","):
            found = compare(part, name, options)
            rows += found
            print(common.table(found), flush=True)
    if options.save:
        print(f"written to {common.save('spectrum', rows, options=vars(options))}")


if __name__ == "__main__":
    main()
