import fnmatch
import importlib.util
import lzma
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from prunejax import data
from prunejax.configs import default, tradeoff
from prunejax.data import embedded
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib

ROOT = Path(__file__).resolve().parent.parent


def script():
    spec = importlib.util.spec_from_file_location("make", ROOT / "benchmarks" / "make_fashion.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fashion_has_the_images_that_it_says():
    images = data.load("fashion")
    assert images.train_images.shape == images.test_images.shape == (2000, 28, 28, 1)
    assert np.bincount(images.train_labels).tolist() == [
        *(180, 208, 202, 194, 192, 190, 225, 203, 222, 184),
    ]
    assert np.bincount(images.test_labels).tolist() == [
        *(199, 202, 186, 200, 181, 195, 205, 190, 220, 222),
    ]
    assert (images.mean, images.std) == data.prepared.MOMENTS["fashion_mnist"]
    scaled = images.train_images / 255
    np.testing.assert_allclose([scaled.mean(), scaled.std()], [0.286, 0.353], atol=0.01)


def test_fashion14_is_balanced_and_has_all_test_images():
    images = data.load("fashion14")
    assert images.train_images.shape == (6000, 14, 14, 1)
    assert images.test_images.shape == (10000, 14, 14, 1)
    assert set(np.bincount(images.train_labels)) == {600}
    assert set(np.bincount(images.test_labels)) == {1000}
    scaled = images.train_images / 255
    np.testing.assert_allclose([images.mean[0], images.std[0]], [scaled.mean(), scaled.std()])


def test_the_smaller_images_are_means_of_the_larger():
    """`fashion`'s test images, made smaller, are all among `fashion14`'s (which has all)."""
    small = {image.tobytes() for image in data.load("fashion14").test_images}
    assert all(
        image.tobytes() in small for image in script().halved(data.load("fashion").test_images)
    )


def test_means_of_2x2_pixels_are_rounded_half_up():
    image = np.array([[0, 0, 1, 2], [0, 1, 2, 1], [255, 255, 0, 1], [255, 255, 1, 0]], np.uint8)
    found = script().halved(image[None, :, :, None])[0, :, :, 0]
    np.testing.assert_array_equal(found, [[0, 2], [255, 1]])  # means 0.25, 1.5, 255, 0.5
    assert found.dtype == np.uint8


def test_first_of_each_class_in_order():
    labels = np.array([1, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(script().first_of_each(labels, 2), [0, 1, 2, 4])


def test_pack_and_unpack_are_inverse():
    extract = embedded.Extract(3, 2, 4, "")
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (5, 4, 4, 1)).astype(np.uint8)
    labels = np.arange(5, dtype=np.int32)
    train, test = embedded.unpack(
        embedded.pack((images[:3], labels[:3]), (images[3:], labels[3:])), extract
    )
    np.testing.assert_array_equal(np.concatenate([train[0], test[0]]), images)
    np.testing.assert_array_equal(np.concatenate([train[1], test[1]]), labels)
    assert train[1].dtype == np.int32


@pytest.mark.parametrize("spoil", ["changed", "cut", "missing"])
def test_a_file_that_is_not_the_one_made_is_refused(tmp_path, spoil):
    file = tmp_path / "fashion.xz"
    if spoil != "missing":
        shutil.copy(embedded.FOLDER / "fashion.xz", file)
        content = lzma.decompress(file.read_bytes())
        changed = bytes([content[0] ^ 1]) + content[1:]
        file.write_bytes(
            lzma.compress(changed, preset=0) if spoil == "changed" else file.read_bytes()[:-999]
        )
    with pytest.raises(ValueError, match=r"fashion.*install prunejax again") as error:
        embedded.load_embedded("fashion", folder=tmp_path)
    assert "\n" not in str(error.value)


def test_files_and_their_licence_are_in_the_wheel():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = patterns["package-data"]["prunejax"]
    files = sorted(embedded.FOLDER.iterdir())
    assert [file.name for file in files] == ["LICENSE", "fashion.xz", "fashion14.xz"]
    for file in files:
        name = str(file.relative_to(ROOT / "prunejax"))
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    assert sum(file.stat().st_size for file in files) < 4e6
    assert "Copyright (c) 2017 Zalando SE" in files[0].read_text()


def test_tradeoff_is_planned_without_prepared_sets(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    arms = config_lib.variants(tradeoff.get_config(), default.get_config())
    (batch,) = plan.build(arms)
    assert len(batch.members) == 24
    clean = data.load("fashion")
    assert np.sum(batch.dataset.train_labels != clean.train_labels) == 800  # 40 % of 2,000
