"""The functions that a study's measures differentiate and evaluate."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import data as data_lib
from prunejax import losses
from prunejax.train import smaller
from prunejax.train.smaller import Smaller

Tree = Any


def functions(
    module: Any,
    loss: str,
    prepare: Any,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    has_classes: bool,
    running: bool,
    cut: Smaller | None = None,
) -> tuple[Any, Any, Any, Any]:
    """Loss per example, mean loss, evaluation and outputs of `(statistics, params, batch)`.

    Made once for what they depend on, so that kernels compiled for them serve all runs, and all
    programs that train such networks in different ways. Without dropout.

    Args:
      module, loss, prepare, mean, std, has_classes: of the program.
      running: BatchNorm takes its running statistics; else those of the batch.
      cut: the network that is run in place of the module; `statistics["units"]` says which units
        of the parameters it has.
    """
    places: Any = None
    if cut is not None:
        module = cut.program.module.clone(dropout=0.0)
        places = tuple(cut.units.items()), tuple(cut.axes.items())
    of = module, loss, prepare, mean, std, has_classes, running, places
    # By the function too: in the next study of this process a plug-in's name may mean another.
    try:
        return _made(losses.LOSSES.get(loss), of)
    except TypeError:  # a user's module or loss that cannot be hashed
        return _made.__wrapped__(None, of)


def means(loss: str, outputs: Any, targets: Any, has_classes: bool) -> dict[str, jax.Array]:
    """Mean loss and accuracy of a batch: who averages over batches weighs them by examples.

    Of a regression, which has no right answers, the accuracy is NaN: its cells stay empty.
    """
    values = losses.objective(loss, outputs, targets)
    accuracy = jnp.mean(losses.hits(outputs, targets).astype(values.dtype))
    if not has_classes:
        accuracy = jnp.full_like(accuracy, jnp.nan)
    return {"loss": jnp.mean(values), "accuracy": accuracy}


def _picked(
    statistics: Mapping[str, Tree], params: Tree, units: smaller.Units, axes: smaller.Axes
) -> tuple[dict[str, Tree], Tree]:
    """Of the collections that are held fixed, and of the parameters, what the smaller network has.

    Statistics are looked up: those of dead units may be anything.
    """
    index = statistics["units"]
    found = {k: x for k, x in statistics.items() if k != "units"}
    found["gates"] = {k: x[index[k]] if k in index else x for k, x in found["gates"].items()}
    if "batch_stats" in found:
        found["batch_stats"] = smaller.taken(found["batch_stats"], units, axes, index)
    return found, smaller.chosen(params, units, axes, index)


@functools.lru_cache(maxsize=32)
def _made(_: Any, of: tuple[Any, ...]) -> tuple[Any, Any, Any, Any]:
    module, loss, prepare, mean, std, has_classes, running, places = of

    def outputs(statistics: Tree, params: Tree, images: jax.Array) -> jax.Array:
        if places is not None:
            statistics, params = _picked(statistics, params, *map(dict, places))
        x = prepare(images) if prepare is not None else data_lib.normalize(images, mean, std)
        variables = {"params": params, **statistics}
        if running:
            return jnp.asarray(module.apply(variables, x, train=False))
        # The running statistics that this makes are dropped.
        outputs, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return outputs

    def per_example(statistics: Tree, params: Tree, batch: Tree) -> jax.Array:
        return losses.objective(loss, outputs(statistics, params, batch[0]), batch[1])

    def mean_loss(statistics: Tree, params: Tree, batch: Tree) -> jax.Array:
        return jnp.mean(per_example(statistics, params, batch))

    def evaluate(statistics: Tree, params: Tree, batch: Tree) -> Mapping[str, jax.Array]:
        return means(loss, outputs(statistics, params, batch[0]), batch[1], has_classes)

    def logits(statistics: Tree, params: Tree, batch: Tree) -> jax.Array:
        return outputs(statistics, params, batch[0])

    return per_example, mean_loss, evaluate, jax.jit(logits)
