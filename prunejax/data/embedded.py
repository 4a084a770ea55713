"""Extracts of Fashion-MNIST inside the package: real images without a download.

    fashion     2,000 training and  2,000 test images, 28x28
    fashion14   6,000 training and 10,000 test images, 14x14

`benchmarks/make_fashion.py` makes them from the prepared TFDS set `fashion_mnist` and says which
images they are. MIT licence, (c) 2017 Zalando SE: the notice lies beside the files.
"""

import hashlib
import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunejax.data.dataset import Dataset, Directory, make
from prunejax.data.prepared import MOMENTS

FOLDER = Path(__file__).parent / "fashion"


@dataclass(frozen=True)
class Extract:
    """What a file holds once unpacked: training and test labels, then training and test images."""

    # train, test: number of examples.
    train: int
    test: int
    side: int  # of the square one-channel images, in pixels
    sha256: str  # of the unpacked bytes, one for a label or a pixel


EXTRACTS = {
    "fashion": Extract(
        2000, 2000, 28, "f6899e119d86cb028ba7e90c65ca05cf022e90b53da5284b118528ccbcc0ef43"
    ),
    "fashion14": Extract(
        6000, 10000, 14, "4d03e827af59088d3b9e74bcacca49d216552cbfb754fa23c33de2bbf9878a3a"
    ),
}


def pack(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> bytes:
    """The bytes of an extract, unpacked, from (uint8 images, labels) of both splits."""
    parts = [train[1].astype(np.uint8), test[1].astype(np.uint8), train[0], test[0]]
    return b"".join(part.tobytes() for part in parts)


def unpack(
    content: bytes, extract: Extract
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """`pack` undone: (uint8 images [n, side, side, 1], int32 labels [n]) of both splits."""
    whole = np.frombuffer(content, np.uint8)
    count = extract.train + extract.test
    labels = whole[:count].astype(np.int32)
    images = whole[count:].reshape(count, extract.side, extract.side, 1)
    cut = extract.train
    return (images[:cut].copy(), labels[:cut].copy()), (images[cut:].copy(), labels[cut:].copy())


def load_embedded(name: str, data_dir: Directory = None, folder: Path = FOLDER) -> Dataset:
    """One of `EXTRACTS`, ten classes; its digest is checked.

    "fashion" has the mean and std of "fashion_mnist", "fashion14" those of its training images.

    Args:
      name: a key of `EXTRACTS`.
      data_dir: ignored, the data is part of the package.
      folder: where the files are.

    Raises ValueError: the file is missing or is not the one that was made.
    """
    del data_dir
    extract, file = EXTRACTS[name], folder / f"{name}.xz"
    try:
        content = lzma.decompress(file.read_bytes())
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise ValueError(
            f"data set {name!r}: {file} cannot be read ({error}); install prunejax again"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != extract.sha256:
        raise ValueError(
            f"data set {name!r}: {file} has SHA-256 {found[:12]}..., not {extract.sha256[:12]}...: "
            "it was changed; install prunejax again"
        )
    # Means of 2x2 pixels vary less than the whole images, whose moments are in common use.
    mean, std = MOMENTS["fashion_mnist"] if name == "fashion" else (None, None)
    return make(name, *unpack(content, extract), 10, mean, std)
