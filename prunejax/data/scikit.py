"""Real data that scikit-learn ships, read from its files: no download.

The 8x8 handwritten digits, and the diabetes study, a small regression on tabular data.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from prunejax.data.dataset import Dataset, Directory, Standardize, make
from prunejax.system import optional

# Examples are sorted by writer: within each writer's block the labels run 0123456789 three
# times and then follow one fixed pattern. A new block starts here; two writers follow it.
FIRST_TEST_EXAMPLE = 1415

# Pixels are 0..16. Times 15 they fill 0..240, so that pixel / 255 stays exactly linear in them.
SCALE = 15
# Training examples of 1,797; the others test.
SPLITS = {"digits": FIRST_TEST_EXAMPLE, "digits_mixed": 1000, "digits_even": 900}
PATIENTS = 92  # of the diabetes study that test, the last ones


@functools.cache
def table(name: str, *files: str, delimiter: str | None = None, **options: Any) -> np.ndarray:
    """[examples, features + 1]: the features and, in the last column, the target; read-only.

    Read once in a process: parsing it takes longer than the rest of a small study's planning.
    Without importing scikit-learn where that can be avoided: its import takes seconds, more than
    the rest of a small study's start.

    Args:
      name: of the set: `sklearn.datasets.load_NAME`.
      files: of scikit-learn's folder of data, with the columns in order.
      delimiter: of the files.
      options: of scikit-learn's loader, where the files are not there.
    """
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "datasets" / "data"
        paths = [folder / file for file in files]
        if all(path.is_file() for path in paths):
            return _columns(*(np.loadtxt(path, delimiter=delimiter) for path in paths))
    datasets = optional.need(f"the data set {name!r}", "sklearn.datasets")
    raw = getattr(datasets, f"load_{name}")(**options)
    return _columns(raw.data, raw.target)


def _columns(*parts: np.ndarray) -> np.ndarray:
    whole = np.column_stack(parts)
    whole.flags.writeable = False
    return whole


def load_digits(name: str, data_dir: Directory = None) -> Dataset:
    """8x8x1 images of ten classes, pixels 0..240, in one of `SPLITS`; mean and std as measured.

    "digits": the test split is the last three writers, whom the training split does not hold (as
    in the UCI original, where training and test writers differ): a network has to generalize to
    new hands. The others are cut from one fixed random order, so that both splits share writers: a
    dense network comes to 98 or 99 %, and what sparse ones lose stands out against less noise.

    Args:
      name: of a split.
      data_dir: ignored; the data is part of scikit-learn (`sklearn.datasets.load_digits`).
    """
    del data_dir
    rows, cut = table("digits", "digits.csv.gz", delimiter=","), SPLITS[name]
    if name != "digits":
        rows = rows[np.random.default_rng(0).permutation(len(rows))]
    images = (rows[:, :64] * SCALE).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = rows[:, 64].astype(np.int32)
    return make(name, (images[:cut], labels[:cut]), (images[cut:], labels[cut:]), 10)


def load_diabetes(data_dir: Directory = None) -> Dataset:
    """350 training and the last 92 patients as test examples (Efron et al. 2004, section 1).

    Inputs are ten features as float32 [n, 10], brought to mean 0 and standard deviation 1 over
    the training examples by `prepare`. Targets are float32 [n, 1], in standard deviations from
    their mean over the training examples (mean squared error 1: the constant that fits best).

    Args: data_dir: ignored; the data is part of scikit-learn.
    """
    del data_dir
    # Ten features in their units, and the progression of the disease after a year.
    files = ("diabetes_data_raw.csv.gz", "diabetes_target.csv.gz")
    rows = table("diabetes", *files, scaled=False)
    cut = len(rows) - PATIENTS
    features, target = rows[:, :10].astype(np.float32), rows[:, 10:]
    target = (target - target[:cut].mean()) / target[:cut].std()
    target = target.astype(np.float32)
    prepare = Standardize.of(features[:cut])
    train, test = (
        (features[part].copy(), target[part].copy()) for part in (slice(cut), slice(cut, None))
    )
    return make("diabetes", train, test, 1, prepare=prepare)
