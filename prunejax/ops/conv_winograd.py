"""3x3 convolutions on CPU with 2.25 times fewer multiplications: Winograd's F(2x2, 3x3).

Each 2x2 tile of the output depends on a 4x4 tile d of the input (Lavin & Gray 2016, section 4.1):

    Y = A' [(G w G') * (B' d B)] A

with `*` elementwise, so that summing over channels makes 16 matrix products [tiles, in] x [in, out]
of a convolution. The kernel's cotangent is the same bilinear form read backwards, 16 products
[in, tiles] x [tiles, out]. The factors are 0, 1, 1/2: rounding errors grow to 2-3 times those of
the direct sum (about 7e-7 of the result's root mean square in float32 at 512 channels).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]
Row = Sequence[float]

_B = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B', rows by position
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_A = ((1, 1, 1, 0), (0, 1, -1, -1))  # A'


def _columns(matrix: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(zip(*matrix, strict=True))


def _combined(rows: Row, columns: Row, part: Callable[[int, int], jax.Array]) -> jax.Array:
    """The sum of rows[i] columns[j] part(i, j); products of zero are left out."""
    total: jax.Array | None = None
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            if a * b:
                term = part(i, j) * (a * b) if a * b != 1 else part(i, j)
                # A fixed order of terms: the same sum wherever it is compiled.
                total = term if total is None else total + term
    assert total is not None
    return total


def _transformed(left: Sequence[Row], part: Callable[[int, int], jax.Array]) -> list[jax.Array]:
    """The matrix of parts, times `left` from the left and its transpose from the right, by rows."""
    return [_combined(a, b, part) for a in left for b in left]


def _tiles(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // 2), -(-size[1] // 2)


def _input_tiles(x: jax.Array, padding: Padding, size: tuple[int, int]) -> list[jax.Array]:
    """B' d B of every tile: 16 matrices [tiles, channels]."""
    tiles = _tiles(size)
    sides = [
        (p[0], 2 * t + 2 - n - p[0], 0)
        for p, t, n in zip(padding, tiles, x.shape[1:3], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *sides, (0, 0, 0)])

    def part(i: int, j: int) -> jax.Array:
        ends = (x.shape[0], i + 2 * tiles[0] - 1, j + 2 * tiles[1] - 1, x.shape[3])
        return lax.slice(x, (0, i, j, 0), ends, (1, 2, 2, 1)).reshape(-1, x.shape[3])

    return _transformed(_B, part)


def forward(x: jax.Array, w: jax.Array, padding: Padding, size: tuple[int, int]) -> jax.Array:
    """The convolution of `x` [batch, h, w, in] with `w` [3, 3, in, out], without strides.

    Args:
      x: input.
      w: kernel.
      padding: explicit, may be negative.
      size: height and width of the output.
    """
    kernels = _transformed(_G, lambda i, j: w[i, j])
    products = [a @ b for a, b in zip(_input_tiles(x, padding, size), kernels, strict=True)]
    rows, columns = _tiles(size)

    def of_tile(a: int, b: int) -> jax.Array:
        y = _combined(_A[a], _A[b], lambda i, j: products[4 * i + j])
        return y.reshape(x.shape[0], rows, columns, w.shape[3])

    y = jnp.stack([jnp.stack([of_tile(a, b) for b in range(2)], axis=3) for a in range(2)], axis=2)
    # an odd map ends in half a tile
    return y.reshape(x.shape[0], 2 * rows, 2 * columns, w.shape[3])[:, : size[0], : size[1]]


def kernel_gradient(x: jax.Array, g: jax.Array, padding: Padding) -> jax.Array:
    """Cotangent of the kernel [3, 3, in, out] from that of the output `g` [batch, oh, ow, out]."""
    size = (g.shape[1], g.shape[2])
    rows, columns = _tiles(size)
    rest = ((0, 0), (0, 2 * rows - size[0]), (0, 2 * columns - size[1]), (0, 0))
    full = jnp.pad(g, rest)  # zeros beyond the map: no part in the kernel's sum
    cotangents = _transformed(
        _columns(_A), lambda i, j: full[:, i::2, j::2].reshape(-1, g.shape[3])
    )
    products = [
        lax.dot_general(a, b, (((0,), (0,)), ((), ())))
        for a, b in zip(_input_tiles(x, padding, size), cotangents, strict=True)
    ]
    taps = _transformed(_columns(_G), lambda i, j: products[4 * i + j])
    return jnp.stack(taps).reshape(3, 3, x.shape[3], g.shape[3])
