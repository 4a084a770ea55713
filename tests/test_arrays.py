import numpy as np
import pytest

from prunejax import data
from prunejax.configs import default
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from tests.studies import tiny

DRAW = np.random.default_rng(0)
TABLE = DRAW.normal(3, 5, (30, 4))
CLASSES = np.arange(30) % 3
GOOD = {
    "x_train": TABLE[:20],
    "y_train": CLASSES[:20],
    "x_test": TABLE[20:],
    "y_test": CLASSES[20:],
}


def written(path, **changes):
    arrays = {k: v for k, v in (GOOD | changes).items() if v is not None}
    np.savez(path / "own.npz", **arrays)
    return f"npz:{path / 'own.npz'}"


def test_a_table_with_classes(tmp_path):
    found = data.load(written(tmp_path))
    assert (found.num_classes, found.has_classes, found.image_shape) == (3, True, (4,))
    np.testing.assert_array_equal(found.train_labels, CLASSES[:20])
    mean, std = TABLE[:20].mean(axis=0), TABLE[:20].std(axis=0)
    np.testing.assert_allclose(
        found.prepare(found.test_images), (TABLE[20:] - mean) / std, 1e-4, 1e-5
    )


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 2)])
def test_bytes_are_images(tmp_path, shape):
    images = DRAW.integers(0, 256, (30, *shape)).astype(np.uint8)
    found = data.load(written(tmp_path, x_train=images[:20], x_test=images[20:]))
    assert found.prepare is None
    assert found.image_shape == (6, 5, 2 if len(shape) == 3 else 1)
    np.testing.assert_array_equal(found.test_images.reshape(10, *shape), images[20:])


def test_floats_are_targets_of_a_regression(tmp_path):
    own = written(tmp_path, y_train=TABLE[:20, 0], y_test=TABLE[20:, 0])
    found = data.load(own, train_examples=8)
    assert (found.num_classes, found.has_classes) == (1, False)
    assert found.train_labels.shape == (8, 1)
    np.testing.assert_array_equal(found.test_labels[:, 0], TABLE[20:, 0].astype(np.float32))


def test_a_study_is_planned_on_a_file_in_data_dir(tmp_path):
    written(tmp_path)
    config = tiny(none={})
    config.data.name, config.data.data_dir = "npz:own.npz", str(tmp_path)
    config.data.train_examples, config.data.test_examples, config.batch_size = 0, 0, 8
    (batch,) = plan.build(config_lib.variants(config, default.get_config()))
    assert (batch.dataset.train_examples, batch.program.image_shape) == (20, (4,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y_test": None}, "y_test"),
        ({"x_test": TABLE[20:, :3]}, "one dtype and shape"),
        ({"y_train": CLASSES[:19]}, "for 19 targets"),
        ({"y_test": TABLE[20:, 0]}, "give one kind"),
        ({"y_train": CLASSES[:20] - 1}, "class labels from 0"),
        ({"x_train": np.full((20, 4), np.nan)}, "finite real numbers"),
        ({"x_train": np.array(["a"] * 20)}, "finite real numbers"),
        ({"x_train": np.array([{}] * 20)}, "cannot be read"),
        ({"x_test": TABLE[:0], "y_test": CLASSES[:0]}, "at least one example"),
        ({"x_train": TABLE[:20, 0], "x_test": TABLE[20:, 0]}, r"[examples, features]"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, change, words):
    with pytest.raises(ValueError, match="npz:") as error:
        data.load(written(tmp_path, **change))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"PK not a zip"])
def test_no_file_or_another(tmp_path, content):
    if content is not None:
        (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read.*np\.savez"):
        data.load(f"npz:{tmp_path / 'own.npz'}")
