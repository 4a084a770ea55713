"""A 2-d convolution that stays fast on CPU under every kind and order of differentiation.

A convolution y = x * w with a cotangent g of y is one trilinear form <x * w, g>. Its three
products are

    output(x, w) -> y        input(g, w) -> x        kernel(x, g) -> w

and the derivative of each with respect to an operand is again one of the three. They are the
three kinds of one bilinear JAX primitive here, so gradients, forward mode, and any nesting of
both end in the same three operations, and each has its own lowering per platform: on CPU the
formulations of `prunejax.ops.conv_cpu`, elsewhere `lax.conv_general_dilated` and its transposes
exactly as JAX would emit them.

What a primitive takes of JAX's semi-public interfaces (`jax.interpreters`, `Primitive` of
`jax.extend.core`) is in this file alone; others read and run jaxprs by `jax.extend.core`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from prunejax.ops import conv_cpu
from prunejax.ops.conv_cpu import DIMENSIONS, Geometry, lax_conv

Kind = Literal["output", "input", "kernel"]
Method = Literal["auto", "lax"]

# What the two operands of each product are. A kind is named after what it returns, so the cotangent
# of an operand is the product of that operand's name.
_OPERANDS: dict[Kind, tuple[Kind, Kind]] = {
    "output": ("input", "kernel"),
    "input": ("output", "kernel"),
    "kernel": ("input", "output"),
}
# When only one operand has a batch axis it is folded into an axis that the product treats
# independently: (axis of the operand, axis of the result), for the first and second operand.
_FOLDS: dict[Kind, tuple[tuple[int, int], tuple[int, int]]] = {
    "output": ((0, 0), (3, 3)),  # examples; output channels
    "input": ((0, 0), (2, 3)),  # examples; input channels
    "kernel": ((3, 2), (3, 3)),  # input channels; output channels
}


def conv(
    x: jax.Array,
    w: jax.Array,
    window_strides: Sequence[int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = DIMENSIONS,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    method: Method = "auto",
) -> jax.Array:
    """Drop-in for `lax.conv_general_dilated`, also as `nn.Conv(conv_general_dilated=conv)`.

    Args:
      x: input, [batch, height, width, in].
      w: kernel, [kernel height, kernel width, in, out]; same floating dtype as `x`.
      window_strides: of the output, (rows, columns).
      padding: "SAME", "VALID", or explicit ((top, bottom), (left, right)), may be negative.
      lhs_dilation: spacing of the input's entries; None is (1, 1).
      rhs_dilation: spacing of the kernel's entries; None is (1, 1).
      dimension_numbers: as in `lax`; the default here is NHWC, HWIO, NHWC.
      feature_group_count: groups of channels; more than one goes to `lax`.
      batch_group_count: groups of examples; more than one goes to `lax`.
      precision: as in `lax`.
      preferred_element_type: dtype of the result; if given and another, goes to `lax`.
      method: "lax" calls `lax.conv_general_dilated` on every platform. This is the fallback that
        uses no semi-public interface of JAX; "auto" takes it by itself for what the primitive
        does not cover (grouped, other layouts or ranks, non-floating or mixed dtypes, operands
        sharded over explicit mesh axes).

    Returns: [batch, output height, output width, out] in the dtype of `x`.

    Raises:
      ValueError: `method` is not one of the two.
      TypeError, ValueError: from `lax`, where shapes do not fit.
    """
    if method not in ("auto", "lax"):
        raise ValueError(f"convolution method {method!r} is not one of: auto, lax")
    strides = tuple(int(s) for s in window_strides)
    lhs = tuple(lhs_dilation) if lhs_dilation is not None else (1,) * len(strides)
    rhs = tuple(rhs_dilation) if rhs_dilation is not None else (1,) * len(strides)
    plain = (
        method == "lax"
        or x.ndim != 4
        or w.ndim != 4
        or feature_group_count != 1
        or batch_group_count != 1
        or x.dtype != w.dtype
        or not jnp.issubdtype(x.dtype, jnp.floating)
        or preferred_element_type not in (None, x.dtype)
        or not _is_nhwc(x.shape, w.shape, dimension_numbers)
        or x.shape[3] != w.shape[2]
        or _is_explicitly_sharded(x, w)
        or 0 in x.shape + w.shape
    )
    if plain:
        return lax.conv_general_dilated(
            x, w, strides, padding, lhs_dilation=lhs, rhs_dilation=rhs,
            dimension_numbers=dimension_numbers, feature_group_count=feature_group_count,
            batch_group_count=batch_group_count, precision=precision,
            preferred_element_type=preferred_element_type,
        )  # fmt: skip
    window = [conv_cpu.dilated(w.shape[i], rhs[i]) for i in range(2)]
    if isinstance(padding, str):
        size = [conv_cpu.dilated(x.shape[1 + i], lhs[i]) for i in range(2)]
        padding = lax.padtype_to_pads(size, window, strides, padding)
    geometry = Geometry(
        strides=(strides[0], strides[1]),
        padding=(
            (int(padding[0][0]), int(padding[0][1])),
            (int(padding[1][0]), int(padding[1][1])),
        ),
        lhs_dilation=(int(lhs[0]), int(lhs[1])),
        rhs_dilation=(int(rhs[0]), int(rhs[1])),
        input_size=(x.shape[1], x.shape[2]),
        kernel_size=(w.shape[0], w.shape[1]),
        precision=tuple(precision) if isinstance(precision, (list, tuple)) else precision,
        shared=bool(jax.sharding.get_abstract_mesh().manual_axes),
    )
    if 0 in geometry.output_size():
        return lax_conv(x, w, geometry)
    x, w = _same_varying_axes(x, w)
    return _conv_p.bind(x, w, kind="output", geometry=geometry, members=False)


def _is_nhwc(x_shape: tuple[int, ...], w_shape: tuple[int, ...], numbers: Any) -> bool:
    """True if `numbers` means NHWC inputs, HWIO kernels, NHWC outputs."""
    asked = lax.conv_dimension_numbers(x_shape, w_shape, numbers)
    return asked == lax.conv_dimension_numbers(x_shape, w_shape, DIMENSIONS)


def _is_explicitly_sharded(*operands: Any) -> bool:
    """True if an operand's type carries a sharding, as it does under explicit mesh axes."""
    return any(entry is not None for a in operands for entry in jax.typeof(a).sharding.spec)


def _same_varying_axes(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inside `shard_map`: marks both operands as varying over the union of their mesh axes.

    `lax` operations do this by themselves; without it the cotangent of a replicated kernel would
    not be summed over the shards of the batch.
    """

    def varying(x: jax.Array) -> frozenset[str]:
        kind = jax.typeof(x)
        return getattr(getattr(kind, "mat", None), "varying", getattr(kind, "vma", frozenset()))

    union = varying(a) | varying(b)

    def cast(x: jax.Array) -> jax.Array:
        missing = tuple(sorted(union - varying(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return cast(a), cast(b)


def _result_shape(
    kind: Kind, a: tuple[int, ...], b: tuple[int, ...], geometry: Geometry
) -> tuple[int, int, int, int]:
    """Shape of a product, without a member axis."""
    if kind == "output":
        return (a[0], *geometry.output_size(), b[3])
    if kind == "input":
        return (a[0], *geometry.input_size, b[2])
    return (*geometry.kernel_size, a[3], b[3])


def reference(kind: Kind, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """A product as JAX's own convolution and its transposes."""
    if kind == "output":
        return lax_conv(a, b, geometry)
    wanted = jax.ShapeDtypeStruct(_result_shape(kind, a.shape, b.shape, geometry), a.dtype)
    if kind == "input":
        (out,) = jax.linear_transpose(lambda x: lax_conv(x, b, geometry), wanted)(a)
    else:
        (out,) = jax.linear_transpose(lambda w: lax_conv(a, w, geometry), wanted)(b)
    return out


# --- the primitive: evaluation, shapes, derivatives, batching, lowering -----------------------


def _wide(lower: Callable[..., jax.Array], a: jax.Array, b: jax.Array, **how: Any) -> jax.Array:
    # A program is lowered after its tracing, of which 64-bit types may be on for a part alone.
    with jax.enable_x64(a.dtype.itemsize == 8 or jax.config.read("jax_enable_x64")):
        return lower(a, b, **how)


def _lower_plain(
    a: jax.Array, b: jax.Array, *, kind: Kind, geometry: Geometry, members: bool
) -> jax.Array:
    fn = partial(reference, kind, geometry=geometry)
    return (jax.vmap(fn) if members else fn)(a, b)


def _lower_cpu(
    a: jax.Array, b: jax.Array, *, kind: Kind, geometry: Geometry, members: bool
) -> jax.Array:
    product = conv_cpu.MEMBER_PRODUCTS[kind] if members else conv_cpu.PRODUCTS[kind]
    if kind != "kernel":
        return product(a, b, geometry)
    # A kernel's cotangent transposes its operands. XLA would fuse into that strided loop whatever
    # made them, again and again (through all residual additions before): up to 100 ms for a copy
    # of 4 ms. A call that is not inlined is a border that fusion does not cross.
    with set_xla_metadata(inlineable="false"):
        return jax.jit(product, static_argnums=2)(a, b, geometry)


def _abstract(a: Any, b: Any, *, kind: Kind, geometry: Geometry, members: bool) -> Any:
    """Shape and dtype of the result; its sharding is that of `a`'s member and example axes."""
    shape = _result_shape(kind, a.shape[members:], b.shape[members:], geometry)
    spec = a.sharding.spec[: members + (kind != "kernel")]
    spec = PartitionSpec(*spec, *[None] * (4 + members - len(spec)))
    return a.update(
        shape=a.shape[:members] + shape, sharding=a.sharding.update(spec=spec), weak_type=False
    )


def _transpose(
    operand: int, cotangent: jax.Array, a: Any, b: Any, *, kind: Kind, geometry: Geometry,
    members: bool,
) -> jax.Array:  # fmt: skip
    """The cotangent of operand 0 or 1, as another product of the same form."""
    wanted = _OPERANDS[kind][operand]
    values = {kind: cotangent, _OPERANDS[kind][1 - operand]: (a, b)[1 - operand]}
    first, second = (values[name] for name in _OPERANDS[wanted])
    return _conv_p.bind(first, second, kind=wanted, geometry=geometry, members=members)


def _batch(
    operands: tuple[Any, Any], axes: tuple[int | None, int | None], *, kind: Kind,
    geometry: Geometry, members: bool,
) -> tuple[jax.Array, int]:  # fmt: skip
    """`vmap` over one operand folds into an axis of the product; over both it makes members."""
    first, second = axes
    if first is None or second is None:
        which, axis = (1, second) if first is None else (0, first)
        assert axis is not None
        into, out = (position + members for position in _FOLDS[kind][which])
        moved = jnp.moveaxis(operands[which], axis, into)
        size = moved.shape[into]
        folded = moved.reshape(*moved.shape[:into], -1, *moved.shape[into + 2 :])
        pair = (folded, operands[1]) if which == 0 else (operands[0], folded)
        y = _conv_p.bind(*pair, kind=kind, geometry=geometry, members=members)
        return y.reshape(*y.shape[:out], size, -1, *y.shape[out + 1 :]), out
    a, b = jnp.moveaxis(operands[0], first, 0), jnp.moveaxis(operands[1], second, 0)
    if not members:
        return _conv_p.bind(a, b, kind=kind, geometry=geometry, members=True), 0
    outer, inner = a.shape[:2]
    y = _conv_p.bind(
        a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]), kind=kind, geometry=geometry,
        members=True,
    )  # fmt: skip
    return y.reshape(outer, inner, *y.shape[1:]), 0


_conv_p = Primitive("prunejax_conv")
_conv_p.def_impl(jax.jit(_conv_p.bind, static_argnames=("kind", "geometry", "members")))
_conv_p.def_abstract_eval(_abstract)
ad.defbilinear(_conv_p, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[_conv_p] = _batch
_plain, _cpu = (mlir.lower_fun(partial(_wide, f), False) for f in (_lower_plain, _lower_cpu))
mlir.register_lowering(_conv_p, _plain)
mlir.register_lowering(_conv_p, _cpu, platform="cpu")
