"""Image classification sets prepared by tensorflow-datasets, read without TensorFlow.

TFDS's own answers to a set that is not there are minutes of retries, a misleading
NotImplementedError, or an empty dict. So the files are looked for here, and TFDS is asked (and
imported) only to read what is known to be there and is not yet in the cache.
"""

import hashlib
import json
import logging
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunejax.data import archives, cache, transforms
from prunejax.data.dataset import Dataset, Directory, make
from prunejax.errors import ConfigError
from prunejax.system import optional
from prunejax.system.files import expand

CACHE_FORMAT = 1  # in the keys: once raised, older entries are not read
CHUNK = 1000  # records read at once; one by one is slower, all at once holds every file in memory

# Normalization constants in common use. CIFAR: those of the paper's code (the CIFAR-10 std is
# the mean over images of each image's std, a little smaller than the std of all pixels).
MOMENTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}

logger = logging.getLogger(__name__)


class DataNotFoundError(ValueError):
    """A prepared data set is not where it was looked for; the message says how to prepare it."""


@dataclass(frozen=True)
class Prepared:
    """A prepared set on disk, all of whose files are there."""

    name: str  # "NAME" or "NAME/CONFIG", as in TFDS
    path: Path  # the version directory
    files: dict[str, list[Path]]  # file paths of each split, in order
    lengths: dict[str, int]  # number of examples of each split
    # image, label: names of the features.
    image: str
    label: str
    shape: tuple[int, ...]  # of the images; -1 where it varies
    num_classes: int  # of the label feature

    @property
    def channels(self) -> int:
        """1 for grey images, else 3."""
        return 1 if self.shape and self.shape[-1] == 1 else 3

    def split(self, *candidates: str) -> str:
        """The first of `candidates` that the set has; ValueError with the splits there are."""
        for name in candidates:
            if name in self.lengths:
                return name
        raise ValueError(
            f"{self.path} has no split {' or '.join(map(repr, candidates))}; it has: "
            f"{', '.join(sorted(self.lengths))}"
        )


def search_directory(data_dir: Directory) -> tuple[Path, str]:
    """Where prepared sets are looked for, and who said so.

    The argument, else the environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets.
    """
    if data_dir:
        return Path(expand(data_dir)), "data_dir"
    if from_environment := os.environ.get("TFDS_DATA_DIR"):
        return Path(expand(from_environment)), "TFDS_DATA_DIR"
    return Path(os.path.expanduser("~/tensorflow_datasets")), "the default of TFDS"


def preparation(name: str, directory: Path) -> str:
    """The shell command that downloads and prepares the set; it needs TensorFlow and a network."""
    code = (
        f"import tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir={str(directory)!r}, "
        "file_format='array_record').download_and_prepare()"
    )
    # Double quotes are readable; a path with a character that they do not protect is rare.
    quoted = shlex.quote(code) if re.search(r'["$`\\!]', code) else f'"{code}"'
    return f"pip install tensorflow tensorflow-datasets importlib_resources && python -c {quoted}"


def find(name: str, data_dir: Directory = None) -> Prepared:
    """Finds the newest version of a prepared set; reads two small JSON files.

    Args: name: "NAME" or "NAME/CONFIG", as in TFDS. data_dir: see `search_directory`.

    Raises:
      DataNotFoundError: it is not there, or files of it are missing.
      ValueError: it is there in another file format, or is no image classification set.
    """
    directory, origin = search_directory(data_dir)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?", name) or ".." in name:
        raise ValueError(f"data set name {name!r}: must be NAME or NAME/CONFIG, as in TFDS")
    versions = [
        (tuple(map(int, path.name.split("."))), path)
        for path in (directory / name).glob("*.*.*")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").is_file()
    ]
    if not versions:
        others = " (its authors' archives will do)" if name in archives.NAMES else ""
        raise DataNotFoundError(
            f"data set {name!r} is not prepared: looked for {name}/VERSION/dataset_info.json in "
            f"{directory} ({origin}). Point data_dir or TFDS_DATA_DIR at the directory that holds "
            f"it{others}, or prepare it once, with a network: "
            f"{preparation(name, directory)}"
        )
    return _open(name, max(versions)[1], directory)  # by number: 10 comes after 9


def _open(name: str, path: Path, directory: Path) -> Prepared:
    info = _json(path / "dataset_info.json")
    file_format = info.get("fileFormat", "tfrecord")
    if file_format != "array_record":
        # TFDS takes the directory for prepared whatever the format: only another one helps.
        command = preparation(name, directory.with_name(directory.name + "_array_record"))
        raise ValueError(
            f"{path} is prepared as {file_format!r}, which cannot be read at random without "
            f"TensorFlow; 'array_record' is needed. Prepare it in another directory: {command}"
        )
    files, lengths = {}, {}
    for split in info.get("splits", []):
        shards = [int(length) for length in split.get("shardLengths", [])]
        files[split["name"]] = [
            path / _file_name(name, split, i, len(shards)) for i in range(len(shards))
        ]
        lengths[split["name"]] = sum(shards)
    missing = [file for group in files.values() for file in group if not file.is_file()]
    if missing or not files:
        raise DataNotFoundError(
            f"data set {name!r} in {path} is incomplete: "
            + (f"{len(missing)} files are missing, first {missing[0].name}" if missing else "empty")
            + f". Remove that directory and prepare the set again: {preparation(name, directory)}"
        )
    features = _json(path / "features.json").get("featuresDict", {}).get("features", {})
    keys = info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])
    image, label = [key.get("featureKey") for key in keys] if len(keys) == 2 else ("image", "label")
    image_feature = features.get(image, {}).get("image")
    label_feature = features.get(label, {}).get("classLabel")
    if image_feature is None or label_feature is None or image_feature.get("dtype") != "uint8":
        raise ValueError(
            f"{path} is no image classification set: a uint8 image and a class label are needed; "
            f"its features are: {', '.join(sorted(features))}"
        )
    sizes = [int(d) for d in image_feature.get("shape", {}).get("dimensions", [])]
    return Prepared(
        name, path, files, lengths, image, label, tuple(sizes), int(label_feature["numClasses"])
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def _file_name(name: str, split: dict[str, Any], index: int, count: int) -> str:
    default = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    return str(split.get("filepathTemplate", default)).format(
        DATASET=name.split("/")[0], SPLIT=split["name"], FILEFORMAT="array_record",
        SHARD_INDEX=f"{index:05d}", NUM_SHARDS=f"{count:05d}",
        SHARD_X_OF_Y=f"{index:05d}-of-{count:05d}",
    )  # fmt: skip


def source(prepared: Prepared, split: str) -> Any:
    """TFDS's random access to the records, with the images still encoded (bytes)."""
    # A second that a cached start does not need.
    tfds = optional.need(f"the data set {prepared.name!r}", "tensorflow_datasets")
    optional.check(f"the data set {prepared.name!r}", "array_record", "PIL")

    builder = tfds.builder_from_directory(prepared.path)
    # Decoded here: see `transforms.decode`.
    return builder.as_data_source(split, decoders={prepared.image: tfds.decode.SkipDecoding()})


def read_split(prepared: Prepared, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a split, in TFDS's order, from the cache where it has them.

    Returns: images uint8 [n, height, width, channels], labels int32 [n].

    Raises ValueError: images of varying size, records that cannot be read, labels out of range.
    """
    if len(prepared.shape) != 3 or min(prepared.shape) < 1:
        raise ValueError(
            f"{prepared.path}: images of shape {prepared.shape} (-1: varies) do not form one "
            "array; such a set can be streamed (prunejax.data.streaming)"
        )
    key = _cache_key(prepared, split)
    cached = cache.read(key)
    if cached is not None:
        return cached
    count = prepared.lengths[split]
    logger.info("decoding %s %s: %d images, once", prepared.name, split, count)
    images = np.empty((count, *prepared.shape), np.uint8)
    labels = np.empty(count, np.int32)
    try:
        records = source(prepared, split)
        for start in range(0, count, CHUNK):
            chunk = records.__getitems__(list(range(start, min(start + CHUNK, count))))
            for i, record in enumerate(chunk, start):
                images[i] = transforms.decode(record[prepared.image], images.shape[-1])
                labels[i] = record[prepared.label]
    except ConfigError:
        raise
    except Exception as error:  # anything a damaged file may raise, several layers below
        directory = prepared.path.parents[prepared.name.count("/") + 1]
        raise ValueError(
            f"cannot read split {split!r} of {prepared.path}: {type(error).__name__}: {error}. "
            f"Remove that directory and prepare it again: {preparation(prepared.name, directory)}"
        ) from error
    if count and not 0 <= labels.min() <= labels.max() < prepared.num_classes:
        raise ValueError(
            f"split {split!r} of {prepared.path} has labels {labels.min()}..{labels.max()}, not "
            f"0..{prepared.num_classes - 1}; a split without labels cannot be used"
        )
    cache.write(key, images, labels)
    return images, labels


def _cache_key(prepared: Prepared, split: str) -> str:
    """Changes when any source file does: path, size and time of change of all of them."""
    info = [prepared.path / "dataset_info.json", prepared.path / "features.json"]
    identity = [CACHE_FORMAT, str(prepared.path.resolve()), split]
    for file in info + prepared.files[split]:
        stat = file.stat()
        identity += [file.name, stat.st_size, stat.st_mtime_ns]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return f"{prepared.name.replace('/', '-')}-{prepared.path.name}-{split}-{digest}"


def load_prepared(name: str, data_dir: Directory = None) -> Dataset:
    """The train and test split of a prepared set ("validation" where there is no "test").

    Where it is not prepared, the archives of MNIST, Fashion-MNIST and CIFAR do as they are
    (`prunejax.data.archives`). Sets without an entry in `MOMENTS` get the mean and std of their
    training images.
    """
    mean, std = MOMENTS.get(name, (None, None))
    try:
        prepared = find(name, data_dir)
    except DataNotFoundError:
        found = archives.find(name, search_directory(data_dir)[0])
        if found is None:
            raise
        logger.info("%s is read from %s", name, found.path)
        return make(name, found.train, found.test, found.classes, mean, std)
    splits = prepared.split("train"), prepared.split("test", "validation")
    train, test = (read_split(prepared, split) for split in splits)
    return make(name, train, test, prepared.num_classes, mean, std)
