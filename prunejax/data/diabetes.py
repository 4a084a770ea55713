"""The diabetes study that scikit-learn ships: a small regression on tabular data."""

import importlib.util
import os
from pathlib import Path

import numpy as np

from prunejax.data.dataset import Dataset, Standardize, make
from prunejax.system import optional

TEST_EXAMPLES = 92


def _table() -> np.ndarray:
    """[442, 11]: ten features in their units, and the progression of the disease after a year.

    Read from scikit-learn's files, without its import of seconds where that can be avoided.
    """
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "datasets" / "data"
        files = [folder / "diabetes_data_raw.csv.gz", folder / "diabetes_target.csv.gz"]
        if all(file.is_file() for file in files):
            return np.column_stack([np.loadtxt(file) for file in files])
    raw = optional.need("the data set 'diabetes'", "sklearn.datasets").load_diabetes(scaled=False)
    return np.column_stack([raw.data, raw.target])


def load_diabetes(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """350 training and the last 92 patients as test examples (Efron et al. 2004, section 1).

    Inputs are ten features as float32 [n, 10], brought to mean 0 and standard deviation 1 over
    the training examples by `prepare`. Targets are float32 [n, 1], in standard deviations from
    their mean over the training examples (mean squared error 1: the constant that fits best).

    Args:
      data_dir: ignored; the data is part of scikit-learn.
    """
    del data_dir
    table = _table()
    cut = len(table) - TEST_EXAMPLES
    features, target = table[:, :10].astype(np.float32), table[:, 10:]
    target = (target - target[:cut].mean()) / target[:cut].std()
    target = target.astype(np.float32)
    prepare = Standardize.of(features[:cut])
    train, test = (
        (features[part].copy(), target[part].copy()) for part in (slice(cut), slice(cut, None))
    )
    return make("diabetes", train, test, 1, prepare=prepare)
