"""MNIST, Fashion-MNIST and CIFAR as their authors publish them: read without TensorFlow or TFDS.

Looked for in `DIR/NAME`, in torchvision's folders below `DIR`, and in `DIR` itself:

- MNIST and Fashion-MNIST: the four files "train-images-idx3-ubyte", ..., plain or ".gz" (the format
  "idx": http://yann.lecun.com/exdb/mnist, magic number, sizes, bytes).
- CIFAR-10 and CIFAR-100: "cifar-10-batches-bin" (records of label bytes and 3,072 pixels, channel
  by channel) or "cifar-10-batches-py" (pickles of arrays), "cifar-100-binary" or
  "cifar-100-python", unpacked or as their ".tar.gz" (https://www.cs.toronto.edu/~kriz/cifar.html).

Examples are in the order of the files: TFDS shuffles its own, so that the same seed chooses others.
"""

import gzip
import io
import pickle
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Split = tuple[np.ndarray, np.ndarray]
Read = Callable[[str], bytes]


class Found(NamedTuple):
    """Where a set lies and what it holds."""

    path: Path
    train: Split
    test: Split
    classes: int


_IDX = {"mnist": "MNIST/raw", "fashion_mnist": "FashionMNIST/raw"}
_IDX_FILES = tuple(
    f"{s}-{k}-ubyte" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")
)
_CIFAR = {
    "cifar10": (
        ("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
        ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    ),
    "cifar100": (
        ("cifar-100-binary", "cifar-100-binary.tar.gz"),
        ("cifar-100-python", "cifar-100-python.tar.gz"),
    ),
}
NAMES = (*_IDX, *_CIFAR)


def find(name: str, directory: Path) -> Found | None:
    """The train and test split of a set, None if its files are not there.

    Args: name: of `NAMES`; None for any other. directory: where to look.

    Raises ValueError: the files are there and are not what they should be.
    """
    if name in _IDX:
        for folder in (directory / name, directory / _IDX[name], directory):
            files = [_plain_or_packed(folder / file) for file in _IDX_FILES]
            if all(files):
                return _idx(folder, [file for file in files if file])
    for folder in (directory / name, directory) if name in _CIFAR else ():
        for binary, (inner, archive) in zip((True, False), _CIFAR[name], strict=True):
            for path in (folder / inner, folder / archive):
                if path.exists():
                    return _cifar(path, inner, binary, 100 if name == "cifar100" else 10)
    return None


def _plain_or_packed(path: Path) -> Path | None:
    packed = path.with_name(path.name + ".gz")
    return path if path.is_file() else packed if packed.is_file() else None


def _idx(folder: Path, files: list[Path]) -> Found:
    read = []
    for file, axes in zip(files, (3, 1, 3, 1), strict=True):
        try:
            content = file.read_bytes()
            content = gzip.decompress(content) if file.suffix == ".gz" else content
        except (OSError, EOFError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from None
        # Big-endian, as the format has it.
        sizes = np.frombuffer(content[4 : 4 + 4 * axes], ">u4").astype(int)
        magic = bytes([0, 0, 8, axes])
        if content[:4] != magic or len(content) != 4 + 4 * axes + int(np.prod(sizes)):
            raise ValueError(
                f"{file} is no whole idx file of bytes with {axes} axes: {len(content):,} bytes; "
                "download it again"
            )
        read.append(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(sizes))
    splits = [(x[..., None], y.astype(np.int32)) for x, y in (read[:2], read[2:])]
    for file, (x, y) in zip(files[::2], splits, strict=True):
        if len(x) != len(y):
            raise ValueError(f"{file} has {len(x)} images, its labels are {len(y)}")
    return Found(folder, splits[0], splits[1], 10)


def _cifar(path: Path, inner: str, binary: bool, classes: int) -> Found:
    fine = classes == 100
    end = ".bin" if binary else ""
    train = [f"train{end}"] if fine else [f"data_batch_{i}{end}" for i in range(1, 6)]
    test = f"test{end}" if fine else f"test_batch{end}"
    splits = []
    try:
        with _reader(path, inner) as read:
            for names in (train, [test]):
                parts = [(_records if binary else _pickled)(read(n), fine) for n in names]
                images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
                # Stored channel by channel; convolutions here read channels last.
                images = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                splits.append((np.ascontiguousarray(images), labels.astype(np.int32)))
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, pickle.PickleError) as error:
        raise ValueError(f"{path} is not the archive that it is called: {error}") from None
    return Found(path, splits[0], splits[1], classes)


@contextmanager
def _reader(path: Path, inner: str) -> Iterator[Read]:
    """What reads a file of a folder, or of an archive of that folder."""
    if path.is_dir():
        yield lambda name: (path / name).read_bytes()
        return
    with tarfile.open(path) as archive:

        def member(name: str) -> bytes:
            file = archive.extractfile(f"{inner}/{name}")
            if file is None:
                raise KeyError(f"no file {name}")
            return file.read()

        yield member


def _records(content: bytes, fine: bool) -> Split:
    size = 3072 + 1 + fine
    if not content or len(content) % size:
        raise ValueError(f"{len(content):,} bytes are no records of {size}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, size)
    return rows[:, 1 + fine :], rows[:, int(fine)]  # CIFAR-100: coarse label, then fine


class _Arrays(pickle.Unpickler):
    """Reads dicts of arrays and lists, and runs nothing else that a pickle may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not read")


def _pickled(content: bytes, fine: bool) -> Split:
    found = _Arrays(io.BytesIO(content), encoding="bytes").load()
    labels = found[b"fine_labels" if fine else b"labels"]
    return np.asarray(found[b"data"], np.uint8), np.asarray(labels)
