"""Prepared sets at half their side: every 2x2 block of pixels becomes its mean."""

import numpy as np

from prunejax.data.dataset import Dataset, Directory, make
from prunejax.data.prepared import load_prepared

# name -> the prepared set it is made from
POOLED = {"mnist14": "mnist", "fashion_mnist14": "fashion_mnist", "cifar10_16": "cifar10"}


def halved(images: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w, c] with even sides -> [n, h/2, w/2, c], means rounded to the next integer."""
    n, h, w, c = images.shape
    if h % 2 or w % 2:
        raise ValueError(f"images of {h}x{w} pixels cannot be halved: both sides must be even")
    # Four pixels overflow 8 bits.
    blocks = images.reshape(n, h // 2, 2, w // 2, 2, c).astype(np.uint16)
    # Halves go up; in integers, so that no float decides a pixel.
    return ((blocks.sum(axis=(2, 4)) + 2) // 4).astype(np.uint8)


def load_pooled(name: str, data_dir: Directory = None) -> Dataset:
    """A prepared set at half its side; mean and std are those of the smaller training images.

    Args: name: a key of `POOLED`. data_dir: where it is, see `prepared.find`.
    """
    whole = load_prepared(POOLED[name], data_dir)
    train = halved(whole.train_images), whole.train_labels
    test = halved(whole.test_images), whole.test_labels
    return make(name, train, test, whole.num_classes)
