"""Inputs of which one part is known to be signal and the rest to be noise.

`load_signal_noise` is the data of the analysis of random pruning at initialization (Yang et al.,
JMLR 26(84), 2025): of two patches in random order one is mu e_y, the other N(0, sigma^2 I).
`with_noise` gives any image set the same form: pure-noise coordinates beside the pixels, and noise
on all of them, drawn once for each example. Both have a `prepare` whose `parts` tells signal from
noise, which the tracker "signal_noise" reads.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import rng
from prunejax.data import batches
from prunejax.data.constants import read
from prunejax.data.dataset import Dataset, make

NAME = "signal_noise"


@dataclass(frozen=True)
class Constants:
    """Of the two-patch data; in the name of the set: "signal_noise:dimension=500,noise=0.3"."""

    classes: int = 4  # K
    dimension: int = 500  # d of a patch, at least K
    # train, test: examples.
    train: int = 40
    test: int = 2000
    signal: float = 1.0  # mu, the length of the signal
    noise: float = 0.3  # sigma, the standard deviation of each coordinate of the noise patch

    def __post_init__(self) -> None:
        if self.classes < 2 or self.dimension < self.classes:
            raise ValueError(
                f"{NAME}: classes={self.classes} and dimension={self.dimension}; at least 2 "
                "classes, and as many dimensions"
            )
        if min(self.train, self.test) < 1 or not (self.signal > 0 and self.noise >= 0):
            raise ValueError(
                f"{NAME}: at least one example in each split, a signal above 0 and a noise of at "
                "least 0"
            )


@dataclass(frozen=True)
class Patches:
    """A `prepare` of examples [n, 2, d] that are (signal, noise) patches in any order."""

    def __call__(self, examples: jax.Array) -> jax.Array:
        """Both patches, as they are."""
        return examples

    def parts(self, examples: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(signal, noise) of each example, [n, d] each: the signal has one coordinate."""
        # The noise patch has many coordinates that are not 0, the signal has one.
        first = jnp.count_nonzero(examples[:, 0], axis=-1) == 1
        swapped = examples[:, ::-1]
        ordered = jnp.where(first[:, None, None], examples, swapped)
        return ordered[:, 0], ordered[:, 1]


@dataclass(frozen=True)
class Sum:
    """A `prepare` of examples [n, 2, d] that are (signal, noise): their sum [n, d]."""

    def __call__(self, examples: jax.Array) -> jax.Array:
        """Signal plus noise."""
        return examples[:, 0] + examples[:, 1]

    def parts(self, examples: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(signal, noise) of each example, [n, d] each."""
        return examples[:, 0], examples[:, 1]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _draws(key: jax.Array, count: int, classes: int, dimension: int) -> tuple[jax.Array, ...]:
    """Labels [count], standard normal noise [count, dimension], and whether the signal is first."""
    return (
        jax.random.randint(rng.fold(key, "labels"), (count,), 0, classes),
        jax.random.normal(rng.fold(key, "noise"), (count, dimension)),
        jax.random.bernoulli(rng.fold(key, "order"), shape=(count,)),
    )


def load_signal_noise(name: str, seed: int) -> Dataset:
    """The two-patch data: y uniform, patches mu e_y and xi ~ N(0, sigma^2 I) in random order.

    Args:
      name: "signal_noise", or with `Constants` after a colon.
      seed: of the streams "signal_noise" and "subset": a split of its own for each.
    """
    c = read(Constants, name)
    splits = []
    for number, count in enumerate((c.train, c.test)):
        found = _draws(rng.at(seed, NAME, number), count, c.classes, c.dimension)
        labels, normal, first = (np.asarray(x) for x in found)
        noise = np.float32(c.noise) * normal
        signal = np.float32(c.signal) * np.eye(c.dimension, dtype=np.float32)[labels]
        first = first[:, None]
        patches = [np.where(first, signal, noise), np.where(first, noise, signal)]
        splits.append((np.stack(patches, 1), np.array(labels, np.int32)))
    return make(name, splits[0], splits[1], c.classes, prepare=Patches())


def with_noise(data: Dataset, pad: int, noise: float, seed: int) -> Dataset:
    """Normalized images as vectors, `pad` zeros behind them, and N(0, noise^2) on all coordinates.

    The noise of an example belongs to it: it is the same in every epoch. Examples are stored as
    float32 [n, 2, pixels + pad], signal and noise.

    Args:
      data: images (uint8) of any split sizes.
      pad: coordinates without signal.
      noise: standard deviation, in units of normalized pixels.
      seed: of the stream "input noise".

    Raises ValueError: examples that are no images.
    """
    if data.prepare is not None:
        raise ValueError(
            f"pad={pad}, noise={noise}: {data.name} has no images to add noise to; leave both at 0"
        )
    changes: dict[str, Any] = {}
    for number, split in enumerate(("train", "validation", "test")):
        images = getattr(data, f"{split}_images")
        clean = np.asarray(batches.normalize(images, data.mean, data.std))
        clean = clean.reshape(len(images), math.prod(clean.shape[1:]))
        clean = np.pad(clean, ((0, 0), (0, pad)))
        # A counter each: no split repeats the noise of another.
        drawn = jax.random.normal(rng.at(seed, "input noise", number), clean.shape)
        # Beside each other, not added: trackers look at both.
        changes[f"{split}_images"] = np.stack([clean, noise * np.asarray(drawn)], 1)
    return dataclasses.replace(data, mean=(), std=(), prepare=Sum(), **changes)
