"""What a data set is once it is in memory, and the seeded choices made from it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import rng


@dataclass(frozen=True)
class Dataset:
    """Inputs ("images") and targets ("labels") of a task, as read-only host arrays.

    Attributes:
      name: the name it was loaded by.
      train_images, validation_images, test_images: [n, ...] of any dtype and shape, one in all
        splits. Without `prepare` uint8 [n, height, width, channels]. No validation split held
        out: length 0.
      train_labels, validation_labels, test_labels: int32 [n], 0 <= label < num_classes; or, of a
        regression, float32 [n, num_classes], for which there is no accuracy.
      num_classes: number of classes, or of numbers to predict: the width of the output.
      mean, std: per channel, of pixel / 255, for `batches.normalize`.
      prepare: what makes a network's input (float [batch, ...]) of stored examples [batch, ...],
        inside the compiled step; a function that can be hashed. None: `batches.normalize`.
      ranked: the classes from the most to the least frequent, where `imbalance` made them so.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    prepare: Callable[[jax.Array], jax.Array] | None = None
    ranked: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        like = self.train_images
        for split in ("train", "validation", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if self.prepare is None and (images.ndim, images.dtype) != (4, np.uint8):
                raise ValueError(
                    f"data set {self.name!r}: {split}_images are {images.dtype} {images.shape}; "
                    "without `prepare` they must be uint8 [n, height, width, channels]"
                )
            if (images.dtype, images.shape[1:]) != (like.dtype, like.shape[1:]):
                raise ValueError(
                    f"data set {self.name!r}: {split}_images are {images.dtype} {images.shape}, "
                    f"train_images {like.dtype} {like.shape}; one dtype and shape for all splits"
                )
            shapes: dict[Any, tuple[int, ...]] = {
                np.dtype(np.int32): (len(images),),
                np.dtype(np.float32): (len(images), self.num_classes),
            }
            if shapes.get(labels.dtype) != labels.shape:
                raise ValueError(
                    f"data set {self.name!r}: {split}_labels are {labels.dtype} {labels.shape}; "
                    f"int32 ({len(images)},), or of a regression float32 ({len(images)}, "
                    f"{self.num_classes})"
                )
            # A run shares these arrays between its members: nobody may write to them.
            images.flags.writeable = labels.flags.writeable = False

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one example as the network gets it: (height, width, channels) of images."""
        shape = self.train_images.shape[1:]
        if self.prepare is None:
            return shape
        one = jax.ShapeDtypeStruct((1, *shape), self.train_images.dtype)
        return tuple(jax.eval_shape(self.prepare, one).shape[1:])

    @property
    def has_classes(self) -> bool:
        """Whether targets are classes; else there is no accuracy."""
        return bool(self.train_labels.dtype == np.int32)

    @property
    def train_examples(self) -> int:
        """Number of training examples."""
        return len(self.train_labels)

    @property
    def test_examples(self) -> int:
        """Number of test examples."""
        return len(self.test_labels)

    def per_epoch(self, batch_size: int) -> int:
        """Examples that an epoch trains on: all; the last batch may be a smaller one."""
        del batch_size
        return self.train_examples

    def first(self, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` images and labels of "train" or "test"; 0: all."""
        images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
        return images[: count or None], labels[: count or None]


def make(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    num_classes: int,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    prepare: Callable[[jax.Array], jax.Array] | None = None,
) -> Dataset:
    """A whole `Dataset` without validation split.

    Without `prepare`, mean and std of images are measured when not given.
    """
    if prepare is not None:
        mean, std = (), ()
    elif mean is None or std is None:
        mean, std = channel_moments(train[0])
    none = tuple(array[:0].copy() for array in train)
    return Dataset(name, *train, *test, none[0], none[1], num_classes, mean, std, prepare)


@dataclass(frozen=True)
class Standardize:
    """A `prepare`: `(x - mean) / std` in float32, per last axis."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, examples: np.ndarray) -> "Standardize":
        """With mean and std over all axes but the last, in float64; a constant gets std 1."""
        flat = np.asarray(examples, np.float64).reshape(-1, examples.shape[-1])
        std = flat.std(axis=0)
        return cls(tuple(flat.mean(axis=0).tolist()), tuple(np.where(std, std, 1).tolist()))

    def __call__(self, examples: jax.Array) -> jax.Array:
        """float32 [..., n]."""
        centred = examples.astype(jnp.float32) - jnp.asarray(self.mean, jnp.float32)
        return centred / jnp.asarray(self.std, jnp.float32)


def channel_moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixel / 255 per channel, over all images and places.

    Computed from the exact histogram of the 256 levels, so that no order of summation enters.
    A channel that never varies gets the standard deviation 1.
    """
    level = np.arange(256) / 255.0
    means, stds = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].reshape(-1), minlength=256)
        mean = float(counts @ level / counts.sum())
        variance = float(counts @ (level - mean) ** 2 / counts.sum())
        means.append(mean)
        stds.append(variance**0.5 or 1.0)
    return tuple(means), tuple(stds)


def _check_count(field: str, value: int | None, low: int, high: int, of: str) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{field}={value}: must be between {low} and {high} ({of})")


def check_label_noise(label_noise: float) -> None:
    """ValueError unless `label_noise` is a fraction in [0, 1)."""
    if not 0.0 <= label_noise < 1.0:
        raise ValueError(f"label_noise={label_noise}: must be a fraction, at least 0, less than 1")


def take(
    data: Dataset,
    *,
    train_examples: int | None = None,
    test_examples: int | None = None,
    validation_examples: int = 0,
    label_noise: float = 0.0,
    imbalance: float = 1.0,
    seed: int = 0,
) -> Dataset:
    """Chooses examples and spoils labels; a pure function of `data`, the sizes and `seed`.

    The training examples are shuffled once by the stream "subset": the first
    `validation_examples` of that order are the validation split, the next `train_examples` (or
    all that is left) the training split. So, for one seed, the validation split does not depend
    on `train_examples`, and a smaller training split is part of every larger one. Classes are
    as balanced as a uniform draw makes them. Chosen examples keep the order of the data set.

    Args:
      data: a whole data set, without validation split.
      train_examples: number of training examples; None for all that are not held out.
      test_examples: number of test examples; None for all.
      validation_examples: number of training examples held out.
      label_noise: fraction of the training labels that get another class, drawn uniformly from
        the other classes; exactly `round(label_noise * n)` labels change. Validation and test
        labels stay clean.
      imbalance: r >= 1, how many times more training examples the most frequent class has than
        the rarest; see `unbalanced`. Taken of the training split, before labels are spoiled.
      seed: of the streams "subset", "labels" and "imbalance".

    Raises:
      ValueError: a size that the data set does not have, label_noise outside [0, 1), imbalance
        below 1, or one of them for targets that are no classes.
    """
    for field, value, neutral in (("label_noise", label_noise, 0), ("imbalance", imbalance, 1)):
        if value != neutral and not data.has_classes:
            raise ValueError(
                f"{field}={value}: the targets of {data.name} are numbers, no classes; leave it at "
                f"{neutral}"
            )
    total = len(data.train_labels)
    of = f"{data.name} has {total} training examples"
    _check_count("validation_examples", validation_examples, 0, total - 1, f"{of}; 1 must stay")
    left = total - validation_examples
    if validation_examples:
        of += f", {validation_examples} of them held out"
    _check_count("train_examples", train_examples, 1, left, of)
    tests = len(data.test_labels)
    _check_count("test_examples", test_examples, 1, tests, f"{data.name} has {tests} test examples")
    check_label_noise(label_noise)

    count = left if train_examples is None else train_examples
    changes: dict[str, Any] = {}
    if count < total:
        order = np.asarray(jax.random.permutation(rng.at(seed, "subset", 0), total))
        held_out = np.sort(order[:validation_examples])
        chosen = np.sort(order[validation_examples : validation_examples + count])
        changes.update(
            validation_images=data.train_images[held_out],
            validation_labels=data.train_labels[held_out],
            train_images=data.train_images[chosen],
            train_labels=data.train_labels[chosen],
        )
    if test_examples is not None and test_examples < tests:
        order = np.asarray(jax.random.permutation(rng.at(seed, "subset", 1), tests))
        chosen = np.sort(order[:test_examples])
        changes.update(test_images=data.test_images[chosen], test_labels=data.test_labels[chosen])
    if imbalance != 1:
        labels = changes.get("train_labels", data.train_labels)
        chosen, ranked = unbalanced(labels, data.num_classes, imbalance, seed)
        images = changes.get("train_images", data.train_images)
        changes.update(train_images=images[chosen], train_labels=labels[chosen], ranked=ranked)
    if label_noise:
        labels = changes.get("train_labels", data.train_labels)
        changes["train_labels"] = spoil(labels, data.num_classes, label_noise, seed)
    return dataclasses.replace(data, **changes)


def unbalanced(
    labels: np.ndarray, num_classes: int, ratio: float, seed: int
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Which examples stay so that class frequencies fall geometrically.

    The c-th ranked class (c = 0, 1, ...) of C keeps `round(s r^(-c / (C - 1)))` examples, at least
    one, with the largest s for which every class has that many (Cui et al. 2019, section 5).

    Args:
      labels: int32 [n].
      num_classes: C, at least 2.
      ratio: r >= 1.
      seed: of the stream "imbalance": counter 0 ranks the classes, counter 1 draws who stays.

    Returns:
      indices of what stays, in order; the classes from most to least frequent.

    Raises:
      ValueError: a ratio below 1 or not finite, fewer than two classes, one without examples.
    """
    if not 1 <= ratio < np.inf:
        raise ValueError(f"imbalance={ratio}: must be a ratio of at least 1 (1: as they are)")
    have = np.bincount(labels, minlength=num_classes)
    if num_classes < 2 or not have.all():
        raise ValueError(
            f"imbalance={ratio}: needs two or more classes, each with training examples; "
            f"they have {have.tolist()}"
        )
    ranked = np.asarray(jax.random.permutation(rng.at(seed, "imbalance", 0), num_classes))
    order = np.asarray(jax.random.permutation(rng.at(seed, "imbalance", 1), len(labels)))
    share = float(ratio) ** (-np.arange(num_classes) / (num_classes - 1))
    counts = np.maximum(1, np.rint(min(have[ranked] / share) * share).astype(int))
    kept = [order[labels[order] == c][:n] for c, n in zip(ranked, counts, strict=True)]
    return np.sort(np.concatenate(kept)), tuple(ranked.tolist())


def spoil(labels: np.ndarray, num_classes: int, fraction: float, seed: int) -> np.ndarray:
    """A copy of `labels` in which exactly `round(fraction * n)` have another class.

    Which labels, and the new class (uniform over the `num_classes - 1` others), come from the
    stream "labels" of `seed`; a larger fraction spoils the same labels and more.
    """
    if num_classes < 2:
        raise ValueError(f"label_noise={fraction}: there is no other class, num_classes=1")
    where = np.asarray(jax.random.permutation(rng.at(seed, "labels", 0), len(labels)))
    shift = np.asarray(
        jax.random.randint(rng.at(seed, "labels", 1), (len(labels),), 1, num_classes)
    )
    where = where[: round(fraction * len(labels))]
    spoiled = labels.copy()
    spoiled[where] = (labels[where] + shift[where]) % num_classes
    return spoiled
