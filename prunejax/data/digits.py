"""The 8x8 handwritten digits that scikit-learn ships: real data without a download."""

import numpy as np

from prunejax.data import scikit
from prunejax.data.dataset import Dataset, Directory, make

# Examples are sorted by writer: within each writer's block the labels run 0123456789 three
# times and then follow one fixed pattern. A new block starts here; two writers follow it.
FIRST_TEST_EXAMPLE = 1415

# Pixels are 0..16. Times 15 they fill 0..240, so that pixel / 255 stays exactly linear in them.
SCALE = 15
# Training examples of 1,797; the others test.
SPLITS = {"digits": FIRST_TEST_EXAMPLE, "digits_mixed": 1000, "digits_even": 900}


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
    table, cut = scikit.table("digits", "digits.csv.gz", delimiter=","), SPLITS[name]
    if name != "digits":
        table = table[np.random.default_rng(0).permutation(len(table))]
    images = (table[:, :64] * SCALE).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, 64].astype(np.int32)
    return make(name, (images[:cut], labels[:cut]), (images[cut:], labels[cut:]), 10)
