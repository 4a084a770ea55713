"""Which examples form a batch, and what is done to them: pure functions for use inside `jit`.

The data set stays on the device as uint8. Order, augmentation and normalization are functions
of (seed, epoch, step) and nothing else, so a run resumes at any step without replaying any.
"""

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import rng

PADDING = 4  # black pixels on all sides of an image that is cropped


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """ceil(examples / batch_size): the last batch of an epoch holds what is left.

    Raises:
      ValueError: no examples, batch_size below 1, or larger than the number of examples.
    """
    if not 1 <= batch_size <= examples:
        raise ValueError(
            f"batch_size={batch_size}: must be between 1 and the number of examples, {examples}"
        )
    return -(-examples // batch_size)


def epoch_permutation(seed: int | jax.Array, epoch: int | jax.Array, examples: int) -> jax.Array:
    """The order of the examples in this epoch: int32 [examples], a permutation."""
    # From 0 .. n - 1 each time, not from the order before: an epoch needs none of its predecessors.
    return rng.order(rng.at(seed, "order", epoch), examples)


def evaluation_batches(examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Index and weight arrays to scan over all examples in order, in one compiled call.

    Returns:
      indices int32 [batches, batch_size] and weights float32 of the same shape. The last batch
      is filled up with example 0 at weight 0; all other weights are 1, so weighted sums over
      everything are exact whatever the batch size.

    Raises:
      ValueError: batch_size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    size = max(1, min(batch_size, examples))  # a small split is one batch, not padded
    batches = -(-examples // size)
    position = np.arange(batches * size, dtype=np.int32).reshape(batches, size)
    # Weights tell what fills the batch from example 0 itself.
    live = position < examples
    return np.where(live, position, 0).astype(np.int32), live.astype(np.float32)


def normalize(
    images: jax.Array, mean: tuple[float, ...] | jax.Array, std: tuple[float, ...] | jax.Array
) -> jax.Array:
    """`(images / 255 - mean) / std` in float32.

    Args:
      images: uint8 [..., channels].
      mean: per channel, of pixel / 255.
      std: the same.
    """
    return standardized(images.astype(jnp.float32) / 255.0, mean, std)


def standardized(
    x: jax.Array, mean: tuple[float, ...] | jax.Array, std: tuple[float, ...] | jax.Array
) -> jax.Array:
    """`(x - mean) / std` of float32 [..., n], `mean` and `std` [n]."""
    # Ranks are spelt out: callers may forbid that they are promoted.
    shift, spread = (
        jax.lax.broadcast_to_rank(jnp.asarray(v, jnp.float32), x.ndim) for v in (mean, std)
    )
    return (x - shift) / spread


def augment_draws(key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
    """Random numbers of `augment`, one set per example.

    Returns:
      offsets int32 [batch, 2], rows and columns, uniform over -PADDING..PADDING; flips bool
      [batch], True with probability 1/2.
    """
    # This key goes nowhere else, so that its halves repeat no other stream.
    crop_key, flip_key = jax.random.split(key)
    # Without the upper end.
    offsets = jax.random.randint(crop_key, (batch, 2), -PADDING, PADDING + 1)
    return offsets, jax.random.bernoulli(flip_key, 0.5, (batch,))


def crop_and_flip(
    images: jax.Array, indices: jax.Array, offsets: jax.Array, flips: jax.Array
) -> jax.Array:
    """Shifted, mirrored copies of `images[indices]`, black (0) where the shift leaves the image.

    One gather straight from the data set: the shift and the mirror are arithmetic on the pixel
    indices. (A `dynamic_slice` per example costs about three times as much on CPU.)

    Args:
      images: uint8 [examples, height, width, channels].
      indices: int32 [batch].
      offsets: int32 [batch, 2]: pixel (r, c) of the result is pixel (r + offset, c + offset).
      flips: bool [batch]: mirror left and right, after the shift.

    Returns:
      uint8 [batch, height, width, channels].
    """
    images = jnp.asarray(images)
    height, width = images.shape[1:3]
    column = jnp.arange(width)[None]
    rows = offsets[:, :1] + jnp.arange(height)[None]
    # The shift is in the image's own columns, so that a mirror does not change which part is seen.
    columns = offsets[:, 1:] + jnp.where(flips[:, None], width - 1 - column, column)
    inside_rows = (rows >= 0) & (rows < height)
    inside_columns = (columns >= 0) & (columns < width)
    pixels = images[
        indices[:, None, None],
        jnp.clip(rows, 0, height - 1)[:, :, None],
        jnp.clip(columns, 0, width - 1)[:, None, :],
    ]
    inside = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
    # Black before normalization: afterwards it is below 0, as the usual padding of raw images is.
    return jnp.where(inside, pixels, jnp.zeros((), images.dtype))


def augment(key: jax.Array, images: jax.Array, indices: jax.Array) -> jax.Array:
    """The batch `images[indices]`, each example randomly cropped and mirrored.

    Pads with `PADDING` black pixels on all sides, cuts the original size at a uniform place and
    mirrors with probability 1/2: the usual CIFAR augmentation (RandomCrop(32, padding=4) and
    RandomHorizontalFlip). Black is the pixel value 0, before normalization.

    Args:
      key: typed key of this step, `rng.at(seed, "augment", step)`.
      images: uint8 [examples, height, width, channels], the whole data set.
      indices: int32 [batch].

    Returns:
      uint8 [batch, height, width, channels].
    """
    offsets, flips = augment_draws(key, indices.shape[0])
    return crop_and_flip(images, indices, offsets, flips)
