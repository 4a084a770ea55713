"""Are BatchNorm's normalized activations normal? The assumption behind the E[BN] score (Figure B1).

E[BN] takes a BatchNorm channel's output for N(bias, scale^2), that is, the values before scale and
bias for N(0, 1). `normalized_activations` gives those values for every BatchNorm layer of any Flax
Linen network, `normality` compares values from anywhere with N(0, 1):

    values = normalized_activations(module, variables, images)
    result = normality(values)
    result.ks        # Kolmogorov-Smirnov distance of each layer

Source: Bartoldson et al. 2020, appendix B, and its released script, which pools the channels of a
layer and leaves the network in training mode (the batch's own statistics).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from prunejax.measures import noting

EDGES = np.linspace(-6.0, 6.0, 201)


@dataclass(frozen=True)
class Normality:
    """Per layer, how the pooled values differ from N(0, 1); for it all is 0 but `std`, 1."""

    layers: tuple[str, ...]
    edges: np.ndarray  # [bins + 1], standard deviations
    density: np.ndarray  # [layers, bins]; values outside the edges count in the total
    examples: np.ndarray  # int [layers], number of pooled values
    mean: np.ndarray  # [layers]
    std: np.ndarray  # [layers]
    skewness: np.ndarray  # [layers], third standardized moment
    excess_kurtosis: np.ndarray  # [layers], fourth standardized moment less 3
    ks: np.ndarray  # [layers], Kolmogorov-Smirnov distance sup |F - Phi|, in [0, 1]

    def columns(self) -> dict[str, float]:
        """Over layers: mean and largest distance, mean |skewness|, mean signed excess kurtosis."""
        return {
            "normality_ks": float(np.mean(self.ks)),
            "normality_ks_worst": float(np.max(self.ks)),
            "normality_skewness": float(np.mean(np.abs(self.skewness))),
            "normality_excess_kurtosis": float(np.mean(self.excess_kurtosis)),
        }


def normalized_activations(
    module: nn.Module, variables: Mapping[str, Any], images: jax.Array
) -> dict[str, np.ndarray]:
    """What every `nn.BatchNorm` computes before scale and bias: (x - mean) / sqrt(var + epsilon).

    Mean and variance are those of this batch, as in training. Channels whose input is one constant
    over the batch (masked filters) are left out, and so are layers without any other channel.

    Args:
      module: network with `apply(variables, images, train=False)`; dropout is off.
      variables: its collections, masks applied.
      images: [batch, ...] as the network takes them (float, normalized).

    Returns:
      Layer path ("bn5") -> [values, channels], in forward order; of a layer that is called several
      times (in a loop, say) all values in one column.

    Raises:
      ValueError: a network without BatchNorm.
    """

    def run(note: noting.Note, variables: Mapping[str, Any], images: jax.Array) -> Any:
        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            norm = context.module
            if not isinstance(norm, nn.BatchNorm) or context.method_name != "__call__":
                return call(*args, **kwargs)
            x = args[0].astype(jnp.float32)  # also in a network of half precision
            axes = tuple(range(x.ndim - 1))
            moments = jnp.mean(x, axes), jnp.var(x, axes)  # biased, as BatchNorm divides
            mean, var = (jax.lax.broadcast_to_rank(v, x.ndim) for v in moments)
            z = (x - mean) / jnp.sqrt(var + norm.epsilon)
            note("/".join(norm.path), z.reshape(-1, z.shape[-1]))
            if norm.use_scale:
                z = z * jax.lax.broadcast_to_rank(norm.get_variable("params", "scale"), z.ndim)
            if norm.use_bias:
                z = z + jax.lax.broadcast_to_rank(norm.get_variable("params", "bias"), z.ndim)
            return z.astype(args[0].dtype)  # the layers behind see it, as in training mode

        with nn.intercept_methods(intercept):
            return module.apply(variables, images, train=False)

    found: dict[str, list[np.ndarray]] = {}
    for name, values in noting.noted(run)(variables, images):
        found.setdefault(name, []).append(values[:, ~(values == values[:1]).all(axis=0)])
    if not found:
        raise ValueError(f"{type(module).__name__} has no BatchNorm layer to look at")
    live = {name: [z for z in calls if z.shape[1]] for name, calls in found.items()}
    return {
        name: calls[0] if len(calls) == 1 else np.concatenate([z.reshape(-1, 1) for z in calls])
        for name, calls in live.items()
        if calls
    }


def normality(values: Mapping[str, ArrayLike], edges: ArrayLike = EDGES) -> Normality:
    """Compares each layer's values, pooled over all axes, with N(0, 1).

    Args:
      values: layer name -> array of any shape.
      edges: of the histogram's bins [bins + 1], increasing.

    Raises ValueError: no layer, or a layer without values.
    """
    if not values:
        raise ValueError("no layer: give at least one array of normalized activations")
    bins = np.asarray(edges, np.float64)
    rows = []
    for name, array in values.items():
        x = np.sort(np.asarray(array, np.float32), axis=None)
        if not x.size:
            raise ValueError(f"layer {name!r} has no values")
        rows.append((_density(x, bins), x.size, *_moments(x), ks_distance(x)))
    density, sizes, mean, std, skewness, kurtosis, ks = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    return Normality(tuple(values), bins, density, sizes, mean, std, skewness, kurtosis, ks)


def _density(ordered: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Histogram as a density: counts / (all values * width), the last bin closed."""
    inside = np.searchsorted(ordered, edges, side="left")
    inside[-1] = np.searchsorted(ordered, edges[-1], side="right")
    return np.diff(inside) / (ordered.size * np.diff(edges))


def _moments(x: np.ndarray) -> tuple[float, float, float, float]:
    """Mean, standard deviation (ddof 0), skewness, excess kurtosis; the last two 0 if std is 0."""
    mean = float(np.mean(x, dtype=np.float64))
    centered = x.astype(np.float64) - mean  # fourth powers are summed
    square = centered**2
    var = float(np.mean(square))
    if var == 0.0:
        return mean, 0.0, 0.0, 0.0
    skewness = float(np.mean(square * centered)) / var**1.5
    return mean, var**0.5, skewness, float(np.mean(square**2)) / var**2 - 3.0


def ks_distance(ordered: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance sup |F_n(x) - Phi(x)| of `ordered` [n], ascending, to N(0, 1)."""
    from scipy import special  # late, as in `statistics.t_factor`

    n = ordered.size
    phi = special.ndtr(ordered.astype(np.float64))
    steps = np.arange(n + 1) / n
    # both sides of each step of F_n
    return float(max(np.max(steps[1:] - phi), np.max(phi - steps[:-1])))


def arrays(trained: Normality, untrained: Normality) -> dict[str, np.ndarray]:
    """What the report draws of the layers that both have, under the names it looks for.

    Edges [bins + 1], names [layers], densities [layers, bins].
    """
    layers = [name for name in trained.layers if name in untrained.layers]
    pick = lambda n: n.density[[n.layers.index(name) for name in layers]]  # noqa: E731
    return {
        "normality_edges": trained.edges,
        "normality_layers": np.array(layers),
        "normality_trained": pick(trained),
        "normality_untrained": pick(untrained),
    }
