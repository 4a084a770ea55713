"""How a convolution and its two transposes are computed on CPU: plain functions of `jax.lax`.

XLA:CPU has a fast convolution only for NHWC/HWIO operands without window reversal, whose map is
not smaller than the kernel. Everything here is written in that form or as a matrix product, so
the choice made by XLA does not depend on where the operation stands (entry computation or the
body of a scan).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from prunejax.ops import conv_winograd

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
    """The static part of a convolution: everything that the operands' shapes do not say."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    lhs_dilation: tuple[int, int]
    rhs_dilation: tuple[int, int]
    input_size: tuple[int, int]  # height and width of the input
    kernel_size: tuple[int, int]  # height and width of the kernel
    precision: lax.Precision | tuple[lax.Precision, lax.Precision] | None = None
    shared: bool = False  # inside `shard_map`: each device has its part of the host's cores

    def output_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        sizes = []
        for i in range(2):
            length = dilated(self.input_size[i], self.lhs_dilation[i]) + sum(self.padding[i])
            window = dilated(self.kernel_size[i], self.rhs_dilation[i])
            sizes.append(max(0, (length - window) // self.strides[i] + 1))
        return sizes[0], sizes[1]


def dilated(size: int, dilation: int) -> int:
    """Length of an axis with `dilation - 1` zeros between its entries."""
    return (size - 1) * dilation + 1 if size else 0


def input_transpose(geometry: Geometry) -> Geometry:
    """The convolution that maps an output's cotangent to the input's (kernel flipped, I/O swapped).

    Strides and input dilation change places; the padding completes the full correlation.
    """
    g, out = geometry, geometry.output_size()
    padding = []
    for i in range(2):
        window = dilated(g.kernel_size[i], g.rhs_dilation[i])
        low = window - 1 - g.padding[i][0]
        want = dilated(g.input_size[i], g.lhs_dilation[i])
        padding.append((low, want + window - 1 - dilated(out[i], g.strides[i]) - low))
    return g._replace(
        strides=g.lhs_dilation,
        lhs_dilation=g.strides,
        padding=(padding[0], padding[1]),
        input_size=out,
    )


def kernel_transpose(geometry: Geometry) -> Geometry:
    """The convolution that maps (input, output's cotangent) to the kernel's cotangent.

    Examples take the place of channels: the input is the image, the cotangent the kernel.
    """
    g, out = geometry, geometry.output_size()
    padding = []
    for i in range(2):
        length = dilated(g.input_size[i], g.lhs_dilation[i])
        want = dilated(g.kernel_size[i], g.rhs_dilation[i])
        low = g.padding[i][0]
        padding.append((low, want + dilated(out[i], g.strides[i]) - 1 - length - low))
    return g._replace(
        strides=g.rhs_dilation,
        rhs_dilation=g.strides,
        padding=(padding[0], padding[1]),
        kernel_size=out,
    )


def lax_conv(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """`lax.conv_general_dilated` with this geometry."""
    return lax.conv_general_dilated(
        x, w, geometry.strides, geometry.padding, lhs_dilation=geometry.lhs_dilation,
        rhs_dilation=geometry.rhs_dilation, dimension_numbers=DIMENSIONS,
        precision=geometry.precision,
    )  # fmt: skip


def _is_small(geometry: Geometry) -> bool:
    """True where XLA:CPU would fall back to its naive loop: the map is smaller than the kernel."""
    return any(
        geometry.input_size[i] < dilated(geometry.kernel_size[i], geometry.rhs_dilation[i])
        for i in range(2)
    )


# From so many channels on both sides and 2x2 tiles of the output on, Winograd's 16 products pay for
# their transformations. Measured in training steps at batch 128 on two cores: 8 % of a ResNet-20's
# and 5 % of a VGG-11's time between 128 and 64 channels; below, no gain.
WINOGRAD_CHANNELS = {"output": 64, "kernel": 64}
WINOGRAD_TILES = 128


def _is_winograd(kind: str, a: jax.Array, b: jax.Array, geometry: Geometry) -> bool:
    """True where `conv_winograd` is faster: kernels of 3x3 without strides, wide enough.

    In half precision the transformed operands would be rounded once more; those stay direct.
    """
    height, width = geometry.output_size()
    return (
        geometry.kernel_size == (3, 3)
        and geometry.strides == geometry.lhs_dilation == geometry.rhs_dilation == (1, 1)
        and a.dtype in (jnp.float32, jnp.float64)
        and min(a.shape[3], b.shape[3]) >= WINOGRAD_CHANNELS[kind]
        and min(height, width) > 2
        and a.shape[0] * height * width >= 4 * WINOGRAD_TILES
    )


def taps(x: jax.Array, geometry: Geometry) -> list[jax.Array]:
    """Of each entry of the kernel, by rows, the inputs that it meets: (batch, oh, ow, channels)."""
    g, (oh, ow) = geometry, geometry.output_size()
    x = lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [(0, 0, 0), *((*g.padding[i], g.lhs_dilation[i] - 1) for i in range(2)), (0, 0, 0)],
    )
    found = []
    for i in range(g.kernel_size[0]):
        for j in range(g.kernel_size[1]):
            top, left = i * g.rhs_dilation[0], j * g.rhs_dilation[1]
            found.append(
                lax.slice(
                    x,
                    (0, top, left, 0),
                    (
                        x.shape[0],
                        top + dilated(oh, g.strides[0]),
                        left + dilated(ow, g.strides[1]),
                        x.shape[3],
                    ),
                    (1, *g.strides, 1),
                )
            )
    return found


def patches(x: jax.Array, geometry: Geometry) -> jax.Array:
    """Shift-im2col: the inputs of each output position, (batch, oh, ow, kh * kw * channels).

    The last axis runs over kernel rows, kernel columns, channels: the order of a reshaped HWIO
    kernel.
    """
    return jnp.concatenate(taps(x, geometry), axis=-1)


def _matmul(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """2-d product over the given axes; half-precision operands are summed in float32."""
    total = jnp.promote_types(a.dtype, jnp.float32)
    out = lax.dot_general(
        a, b, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=total
    )
    return out.astype(a.dtype)


def _on_all_cores(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """`lax_conv`, by a routine that uses all cores.

    XLA has two. Wide convolutions go to the one that runs on a single core, unless the map grows:
    so one more row is computed and dropped (measured: 1.5 to 2 times as fast on two cores). In
    `shard_map` the host's cores are split into devices, and the row would be lost.
    """
    narrow = min(x.shape[3], w.shape[3]) <= 16
    if (
        geometry.shared
        or narrow
        or x.dtype != jnp.float32
        or geometry.output_size() != x.shape[1:3]
    ):
        return lax_conv(x, w, geometry)
    (top, bottom), columns = geometry.padding
    return lax_conv(x, w, geometry._replace(padding=((top, bottom + 1), columns)))[:, :-1]


def forward(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """The convolution of `x` [batch, h, w, in] with `w` [kh, kw, in, out]."""
    if _is_winograd("output", x, w, geometry):
        return conv_winograd.forward(x, w, geometry.padding, geometry.output_size())
    if not _is_small(geometry):
        return _on_all_cores(x, w, geometry)
    columns = patches(x, geometry)
    out = _matmul(columns.reshape(-1, columns.shape[-1]), w.reshape(-1, w.shape[-1]), (1, 0))
    return out.reshape(*columns.shape[:3], w.shape[-1])


def input_gradient(g: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """Cotangent of the input from that of the output `g` [batch, oh, ow, out]."""
    return forward(g, jnp.flip(w, (0, 1)).swapaxes(2, 3), input_transpose(geometry))


# XLA's convolution by a whole batch of maps is slow with few channels and many positions: from so
# many positions on, one product of matrices per entry of the kernel takes its place.
TAPPED_ROWS = 1 << 14


def _is_tapped(g: jax.Array, geometry: Geometry) -> bool:
    """True where a kernel's cotangent is faster as products of matrices, without large strides."""
    plain = geometry.strides == geometry.lhs_dilation == geometry.rhs_dilation == (1, 1)
    rows = g.shape[0] * g.shape[1] * g.shape[2]
    return (plain or geometry.kernel_size == (1, 1)) and rows >= TAPPED_ROWS


def kernel_gradient(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Cotangent of the kernel from the input and the cotangent `g` of the output."""
    if _is_winograd("kernel", x, g, geometry):
        return conv_winograd.kernel_gradient(x, g, geometry.padding)
    if _is_small(geometry):
        columns = patches(x, geometry)
        out = _matmul(columns.reshape(-1, columns.shape[-1]), g.reshape(-1, g.shape[-1]), (0, 0))
        return out.reshape(*geometry.kernel_size, x.shape[-1], g.shape[-1])
    if _is_tapped(g, geometry):
        rows = g.reshape(-1, g.shape[-1])
        found = [_matmul(t.reshape(-1, t.shape[-1]), rows, (0, 0)) for t in taps(x, geometry)]
        return jnp.stack(found).reshape(*geometry.kernel_size, x.shape[-1], g.shape[-1])
    out = lax_conv(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), kernel_transpose(geometry))
    return out.transpose(1, 2, 0, 3)


PRODUCTS = {"output": forward, "input": input_gradient, "kernel": kernel_gradient}

# --- members: one convolution per entry of a leading axis of both operands ---------------------

# Patches of all members at once are a batched matrix product, which shards over members; above
# this many bytes they would not fit and the members go one after another.
MEMBER_PATCH_BYTES = 256 * 2**20


def _one_by_one(x_shape: tuple[int, ...], itemsize: int, geometry: Geometry) -> bool:
    members, batch, channels = x_shape[0], x_shape[1], x_shape[4]
    size = members * batch * channels * itemsize
    for count in (*geometry.output_size(), *geometry.kernel_size):
        size *= count
    return size > MEMBER_PATCH_BYTES


def _member_columns(x: jax.Array, geometry: Geometry) -> tuple[jax.Array, tuple[int, ...]]:
    """Patches as one matrix per member, and the sizes (members, batch, oh, ow) of its rows."""
    columns = jax.vmap(lambda images: patches(images, geometry))(x)
    return columns.reshape(x.shape[0], -1, columns.shape[-1]), columns.shape[:4]


def _member_forward(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    if _one_by_one(x.shape, x.dtype.itemsize, geometry):
        return lax.map(lambda pair: forward(pair[0], pair[1], geometry), (x, w))
    columns, sizes = _member_columns(x, geometry)
    out = jax.vmap(lambda a, b: _matmul(a, b, (1, 0)))(
        columns, w.reshape(w.shape[0], -1, w.shape[-1])
    )
    return out.reshape(*sizes, w.shape[-1])


def _member_input_gradient(g: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    return _member_forward(g, jnp.flip(w, (1, 2)).swapaxes(3, 4), input_transpose(geometry))


def _member_kernel_gradient(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    if _one_by_one(x.shape, x.dtype.itemsize, geometry):
        return lax.map(lambda pair: kernel_gradient(pair[0], pair[1], geometry), (x, g))
    columns, sizes = _member_columns(x, geometry)
    out = jax.vmap(lambda a, b: _matmul(a, b, (0, 0)))(
        columns, g.reshape(sizes[0], -1, g.shape[-1])
    )
    return out.reshape(sizes[0], *geometry.kernel_size, x.shape[-1], g.shape[-1])


MEMBER_PRODUCTS = {
    "output": _member_forward,
    "input": _member_input_gradient,
    "kernel": _member_kernel_gradient,
}
