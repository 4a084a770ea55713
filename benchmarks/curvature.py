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
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
from curvature_eigen import eigen

from prunejax import curvature, losses, models, trees

PEERS = ("matfree", "pyhessian", "curvlinops")


def loss_of(name: str, statistics: Any, dtype: str = "float32") -> Any:
    """Loss `(params, (x, y))` at fixed BatchNorm statistics."""
    module = models.create(name, num_classes=10, dtype=dtype)

    def loss(params: Any, batch: Any) -> jax.Array:
        variables = {"params": params, "batch_stats": statistics}
        logits = module.apply(variables, batch[0], train=False)
        return losses.cross_entropy(logits, batch[1]).mean()

    return loss


def exact_forms(name: str, params: Any, statistics: Any, batch: Any, probes: Any) -> np.ndarray:
    """Our forms of one batch in float64."""
    given = jax.device_get((params, statistics, probes))
    with jax.enable_x64(True):
        wide, fixed, stack = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), given)
        loss = loss_of(name, fixed, "float64")
        exact = jnp.asarray(batch[0], jnp.float64), batch[1]
        return np.asarray(curvature.Hessian(loss, wide, exact).quadratic_forms(stack))


def signs(params: Any, count: int) -> Any:
    """A stack of `count` sign vectors; probe i is a function of i alone."""

    def one(i: int) -> Any:
        generator = np.random.default_rng([7, i])
        return jax.tree.map(
            lambda p: (2.0 * generator.integers(0, 2, p.shape) - 1).astype(np.float32), params
        )

    return jax.tree.map(lambda *leaves: np.stack(leaves), *(one(i) for i in range(count)))


def save(path: str, *stacks: Any) -> None:
    """Leaves by path as an npz file."""
    np.savez(path, **{p: np.asarray(x) for t in stacks for p, x in trees.leaves_with_paths(t)})


def timed(run: Callable[[], Any]) -> dict[str, Any]:
    """Forms, wall and CPU seconds of one call, and the peak memory of the process so far."""
    wall, cpu = time.perf_counter(), time.process_time()
    forms = np.asarray(jax.block_until_ready(run()))
    return {
        "forms": forms,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def fastest(
    runs: dict[str, Callable[[], Any]],
    rounds: int,
    check: Callable[[dict[str, Any]], None] = lambda answers: None,
) -> dict[str, common.Seconds]:
    """Every contender's smallest wall and CPU seconds over rounds in turns.

    `check` gets the answers of the first round.
    """
    taken = dict.fromkeys(runs, common.Seconds(np.inf, np.inf))
    for i in range(rounds):
        answers = {label: run() for label, run in runs.items()}
        for label, new in answers.items():
            old = taken[label]
            taken[label] = common.Seconds(min(old.wall, new["wall"]), min(old.cpu, new["cpu"]))
        if i == 0:
            check(answers)
    return taken


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


def matfree_forms(loss: Any, params: Any, chunk: int) -> Callable[[list[Any], Any], np.ndarray]:
    """`(batches, probes) ->` means of v'Hv over each chunk of probes by matfree's estimator."""
    from matfree import stochtrace

    def of_batch(params: Any, batch: Any, stack: Any) -> jax.Array:
        estimate = stochtrace.estimator_monte_carlo(
            stochtrace.monte_carlo_trace(), sampler=lambda _: stack
        )

        def product(v: Any) -> Any:
            return jax.jvp(jax.grad(lambda p: loss(p, batch)), (params,), (v,))[1]

        return estimate(product, jax.random.key(0))

    compiled = jax.jit(of_batch)

    def run(batches: list[Any], probes: Any) -> np.ndarray:
        total = sum(len(b[1]) for b in batches)
        pieces = chunks(probes, chunk)
        parts = [[compiled(params, b, s) * (len(b[1]) / total) for b in batches] for s in pieces]
        return np.array([float(sum(p)) for p in parts])

    return run


def chunks(stack: Any, size: int) -> list[Any]:
    """A stack cut into stacks of `size`, the last one what is left."""
    count = jax.tree.leaves(stack)[0].shape[0]
    return [jax.tree.map(lambda s, i=i: s[i : i + size], stack) for i in range(0, count, size)]


def trace(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds per probe of every contender, after all have given the same forms."""
    _, params, statistics, (x, y) = common.network(name, options.examples)
    loss, step = loss_of(name, statistics), options.batch
    batches = [(x[i : i + step], y[i : i + step]) for i in range(0, len(x), step)]
    few = min(options.peer_probes or options.probes, options.probes)
    probes, peer_probes = signs(params, options.probes), signs(params, few)
    whole = curvature.Hessian(loss, params, batches)
    begun = curvature.Hessian(loss, params, batches[:1])
    chunk = min(options.chunk, options.probes)
    pieces = chunks(probes, chunk)

    def ours(operator: Any, pieces: list[Any]) -> np.ndarray:
        return np.concatenate([np.asarray(operator.quadratic_forms(p)) for p in pieces])

    def drawn(operator: Any) -> np.ndarray:
        key = jax.random.key(0)
        return curvature.estimate_trace(operator, key=key, probes=options.probes).samples

    # Of each contender a run over everything, and one to compile it: one batch, one chunk.
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: timed(lambda: ours(whole, pieces)),
        "ours, drawn": lambda: timed(lambda: drawn(whole)),
    }
    starts: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: timed(lambda: ours(begun, pieces[:1])),
        "ours, drawn": lambda: timed(lambda: drawn(begun)),
    }
    at_once: dict[str, int] = {"ours": chunk, "curvlinops": options.columns, "pyhessian": 1}
    worker = None
    with tempfile.TemporaryDirectory() as folder:
        if options.torch_python:
            variables = os.path.join(folder, "variables.npz")
            arrays = dict(trees.leaves_with_paths(params) + trees.leaves_with_paths(statistics))
            np.savez(variables, x=x, y=y, **arrays)
            worker = common.Worker(
                options.torch_python, "curvature_torch.py", name, variables, str(options.threads)
            )
            print("torch", worker.about, flush=True)
            command = {"batch": step, "columns": options.columns}
            paths = [os.path.join(folder, f) for f in ("probes.npz", "first.npz")]
            save(paths[0], peer_probes)
            save(paths[1], chunks(peer_probes, options.columns)[0])
            for label in ("gradient", "pyhessian", "curvlinops"):
                given = {"method": label, **command}
                runs[label] = partial(worker, probes=paths[0], **given)
                starts[label] = partial(worker, probes=paths[1], examples=step, **given)
            check_exactly(worker, name, params, statistics, (x[:32], y[:32]), options.skip)
        if "matfree" not in options.skip:
            found = {size: matfree_forms(loss, params, size) for size in sorted({1, min(4, few)})}
            begin = {
                size: (lambda size=size: timed(
                    lambda: found[size](batches[:1], chunks(peer_probes, size)[0])
                ))
                for size in found
            }  # fmt: skip
            first_matfree = {size: run() for size, run in begin.items()}
            best = min(found, key=lambda size: begin[size]()["wall"] / size)
            at_once["matfree"] = best
            starts["matfree"] = lambda: first_matfree[best]
            runs["matfree"] = lambda: timed(lambda: found[best](batches, peer_probes))
        runs = {label: run for label, run in runs.items() if label not in options.skip}
        first = {label: starts[label]()["wall"] for label in runs}
        errors, peaks = {}, {}

        def check(answers: dict[str, dict[str, Any]]) -> None:
            errors.update(agreement(answers, at_once.get("matfree", 1), few))
            peaks.update({label: answer["peak_bytes"] for label, answer in answers.items()})
            if not errors.get("matfree", 0.0) < 1e-4:
                raise SystemExit(f"{name}: matfree's means differ by {errors['matfree']:.1e}")

        taken = fastest(runs, options.rounds, check)
        if worker:
            worker.close()
    counts = {label: few if label in PEERS else options.probes for label in taken}
    counts["gradient"] = 1
    ours_wall, ours_cpu = (x / options.probes for x in taken["ours"])
    return [
        {
            "part": "trace",
            "model": name,
            "contender": label,
            "examples": options.examples,
            "batch": step,
            "probes": counts[label],
            "at once": at_once.get(label),
            "wall s": seconds.wall / counts[label],
            "cpu s": seconds.cpu / counts[label],
            "x wall": seconds.wall / counts[label] / ours_wall,
            "x cpu": seconds.cpu / counts[label] / ours_cpu,
            "first s": first[label],
            "peak mb": peaks[label] / 2**20,
            "temporary mb": whole.form_bytes(chunk) / 2**20 if label == "ours" else None,
            "differs": errors.get(label),
        }
        for label, seconds in taken.items()
    ]


def check_exactly(
    worker: common.Worker, name: str, params: Any, statistics: Any, batch: Any, skip: list[str]
) -> None:
    """Ends the program unless PyTorch's forms in float64 are ours."""
    probes = signs(params, 2)
    wanted = exact_forms(name, params, statistics, batch, probes)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "probes.npz")
        save(path, probes)
        for label in ("pyhessian", "curvlinops"):
            if label in skip:
                continue
            size = len(batch[1])
            found = worker(
                method=label, probes=path, batch=size, columns=2, examples=size, double=True
            )
            error = np.max(np.abs(found["forms"] - wanted)) / np.mean(np.abs(wanted))
            print(f"{name}: {label} in float64 differs from ours by {error:.1e}", flush=True)
            if not error < 1e-4:
                raise SystemExit(f"{name}: the forms of {label!r} are not ours")


def agreement(answers: dict[str, dict[str, Any]], at_once: int, few: int) -> dict[str, float]:
    """Largest difference of a contender's forms from ours, over our mean absolute form."""
    reference = np.asarray(answers["ours"]["forms"], np.float64)
    size = np.mean(np.abs(reference))
    errors = {}
    for label in PEERS:
        if label in answers:
            theirs = np.asarray(answers[label]["forms"], np.float64)
            group = at_once if label == "matfree" else 1
            wanted = [reference[i : min(i + group, few)].mean() for i in range(0, few, group)]
            errors[label] = float(np.max(np.abs(theirs - wanted)) / size)
    return errors


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
