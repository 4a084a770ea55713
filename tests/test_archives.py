"""Archives as their authors publish them, written here byte by byte, read back."""

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from prunejax import data
from prunejax.data import DataNotFoundError, archives


def drawn(n, shape, classes, seed):
    r = np.random.default_rng(seed)
    return r.integers(0, 256, (n, *shape), np.uint8), r.integers(0, classes, n).astype(np.uint8)


def write_idx(folder, packed):
    """The four files; returns what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = [drawn(7, (28, 28), 10, 0), drawn(3, (28, 28), 10, 1)]
    for start, arrays in zip(("train", "t10k"), splits, strict=True):
        for array, name in zip(arrays, ("images-idx3", "labels-idx1"), strict=True):
            content = bytes([0, 0, 8, array.ndim])
            content += b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()
            file = folder / f"{start}-{name}-ubyte"
            if packed:
                file.with_name(file.name + ".gz").write_bytes(gzip.compress(content))
            else:
                file.write_bytes(content)
    return splits


@pytest.mark.parametrize(
    ("name", "place", "packed"),
    [("mnist", "mnist", True), ("fashion_mnist", "FashionMNIST/raw", False), ("mnist", "", True)],
)
def test_idx(tmp_path, name, place, packed):
    splits = write_idx(tmp_path / place, packed)
    found = data.load(name, data_dir=tmp_path)
    np.testing.assert_array_equal(found.train_images, splits[0][0][..., None])
    np.testing.assert_array_equal(found.test_labels, splits[1][1])
    assert found.num_classes == 10
    assert found.mean[0] == pytest.approx(0.1307 if name == "mnist" else 0.2860)


def write_cifar(folder, fine, binary, packed):
    """CIFAR in one of its forms, two records a file; returns images and labels of both splits."""
    classes, end = (100 if fine else 10), ".bin" if binary else ""
    train = [f"train{end}"] if fine else [f"data_batch_{i}{end}" for i in range(1, 6)]
    names = [*train, f"test{end}" if fine else f"test_batch{end}"]
    files, kept = {}, []
    for seed, name in enumerate(names):
        rows, labels = drawn(2, (3072,), classes, seed)
        kept.append((rows, labels))
        if binary:
            front = [labels // 5, labels] if fine else [labels]
            files[name] = np.column_stack([*front, rows]).astype(np.uint8).tobytes()
        else:
            key = b"fine_labels" if fine else b"labels"
            files[name] = pickle.dumps({b"data": rows, key: labels.tolist()}, protocol=2)
    inner = archives._CIFAR[f"cifar{classes}"][0 if binary else 1]
    if packed:
        with tarfile.open(folder / inner[1], "w:gz") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(f"{inner[0]}/{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    else:
        (folder / inner[0]).mkdir()
        for name, content in files.items():
            (folder / inner[0] / name).write_bytes(content)
    rows, labels = (np.concatenate([part[i] for part in kept[:-1]]) for i in (0, 1))
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize(("binary", "packed"), [(True, True), (False, False), (False, True)])
def test_cifar(tmp_path, fine, binary, packed):
    images, labels = write_cifar(tmp_path, fine, binary, packed)
    found = data.load("cifar100" if fine else "cifar10", data_dir=tmp_path)
    np.testing.assert_array_equal(found.train_images, images)
    np.testing.assert_array_equal(found.train_labels, labels)
    assert found.test_images.shape == (2, 32, 32, 3)
    assert found.num_classes == (100 if fine else 10)


def test_pickles_run_nothing_and_damage_is_told(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    write_cifar(tmp_path, False, False, False)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"is not the archive that it is called: it asks for \w+"):
        data.load("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "made").exists()
    write_idx(tmp_path / "mnist", False)
    file = tmp_path / "mnist" / "train-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte is no whole idx file"):
        data.load("mnist", data_dir=tmp_path)
    with pytest.raises(DataNotFoundError, match="its authors' archives will do"):
        data.load("fashion_mnist", data_dir=tmp_path / "none")
