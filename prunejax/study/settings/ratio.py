"""What a fraction is of: which share of the prunable weights goes, as an exact fraction."""

import math
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from prunejax import schedules
from prunejax.errors import ConfigError


def of_live(fraction: float, live: int, times: int = 1) -> Fraction:
    """The fraction that takes `ceil(fraction * live)` units so many times, as levels of tickets do.

    (Of all units the paper's rule holds: `ceil((1 - fraction) * units)` are kept.)
    """
    left = live
    for _ in range(times):
        # In fractions: 0.07 of 100 is 7, of which floats make 8.
        left -= math.ceil(schedules.exact(fraction) * left)
    return Fraction(live - left, max(1, live))


def of_all(settings: ConfigDict, label: str, prunable: int, params: Any) -> Fraction:
    """The fraction of the prunable weights that leaves `ceil((1 - fraction) * all)` parameters.

    What stays whole (biases, norms, other kernels) is subtracted from what may stay (the
    convention of Good et al. 2022).

    Raises ConfigError: no single fraction of weights; more than can be pruned.
    """
    p = settings.prune
    where = f"(variant {label!r}, prune.ratio_of = 'all')"
    if p.granularity != "weight" or p.of != "all" or len(set(p.fraction)) != 1 or p.nm:
        raise ConfigError(
            f"config.prune.fraction = {tuple(p.fraction)} {where}: one fraction of single weights "
            f"is needed; prune.granularity = {p.granularity!r}, prune.of = {p.of!r} and prune.nm = "
            f"{tuple(p.nm)} must be 'weight', 'all' and (), or prune.ratio_of 'prunable'"
        )
    every = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    keep = schedules.kept(every, p.fraction[0]) - (every - prunable)
    if keep < 0:
        most = math.floor(Fraction(prunable, every) * 10_000) / 10_000
        raise ConfigError(
            f"config.prune.fraction = {p.fraction[0]} {where}: {every - prunable:,} of {every:,} "
            f"parameters are in no layer of prune.layers and stay; give {most} at most, choose "
            "more layers, or set prune.ratio_of = 'prunable'"
        )
    return Fraction(prunable - keep, prunable)
