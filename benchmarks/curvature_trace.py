"""The part `trace` of `curvature.py`: quadratic forms of given probes over all examples."""

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import jax
import numpy as np
from curvature_common import exact_forms, fastest, loss_of, save, signs, timed

from prunejax import curvature, trees

PEERS = ("matfree", "pyhessian", "curvlinops")


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
