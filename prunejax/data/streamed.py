"""A data set that is read while it is used: what a study has to know of it, and its streams."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunejax.data import prepared, streaming
from prunejax.data.dataset import Directory
from prunejax.data.streaming import Stream


@dataclass(frozen=True)
class StreamedSet:
    """Stands where `Dataset` stands for sets in memory; made by `open_streamed`."""

    name: str  # the name it was opened by
    data_dir: Directory  # directory of prepared sets; None: see `streaming.open_stream`
    image_shape: tuple[int, int, int]  # (height, width, channels) of the images in a batch
    # train_examples, test_examples: of the splits; "test" is the evaluation split.
    train_examples: int
    test_examples: int
    num_classes: int  # number of classes
    # mean, std: per channel, of pixel / 255, for `batches.normalize`.
    mean: tuple[float, ...]
    std: tuple[float, ...]
    prepare: ClassVar[None] = None  # images are normalized, as in `dataset.Dataset`
    has_classes: ClassVar[bool] = True  # streamed sets are of image classification
    ranked: ClassVar[tuple[int, ...]] = ()  # they are used as they are

    def per_epoch(self, batch_size: int) -> int:
        """Examples that an epoch trains on: full batches, the rest of its order is left out."""
        return self.train_examples - self.train_examples % batch_size

    def training(
        self, seed: int, batch_size: int, *, augment: bool, part: tuple[int, int] = (0, 1)
    ) -> Stream:
        """The endless batches of one run.

        Args:
          seed: of the run.
          batch_size: examples of the global batch.
          augment: random parts of the images instead of central ones.
          part: (i, n): of each batch only the i-th of n equal parts.
        """
        return self._open(True, batch_size, part, seed=seed, augment=augment)

    def evaluation(self, batch_size: int, *, part: tuple[int, int] = (0, 1)) -> Stream:
        """One pass over the evaluation split in order."""
        return self._open(False, batch_size, part)

    def first(self, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` images (central parts) and labels of "train" or "test", in memory."""
        stream = self._open(split == "train", 1, (0, 1))
        count = min(count, stream.examples)
        # As in evaluation, of the training split too: in order, and nothing random.
        batch = dataclasses.replace(stream, training=False, batch_size=count)[0]
        return batch["image"], batch["label"]

    def _open(
        self, training: bool, batch_size: int, part: tuple[int, int], **options: Any
    ) -> Stream:
        return streaming.open_stream(
            self.name, training=training, batch_size=batch_size, image_size=self.image_shape[0],
            data_dir=self.data_dir, process_index=part[0], process_count=part[1], **options,
        )  # fmt: skip


def open_streamed(name: str, *, data_dir: Directory = None, image_size: int = 224) -> StreamedSet:
    """Finds a prepared set to be streamed.

    Args:
      name: a key of `streaming.STREAMS`, or "tfds:NAME" or "tfds:NAME/CONFIG".
      data_dir: directory of prepared sets; else TFDS_DATA_DIR, else ~/tensorflow_datasets.
      image_size: side of the square images in a batch, in pixels.

    Raises:
      DataNotFoundError: not prepared.
      ValueError: grain is missing, unknown name, no image classification set.
    """
    streaming.require_grain()
    train, test = (
        streaming.open_stream(
            name, training=training, batch_size=1, image_size=image_size, data_dir=data_dir
        )
        for training in (True, False)
    )
    return StreamedSet(
        name, data_dir, train.image_shape, train.examples, test.examples, train.num_classes,
        train.mean, train.std,
    )  # fmt: skip


def must_stream(name: str, data_dir: Directory = None) -> bool:
    """Whether a set cannot be held in memory: ImageNet, and TFDS sets of images of many sizes."""
    if name.startswith(streaming.TFDS_PREFIX):
        shape = prepared.find(name.removeprefix(streaming.TFDS_PREFIX), data_dir).shape
        return len(shape) != 3 or min(shape) < 1
    return name in streaming.STREAMS and name not in prepared.MOMENTS
