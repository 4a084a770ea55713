"""Arrays of one's own as a data set: `data.name = "npz:FILE"`."""

from pathlib import Path

import numpy as np

from prunejax.data.dataset import Dataset, Directory, Standardize, make
from prunejax.system import files

PREFIX = "npz:"
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def load_arrays(name: str, data_dir: Directory = None) -> Dataset:
    """The arrays `x_train, y_train, x_test, y_test` of a file that `np.savez` wrote.

    x of uint8 [n, h, w, c] or [n, h, w] are images: pixel / 255, brought to mean 0 and standard
    deviation 1 per channel. x of any other numbers [n, ...] become float32, brought to mean 0 and
    standard deviation 1 along the last axis. Both are measured on x_train. y of integers [n] are
    classes, from 0 to the largest in either split; y of floats [n] or [n, k] are taken as they
    are, as the k targets of a regression.

    Args: name: "npz:FILE". data_dir: folder that a relative FILE is in; the current one by default.

    Raises:
      ValueError: no such file, arrays that are missing, do not fit together, or are not finite.
    """
    file = Path(data_dir or "") / files.expand(name.removeprefix(PREFIX))

    def told(what: str) -> ValueError:
        return ValueError(
            f"{name}: {file} cannot be read ({what}); write it with np.savez(FILE, x_train=..., "
            "y_train=..., x_test=..., y_test=...)"
        )

    try:
        with files.arrays(file, told) as saved:
            found = {key: saved[key] for key in ARRAYS}
    except KeyError as error:
        raise ValueError(f"{name}: {error.args[0]}; it needs {', '.join(ARRAYS)}") from None
    for key, array in found.items():
        if array.dtype.kind not in "iufb" or not np.isfinite(array).all():
            raise ValueError(f"{name}: {key} ({array.dtype}) must be finite real numbers")
        if not array.ndim or not len(array):
            raise ValueError(f"{name}: {key} has shape {array.shape}; give at least one example")
    labels, outputs = _targets(name, found["y_train"], found["y_test"])
    train, test = found["x_train"], found["x_test"]
    for split, x, y in (("train", train, labels[0]), ("test", test, labels[1])):
        if len(x) != len(y) or x.shape[1:] != train.shape[1:] or x.dtype != train.dtype:
            raise ValueError(
                f"{name}: x_{split} is {x.dtype} {x.shape} for {len(y)} targets, x_train "
                f"{train.dtype} {train.shape}; one dtype and shape, and a target for each example"
            )
    if train.ndim < 2:
        raise ValueError(f"{name}: x_train has shape {train.shape}; give [examples, features]")
    if train.dtype == np.uint8 and train.ndim in (3, 4):
        images = [x[..., None] if x.ndim == 3 else x for x in (train, test)]
        return make(name, (images[0], labels[0]), (images[1], labels[1]), outputs)
    numbers = [x.astype(np.float32) for x in (train, test)]
    prepare = Standardize.of(numbers[0])  # the test split decides nothing
    return make(name, (numbers[0], labels[0]), (numbers[1], labels[1]), outputs, prepare=prepare)


def _targets(name: str, *targets: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Targets of the splits as `Dataset` holds them, and the width of a network's output."""
    train, test = targets
    if train.dtype.kind != test.dtype.kind or train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"{name}: y_train is {train.dtype} {train.shape}, y_test {test.dtype} {test.shape}; "
            "give one kind"
        )
    if train.dtype.kind == "f" and train.ndim <= 2:
        numbers = [y.reshape(len(y), -1).astype(np.float32) for y in targets]
        return numbers, numbers[0].shape[1]
    if train.ndim != 1 or min(int(y.min()) for y in targets) < 0:
        raise ValueError(
            f"{name}: y_train of {train.dtype} {train.shape} must be class labels from 0, integers "
            "[n], or floats [n] or [n, k]"
        )
    return [y.astype(np.int32) for y in targets], max(int(y.max()) for y in targets) + 1
