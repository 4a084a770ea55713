"""Writes tiny but real TFDS directories (array_record), without TensorFlow or a network."""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

VERSIONS = {"mnist": "3.0.1", "fashion_mnist": "3.0.1", "cifar10": "3.0.2", "cifar100": "3.0.2"}
SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1)}


def random_split(examples, shape, num_classes, seed):
    """Images uint8 [examples, *shape] and labels 0, 1, 2, ..., in turn."""
    images = np.random.default_rng(seed).integers(0, 256, (examples, *shape), dtype=np.uint8)
    return images, np.arange(examples) % num_classes


def write(
    data_dir,
    dataset="cifar10",
    *,
    train=96,
    test=32,
    shape=None,
    num_classes=None,
    splits=None,
    version=None,
    encoding="PNG",
    file_format="array_record",
    num_shards=2,
):
    """Writes `data_dir/dataset/version` and returns that path.

    `splits` maps split names to (images, labels), where images may be a list of arrays of
    different sizes; without it, `train` and `test` random examples. The order on disk is
    TFDS's own shuffle of the given order.
    """
    shape = shape or SHAPES.get(dataset, (32, 32, 3))
    num_classes = num_classes or {"cifar100": 100}.get(dataset, 10)
    splits = splits or {
        "train": random_split(train, shape, num_classes, 0),
        "test": random_split(test, shape, num_classes, 1),
    }

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        # TFDS looks for metadata in a builder's package, by a module that is not installed.
        __module__ = "fake_tfds"
        name = dataset
        VERSION = tfds.core.Version(version or VERSIONS.get(dataset, "1.0.0"))

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape),
                    "label": tfds.features.ClassLabel(num_classes=num_classes),
                }
            )
            return tfds.core.DatasetInfo(
                builder=self, features=features, supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(*data) for split, data in splits.items()}

        def _generate_examples(self, images, labels):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                file = io.BytesIO()
                pixels = image[..., 0] if image.shape[-1] == 1 else image
                Image.fromarray(pixels).save(file, encoding)
                file.seek(0)
                yield i, {"image": file, "label": int(label)}

    builder = Builder(data_dir=str(data_dir), file_format=file_format)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=num_shards)
    )
    return Path(data_dir) / dataset / str(Builder.VERSION)
