"""The diabetes study that scikit-learn ships: a small regression on tabular data."""

import numpy as np

from prunejax.data import scikit
from prunejax.data.dataset import Dataset, Directory, Standardize, make

TEST_EXAMPLES = 92


def load_diabetes(data_dir: Directory = None) -> Dataset:
    """350 training and the last 92 patients as test examples (Efron et al. 2004, section 1).

    Inputs are ten features as float32 [n, 10], brought to mean 0 and standard deviation 1 over
    the training examples by `prepare`. Targets are float32 [n, 1], in standard deviations from
    their mean over the training examples (mean squared error 1: the constant that fits best).

    Args:
      data_dir: ignored; the data is part of scikit-learn.
    """
    del data_dir
    # Ten features in their units, and the progression of the disease after a year.
    files = ("diabetes_data_raw.csv.gz", "diabetes_target.csv.gz")
    table = scikit.table("diabetes", *files, scaled=False)
    cut = len(table) - TEST_EXAMPLES
    features, target = table[:, :10].astype(np.float32), table[:, 10:]
    target = (target - target[:cut].mean()) / target[:cut].std()
    target = target.astype(np.float32)
    prepare = Standardize.of(features[:cut])
    train, test = (
        (features[part].copy(), target[part].copy()) for part in (slice(cut), slice(cut, None))
    )
    return make("diabetes", train, test, 1, prepare=prepare)
