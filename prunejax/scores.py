"""Importance scores: one number per unit, larger = more important (kept longer by "smallest").

Two faces. Array functions (`magnitude`, `filter_l2`, `ebn`, ...) work on any leaf of anybody's
parameters; the last axis of a kernel runs over its filters or neurons unless `axis` names another
(docs/frameworks.md has a table). `SCORES` is the table that
studies choose from: each entry reads what it needs from a layer's `ScoreInputs`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from numpy.lib.array_utils import normalize_axis_tuple

Array = jax.Array
ACTIVATION_PERIOD = 10  # steps between updates of the running mean of activations
ACTIVATION_RATE = 0.1  # weight of the new batch, as released
# See `prunejax.methods.evidence` and `prunejax.methods.modes`.
NETWORK = ("snip", "grasp", "synflow", "curvature", "curvature_saliency", "mode_leverage")


def magnitude(w: Array) -> Array:
    """|w|, same shape [...]: magnitude pruning of single weights; of any dtype that has magnitudes.

    Signed integers give unsigned ones, which hold the magnitude of the most negative number too.
    """
    w = jnp.asarray(w)
    if w.dtype == jnp.bool_:
        return w
    if jnp.issubdtype(w.dtype, jnp.signedinteger):
        return jnp.abs(w).astype(w.dtype.name.replace("int", "uint"))
    return jnp.abs(w)


def random(key: Array, like: Array) -> Array:
    """Uniform [0, 1) in the shape of `like` [...], independent of its values."""
    return jax.random.uniform(key, like.shape)  # of 2^23 values: ties go by the order of units


def _wide(x: Array) -> Array:
    """At least single precision: sums and products of 16-bit numbers round and overflow."""
    with jax.numpy_dtype_promotion("standard"):  # callers may ask for strict promotion
        kind = jnp.promote_types(x.dtype, jnp.float32)
    return x.astype(kind)


Axis = int | tuple[int, ...]


def _sum_per_filter(x: Array, axis: Axis) -> Array:
    """The sum over all axes but `axis`; see `filter_l1`."""
    kept = set(normalize_axis_tuple(axis, x.ndim, "axis"))
    summed = tuple(a for a in range(x.ndim) if a not in kept)
    return jnp.sum(x, axis=summed, keepdims=kept != {x.ndim - 1})


def filter_l1(w: Array, axis: Axis = -1) -> Array:
    """Sum of |w| over each filter (Li et al. 2017).

    Args:
      w: a kernel [..., units].
      axis: the axis, or axes, that run over the filters: the last in Flax and Haiku, 0 in Equinox
        (out, in) and PyTorch (OIHW), (0, -1) of kernels that a scan stacks.

    Returns:
      [units] for the last axis; else of w's rank, 1 along the other axes, so that a mask made of
      it broadcasts against w.

    Raises:
      ValueError: w has no such axis, or one is given twice.
    """
    return _sum_per_filter(jnp.abs(_wide(w)), axis)


def filter_l2(w: Array, axis: Axis = -1) -> Array:
    """Euclidean norm of each filter; `axis` and shapes as in `filter_l1`."""
    # The modulus first: the square of a complex weight is no length.
    return jnp.sqrt(_sum_per_filter(jnp.square(jnp.abs(_wide(w))), axis))


def ebn(scale: Array, bias: Array) -> Array:
    """E[BN]: the expected value after ReLU of a BatchNorm output, taken as N(bias, scale^2).

    `bias * Phi(bias/s) + s * phi(bias/s)` with s = |scale|; its limit max(bias, 0) at s = 0.
    Bartoldson et al. 2020, appendix B.

    Args:
      scale: BatchNorm's gamma [units].
      bias: BatchNorm's beta [units].

    Returns:
      [units].
    """
    return _expected_relu(jnp.abs(_wide(scale)), _wide(bias))


def ebn_signed(scale: Array, bias: Array) -> Array:
    """The variant of `ebn` with the signed scale (released as the more stable one for ResNet18).

    Shapes as in `ebn`. Equal to it for scale > 0; `-E[ReLU(-x)]` (never positive) for scale < 0.
    The released code stops in an assertion of its own where the mean score of what it prunes is
    negative, as it is for the smallest ones once a scale is; here such events go on.
    """
    return _expected_relu(_wide(scale), _wide(bias))


def _expected_relu(s: Array, bias: Array) -> Array:
    flat = s == 0
    z = bias / jnp.where(flat, 1, s)  # 0 / 0 would be NaN, in derivatives as well
    value = bias * norm.cdf(z) + s * norm.pdf(z)  # of the sign of s, up to cancellation
    value = jnp.where(s < 0, jnp.minimum(value, 0), jnp.maximum(value, 0))
    return jnp.where(flat, jnp.maximum(bias, 0), value)


def saliency(w: Array, gradient: Array) -> Array:
    """|w * g| [...] of `w` and `gradient` [...]: first-order change of the loss if w goes."""
    return jnp.abs(product(w, gradient))


def product(w: Array, gradient: Array) -> Array:
    """The product `w` * `gradient`, all of the same shape [...], in single precision at least.

    Of complex weights its real part, by which the loss changes: JAX's gradient is dL/dx - i dL/dy.
    """
    if w.shape != gradient.shape:
        raise ValueError(f"weights of shape {w.shape} and a gradient of shape {gradient.shape}")
    return jnp.real(_wide(w) * _wide(gradient))


def undecayed(
    w: Array, gradient: Array, decay: float | Array, *, grad_of: Literal["data", "total"] = "data"
) -> Array:
    """|-w g + decay w^2|, same shape: Undecayed Pruning (Good et al., NeurIPS 2022).

    -w g - decay w^2 is what the decayed loss gains to first order if the weight goes; the penalty
    that goes with it is added back, so that the score is about the data alone. decay = 0 is
    `saliency`; a large one ranks as `magnitude` does, and so does any where the decayed loss is
    stationary (g = -decay w gives 2 decay w^2).

    Args:
      w: weights [...].
      gradient: g [...], of the loss *without* the decay term.
      decay: the coefficient in "gradient += decay w", a scalar, at least 0. Decoupled decay (AdamW)
        is no term of a gradient; give the coefficient that you mean.
      grad_of: the loss whose gradient the score reads. "total" has the decay in it, g + decay w:
        the two decays cancel, |-w (g + decay w) + decay w^2| = |w g|, and the score is `saliency`
        whatever the decay. It is there to show that.

    Raises:
      ValueError: shapes differ; a negative decay; another `grad_of`.
    """
    if grad_of not in ("data", "total"):
        raise ValueError(f"grad_of {grad_of!r} is not one of: data, total")
    if not isinstance(decay, jax.Array) and not decay >= 0:
        raise ValueError(f"decay {decay!r} must be at least 0; 0 is `saliency`")
    if grad_of == "total":
        return saliency(w, gradient)
    squared = jnp.square(jnp.abs(_wide(w)))  # of a complex weight, too
    return jnp.abs(decay * squared - product(w, gradient))


def filter_saliency(w: Array, gradient: Array, axis: Axis = -1) -> Array:
    """|sum of w * g| over each filter; `gradient` of the shape of `w`, the rest as in `filter_l1`.

    First-order change of the loss if the whole filter goes (Molchanov et al. 2017), so single
    weights may cancel.
    """
    return jnp.abs(_sum_per_filter(product(w, gradient), axis))


def update_activation_mean(old: Array, batch_sum: Array, step: Array) -> Array:
    """Running mean of summed |activations|: `0.9 old + 0.1 new` at every tenth step, else `old`.

    Args:
      old: [units], starts at 0.
      batch_sum: [units], sum of |pre-ReLU activation| over the batch's examples and positions
        (after the shortcut in residual blocks).
      step: training step from 0, a scalar; updates happen at 9, 19, ...
    """
    # Not corrected for its start at 0: all units share that factor, and ranks do not see it.
    new = (1 - ACTIVATION_RATE) * old + ACTIVATION_RATE * batch_sum
    return jnp.where(step % ACTIVATION_PERIOD == ACTIVATION_PERIOD - 1, new, old)


class ScoreInputs(NamedTuple):
    """What a layer offers to scores."""

    kernel: Array
    scale: Array | None  # of the BatchNorm it feeds
    bias: Array | None
    activation: Array | None  # running mean [units]
    gradient: Array | None  # of the training loss, kernel's shape
    key: Array
    decay: Array | None = None  # the optimizer's weight decay
    network: Mapping[str, Array] | None = None  # scores of the whole network, by name
    stability: Array | None = None  # minus the share of inputs at which a unit's sign is not sure
    learnt: Array | None = None  # score parameters of movement pruning, kernel's shape

    def need(self, field: str) -> Array:
        """A field, of the shape that is told beside it; ValueError where the layer has none."""
        return _present(getattr(self, field), _WORDS[field])


_WORDS = {
    **{"scale": "a BatchNorm", "bias": "a BatchNorm", "activation": "running activations"},
    **{"gradient": "a gradient", "decay": "weight decay", "stability": "bounds of a network"},
    "learnt": "score parameters",
}
# What of `ScoreInputs` is there only where a score asks for it. "norm" refuses layers without a
# BatchNorm; "network" is the entry of the same name in `prunejax.methods.evidence.EVIDENCE`.
NEEDS = {"norm", "activations", "gradient", "decay", "network", "stability", "learnt"}


class Score(NamedTuple):
    """An entry of SCORES."""

    fn: Callable[[ScoreInputs], Array]
    needs: frozenset[str] = frozenset()  # of NEEDS
    per_weight: bool = False  # scores single weights instead of filters


def _present(x: Array | None, what: str) -> Array:
    if x is None:
        raise ValueError(f"this score needs {what}, and the layer has none")
    return x


def value(name: str, inputs: ScoreInputs) -> Array:
    """Score `name` of a layer, [units] or of its kernel's shape; zeros without a needed BatchNorm.

    Only runs that leave such a layer out ask for it: others of their program may prune it.
    """
    score, kernel = SCORES[name], inputs.kernel
    if "norm" in score.needs and inputs.scale is None:
        return jnp.zeros(kernel.shape if score.per_weight else kernel.shape[-1:])
    return score.fn(inputs)


def of_network(name: str) -> Score:
    """The entry of SCORES for entry `name` of `prunejax.methods.evidence.EVIDENCE`.

    EVIDENCE["mine"] = NetworkScore(fn, "loss")
    SCORES["mine"] = of_network("mine")
    """
    return Score(partial(_of_network, name), frozenset({"network"}), per_weight=True)


def _of_network(name: str, inputs: ScoreInputs) -> Array:
    return _present((inputs.network or {}).get(name), "evidence on the whole network")


SCORES: dict[str, Score] = {
    "l1": Score(lambda i: filter_l1(i.kernel)),
    "l2": Score(lambda i: filter_l2(i.kernel)),
    "ebn": Score(lambda i: ebn(i.need("scale"), i.need("bias")), frozenset({"norm"})),
    "ebn_signed": Score(lambda i: ebn_signed(i.need("scale"), i.need("bias")), frozenset({"norm"})),
    "activations": Score(lambda i: i.need("activation"), frozenset({"activations"})),
    "saliency": Score(
        lambda i: filter_saliency(i.kernel, i.need("gradient")), frozenset({"gradient"})
    ),
    # Units by instability of their bounds in a small box of inputs: `measures.bounds.stability`.
    "stability": Score(lambda i: i.need("stability"), frozenset({"stability"})),
    # [units]: the kernel lends its shape alone
    "random": Score(lambda i: random(i.key, i.kernel[(0,) * (i.kernel.ndim - 1)])),
    "magnitude": Score(lambda i: magnitude(i.kernel), per_weight=True),
    "weight_saliency": Score(
        lambda i: saliency(i.kernel, i.need("gradient")), frozenset({"gradient"}), per_weight=True
    ),
    **{name: of_network(name) for name in NETWORK},
    "undecayed": Score(
        lambda i: undecayed(i.kernel, i.need("gradient"), i.need("decay")),
        frozenset({"gradient", "decay"}),
        per_weight=True,
    ),
    "learnt": Score(lambda i: i.need("learnt"), frozenset({"learnt"}), per_weight=True),
    "learnt_magnitude": Score(
        lambda i: jnp.abs(i.need("learnt")), frozenset({"learnt"}), per_weight=True
    ),
    "weight_random": Score(lambda i: random(i.key, i.kernel), per_weight=True),
}
SHIPPED = dict(SCORES)
