"""Measures of `suite.MEASURES` that look at predictions, at masks and at what a network can lose.

Each is a function of a `suite.Context`, as those beside them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import masks as masks_lib
from prunejax import trees
from prunejax.measures import differences, rivals
from prunejax.measures.prunability import prune_curve

Columns = dict[str, float]
Arrays = dict[str, np.ndarray]
PREDICTIONS = ("recall_lowest", "recall_spread")
FORMS = (
    *("prunability_relative1", "prunability_absolute", "prunability_layerwise"),
    *("prunability_random", "prunability_count"),
)
RANDOM_DRAWS = 4
PRUNABILITY = ("prunability", "prunability_monotone", "prunability_area", "core_fraction")
SWITCHED = "prunability_switched"  # array: the loss was below 1e-12, see `Prunability`

TICKET = ("live_weights", "distance_to_init", "cosine_to_init")


def predictions(context: Any) -> tuple[Columns, Arrays]:
    """The class that every test example is given, for recall distortion (Good et al. 2022).

    An example with a NaN output has class -1, which is no label.
    Columns: the lowest recall of a class, and the standard deviation over classes.
    """
    if context.predict is None:
        raise ValueError("predictions need a classifier's outputs")
    pairs = [(context.predict(context.params, batch), batch[1]) for batch in context.test]
    predicted, labels = (
        np.concatenate([np.asarray(x) for x in xs]) for xs in zip(*pairs, strict=True)
    )
    right = predicted == labels
    recalls = [right[labels == c].mean() for c in np.unique(labels)]  # classes of the test set
    # The spread is that of all classes there are and no estimate: ddof 0.
    columns = {"recall_lowest": float(min(recalls)), "recall_spread": float(np.std(recalls))}
    return columns, {"predicted": predicted.astype(np.int32), "labels": labels.astype(np.int32)}


def prunability(context: Any) -> tuple[Columns, Arrays]:
    """The smallest fraction of weights that keeps the loss within a tenth (Kuhn et al. 2021).

    Magnitudes, one ranking over all kernels, no training after; on the examples of the training
    set. What is dead stays dead and counts. `core_fraction`: accuracy falls by at
    most five points. `prunability_area`: under min(loss, cap), see `constant_guess`. Both NaN where
    targets are numbers. Arrays: the curve; whether the loss was so small that an absolute tolerance
    was taken; layers of which nothing is left.
    """
    curve = context.curve
    classes = math.isfinite(curve.values["accuracy"][-1])
    found = curve.at()
    columns = {
        "prunability": found.value,
        "prunability_monotone": found.monotone,
        "prunability_area": curve.area(constant_guess(context)) if classes else math.nan,
        "core_fraction": curve.core() if classes else math.nan,
    }
    return columns, {
        "prunability_fractions": np.asarray(curve.fractions),
        "prunability_loss": np.asarray(curve.values["loss"]),
        "prunability_accuracy": np.asarray(curve.values["accuracy"]),
        SWITCHED: np.array(found.switched),
        "prunability_collapsed": np.array(found.collapsed, dtype=str),
    }


def constant_guess(context: Any) -> float:
    """The mean loss of outputs that are all 0, which prefer no class: the most an area counts.

    log C for cross entropy over C classes, 1 / C for the mean squared error to one-hot vectors, 1
    for the hinge; of another loss what it is on the examples of `measures.split`, NaN where that
    is no number.
    """
    shape = jax.eval_shape(context.outputs, context.params, context.batches[0]).shape
    if context.loss_of is None:
        return math.log(shape[-1])
    total = count = 0.0
    for _, targets in context.batches:
        values = np.asarray(context.loss_of(jnp.zeros((len(targets), shape[-1])), targets))
        total, count = total + float(values.sum(dtype=np.float64)), count + len(targets)
    return total / count if math.isfinite(total) else math.nan


def ticket(context: Any) -> tuple[Columns, Arrays]:
    """The mask, and how far its weights went from their initial values.

    Columns: live entries of the kernels of prunable layers, exact; Euclidean distance and cosine
    between the live parameters now and as they were drawn. Arrays: "mask:PATH" bits of each such
    kernel (`np.unpackbits` with "shape:PATH").
    """
    if context.masks is None or context.initial is None or context.kernels is None:
        raise ValueError(
            "ticket needs masks (config.measures.live_only), initial parameters, names of kernels"
        )
    live = masks_lib.count(context.masks, context.params)
    start = masks_lib.apply(context.masks, context.initial())
    leaves = dict(trees.leaves_with_paths(context.params))
    masks = dict(zip(leaves, trees.aligned(context.params, context.masks, "masks"), strict=True))
    kernels = [p for p in leaves if p in context.kernels or np.ndim(masks[p]) > 1]
    columns = {
        "live_weights": float(sum(live[path][0] for path in kernels)),
        "distance_to_init": differences.distance(context.params, start),
        "cosine_to_init": differences.cosine(context.params, start),
    }
    arrays: Arrays = {}
    for path in kernels:
        mask = np.broadcast_to(np.asarray(masks[path]), leaves[path].shape)
        arrays[f"mask:{path}"] = np.packbits(mask)
        arrays[f"shape:{path}"] = np.array(mask.shape)
    return columns, arrays


def prunability_forms(context: Any) -> tuple[Columns, Arrays]:
    """Prunability with other tolerances, scopes and masks (systems page, 2.1).

    `prunability_relative1`: loss <= 2 L. `prunability_absolute`: loss <= L + 0.1, in nats for
    cross entropy, in its own unit for any other loss.
    `prunability_layerwise`: the same share of each layer, loss <= 1.1 L. `prunability_random`:
    random masks (the mean loss of 4 draws), loss <= 2 L. `prunability_count`: weights kept at
    `prunability`, which grow with the network.
    """
    of = (context.evaluate, context.params, context.batches)
    layerwise = prune_curve(*of, masks=context.masks, scope="layer")
    chance = prune_curve(
        *of, masks=context.masks, method="random", draws=RANDOM_DRAWS, key=context.key
    )
    return {
        "prunability_relative1": context.curve.at(1.0).value,
        "prunability_absolute": context.curve.at(0.1, "absolute").value,
        "prunability_layerwise": layerwise.at().value,
        "prunability_random": chance.at(1.0).value,
        "prunability_count": float(context.curve.at().count),
    }, {"prunability_random_loss": np.asarray(chance.values["loss"])}


def rival_measures(context: Any) -> tuple[Columns, Arrays]:
    """Norms, margins and PAC-Bayes measures of `rivals.of_linen`, BatchNorm folded."""
    if context.network is None:
        raise ValueError("rivals need a network of the package")
    of = context.network()
    found = rivals.of_linen(of.module, of.variables, of.untrained, of.batches, key=context.key)
    return found, {}
