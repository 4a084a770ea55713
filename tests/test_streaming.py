import itertools
import json
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from prunejax.data import batches, streaming, transforms
from prunejax.errors import UnreadableError
from tests import fake_tfds

SIZE = 24


def varying_images(examples, seed):
    """Smooth images of sizes 20..60; the label is the example's number."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(examples):
        height, width = rng.integers(20, 61, 2)
        corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        corners[0, 0] = i * 3
        images.append(np.asarray(Image.fromarray(corners).resize((width, height))))
    return images, np.arange(examples)


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    directory = tmp_path_factory.mktemp("streamed")
    splits = {"train": varying_images(64, 0), "validation": varying_images(21, 1)}
    options = {"shape": (None, None, 3), "num_classes": 64, "splits": splits}
    fake_tfds.write(directory, "imagenet2012", version="5.1.0", encoding="JPEG", **options)
    fake_tfds.write(directory, "mnist", train=12, test=6)
    return directory


def train_stream(sets, **options):
    options = {"batch_size": 10, "image_size": SIZE, "seed": 3, **options}
    return streaming.open_stream("imagenet2012", training=True, data_dir=sets, **options)


def evaluation_stream(sets, **options):
    options = {"batch_size": 8, "image_size": SIZE, **options}
    return streaming.open_stream("imagenet2012", training=False, data_dir=sets, **options)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_batch(sets):
    stream = train_stream(sets)
    assert (stream.examples, stream.num_classes, stream.steps_per_epoch) == (64, 64, 6)
    assert stream.image_shape == (SIZE, SIZE, 3)
    batch = stream[0]
    assert batch.keys() == {"image", "label"}
    assert (batch["image"].shape, batch["image"].dtype) == ((10, SIZE, SIZE, 3), np.uint8)
    assert (batch["label"].shape, batch["label"].dtype) == ((10,), np.int32)
    assert stream.mean == (0.485, 0.456, 0.406)


def test_batches_are_a_pure_function_of_seed_and_step(sets):
    stream, again = train_stream(sets), train_stream(sets)
    for step in (0, 5, 6, 13):
        assert same(stream[step], again[step])
    assert not same(train_stream(sets, seed=4)[0], stream[0])


def test_order_is_that_of_the_in_memory_path(sets):
    stream = train_stream(sets)
    stored = np.array([record["label"] for record in stream.records])  # TFDS's order
    for step in (0, 5, 6, 17):
        epoch, within = divmod(step, 6)
        indices = batches.epoch_permutation(3, epoch, 64)[10 * within : 10 * (within + 1)]
        np.testing.assert_array_equal(stream[step]["label"], stored[indices])


def test_last_batch_of_an_epoch(sets):
    assert len(train_stream(sets)[6]["label"]) == 10  # of the next epoch


def test_iterating_from_any_step_continues_the_straight_run(sets):
    stream = train_stream(sets)
    straight = list(itertools.islice(stream.iterate(threads=3), 15))
    assert len(straight) == 15
    for step, batch in enumerate(straight):
        assert same(batch, stream[step])
    for start in (1, 6, 14, 15):
        again = train_stream(sets).iterate(start, threads=2)
        resumed = list(itertools.islice(again, 15 - start))
        assert all(map(same, resumed, straight[start:]))


def test_training_is_endless(sets):
    first = list(itertools.islice(train_stream(sets).iterate(), 8))
    assert same(first[7], train_stream(sets)[7])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_out_the_global_batch(sets, count):
    for open_one in (train_stream, evaluation_stream):
        whole = open_one(sets, batch_size=8)
        parts = [
            open_one(sets, batch_size=8, process_index=i, process_count=count) for i in range(count)
        ]
        for step in (0, whole.steps_per_epoch - 1):
            given = [part[step] for part in parts]
            assert all(len(part["label"]) == 8 // count for part in given)
            joined = {key: np.concatenate([part[key] for part in given]) for key in given[0]}
            assert same(joined, whole[step])


def test_view_of_an_example_depends_on_seed_epoch_and_example_only(sets):
    def views(batch_size, steps):
        stream = train_stream(sets, batch_size=batch_size)
        found = {}
        for step in steps:
            batch = stream[step]
            found.update(zip(batch["label"].tolist(), batch["image"], strict=True))
        return found

    one, other = views(8, range(8)), views(16, range(4))
    assert one.keys() == other.keys()
    assert len(one) == 64
    assert all(np.array_equal(one[label], other[label]) for label in one)
    next_epoch = views(8, range(8, 16))
    assert sum(np.array_equal(one[label], next_epoch[label]) for label in one) == 0


def test_evaluation_counts_each_example_once(sets):
    stream = evaluation_stream(sets)
    assert stream.steps_per_epoch == 3
    given = list(stream.iterate())
    assert [batch["image"].shape for batch in given] == [(8, SIZE, SIZE, 3)] * 3
    weights = np.concatenate([batch["weight"] for batch in given])
    labels = np.concatenate([batch["label"] for batch in given])
    np.testing.assert_array_equal(weights, [1] * 21 + [0] * 3)
    assert sorted(labels[weights > 0]) == list(range(21))
    assert not given[2]["image"][5:].any()
    with pytest.raises(IndexError, match=r"step=3: the stream has steps 0\.\.2"):
        stream[3]


def test_grey_sets_stay_grey(sets):
    options = {"batch_size": 4, "image_size": 28, "data_dir": sets}
    stream = streaming.open_stream("tfds:mnist", training=False, **options)
    assert stream[0]["image"].shape == (4, 28, 28, 1)
    assert stream[1]["weight"].tolist() == [1, 1, 0, 0]  # the test split has 6
    assert len(stream.mean) == len(stream.std) == 1
    stream = streaming.open_stream("mnist", training=False, **options)
    assert stream.mean == (0.1307,)


# --- views of one image ---


def encoded(pixels, path):
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def test_decode_gives_the_channels_asked_for(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    content = encoded(colour, tmp_path / "colour.png")
    np.testing.assert_array_equal(transforms.decode(content, 3), colour)
    grey = encoded(colour[..., 0], tmp_path / "grey.png")
    np.testing.assert_array_equal(transforms.decode(grey, 1)[..., 0], colour[..., 0])
    np.testing.assert_array_equal(transforms.decode(grey, 3), colour[..., :1].repeat(3, axis=2))


def test_central_view_is_the_middle_of_the_image(tmp_path):
    # Pixel value = 2 * column: the view's columns are evenly spaced in the middle 7/8 of the
    # short side, 64 pixels here, and resizing keeps a linear ramp.
    ramp = np.broadcast_to(2 * np.arange(100, dtype=np.uint8)[None, :, None], (64, 100, 3))
    view = transforms.central(encoded(ramp, tmp_path / "ramp.png"), 28, 3)
    side = 64 * 7 / 8
    columns = 50 - side / 2 + (np.arange(28) + 0.5) * side / 28 - 0.5
    np.testing.assert_allclose(view[..., 0], np.broadcast_to(2 * columns, (28, 28)), atol=1)


def test_central_view_of_exact_size_is_a_plain_crop(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    view = transforms.central(encoded(pixels, tmp_path / "image.png"), 28, 3)
    np.testing.assert_array_equal(view, pixels[2:30, 6:34])


def test_random_view_is_the_resized_box_mirrored_half_of_the_time(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    content = encoded(pixels, tmp_path / "image.png")
    mirrored = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        box = transforms.crop_box(generator, 50, 40)
        expected = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR, box=box)
        flip = generator.random() < 0.5
        view = transforms.random_resized(content, 16, 3, np.random.default_rng(seed))
        np.testing.assert_array_equal(view[:, ::-1] if flip else view, expected)
        mirrored += flip
    assert stats.binomtest(mirrored, 200).pvalue > 0.01


def test_crop_box_has_the_stated_distribution(monkeypatch):
    # With at most half of the area, no draw is rejected, so the stated laws hold exactly, up to
    # rounding to pixels.
    monkeypatch.setattr(transforms, "CROP_AREA", (0.08, 0.5))
    generator, side = np.random.default_rng(0), 5000
    boxes = np.array([transforms.crop_box(generator, side, side) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    w, h = right - left, bottom - top
    log_ratio = np.log(4 / 3)
    for value, low, width in (
        (w * h / side**2, 0.08, 0.42),
        (np.log(w / h), -log_ratio, 2 * log_ratio),
        (left / (side - w), 0, 1),
        (top / (side - h), 0, 1),
    ):
        assert stats.kstest(value, stats.uniform(low, width).cdf).pvalue > 0.01


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (20, 20)])
def test_crop_box_stays_inside(size):
    generator = np.random.default_rng(0)
    for _ in range(50):
        left, top, right, bottom = transforms.crop_box(generator, *size)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
    if size == (500, 3):  # nothing fits: the middle, as wide as allowed
        assert (left, top, right, bottom) == (248, 0, 252, 3)


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 65}, "batch_size=65: must be between 1 and .* 64"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 10, "process_count": 4}, "divide among 4 processes"),
        ({"process_index": 1}, "process_index=1: must be between 0 and 0"),
        ({"image_size": 0}, "image_size=0"),
    ],
)
def test_sizes_that_do_not_fit(sets, options, message):
    with pytest.raises(ValueError, match=message):
        train_stream(sets, **options)


def test_unknown_and_missing_sets(tmp_path):
    options = {"training": True, "batch_size": 1, "data_dir": tmp_path}
    with pytest.raises(ValueError, match=r"imagenet2021.*cifar10.*Did you mean 'imagenet2012'"):
        streaming.open_stream("imagenet2021", **options)
    with pytest.raises(ValueError, match="'imagenet2012' is not prepared"):
        streaming.open_stream("imagenet2012", **options)


def test_labels_out_of_range_and_broken_files(tmp_path):
    images, labels = varying_images(6, 0)
    path = fake_tfds.write(
        tmp_path, "few", shape=(None, None, 3), splits={"train": (images, labels)}, encoding="JPEG"
    )
    options = {"training": True, "batch_size": 6, "image_size": 8, "data_dir": tmp_path}
    stream = streaming.open_stream("tfds:few", **options)
    encoded_images = [dict(record) for record in stream.records]
    broken = encoded_images[2] | {"image": encoded_images[2]["image"][:100]}

    class Records(list):
        def __getitems__(self, rows):
            return [self[row] for row in rows]

    records = Records([*encoded_images[:2], broken, *encoded_images[3:]])
    object.__setattr__(stream, "records", records)
    with pytest.raises(UnreadableError, match=r"example 2 of split 'train' in .*few"):
        next(stream.iterate())
    features = path / "features.json"
    content = json.loads(features.read_text())
    content["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "5"
    features.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"has label 5, not 0\.\.4"):
        streaming.open_stream("tfds:few", **options)[0]


def test_without_grain(sets, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    stream = train_stream(sets)
    assert len(stream[0]["label"]) == 10
    with pytest.raises(ValueError, match=r"pip install 'prunejax\[stream\]'"):
        stream.iterate()
