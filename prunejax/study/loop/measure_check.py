"""Refusals of measures that a study asks for and cannot have."""

import jax
from ml_collections import ConfigDict

from prunejax import models
from prunejax.errors import ConfigError
from prunejax.measures import suite
from prunejax.study.planning.plan import Batch


def check(settings: ConfigDict, batches: list[Batch]) -> None:
    """Refuses measures that a program of the study cannot have.
    Raises ConfigError: names the field, the value, and what is allowed.
    """
    chosen = settings.measures
    for batch in batches:
        there = {"train": batch.dataset.train_examples, "test": batch.dataset.test_examples}
        if chosen.names and chosen.examples > there[chosen.split]:
            raise ConfigError(
                f"config.measures.examples = {chosen.examples} is more than the "
                f"{there[chosen.split]} examples of config.measures.split = {chosen.split!r}; "
                "lower it (0: all of a set that is not streamed)"
            )
        variables = models.shapes(batch.program.module, batch.program.image_shape)
        size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        if chosen.names and chosen.eigenpairs > size:
            raise ConfigError(
                f"config.measures.eigenpairs = {chosen.eigenpairs} is more than the model's "
                f"{size} parameters; lower it"
            )
        of_training = [name for name in chosen.names if suite.MEASURES[name].training]
        if of_training and chosen.split != "train":
            raise ConfigError(
                f"config.measures.split = {chosen.split!r}: {', '.join(of_training)} predict how a "
                "network generalizes from its training set; set it to 'train', and take other "
                "measures of the test set by themselves (`prunejax measure --split=test`)"
            )
        of_classes = [name for name in chosen.names if suite.MEASURES[name].classes]
        if of_classes and not batch.dataset.has_classes:
            raise ConfigError(
                f"config.measures.names: {of_classes[0]!r} is about classes, and targets of "
                f"{batch.dataset.name!r} are numbers; leave it out"
            )
        if "normality" in chosen.names and "batch_stats" not in variables:
            raise ConfigError(
                "config.measures.names: 'normality' looks at BatchNorm, which "
                f"{type(batch.program.module).__name__} has not; leave it out"
            )
