"""Makes the extracts of Fashion-MNIST that the package holds (`prunejax/data/fashion/*.xz`).

    TFDS_DATA_DIR=... python benchmarks/make_fashion.py            # writes them
    TFDS_DATA_DIR=... python benchmarks/make_fashion.py --check    # compares them

Which images, in the order of the prepared TFDS set `fashion_mnist` 3.0.1:

* `fashion`: the 2,000 training and 2,000 test images that `data.load("fashion_mnist",
  train_examples=2000, test_examples=2000)` draws (stream "subset" of seed 0), so that a study on
  them keeps its numbers. 180 to 225 training images a class, 181 to 222 test images.
* `fashion14`: the first 600 training images of each class, and all test images (1,000 a class). A
  pixel is the mean of 2x2 pixels, rounded to the nearest integer, halves up.

Prints the SHA-256 of the unpacked bytes, to be put into `prunejax/data/embedded.py`, and the size.
"""

import argparse
import hashlib
import lzma
import sys

import numpy as np

from prunejax import data
from prunejax.data import embedded

PER_CLASS = 600


def halved(images: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels of uint8 [n, h, w, c], rounded half up: uint8 [n, h/2, w/2, c]."""
    n, height, width, channels = images.shape
    blocks = images.reshape(n, height // 2, 2, width // 2, 2, channels)
    return ((blocks.sum(axis=(2, 4), dtype=np.uint32) + 2) // 4).astype(np.uint8)


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices, in order, of the first `count` examples of every class."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)]))


def contents() -> dict[str, bytes]:
    """Name -> unpacked bytes."""
    some = data.load("fashion_mnist", train_examples=2000, test_examples=2000)
    whole = data.load("fashion_mnist")
    chosen = first_of_each(whole.train_labels, PER_CLASS)
    return {
        "fashion": embedded.pack(
            (some.train_images, some.train_labels), (some.test_images, some.test_labels)
        ),
        "fashion14": embedded.pack(
            (halved(whole.train_images[chosen]), whole.train_labels[chosen]),
            (halved(whole.test_images), whole.test_labels),
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check = parser.parse_args().check
    same = True
    for name, content in contents().items():
        file = embedded.FOLDER / f"{name}.xz"
        if not check:
            file.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
        same &= lzma.decompress(file.read_bytes()) == content
        print(name, hashlib.sha256(content).hexdigest(), file.stat().st_size)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
