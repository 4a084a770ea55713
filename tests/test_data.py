import json
import shlex
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import datasets

from prunejax import data, rng
from prunejax.data import batches, cache, choices, dataset, pooled, prepared, scikit
from tests import fake_tfds


@pytest.fixture(scope="session")
def prepared_sets(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tensorflow_datasets")
    fake_tfds.write(directory, "cifar10", train=96, test=32)
    fake_tfds.write(directory, "mnist", train=40, test=20)
    return directory


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


@pytest.fixture
def own_copy(prepared_sets, tmp_path):
    """A data directory that the test may damage, with cifar10 in `own_copy / "cifar10/3.0.2"`."""
    shutil.copytree(prepared_sets / "cifar10", tmp_path / "sets" / "cifar10")
    return tmp_path / "sets"


def no_reading(*args):
    raise AssertionError("the records are read again")


def same(a, b):
    return all(
        np.array_equal(getattr(a, f"{split}_{part}"), getattr(b, f"{split}_{part}"))
        for split in ("train", "validation", "test")
        for part in ("images", "labels")
    )


# --- data sets ---


def test_digits_are_scikit_learns():
    raw = datasets.load_digits()
    digits = data.load("digits")
    assert digits.train_images.shape == (1415, 8, 8, 1)
    assert digits.test_images.shape == (382, 8, 8, 1)
    assert digits.validation_images.shape == (0, 8, 8, 1)
    assert digits.image_shape == (8, 8, 1)
    assert digits.num_classes == 10
    images = np.concatenate([digits.train_images, digits.test_images])[..., 0]
    np.testing.assert_array_equal(images / 15, raw.images)
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    np.testing.assert_array_equal(labels, raw.target)
    # Each writer's labels begin like this: the test split begins with a new writer.
    assert digits.test_labels[:30].tolist() == list(range(10)) * 3
    normalized = batches.normalize(digits.train_images, digits.mean, digits.std)
    np.testing.assert_allclose([normalized.mean(), normalized.std()], [0, 1], atol=1e-5)


def test_mixed_digits_are_the_same_ones_in_another_order():
    mixed, whole = data.load("digits_even"), data.load("digits")
    assert mixed.train_images.shape == (900, 8, 8, 1)
    assert mixed.test_images.shape == (897, 8, 8, 1)

    def bag(d):
        images = np.concatenate([d.train_images, d.test_images])
        labels = np.concatenate([d.train_labels, d.test_labels])
        return sorted((int(y), x.tobytes()) for x, y in zip(images, labels, strict=True))

    assert bag(mixed) == bag(whole)
    shared = {x.tobytes() for x in whole.test_images}
    assert 150 < sum(x.tobytes() in shared for x in mixed.test_images) < 230  # 382 * 897 / 1797


def test_digits_without_scikit_learns_file(monkeypatch):
    expected = data.load("digits")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    scikit.table.cache_clear()
    assert same(data.load("digits"), expected)


def test_scikit_learns_files_are_read_once_and_their_tables_are_not_changed(monkeypatch):
    first = data.load("digits_even"), data.load("diabetes")
    monkeypatch.setattr(np, "loadtxt", no_reading)
    again = data.load("digits_even"), data.load("diabetes")
    for one, other in zip(first, again, strict=True):
        assert same(one, other)
        assert not np.shares_memory(one.train_images, other.train_images)
    with pytest.raises(ValueError, match="read-only"):
        scikit.table("digits", "digits.csv.gz", delimiter=",")[0] = 0


def test_prepared_set_holds_what_was_written(prepared_sets):
    cifar = data.load("cifar10", data_dir=prepared_sets)
    assert (cifar.name, cifar.num_classes) == ("cifar10", 10)
    assert cifar.mean == (0.4914, 0.4822, 0.4465)
    assert cifar.std == (0.2023, 0.1994, 0.2010)
    for split, n, seed in (("train", 96, 0), ("test", 32, 1)):
        images, labels = getattr(cifar, f"{split}_images"), getattr(cifar, f"{split}_labels")
        written, classes = fake_tfds.random_split(n, (32, 32, 3), 10, seed)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        label_of = {image.tobytes(): label for image, label in zip(written, classes, strict=True)}
        assert [label_of.pop(image.tobytes()) for image in images] == labels.tolist()
        assert not label_of
        with pytest.raises(ValueError, match="read-only"):
            images[0] = 0


def test_grey_set_and_the_environment_variable(prepared_sets, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared_sets))
    mnist = data.load("mnist")
    assert mnist.image_shape == (28, 28, 1)
    written, _ = fake_tfds.random_split(40, (28, 28, 1), 10, 0)
    assert {i.tobytes() for i in mnist.train_images} == {i.tobytes() for i in written}


def test_any_tfds_set_of_one_size_with_measured_moments(tmp_path):
    split = fake_tfds.random_split(20, (6, 9, 3), 4, 5)
    split[0][..., 1] = 51
    splits = {"train": split, "validation": split}
    fake_tfds.write(tmp_path, "tiny", shape=(6, 9, 3), num_classes=4, splits=splits)
    tiny = data.load("tfds:tiny", data_dir=tmp_path)
    assert (tiny.image_shape, tiny.num_classes) == ((6, 9, 3), 4)
    pixels = tiny.train_images.reshape(-1, 3) / 255
    np.testing.assert_allclose(tiny.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(tiny.std, [pixels[:, 0].std(), 1, pixels[:, 2].std()], rtol=1e-12)
    assert len(tiny.test_labels) == 20  # "validation" stands in for "test"


def test_newest_version_is_taken(own_copy):
    shutil.copytree(own_copy / "cifar10/3.0.2", own_copy / "cifar10/3.0.10")
    (own_copy / "cifar10/3.1.0").mkdir()  # not prepared
    assert prepared.find("cifar10", own_copy).path.name == "3.0.10"


def test_registry_has_the_documented_sets():
    assert set(data.DATASETS) >= {"digits", "mnist", "fashion_mnist", "cifar10", "cifar100"}


# --- the cache ---


def test_second_start_reads_no_records(prepared_sets, monkeypatch):
    first = data.load("cifar10", data_dir=prepared_sets)
    monkeypatch.setattr(prepared, "source", no_reading)
    assert same(data.load("cifar10", data_dir=prepared_sets), first)


def flip_a_byte(entry):
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    entry.write_bytes(content)


DAMAGES = {
    "truncated": lambda entry: entry.write_bytes(entry.read_bytes()[:5000]),
    "empty": lambda entry: entry.write_bytes(b""),
    "flipped": flip_a_byte,
    "no labels": lambda entry: np.savez(entry, images=np.zeros(3)),
    "no archive": lambda entry: entry.write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_rebuilt(damage, prepared_sets, monkeypatch):
    first = data.load("mnist", data_dir=prepared_sets)
    (entry,) = cache.directory().glob("mnist-3.0.1-train-*")
    DAMAGES[damage](entry)
    assert same(data.load("mnist", data_dir=prepared_sets), first)
    monkeypatch.setattr(prepared, "source", no_reading)
    assert same(data.load("mnist", data_dir=prepared_sets), first)


def test_changed_files_are_read_again(own_copy):
    old = data.load("cifar10", data_dir=own_copy)
    shutil.rmtree(own_copy / "cifar10")
    splits = {"train": fake_tfds.random_split(96, (32, 32, 3), 10, 7)}
    splits["test"] = splits["train"]
    fake_tfds.write(own_copy, "cifar10", splits=splits)
    new = data.load("cifar10", data_dir=own_copy)
    assert not same(old, new)
    assert same(new, data.load("cifar10", data_dir=own_copy))


def test_unwritable_cache_is_a_warning(prepared_sets, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNEJAX_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match=r"cannot keep decoded images: .*file/below.*CACHE"):
        mnist = data.load("mnist", data_dir=prepared_sets)
    assert len(mnist.train_labels) == 40


def test_without_home_directory(prepared_sets, monkeypatch):
    monkeypatch.delenv("PRUNEJAX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache.files.os.path, "expanduser", lambda path: path)  # as without a user
    with pytest.warns(UserWarning, match=r"cannot keep decoded images: .*home directory"):
        data.load("mnist", data_dir=prepared_sets)


def test_the_last_entry_of_several_processes_stays():
    images, labels = np.ones((2, 1, 1, 1), np.uint8), np.zeros(2, np.int32)
    for number in (0, 1):
        cache.write("key", images + np.uint8(number), labels)
    np.testing.assert_array_equal(cache.read("key")[0], images + 1)
    assert [path.name for path in cache.directory().iterdir()] == ["key.npz"]


def test_no_draft_is_left_behind(prepared_sets):
    data.load("mnist", data_dir=prepared_sets)
    names = sorted(path.name.rsplit("-", 1)[0] for path in cache.directory().iterdir())
    assert names == ["mnist-3.0.1-test", "mnist-3.0.1-train"]


def test_cache_directory(monkeypatch, tmp_path):
    assert cache.directory() == tmp_path / "cache"
    monkeypatch.delenv("PRUNEJAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(cache.directory()) == "/somewhere/prunejax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # does not count, as its specification has it
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(cache.directory()) == "/home/someone/.cache/prunejax"


# --- bad input ---


def test_missing_set_says_where_and_how(tmp_path, monkeypatch):
    def message(**arguments):
        with pytest.raises(data.DataNotFoundError) as error:
            data.load("cifar10", **arguments)
        return str(error.value)

    monkeypatch.setenv("HOME", str(tmp_path))
    default = tmp_path / "tensorflow_datasets"
    assert f"dataset_info.json in {default} (the default of TFDS)" in message()
    monkeypatch.setenv("TFDS_DATA_DIR", "/from/environment")
    assert "in /from/environment (TFDS_DATA_DIR)" in message()
    text = message(data_dir="~/mine")
    assert f"in {tmp_path}/mine (data_dir)" in text
    assert "\n" not in text
    assert issubclass(data.DataNotFoundError, ValueError)
    # A shell takes the command apart into the program below, whatever the path.
    for directory in (f"{tmp_path}/mine", "/a b/it's", '/a"b', "/a$b", "/a\\b"):
        text = message(data_dir=directory)
        *_, python, option, code = shlex.split(text[text.index("pip install") :])
        assert (python, option) == ("python", "-c")
        assert code == (
            "import tensorflow_datasets as tfds; tfds.builder('cifar10', "
            f"data_dir={directory!r}, file_format='array_record').download_and_prepare()"
        )


def test_unknown_set():
    with pytest.raises(ValueError, match=r"unknown data set 'cifar_10'.*Did you mean 'cifar10'"):
        data.load("cifar_10")
    for name in ("tfds:", "tfds:../x", "tfds:a/b/c", "tfds:/etc"):
        with pytest.raises(ValueError, match="NAME or NAME/CONFIG"):
            data.load(name)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_other_file_format(own_copy):
    info = own_copy / "cifar10/3.0.2/dataset_info.json"
    for change in (
        lambda content: content.update(fileFormat="tfrecord"),
        lambda content: content.pop("fileFormat"),  # what old versions of TFDS wrote
    ):
        edit(info, change)
        with pytest.raises(ValueError, match=r"'tfrecord'.*'array_record' is needed.*another dir"):
            data.load("cifar10", data_dir=own_copy)


def test_incomplete_set(own_copy):
    shard = own_copy / "cifar10/3.0.2/cifar10-train.array_record-00001-of-00002"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(data.DataNotFoundError, match=f"1 files are missing, first {shard.name}"):
        data.load("cifar10", data_dir=own_copy)
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cannot read split 'train' of .*prepare it again"):
        data.load("cifar10", data_dir=own_copy)


def test_damaged_description(own_copy):
    path = own_copy / "cifar10/3.0.2"
    edit(path / "features.json", lambda content: content["featuresDict"]["features"].pop("label"))
    with pytest.raises(ValueError, match=r"no image classification set.*features are: image"):
        data.load("cifar10", data_dir=own_copy)
    edit(path / "dataset_info.json", lambda content: content["splits"].pop())
    with pytest.raises(ValueError, match="no image classification set"):
        data.load("cifar10", data_dir=own_copy)
    (path / "dataset_info.json").write_text('{"fileFormat"')
    with pytest.raises(ValueError, match=r"cannot read .*dataset_info.json"):
        data.load("cifar10", data_dir=own_copy)


def test_set_without_the_splits_needed(own_copy):
    info = own_copy / "cifar10/3.0.2/dataset_info.json"
    edit(info, lambda content: content["splits"].pop())
    with pytest.raises(ValueError, match="no split 'test' or 'validation'; it has: train"):
        data.load("cifar10", data_dir=own_copy)


def test_images_of_varying_size_and_labels_out_of_range(tmp_path):
    images = [np.zeros((n, 5, 3), np.uint8) for n in (3, 4)]
    splits = {"train": (images, [0, 1]), "test": (images, [0, 1])}
    fake_tfds.write(tmp_path, "varying", shape=(None, None, 3), splits=splits)
    with pytest.raises(ValueError, match=r"\(-1, -1, 3\) \(-1: varies\) do not form one array"):
        data.load("tfds:varying", data_dir=tmp_path)
    same_size = (np.zeros((2, 4, 4, 3), np.uint8), [0, 5])
    path = fake_tfds.write(
        tmp_path, "wrong", shape=(4, 4, 3), splits={"train": same_size, "test": same_size}
    )
    features = path / "features.json"
    features.write_text(features.read_text().replace('"10"', '"3"'))
    with pytest.raises(ValueError, match=r"labels 0..5, not 0..2"):
        data.load("tfds:wrong", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_examples": 1416}, "train_examples=1416: must be between 1 and 1415"),
        ({"train_examples": 0}, "train_examples=0"),
        ({"train_examples": 2.5}, "train_examples=2.5: must be .* examples.*, a whole number"),
        ({"test_examples": "3"}, "test_examples='3': must be between 1 and 382"),
        ({"train_examples": 1400, "validation_examples": 20}, "between 1 and 1395 .*20 of them"),
        ({"test_examples": 383}, "test_examples=383: must be between 1 and 382"),
        ({"validation_examples": 1415}, "validation_examples=1415: must be between 0 and 1414"),
        ({"validation_examples": -1}, "validation_examples=-1"),
        ({"label_noise": 1.0}, "label_noise=1.0: must be a fraction"),
        ({"label_noise": -0.1}, "label_noise=-0.1"),
        ({"label_noise": float("nan")}, "label_noise=nan"),
    ],
)
def test_impossible_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        data.load("digits", **options)


def test_pixels_as_they_are():
    some = data.load("digits", train_examples=20, test_examples=10, standardize=False)
    read = data.normalize(jnp.asarray(some.train_images), some.mean, some.std)
    np.testing.assert_allclose(read, some.train_images / 255, rtol=1e-6)
    padded = data.load("digits", train_examples=20, test_examples=10, standardize=False, pad=3)
    inputs = padded.prepare(padded.train_images)
    np.testing.assert_allclose(inputs[:, :64], read.reshape(20, 64), rtol=1e-6)
    with pytest.raises(ValueError, match="'diabetes' are not pixels; leave it at True"):
        data.load("diabetes", standardize=False)


# --- chosen examples and spoiled labels ---


def numbered(train=200, test=50, num_classes=10):
    """A data set whose images hold their own number."""
    images = np.arange(train + test, dtype=np.uint16).view(np.uint8).reshape(-1, 1, 1, 2)
    labels = (np.arange(train + test) % num_classes).astype(np.int32)
    moments = ((0.0, 0.0), (1.0, 1.0))
    split = (images[:train], labels[:train]), (images[train:], labels[train:])
    return dataset.make("numbered", *split, num_classes, *moments)


def numbers(images):
    return np.ascontiguousarray(images).reshape(-1, 2).view(np.uint16)[:, 0].tolist()


def test_nothing_asked_nothing_changed():
    whole = numbered()
    assert same(choices.take(whole, seed=3), whole)
    assert same(choices.take(whole, train_examples=200, test_examples=50, seed=3), whole)


def test_subsets_are_nested_and_disjoint_from_a_fixed_validation_split():
    whole = numbered()
    sizes = (10, 100, 150)
    taken = [choices.take(whole, train_examples=n, validation_examples=50, seed=4) for n in sizes]
    previous = set()
    for n, part in zip(sizes, taken, strict=True):
        train, validation = numbers(part.train_images), numbers(part.validation_images)
        assert (len(train), len(validation)) == (n, 50)
        assert train == sorted(train)
        assert validation == numbers(taken[0].validation_images)
        assert not set(train) & set(validation)
        assert previous < set(train)
        assert part.train_labels.tolist() == [i % 10 for i in train]
        assert part.validation_labels.tolist() == [i % 10 for i in validation]
        previous = set(train)
    assert len(previous | set(validation)) == 200
    left = choices.take(whole, validation_examples=50, seed=4)
    assert same(left, taken[-1])


def test_subset_is_a_pure_function_of_the_seed():
    whole = numbered()
    options = {"train_examples": 60, "test_examples": 20, "label_noise": 0.3}
    first = choices.take(whole, **options, seed=1)
    assert same(first, choices.take(whole, **options, seed=1))
    other = choices.take(whole, **options, seed=2)
    assert numbers(first.train_images) != numbers(other.train_images)
    assert numbers(first.test_images) != numbers(other.test_images)
    assert len(numbers(first.test_images)) == 20
    assert set(numbers(first.test_images)) <= set(range(200, 250))


def test_every_example_is_chosen_equally_often():
    whole = numbered(40, 5)
    counts = np.zeros(40)
    for seed in range(200):
        counts[numbers(choices.take(whole, train_examples=10, seed=seed).train_images)] += 1
    # Drawn without replacement, the counts vary by the factor 1 - 10/40 less than Poisson counts.
    statistic = ((counts - 50) ** 2 / 50).sum() / (1 - 10 / 40)
    assert 0.01 < stats.chi2.sf(statistic, 39) < 0.99


@pytest.mark.parametrize("fraction", [0.1, 0.333, 0.99])
def test_label_noise_changes_exactly_that_many_labels(fraction):
    whole = numbered()
    noisy = choices.take(whole, validation_examples=20, label_noise=fraction, seed=5)
    clean = choices.take(whole, validation_examples=20, seed=5)
    assert (noisy.train_labels != clean.train_labels).sum() == round(fraction * 180)
    assert noisy.train_labels.min() >= 0
    assert noisy.train_labels.max() < 10
    for part in ("train_images", "validation_labels", "test_labels"):
        np.testing.assert_array_equal(getattr(noisy, part), getattr(clean, part))


def test_label_noise_is_uniform_over_the_other_classes_and_nested():
    labels = np.zeros(20_000, np.int32)
    spoiled = choices.spoil(labels, 5, 0.5, seed=0)
    counts = np.bincount(spoiled, minlength=5)
    assert counts[0] == 10_000
    assert stats.chisquare(counts[1:]).pvalue > 0.01
    less = choices.spoil(labels, 5, 0.2, seed=0)
    assert (spoiled[less != 0] == less[less != 0]).all()
    with pytest.raises(ValueError, match="no other class"):
        choices.spoil(labels, 1, 0.5, seed=0)


# --- order and batches ---


def test_steps_per_epoch():
    assert batches.steps_per_epoch(50_000, 128) == 391
    assert batches.steps_per_epoch(256, 128) == 2
    assert batches.steps_per_epoch(128, 128) == 1
    for size in (0, -1, 129):
        with pytest.raises(ValueError, match=f"batch_size={size}: must be between 1 and .* 128"):
            batches.steps_per_epoch(128, size)


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_only():
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            order = batches.epoch_permutation(seed, epoch, 500)
            assert sorted(order.tolist()) == list(range(500))
            traced = jax.jit(batches.epoch_permutation, static_argnums=2)(seed, epoch, 500)
            np.testing.assert_array_equal(order, traced)
            orders[seed, epoch] = tuple(order.tolist())
    assert len(set(orders.values())) == 4


@pytest.mark.parametrize(("examples", "size"), [(10, 4), (12, 4), (3, 8), (1, 1), (10, 10)])
def test_evaluation_batches_count_each_example_once(examples, size):
    indices, weights = batches.evaluation_batches(examples, size)
    assert indices.shape == weights.shape
    assert indices.shape[1] == min(size, examples)
    counted = np.bincount(indices.reshape(-1), weights.reshape(-1), minlength=examples)
    np.testing.assert_array_equal(counted, np.ones(examples))
    values = np.random.default_rng(0).standard_normal(examples).astype(np.float32)
    total = (values[indices] * weights).sum(dtype=np.float64) / weights.sum()
    np.testing.assert_allclose(total, values.mean(dtype=np.float64), rtol=1e-12)


def test_evaluation_batches_need_a_size():
    with pytest.raises(ValueError, match="batch_size=0"):
        batches.evaluation_batches(10, 0)


# --- normalization and augmentation ---


def test_normalize_against_float64():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    expected = (images / 255 - np.array(mean)) / np.array(std)
    for normalize in (batches.normalize, jax.jit(batches.normalize)):
        result = normalize(images, mean, std)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def crop_and_flip_oracle(image, offset, flip, padding):
    """Pads, cuts and mirrors one image by slicing."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    top, left = offset + padding
    cut = padded[top : top + height, left : left + width]
    return cut[:, ::-1] if flip else cut


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (5, 7, 2), (3, 3, 1)])
def test_crop_and_flip_against_slicing(shape):
    padding = 4
    images = np.random.default_rng(0).integers(1, 256, (6, *shape), dtype=np.uint8)
    grid = np.stack(np.meshgrid(range(-4, 5), range(-4, 5), (0, 1)), axis=-1).reshape(-1, 3)
    offsets, flips = grid[:, :2], grid[:, 2].astype(bool)
    indices = np.arange(len(grid)) % 6
    result = jax.jit(batches.crop_and_flip)(images, indices, offsets, flips)
    assert result.dtype == np.uint8
    for i, image in enumerate(np.asarray(result)):
        expected = crop_and_flip_oracle(images[indices[i]], offsets[i], flips[i], padding)
        np.testing.assert_array_equal(image, expected)


def test_augment_is_crop_and_flip_of_its_draws():
    images = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), dtype=np.uint8)
    indices = jnp.array([3, 3, 19, 0, 7])
    key = rng.at(0, "augment", 5)
    offsets, flips = jax.jit(batches.augment_draws, static_argnums=1)(key, 5)
    assert abs(offsets).max() <= 4
    result = jax.jit(batches.augment)(key, images, indices)
    for i, image in enumerate(np.asarray(result)):
        expected = crop_and_flip_oracle(
            images[indices[i]], np.asarray(offsets[i]), bool(flips[i]), 4
        )
        np.testing.assert_array_equal(image, expected)


def test_padding_is_black_before_normalization():
    white = np.full((1, 8, 8, 1), 255, np.uint8)
    shifted = jax.jit(batches.crop_and_flip)(
        jnp.asarray(white), jnp.array([0]), jnp.array([[-3, 0]]), jnp.array([False])
    )
    normalized = batches.normalize(shifted, (0.5,), (0.25,))[0, :, :, 0]
    np.testing.assert_array_equal(normalized[:3], -2.0)
    np.testing.assert_array_equal(normalized[3:], 2.0)


def test_augment_of_a_population_equals_one_by_one():
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    keys = jax.jit(jax.vmap(lambda seed: rng.at(seed, "augment", 0)))(jnp.arange(3))
    indices = jnp.arange(12).reshape(3, 4)
    together = jax.jit(jax.vmap(batches.augment, in_axes=(0, None, 0)))(keys, images, indices)
    augment = jax.jit(batches.augment)
    for member in range(3):
        alone = augment(keys[member], jnp.asarray(images), indices[member])
        np.testing.assert_array_equal(together[member], alone)


def test_draws_are_uniform_and_independent():
    steps, batch = 40, 500
    draw = jax.jit(lambda step: batches.augment_draws(rng.at(0, "augment", step), batch))
    offsets, flips = (np.concatenate(x) for x in zip(*map(draw, range(steps)), strict=True))
    cells = np.ravel_multi_index((offsets[:, 0] + 4, offsets[:, 1] + 4, flips), (9, 9, 2))
    # All 162 combinations of row, column and mirror are equally likely, jointly: 123 each.
    assert stats.chisquare(np.bincount(cells, minlength=162)).pvalue > 0.01
    # Neighbours in the batch, and the same place in the next step, have nothing in common.
    for lag in (1, batch):
        table = stats.contingency.crosstab(cells[:-lag] // 18, cells[lag:] // 18).count
        assert stats.chi2_contingency(table).pvalue > 0.01


def test_mixed_digits_are_the_same_images_in_another_order():
    mixed, plain = data.load("digits_mixed"), data.load("digits")
    assert (mixed.train_examples, mixed.test_examples) == (1000, 797)
    pixels = [
        np.concatenate([d.train_images, d.test_images]).reshape(1797, -1) for d in (mixed, plain)
    ]
    rows = [sorted(map(bytes, p)) for p in pixels]
    assert rows[0] == rows[1]
    labels = [np.concatenate([d.train_labels, d.test_labels]) for d in (mixed, plain)]
    assert np.array_equal(*(np.bincount(x) for x in labels))


def test_gaussian_classes_have_the_spreads_they_state():
    found = data.load("uneven_gaussians")
    assert found.train_images.shape == (1000, 20)
    x, y = found.test_images, found.test_labels
    assert np.bincount(y).tolist() == [1000] * 10
    spread = [x[y == c].std(0).mean() for c in range(10)]
    np.testing.assert_allclose(spread, np.linspace(0.7, 2.2, 10), rtol=0.02)


def test_halved_images_are_means_of_blocks():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 2), dtype=np.uint8)
    found = pooled.halved(images)
    expected = images.reshape(3, 2, 2, 3, 2, 2).astype(float).mean((2, 4))
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 0.5
    with pytest.raises(ValueError, match="4x5 pixels"):
        pooled.halved(images[:, :, :5])


def test_prepared_sets_at_half_their_side(prepared_sets):
    small, whole = (data.load(n, data_dir=prepared_sets) for n in ("mnist14", "mnist"))
    assert small.train_images.shape == (40, 14, 14, 1)
    np.testing.assert_array_equal(small.test_images, pooled.halved(whole.test_images))
    np.testing.assert_array_equal(small.test_labels, whole.test_labels)
