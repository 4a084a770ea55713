"""What a data set is once it is in memory."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import registry
from prunejax.data import batches

Directory = str | os.PathLike[str] | None  # of prepared sets


@dataclass(frozen=True)
class Dataset:
    """Inputs ("images") and targets ("labels") of a task, as read-only host arrays.

    Attributes:
      name: the name it was loaded by.
      train_images, validation_images, test_images: [n, ...] of any dtype and shape, one in all
        splits. Without `prepare` uint8 [n, height, width, channels]. No validation split held
        out: length 0.
      train_labels, validation_labels, test_labels: int32 [n], 0 <= label < num_classes; or, of a
        regression or of several labels an example, float32 [n, num_classes]: no accuracy then.
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
        for field in ("images", "labels"):
            for split in ("train", "validation", "test"):
                _need_array(self.name, f"{split}_{field}", getattr(self, f"{split}_{field}"))
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
                    f"int32 ({len(images)},), or of a regression, or several labels an example, "
                    f"float32 ({len(images)}, {self.num_classes})"
                )
            if labels.dtype == np.int32 and len(labels):
                low, high = int(labels.min()), int(labels.max())
                if low < 0 or high >= self.num_classes:
                    raise ValueError(
                        f"data set {self.name!r}: {split}_labels go from {low} to {high}; classes "
                        f"are 0 to {self.num_classes - 1}"
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
        registry.whole(0, count=count)
        images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
        return images[: count or None], labels[: count or None]


def _need_array(name: str, what: str, array: Any) -> None:
    if not isinstance(array, np.ndarray):
        raise ValueError(
            f"data set {name!r}: {what} are {type(array).__name__}; a NumPy array is needed"
        )


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

    Without `prepare`, mean and std of images are measured when not given. Labels of another dtype
    become int32 [n] or float32 [n, num_classes] where these hold the same values.

    Raises:
      ValueError: examples or targets that are not finite, a split without any, classes that are no
        count, a `prepare` that cannot be; see `Dataset` for the rest.
    """
    if not registry.is_whole(num_classes) or num_classes < 1:
        raise ValueError(
            f"data set {name!r}: {num_classes!r} classes (or outputs); a whole number is needed, "
            "at least 1"
        )
    for split, arrays in (("train", train), ("test", test)):
        if not isinstance(arrays, tuple | list) or len(arrays) != 2:
            raise ValueError(f"data set {name!r}: {split} must be a pair of (examples, targets)")
        for array, what in zip(arrays, ("examples", "targets"), strict=True):
            _need_array(name, f"{split} {what}", array)
            if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != np.bool_:
                raise ValueError(
                    f"data set {name!r}: {split} {what} are {array.dtype}; numbers are needed"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"data set {name!r}: of the {split} split not all are finite")
        if prepare is None and arrays[0].dtype != np.uint8:
            raise ValueError(
                f"data set {name!r}: {split} examples are {arrays[0].dtype}; without `prepare` "
                "they must be uint8 [n, height, width, channels]"
            )
        if not len(arrays[0]):
            raise ValueError(f"data set {name!r}: the {split} split has no examples")
    if prepare is not None:
        _judge(name, prepare, train[0])
        mean, std = (), ()
    elif mean is None or std is None:
        mean, std = channel_moments(train[0])
    train, test = ((x, _exact(y)) for x, y in (train, test))
    none = tuple(array[:0].copy() for array in train)
    return Dataset(name, *train, *test, none[0], none[1], num_classes, mean, std, prepare)


def _judge(name: str, prepare: Callable[[jax.Array], jax.Array], examples: np.ndarray) -> None:
    """Refuses a `prepare` that has no hash, or does not give as many inputs as examples."""
    why = "it does not give one array with an input for each example"
    try:
        hash(prepare)
        batches = [jax.ShapeDtypeStruct((n, *examples.shape[1:]), examples.dtype) for n in (2, 3)]
        if all(jax.eval_shape(prepare, x).shape[:1] == x.shape[:1] for x in batches):
            return
    except (TypeError, ValueError, LookupError) as error:
        why = " ".join(str(error).split())[:150]
    except AttributeError:  # of what is no array
        pass
    raise ValueError(
        f"data set {name!r}: prepare makes no inputs of examples {examples.dtype} "
        f"{examples.shape[1:]}: {why}"
    )


def _exact(labels: np.ndarray) -> np.ndarray:
    """The same values as int32 or float32; as they are where these cannot hold them."""
    whole = np.int32 if labels.ndim < 2 else np.float32  # several an example: numbers
    to = {"b": whole, "i": whole, "u": whole, "f": np.float32}.get(labels.dtype.kind)
    if to is None or labels.dtype == to:
        return labels
    with np.errstate(over="ignore"):
        cast = labels.astype(to)
    return cast if np.array_equal(cast, labels) else labels


@dataclass(frozen=True)
class Standardize:
    """A `prepare`: `(x - mean) / std` in float32, per last axis."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, examples: np.ndarray) -> "Standardize":
        """With mean and std over all axes but the last, in float64; a constant gets std 1."""
        # In float64: sums over many examples lose digits in single precision.
        flat = np.asarray(examples, np.float64).reshape(-1, examples.shape[-1])
        std = flat.std(axis=0)
        return cls(tuple(flat.mean(axis=0).tolist()), tuple(np.where(std, std, 1).tolist()))

    def __call__(self, examples: jax.Array) -> jax.Array:
        """float32 [..., n]."""
        return batches.standardized(examples.astype(jnp.float32), self.mean, self.std)


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
        # Divided by n: the moments of this set, no estimates of another's.
        variance = float(counts @ (level - mean) ** 2 / counts.sum())
        means.append(mean)
        stds.append(variance**0.5 or 1.0)
    return tuple(means), tuple(stds)
