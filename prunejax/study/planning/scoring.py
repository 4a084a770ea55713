"""What scores of a study look at: examples, and bounds of the network."""

from collections.abc import Collection
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from prunejax.data import Dataset, StreamedSet
from prunejax.errors import ConfigError
from prunejax.measures import bounds, steps
from prunejax.methods import before


def stability(
    settings: ConfigDict, module: Any, dataset: Dataset | StreamedSet, scores: Collection[str]
) -> Any:
    """The bounds of the score "stability" in boxes of `measures.attack_radius`; None without it."""
    if "stability" not in scores:
        return None
    if not isinstance(module, steps.KINDS):
        raise ConfigError(
            f"config.prune.score = 'stability' bounds MLPs, ConvNets and VGGs, not "
            f"{settings.model.name!r}; use another score"
        )
    # Of pixels, in units of what is normalized.
    radius = settings.measures.attack_radius / np.array(dataset.std or (1.0,))
    own = module.clone(dropout=0.0)
    return lambda variables, x: bounds.stability(own, variables, x, radius)


def balanced(settings: ConfigDict, dataset: Dataset | StreamedSet) -> tuple[int, ...]:
    """Indices of the examples that scores see with `prune.evidence` "balanced", else none."""
    p = settings.prune
    if p.evidence != "first" and isinstance(dataset, StreamedSet):
        raise ConfigError(
            f"config.prune.evidence = {p.evidence!r}: {settings.data.name!r} is streamed, and only "
            "its first examples are held in memory; set it to 'first'"
        )
    if p.evidence != "balanced" or isinstance(dataset, StreamedSet):
        return ()
    try:
        # The seed of the data, not of a run: all runs see the same examples.
        found = before.balanced_batch(
            dataset.train_labels, per_class=p.per_class, seed=settings.data.seed
        )
    except ValueError as error:
        raise ConfigError(f"config.prune.per_class = {p.per_class}: {error}") from None
    return tuple(int(i) for i in found)
