"""Moments of per-example gradients, Tr(C), and quadratic forms of per-example Hessians.

With g_i the gradient of example i's loss on the live subspace and ḡ their mean:

    uncentered    Tr(C) = (1/N) Σ ||g_i||^2                      (the paper's)
    centered      Tr(C) = (1/N) Σ ||g_i - ḡ||^2 = uncentered - ||ḡ||^2

exact for the examples given, for any number of them and any chunk. Standard errors regard the
examples as a sample: they are those of the sample mean of ||g_i||^2, or of ||g_i - ḡ||^2.

Bartoldson et al., NeurIPS 2020 (flatness); Thomas et al., AISTATS 2020, arXiv 1906.07774.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import kernels, means, splits, vectors
from prunejax.curvature.callables import as_argument, on_host
from prunejax.curvature.example_gradients import norms_and_sum
from prunejax.curvature.splits import Batches, batch_list, batch_size, chunk_size, chunks, spread
from prunejax.curvature.trace import mean_and_stderr

Tree = Any
TOGETHER = 8  # chunks that one call of a compiled kernel goes through, one after another
LARGE_BYTES = 2**20  # that the loss computes on the way for one example
FORMS_CHUNK = 128  # examples at once; probes are drawn again for each chunk
# Of small networks more: what a call costs besides, and the draws, are paid less often.
FORMS_MOST = 512
FORMS_BYTES = 2**25  # that the loss may compute on the way for them
PerExampleLoss = Callable[[Tree, Tree], jax.Array]


@partial(jax.jit, static_argnames="chunk")
def norms_and_total(
    loss: Any, params: Tree, batch: Tree, weight: jax.Array, masks: Any, total: Tree, chunk: int
) -> tuple[jax.Array, Tree]:
    """`norms_and_sum` of a batch, chunk by chunk: [n], and the sum added to `total`.

    Args:
      loss, params, batch, masks: as there.
      weight: [n], 0 behind the examples that count.
      total: a tree like params; None: the norms alone, then the compiler drops what only the sum
        needs, about a third for a VGG.
      chunk: examples at once; n is a multiple of it.
    """

    def one(total: Tree, batch: Tree, weight: jax.Array) -> tuple[Tree, jax.Array]:
        squared, part = norms_and_sum(loss, params, batch, weight, masks)
        return None if total is None else vectors.add(total, part), squared

    total, squared = means.in_turn(one, total, batch, weight, chunk)
    return squared, total


@partial(jax.jit, static_argnames="chunk")
def slopes(
    loss: Any, params: Tree, batch: Tree, weight: jax.Array, direction: Tree, chunk: int
) -> jax.Array:
    """The derivative [n] of each example's loss along a direction, chunk by chunk.

    Args:
      loss: `(params, batch) -> [examples]`.
      params, batch, chunk: as in `norms_and_total`.
      weight: [n], 0 behind the examples that count.
      direction: a tree like params.
    """
    tangent = vectors.cast_like(direction, params)

    def one(nothing: Tree, batch: Tree, weight: jax.Array) -> tuple[Tree, jax.Array]:
        slope = kernels.pushforward(lambda p: loss(p, batch), params, tangent)[1]
        return nothing, slope.astype(weight.dtype)

    return means.in_turn(one, None, batch, weight, chunk)[1]


@dataclass(frozen=True)
class GradientMoment:
    """Tr(C) on a set of examples.

    Attributes:
      value: the variant asked for; squared nats where the loss is in nats.
      stderr: of value, over examples; NaN for one example.
      centered: True if value is about the mean gradient.
      ddof: value is a sum over N - ddof (0 or 1).
      uncentered: (1/N) Σ ||g_i||^2.
      mean_gradient_squared_norm: ||ḡ||^2, or None where it was not asked for.
      examples: N.
      live_dim: coordinates that are live.
      squared_norms: [N] of ||g_i||^2, in the order of the examples.
      alignments: [N] of g_i·ḡ, or None where they were not needed.
    """

    value: float
    stderr: float
    centered: bool
    ddof: int
    uncentered: float
    mean_gradient_squared_norm: float | None
    examples: int
    live_dim: int
    squared_norms: np.ndarray
    alignments: np.ndarray | None

    @property
    def contributions(self) -> np.ndarray:
        """[N] whose mean is the moment with ddof=0: ||g_i||^2 or ||g_i - ḡ||^2."""
        if not self.centered:
            return self.squared_norms
        assert self.alignments is not None
        assert self.mean_gradient_squared_norm is not None
        return self.squared_norms - 2 * self.alignments + self.mean_gradient_squared_norm

    def of(self, centered: bool, ddof: int) -> "GradientMoment":
        """The same examples' moment of that kind; centered needs the alignments."""
        n, less = self.examples, self.mean_gradient_squared_norm or 0.0
        value = (self.uncentered - less) * n / (n - ddof) if centered else self.uncentered
        kind = replace(self, value=value, centered=centered, ddof=ddof)
        return replace(kind, stderr=mean_and_stderr(kind.contributions)[1] * n / (n - ddof))


@on_host()
def gradient_second_moment(
    per_example_loss: PerExampleLoss,
    params: Tree,
    batches: Batches,
    *,
    centered: bool = False,
    ddof: int = 0,
    mean: bool = False,
    chunk: int | None = None,
    masks: vectors.Masks = None,
    devices: Sequence[jax.Device] | None = None,
) -> GradientMoment:
    """Tr(C) of the per-example gradients; see the module for the two variants.

    Per-example gradients are not stored: on CPU one exists at a time, and of dense layers and of
    convolutions with few positions none at all (see `example_gradients`).

    Args:
      per_example_loss: `(params, batch) -> [examples]`, each entry a function of its example
        alone. Closing over frozen BatchNorm statistics makes it eval-mode; batch statistics would
        be those of single examples.
      params: pytree of floating-point arrays.
      batches: one batch (pytree, examples along the leading axes) or a list of batches.
      centered: about the mean gradient; costs one more pass of forward mode, for its stderr.
      ddof: 1 divides the centered sum by N - 1 (unbiased), 0 by N.
      mean: also ||ḡ||^2, without the rest of the centered variant. It needs the sum of the
        gradients, which the uncentered moment alone does without.
      chunk: examples at once, default 32; on several devices of a CPU 16 where activations outweigh
        the parameters. Bounds the memory of activations; exact for any value.
      masks: True = live; gradients of dead coordinates do not count.
      devices: that take the chunks in turn, side by side; each compiles for itself and gets a copy
        of what it needs. None: where the arrays are. On a CPU one device of JAX per core
        (`jax_num_cpu_devices`) is faster than one with all cores where convolutions are large.

    Returns:
      `GradientMoment`.

    Raises:
      ValueError: no examples, a chunk below 1, an empty list of devices, or a ddof that does not
        apply.
    """
    if devices is not None and not devices:
        raise ValueError("devices is empty; give at least one, or None for where the arrays are")
    if ddof not in (0, 1) or (ddof and not centered):
        raise ValueError(f"ddof is 0, or 1 with centered=True; got {ddof}, centered={centered}")
    params, live = vectors.checked(params, masks)
    loss, batches = as_argument(per_example_loss), batch_list(batches)
    places: Sequence[jax.Device | None] = devices or [None]
    together = 1 if spread((params, list(batches))) else TOGETHER
    if chunk is None and len(places) > 1:
        chunk = _side_by_side(loss, params, batches[0])
    pieces = chunks(batches, chunk, together, len(places))
    size = chunk_size(chunk, [batch_size(batch) for batch in batches])
    dtype, both = vectors.sum_dtype(params), mean or centered
    zeros = jax.tree.map(jnp.zeros_like, vectors.upcast(params)) if both else None
    held = [splits.placed((loss, params, live, zeros), place) for place in places]
    totals = [total for *_, total in held]
    counted = [(p, (np.arange(batch_size(p)) < real).astype(dtype), real) for p, real in pieces]

    def norms(turn: int, piece: Tree, weight: Any) -> jax.Array:
        loss, params, live, _ = held[turn]
        squared, totals[turn] = norms_and_total(
            loss, params, piece, weight, live, totals[turn], chunk=size
        )
        return squared

    squared_norms = splits.side_by_side(norms, counted, places)
    n = len(squared_norms)
    if n <= ddof:
        raise ValueError(f"ddof={ddof} needs more than {ddof} examples, got {n}")
    mean_squared = alignments = None
    if both:
        total = reduce(vectors.add, [splits.placed(total, places[0]) for total in totals])
        average = vectors.scale(1.0 / n, total)
        mean_squared = float(vectors.squared_norm(average))
    if centered:
        averages = [splits.placed(average, place) for place in places]
        alignments = splits.side_by_side(
            lambda i, p, w: slopes(*held[i][:2], p, w, averages[i], chunk=size), counted, places
        )
    moment = GradientMoment(
        value=0.0, stderr=0.0, centered=False, ddof=0, uncentered=float(squared_norms.mean()),
        mean_gradient_squared_norm=mean_squared, examples=n,
        live_dim=vectors.live_dimension(live, params), squared_norms=squared_norms,
        alignments=alignments,
    )  # fmt: skip
    return moment.of(centered, ddof)


def _side_by_side(loss: Any, params: Tree, batch: Tree) -> int:
    """Examples of a chunk where devices work side by side, and none is asked for.

    Half as many keep large activations nearer to a core: 7 % of the time of a ResNet-20. A VGG-11
    would lose 18 %, it goes through all of its parameters for each chunk; so would a device that
    has all cores, which share a chunk.
    """
    size = splits.DEFAULT_CHUNK
    if batch is None or jax.default_backend() != "cpu":
        return size
    examples = batch_size(batch)
    each = kernels.intermediate_bytes((loss,), params, batch) // examples
    held = sum(x.nbytes for x in jax.tree.leaves(params))
    return size // 2 if each > max(LARGE_BYTES, held // 2) else size


@partial(jax.jit, static_argnames="distribution")
def _forms_by_example(
    loss: Any, params: Tree, masks: Any, source: Any, batch: Tree, distribution: str | None
) -> jax.Array:
    """[n, m]: v_k' H_i v_k; `source` is (key, indices) of random vectors, or a stack of vectors."""
    count = (jax.tree.leaves(source)[0] if distribution is None else source[1]).shape[0]

    def vector(item: Any) -> Tree:
        if distribution is not None:
            dtype = vectors.sum_dtype(params)
            item = vectors.sample(source[0], item, params, distribution, dtype)
        return vectors.cast_like(vectors.project(masks, item), params)

    def single(params: Tree, example: Tree) -> jax.Array:
        return loss(params, jax.tree.map(lambda x: x[None], example))[0]

    def of_example(example: Tree) -> jax.Array:
        form = kernels.hessian_forms((single,), params, example, count)
        items = source if distribution is None else source[1]
        return jax.lax.map(lambda item: vectors.upcast(form(vector(item))), items)

    return jax.vmap(of_example)(jax.tree.map(jnp.asarray, batch))


def forms_by_example(
    per_example_loss: PerExampleLoss,
    params: Tree,
    batches: Batches,
    source: Any,
    *,
    distribution: str | None,
    chunk: int | None = None,
    masks: vectors.Masks = None,
) -> np.ndarray:
    """[N, m] quadratic forms v_k' H_i v_k of every example's own Hessian, in float64.

    Args:
      per_example_loss: `(params, batch) -> [examples]`.
      params: pytree of floating-point arrays.
      batches: one batch or a list of batches.
      source: a stack of m vectors with distribution=None; else (key, indices [m]) of the random
        vectors that `trace` draws.
      distribution: "rademacher", "gaussian", or None.
      chunk: examples at once, default 128, up to 512 of a small network.
      masks: True = live.
    """
    params, live = vectors.checked(params, masks)
    loss = as_argument(per_example_loss)
    if chunk is None:
        first = batch_list(batches)[0]
        each = kernels.intermediate_bytes((loss,), params, first) // batch_size(first)
        chunk = int(np.clip(FORMS_BYTES // max(each, 1), FORMS_CHUNK, FORMS_MOST))
    pieces = chunks(batches, chunk)
    values = [
        np.asarray(_forms_by_example(loss, params, live, source, piece, distribution))[:real]
        for piece, real in pieces
    ]
    return np.concatenate(values).astype(np.float64)  # sums over examples and probes follow
