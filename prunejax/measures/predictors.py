"""Measures of `suite.MEASURES` that look at predictions and at what a network can lose.

Each is a function of a `suite.Context`, as those beside them.
"""

import math
from typing import Any

import jax
import numpy as np

from prunejax.losses import predicted as predicted
from prunejax.measures.prunability import prune_curve

Columns = dict[str, float]
Arrays = dict[str, np.ndarray]
PREDICTIONS = ("recall_lowest", "recall_spread")
PRUNABILITY = ("prunability", "prunability_monotone", "prunability_area", "core_fraction")


def predictions(context: Any) -> tuple[Columns, Arrays]:
    """The class that every test example is given, for recall distortion (Good et al. 2022).

    Columns: the lowest recall of a class, and the standard deviation over classes.
    """
    if context.predict is None:
        raise ValueError("predictions need a classifier's outputs")
    pairs = [(context.predict(context.params, batch), batch[1]) for batch in context.test]
    predicted, labels = (
        np.concatenate([np.asarray(x) for x in xs]) for xs in zip(*pairs, strict=True)
    )
    right = predicted == labels
    recalls = [right[labels == c].mean() for c in np.unique(labels)]
    columns = {"recall_lowest": float(min(recalls)), "recall_spread": float(np.std(recalls))}
    return columns, {"predicted": predicted.astype(np.int32), "labels": labels.astype(np.int32)}


def prunability(context: Any) -> tuple[Columns, Arrays]:
    """The smallest fraction of weights that keeps the loss within a tenth (Kuhn et al. 2021).

    Magnitudes, one ranking over all kernels, no training after; on the examples of
    `measures.split`. What is dead stays dead and counts. `core_fraction`: accuracy falls by at
    most five points. `prunability_area`: under min(loss, log C).
    """
    masks = context.masks
    curve = prune_curve(context.evaluate, context.params, context.batches, masks=masks)
    found = curve.at()
    shape = jax.eval_shape(context.outputs, context.params, context.test[0]).shape
    columns = {
        "prunability": found.value,
        "prunability_monotone": found.monotone,
        "prunability_area": curve.area(math.log(shape[-1])),
        "core_fraction": curve.core(),
    }
    return columns, {
        "prunability_fractions": np.asarray(curve.fractions),
        "prunability_loss": np.asarray(curve.values["loss"]),
        "prunability_accuracy": np.asarray(curve.values["accuracy"]),
    }
