"""The 8x8 handwritten digits that scikit-learn ships: real data without a download."""

import importlib.util
import os
from pathlib import Path

import numpy as np

from prunejax.data.dataset import Dataset, make
from prunejax.system import optional

# Examples are sorted by writer: within each writer's block the labels run 0123456789 three
# times and then follow one fixed pattern. A new block starts here; two writers follow it.
FIRST_TEST_EXAMPLE = 1415

# Pixels are 0..16. Times 15 they fill 0..240, so that pixel / 255 stays exactly linear in them.
SCALE = 15
MIXED_TRAIN = 1000
EVEN_TRAIN = 900


def _table() -> np.ndarray:
    """[1797, 65]: 64 pixels and the label.

    Read from scikit-learn's file, without importing scikit-learn where that can be avoided: its
    import takes seconds, more than the rest of a small study's start.
    """
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    raw = optional.need("the data set 'digits'", "sklearn.datasets").load_digits()
    return np.column_stack([raw.data, raw.target])


def load_digits(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """1,415 training and 382 test examples, 8x8x1, ten classes; mean and std as measured.

    The test split is the last three writers, whom the training split does not hold (as in the
    UCI original, where training and test writers differ): a network has to generalize to new
    hands. A random split, which shares its writers, saturates near 99 %.

    Args:
      data_dir: ignored; the data is part of scikit-learn (`sklearn.datasets.load_digits`).
    """
    del data_dir
    return _split("digits", _table(), FIRST_TEST_EXAMPLE)


def load_mixed(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """1,000 training and 797 test examples in a fixed random order: both splits share writers.

    Easier than `load_digits`; for studies whose settings were found on such a split.

    Args:
      data_dir: ignored.
    """
    del data_dir
    return _split("digits_mixed", _shuffled(), MIXED_TRAIN)


def load_even(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """900 training and 897 test examples of the same digits, split at random.

    Both halves share their writers, so a dense network comes to about 98 %: what sparse networks
    lose stands out against less noise than with new hands (`load_digits`). The split is always the
    same one.

    Args:
      data_dir: ignored, as in `load_digits`.
    """
    del data_dir
    return _split("digits_even", _shuffled(), EVEN_TRAIN)


def _shuffled() -> np.ndarray:
    table = _table()
    return table[np.random.default_rng(0).permutation(len(table))]


def _split(name: str, table: np.ndarray, cut: int) -> Dataset:
    """The first `cut` rows train, the others test."""
    images = (table[:, :64] * SCALE).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, 64].astype(np.int32)
    return make(name, (images[:cut], labels[:cut]), (images[cut:], labels[cut:]), 10)
