"""Norms and margins that are said to predict generalization, of a network's weights and logits.

Fold BatchNorm first (`folding.fold`) and give `folding.weights` as masks. A convolution is taken as
circular on the map that the layer itself sees: its singular values are then exact, those of its
matrix at every frequency (Sedghi, Gupta and Long, ICLR 2019).

Jiang et al., ICLR 2020, and Dziugaite et al., NeurIPS 2020, define the measures; Neyshabur et al.
2015 the path norm. Sums are in double precision on the host.
"""

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from prunejax import trees
from prunejax.curvature import vectors
from prunejax.measures.folding import Layer

Tree = Any


def _live(params: Tree, masks: Any) -> Iterator[np.ndarray]:
    """The live entries of each leaf, the others 0, in double precision."""
    spread = vectors.expand_masks(masks, params)
    marks = [True] * len(jax.tree.leaves(params)) if spread is None else jax.tree.leaves(spread)
    for leaf, mark in zip(jax.tree.leaves(params), marks, strict=True):
        yield np.where(np.asarray(mark), np.asarray(leaf, np.float64), 0.0)


def parameter_count(params: Tree, *, masks: Any = None) -> int:
    """Parameters, or live ones: exact."""
    return vectors.live_dimension(vectors.expand_masks(masks, params), params)


def l2_norm(params: Tree, *, masks: Any = None) -> float:
    """sqrt(sum of w^2) over the live parameters."""
    return float(np.sqrt(sum(np.sum(w * w) for w in _live(params, masks))))


def distance(params: Tree, initial: Tree, *, masks: Any = None) -> float:
    """Euclidean distance of the live parameters to those of another tree, e.g. to the init."""
    other = trees.aligned(params, initial, "the initial parameters")
    there = jax.tree.unflatten(jax.tree.structure(params), other)
    pairs = zip(_live(params, masks), _live(there, masks), strict=True)
    return float(np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs)))


def _frequencies(kernel: np.ndarray, map_size: Sequence[int]) -> np.ndarray:
    """[h, w, in, out]: what the circular convolution does at each frequency.

    Taps that fall onto one place of a map smaller than the kernel add up.
    """
    height, width = map_size
    wrapped = np.zeros((height, width, *kernel.shape[2:]))
    for i, j in np.ndindex(*kernel.shape[:2]):
        wrapped[i % height, j % width] += kernel[i, j]
    return np.fft.fft2(wrapped, axes=(0, 1))


def singular_values(
    kernel: ArrayLike, map_size: Sequence[int] | None = None, strides: Sequence[int] = (1, 1)
) -> np.ndarray:
    """Singular values, descending, of a dense kernel, a circular convolution, or a diagonal map.

    With strides (a, b) the a b frequencies of the input that fall onto one of the output share a
    matrix [a b in, out], 1/sqrt(a b) of each beside the other.

    Args:
      kernel: [in, out], [height, width, in, out], or [channels], what each is multiplied by.
      map_size: (height, width) of the map the convolution reads; else None.
      strides: of the convolution.

    Raises:
      ValueError: a map without a kernel of four axes, or one that the strides do not divide.
    """
    weights = np.asarray(kernel, np.float64)
    if map_size is None and weights.ndim == 1:
        return np.sort(np.abs(weights))[::-1]
    if map_size is None and weights.ndim == 2:
        return np.linalg.svd(weights, compute_uv=False)
    if map_size is None or weights.ndim != 4:
        raise ValueError(
            f"a kernel of shape {weights.shape} on the map {map_size}: dense kernels are [in, out] "
            "without a map, convolutions [height, width, in, out] with one"
        )
    h, w = map_size
    a, b = strides
    if h % a or w % b:
        raise ValueError(
            f"the map {h} x {w} is no multiple of the strides {a} x {b}: no circular convolution; "
            "strides=(1, 1) gives an upper bound"
        )
    at = _frequencies(weights, map_size)  # [h, w, in, out]
    at = at.reshape(a, h // a, b, w // b, *weights.shape[2:]).transpose(1, 3, 0, 2, 4, 5)
    blocks = at.reshape(h // a, w // b, -1, weights.shape[3]) / np.sqrt(a * b)
    return np.sort(np.linalg.svd(blocks, compute_uv=False).ravel())[::-1]


def spectral_norm(
    kernel: ArrayLike, map_size: Sequence[int] | None = None, strides: Sequence[int] = (1, 1)
) -> float:
    """The largest singular value; arguments as in `singular_values`.

    The map of a 1 x 1 convolution does not matter.
    """
    weights = np.asarray(kernel, np.float64)
    if weights.ndim == 4 and weights.shape[:2] == (1, 1) and map_size is not None:
        return float(np.linalg.norm(weights[0, 0], 2))
    return float(singular_values(weights, map_size, strides)[0])


def _kernels(params: Tree, layers: Sequence[Layer]) -> Iterator[tuple[np.ndarray, Layer]]:
    for layer in layers:
        yield np.asarray(trees.get(params, layer.kernel), np.float64), layer


def log_spectral_product(params: Tree, layers: Sequence[Layer]) -> float:
    """Sum over layers of log(spectral norm); -inf where a layer is zero.

    Args:
      params: folded and masked.
      layers: from `folding.layers`, each with its own map.
    """
    norms = np.array([spectral_norm(k, x.map, x.strides) for k, x in _kernels(params, layers)])
    with np.errstate(divide="ignore"):
        return float(np.log(norms).sum())


def frobenius_over_spectral(params: Tree, layers: Sequence[Layer]) -> float:
    """Sum over layers of |kernel|_F^2 / (spectral norm)^2; a layer that is zero counts 0.

    The Frobenius norm is that of the kernel, as in Jiang et al., not of the convolution's matrix.
    """
    total = 0.0
    for kernel, layer in _kernels(params, layers):
        top = spectral_norm(kernel, layer.map, layer.strides)
        total += float(np.sum(kernel**2)) / top**2 if top else 0.0
    return total


def path_norm(
    apply: Callable[[Tree, jax.Array], jax.Array], params: Tree, input_shape: Sequence[int]
) -> float:
    """Sqrt of the sum over paths from an input (or a bias) to an output of the product of w^2.

    One forward pass of squared weights on an image of ones: with weights that are not negative
    ReLUs do nothing. Max pooling takes the largest of the sums it pools. Fold BatchNorm first: one
    that reads a sum is a layer of paths, too, times its gain or from its bias.

    Args:
      apply: `(params, x [1, ...]) -> outputs [1, n]`.
      params: folded and masked; or {"params": ..., "batch_stats": ...}, which has to be given where
        a BatchNorm has no bias: `folding.fold` puts what it adds into the statistics.
      input_shape: of one example.
    """

    def square(path: str, leaf: Any) -> Any:
        if not path.startswith("batch_stats/"):
            return jnp.square(leaf)
        # Means are taken off, so that minus the square adds it; variances are those of a gain of 1.
        return -jnp.square(leaf) if path.endswith("/mean") else leaf

    outputs = apply(trees.map_with_path(square, params), jnp.ones((1, *input_shape)))
    return float(np.sqrt(np.asarray(outputs, np.float64).sum()))


def margins(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """The label's logit minus the largest other one [examples]; negative where it is wrong.

    -inf where a logit is NaN, which makes no class right. `logits` are [examples, classes],
    `labels` [examples].
    """
    f, y = np.array(logits, np.float64), np.asarray(labels).reshape(-1)
    if f.ndim != 2 or f.shape[0] != y.size or f.shape[1] < 2:
        raise ValueError(f"logits {f.shape} and {y.size} labels: they are [examples, classes >= 2]")
    rows = np.arange(y.size)
    own = f[rows, y].copy()
    f[rows, y] = -inf  # so that the label is not its own rival
    with np.errstate(invalid="ignore"):
        found = own - f.max(1)
    return np.where(np.isnan(found), -inf, found)


def inverse_margin(logits: ArrayLike, labels: ArrayLike, percentile: float = 10.0) -> float:
    """1 / margin^2 at a percentile of examples, inf where it is <= 0; arguments as in `margins`."""
    # Wrong examples count: where they are more than the percentile, it is inf.
    found = margins(logits, labels)
    with np.errstate(invalid="ignore"):  # between -inf and another there is no number
        margin = float(np.percentile(found, percentile))
    return 1 / margin**2 if margin > 0 else inf
