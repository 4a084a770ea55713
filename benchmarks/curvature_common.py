"""What the benchmarks of curvature share: losses, probes, a clock for contenders in turn."""

import resource
import time
from collections.abc import Callable
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np

from prunejax import curvature, losses, models, trees


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
