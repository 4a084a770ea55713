"""Layers that the models are built from: convolution, pooling, the channel gate, initializers."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from prunejax.ops.conv import Method, conv

Initializer = Any

# Kaiming-normal as in `torch.nn.init.kaiming_normal_`: variance 2 / fan.
kaiming_normal_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
kaiming_normal_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# PyTorch's default of Linear and Conv2d (kaiming_uniform with a = sqrt(5)): U(-b, b) with
# b = 1 / sqrt(fan_in), that is variance 1 / (3 fan_in).
torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


# Up to so many outputs a classifier's kernel is turned, so that its gradient is a product
# [outputs, batch] x [batch, n]. Its passes then take XLA 0.28 of the time on a CPU (10 outputs,
# n = 512, batch 128), and 0.8 with 64; with 100 and a batch of 32, or with 1,000, they take longer.
FEW = 64


def torch_default_bias(fan_in: int) -> Initializer:
    """PyTorch's default bias of a layer with `fan_in` inputs: U(-b, b) with b = 1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def convolution(
    features: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    use_bias: bool = True,
    kernel_init: Initializer = kaiming_normal_out,
    dtype: Any = jnp.float32,
    method: Method = "auto",
    name: str | None = None,
) -> nn.Conv:
    """`nn.Conv` on NHWC images, computed by `prunejax.ops.conv.conv`, with PyTorch's geometry.

    Args:
      features: output channels.
      kernel: height and width of the kernel.
      stride: step of the output in both directions.
      padding: zeros on each side; None is `kernel // 2`. Explicit, since "SAME" pads unevenly
        where the stride is 2.
      use_bias: whether a bias is added.
      kernel_init: initializer of the kernel; biases start at zero.
      dtype: of the computation; parameters stay float32.
      method: see `prunejax.ops.conv.conv`.
      name: of the parameters' scope.
    """
    pad = kernel // 2 if padding is None else padding
    return nn.Conv(
        features, (kernel, kernel), strides=(stride, stride), padding=((pad, pad), (pad, pad)),
        use_bias=use_bias, kernel_init=kernel_init, dtype=dtype,
        conv_general_dilated=partial(conv, method=method), name=name,
    )  # fmt: skip


def turned(x: jax.Array, kernel: jax.Array, *_: Any, **options: Any) -> jax.Array:
    """The product of x [..., n] and a kernel [n, m] that is turned to [m, n] before; see `FEW`."""
    rows = lax.optimization_barrier(kernel.T)  # XLA would fold the turn into the products
    return lax.dot_general(x, rows, (((x.ndim - 1,), (1,)), ((), ())), **options)


def classifier(
    features: int, fan_in: int, *, kernel_init: Initializer = torch_default, name: str, dtype: Any
) -> nn.Dense:
    """The last linear layer: PyTorch's default initialization unless a kernel's is given."""
    product = turned if features <= FEW else None
    return nn.Dense(
        features, kernel_init=kernel_init, bias_init=torch_default_bias(fan_in), dtype=dtype,
        dot_general=product, name=name,
    )  # fmt: skip


def _row(values: jax.Array, x: jax.Array) -> jax.Array:
    """Of numbers [n] of channels those that go with `x` [..., n]."""
    return lax.broadcast_to_rank(values, x.ndim)


def _scaled(x: jax.Array, mean: jax.Array, slope: jax.Array, bias: jax.Array) -> jax.Array:
    return (x - _row(mean, x)) * _row(slope, x) + _row(bias, x)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _normalized(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Any:
    """`x` [..., n] by its mean and variance over all axes but the last, and both of them [n]."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = jnp.maximum(0.0, lax.square(x).mean(axes) - lax.square(mean))
    return _scaled(x, mean, lax.rsqrt(var + epsilon) * scale, bias), mean, var


@_normalized.defjvp
def _normalized_jvp(epsilon: float, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x, scale, _), (dx, dscale, dbias) = primals, tangents
    axes = tuple(range(x.ndim - 1))
    found = _normalized(*primals, epsilon)
    inverse = lax.rsqrt(found[2] + epsilon)
    unit, slope = (x - _row(found[1], x)) * _row(inverse, x), inverse * scale
    moved, spread = dx.mean(axes), (unit * dx).mean(axes)
    # One number for each channel where there can be: the gradient then has two sums, of g and of
    # unit * g, for `x`, `scale` and `bias` together. JAX finds four in the formula as it stands.
    along = _row(slope, x) * dx + _row(dbias - slope * moved, x)
    along += unit * _row(dscale - slope * spread, x)
    return found, (along, moved, 2.0 * spread / inverse)


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm` over the last axis, with fewer passes in the backward pass of training.

    Attributes:
      unbiased: the running variance takes n/(n-1) times each batch's, as PyTorch's does. n is the
        number of values of a channel, examples times positions (PyTorch refuses n = 1; here it
        counts as 2). What a training step itself computes is the same.
    """

    unbiased: bool = False

    # Of `x` alone: a mask, or another mode for one call, would be ignored.
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """The normalized `x`; whether it trains is an attribute here."""
        size, stat = x.shape[-1:], partial(self.variable, "batch_stats")
        scale = self.param("scale", self.scale_init, size, self.param_dtype)
        bias = self.param("bias", self.bias_init, size, self.param_dtype)
        old = stat("mean", jnp.zeros, size), stat("var", jnp.ones, size)
        wide = x.astype(jnp.promote_types(self.dtype or x.dtype, jnp.float32))
        if nn.merge_param("use_running_average", self.use_running_average, None):
            mean, var = (held.value for held in old)
            y = _scaled(wide, mean, lax.rsqrt(var + self.epsilon) * scale, bias)
        else:
            y, mean, var = _normalized(wide, scale, bias, self.epsilon)
            if self.unbiased:
                count = max(x.size // x.shape[-1], 2)
                var = var * (count / (count - 1))
            for held, new in zip(old, (mean, var), strict=True):
                if not self.is_initializing():
                    held.value = self.momentum * held.value + (1 - self.momentum) * new
        return y.astype(self.dtype or jnp.result_type(x, scale, bias))


def batch_norm(train: bool, dtype: Any, name: str, unbiased: bool = False) -> BatchNorm:
    """BatchNorm with epsilon 1e-5 and momentum 0.9 (what PyTorch calls momentum 0.1).

    The running variance is the biased one, or with `unbiased` PyTorch's. Statistics are taken in
    float32 whatever the dtype.
    """
    return BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name,
        unbiased=unbiased,
    )  # fmt: skip


def _window_slices(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int] | None
) -> list[jax.Array]:
    """The entries of each pooling window, one strided slice per position in the window."""
    steps = strides or window
    if min(*window, *steps) < 1:
        raise ValueError(f"pooling window {window} and strides {steps} must be 1 or more")
    if window[0] > x.shape[1] or window[1] > x.shape[2]:
        raise ValueError(
            f"pooling window {window} is larger than the map {x.shape[1:3]}; pool less often or "
            "use larger images"
        )
    ends = [
        (x.shape[1 + i] - window[i]) // steps[i] * steps[i] + 1 for i in range(2)
    ]  # one past the last window's first entry
    return [
        lax.slice(
            x, (0, i, j, 0), (x.shape[0], i + ends[0], j + ends[1], x.shape[3]), (1, *steps, 1)
        )
        for i, j in itertools.product(range(window[0]), range(window[1]))
    ]


def _first_maximum(a: jax.Array, b: jax.Array) -> jax.Array:
    """The larger one, NaN where one is; `a`, with its whole gradient, where they are equal."""
    # `>=`: of equal ones `a`, so the gradient is not split
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def max_pool(
    x: jax.Array,
    window: tuple[int, int] = (2, 2),
    strides: tuple[int, int] | None = None,
    padding: int = 0,
) -> jax.Array:
    """Maximum over windows, as the maximum of strided slices.

    The backward pass of `nn.max_pool` (select-and-scatter) takes nine times as long on CPU. As
    there and in PyTorch the first of equal maxima (row by row) gets the gradient: a filter held
    at zero under a live BatchNorm gives a constant map, where every window is a tie.

    Args:
      x: [batch, height, width, channels].
      window: height and width of the window.
      strides: steps between windows; None is the window itself.
      padding: entries on each side that never are the maximum; less than the window.

    Returns:
      [batch, (height + 2 padding - window) // stride + 1, ..., channels]; a rest at the border is
      left out.

    Raises:
      ValueError: the window does not fit into the map.
    """
    if padding:
        if not 0 < padding < min(window):
            raise ValueError(f"pooling padding {padding} must be less than the window {window}")
        lowest = jnp.asarray(jnp.finfo(x.dtype).min, x.dtype)
        none, side = (0, 0, 0), (padding, padding, 0)
        x = lax.pad(x, lowest, (none, side, side, none))
    slices = _window_slices(x, window, strides)
    while len(slices) > 1:  # neighbours in pairs, so that the first of all goes before the others
        pairs = [_first_maximum(a, b) for a, b in zip(slices[::2], slices[1::2], strict=False)]
        slices = pairs + (slices[-1:] if len(slices) % 2 else [])
    return slices[0]


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Mean over height and width: [batch, h, w, channels] -> [batch, channels]."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)


def gate(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Sets the channels of `x` to exactly zero where gate `name` of the module is zero.

    The gate is a variable (channels,) of collection "gates", all ones at first. Where the
    collection is not given to `apply`, there is no gate. It stands after the addition of a
    residual block, where masking the block's own parameters does not remove the shortcut.
    A floating-point gate multiplies instead, so that a loss can be expanded around it.
    """
    if module.is_initializing():
        # Not `module.variable`: that would not allow the name of a submodule.
        module.put_variable("gates", name, jnp.ones(x.shape[-1], jnp.bool_))
    elif module.has_variable("gates", name):
        factor = lax.broadcast_to_rank(jnp.asarray(module.get_variable("gates", name)), x.ndim)
        if jnp.issubdtype(factor.dtype, jnp.floating):
            shut = jnp.zeros((), x.dtype)  # infinity times zero must not leak either
            return jnp.where(factor == 0, shut, (x * factor).astype(x.dtype))
        x = jnp.where(factor, x, jnp.zeros((), x.dtype))
    return x


def record_activation(module: nn.Module, name: str, x: jax.Array) -> None:
    """Stores sum |x| over all axes but the last in collection "activations", if it is mutable.

    `x` is the pre-activation of group `name`; the sum is taken in float32 or wider.
    """
    if module.is_initializing() or not module.is_mutable_collection("activations"):
        return
    total = jnp.sum(
        jnp.abs(x), axis=tuple(range(x.ndim - 1)), dtype=jnp.promote_types(x.dtype, jnp.float32)
    )
    module.put_variable("activations", name, total)


def recorded_activation(collection: Any, name: str) -> jax.Array:
    """What `record_activation` stored under a layer's name, wherever in the module tree.

    Raises:
      KeyError: the model records none for that layer.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(collection):
        if any(getattr(entry, "key", None) == name for entry in path):
            return leaf
    raise KeyError(f"the model sows no activations for layer {name!r}")
