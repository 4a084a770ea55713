"""Gaussian classes: tasks in which how well networks generalize varies, or how hard classes are."""

from dataclasses import dataclass

import jax
import numpy as np

from prunejax import rng
from prunejax.data.constants import read
from prunejax.data.dataset import Dataset, Directory, Standardize, make

NAME = "gaussian"
# Of "uneven_gaussians".
CLASSES, DIMENSIONS = 10, 20
TRAIN, TEST = 100, 1000  # examples of each class
SPREADS = (0.7, 2.2)  # standard deviations of the first and the last class, linear between


@dataclass(frozen=True)
class Constants:
    """Of the classes; in the name of the set: "gaussian:dimension=20,std=1.5"."""

    classes: int = 10  # how many; their means are N(0, I)
    dimension: int = 20  # of the inputs
    # train, test: examples.
    train: int = 800
    test: int = 10_000
    std: float = 1.5  # standard deviation around the mean, in every coordinate

    def __post_init__(self) -> None:
        if self.classes < 2 or min(self.dimension, self.train, self.test) < 1 or self.std < 0:
            raise ValueError(
                f"{NAME}: at least 2 classes, 1 dimension, 1 example in each split and a std of at "
                "least 0"
            )


def as_they_are(examples: jax.Array) -> jax.Array:
    """A `prepare` of inputs that are float vectors already: as `examples` [n, ...]."""
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
    return make(name, splits[0], splits[1], c.classes, prepare=as_they_are)


def load_uneven_gaussians(data_dir: Directory = None) -> Dataset:
    """Ten classes of different spread: 1,000 training and 10,000 test examples, float32 [n, 20].

    As many of each class: class c has mean N(0, I) (drawn once) and covariance s_c^2 I with s_c
    from 0.7 to 2.2: the wide classes are the hard ones. Always the same examples.

    Args: data_dir: ignored; the data is drawn.
    """
    del data_dir
    numbers = np.random.default_rng(0)
    # From here on the order of draws decides: labels, then noise, of each split.
    means = numbers.normal(size=(CLASSES, DIMENSIONS))
    spread = np.linspace(*SPREADS, CLASSES)
    parts = []
    for count in (TRAIN, TEST):
        labels = numbers.permutation(np.repeat(np.arange(CLASSES), count)).astype(np.int32)
        noise = numbers.normal(size=(labels.size, DIMENSIONS))
        parts.append(((means[labels] + spread[labels, None] * noise).astype(np.float32), labels))
    train, test = parts
    # Over all classes together, so that their spreads stay unequal.
    return make("uneven_gaussians", train, test, CLASSES, prepare=Standardize.of(parts[0][0]))
