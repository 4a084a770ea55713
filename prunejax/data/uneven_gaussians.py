"""Ten Gaussian classes of different spread: a made task whose classes are unequally hard."""

import numpy as np

from prunejax.data.dataset import Dataset, Directory, Standardize, make

CLASSES, DIMENSIONS = 10, 20
TRAIN, TEST = 100, 1000  # examples of each class
SPREADS = (0.7, 2.2)  # standard deviations of the first and the last class, linear between


def load_uneven_gaussians(data_dir: Directory = None) -> Dataset:
    """1,000 training and 10,000 test examples, float32 [n, 20], as many of each of ten classes.

    Class c has mean N(0, I) (drawn once) and covariance s_c^2 I with s_c from 0.7 to 2.2: the wide
    classes are the hard ones. Always the same examples.

    Args:
      data_dir: ignored; the data is drawn.
    """
    del data_dir
    rng = np.random.default_rng(0)
    # From here on the order of draws decides: labels, then noise, of each split.
    means = rng.normal(size=(CLASSES, DIMENSIONS))
    spread = np.linspace(*SPREADS, CLASSES)
    parts = []
    for count in (TRAIN, TEST):
        labels = rng.permutation(np.repeat(np.arange(CLASSES), count)).astype(np.int32)
        noise = rng.normal(size=(labels.size, DIMENSIONS))
        parts.append(((means[labels] + spread[labels, None] * noise).astype(np.float32), labels))
    train, test = parts
    # Over all classes together, so that their spreads stay unequal.
    return make("uneven_gaussians", train, test, CLASSES, prepare=Standardize.of(parts[0][0]))
