"""Gaussian classes: a task in which how well networks generalize varies and nothing else does."""

from dataclasses import dataclass

import jax
import numpy as np

from prunejax import rng
from prunejax.data.constants import read
from prunejax.data.dataset import Dataset, make

NAME = "gaussian"


@dataclass(frozen=True)
class Constants:
    """Of the classes; in the name of the set: "gaussian:dimension=20,std=1.5".

    Attributes:
      classes: how many; their means are N(0, I).
      dimension: of the inputs.
      train, test: examples.
      std: standard deviation around the mean, in every coordinate.
    """

    classes: int = 10
    dimension: int = 20
    train: int = 800
    test: int = 10_000
    std: float = 1.5

    def __post_init__(self) -> None:
        if self.classes < 2 or min(self.dimension, self.train, self.test) < 1 or self.std < 0:
            raise ValueError(
                f"{NAME}: at least 2 classes, 1 dimension, 1 example in each split and a std of at "
                "least 0"
            )


@dataclass(frozen=True)
class AsTheyAre:
    """A `prepare` of inputs that are float vectors already."""

    def __call__(self, examples: jax.Array) -> jax.Array:
        """The examples."""
        return examples


def load_gaussian(name: str, seed: int) -> Dataset:
    """X ~ N(mean of the class, std^2 I), the class uniform; means ~ N(0, I) once.

    Args:
      name: "gaussian", or with `Constants` after a colon.
      seed: of the stream "gaussian": a split of its own for each.
    """
    c = read(Constants, name)
    means = jax.random.normal(rng.at(seed, NAME, "means"), (c.classes, c.dimension))
    splits = []
    for number, count in enumerate((c.train, c.test)):
        key = rng.at(seed, NAME, number)  # a stream for each split
        labels = jax.random.randint(rng.fold(key, "labels"), (count,), 0, c.classes)
        noise = jax.random.normal(rng.fold(key, "noise"), (count, c.dimension))
        splits.append((np.array(means[labels] + c.std * noise), np.array(labels, np.int32)))
    return make(name, splits[0], splits[1], c.classes, prepare=AsTheyAre())
