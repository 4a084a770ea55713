"""Batches of image sets too large for memory, read and decoded while the device computes.

A batch is a pure function of (seed, step): `stream[step]` seeks in O(1), and a run that resumes
needs nothing but its step. The order is that of the in-memory path, `batches.epoch_permutation`,
so both put the same examples into the same batches. The randomness of one example's view is a
pure function of (seed, epoch, example), whatever the batch size and the number of processes.
grain (extra "stream") prepares batches ahead in threads; `stream[step]` works without it.
"""

import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from prunejax import registry, rng
from prunejax.data import batches, prepared, transforms
from prunejax.data.dataset import Directory
from prunejax.errors import UnreadableError
from prunejax.system import limits, optional

Batch = dict[str, np.ndarray]


class Streamed(NamedTuple):
    """What a set's name stands for: its evaluation split and its normalization."""

    evaluation: tuple[str, ...]  # the first of these that the set has
    mean: tuple[float, ...]  # per channel, of pixel / 255
    std: tuple[float, ...]


IMAGENET_MOMENTS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

STREAMS: dict[str, Streamed] = {
    **{name: Streamed(("test",), *moments) for name, moments in prepared.MOMENTS.items()},
    # Its "test" split has no labels: evaluation is on "validation", as in the literature.
    "imagenet2012": Streamed(("validation",), *IMAGENET_MOMENTS),
}
OTHER = Streamed(("test", "validation"), *IMAGENET_MOMENTS)
TFDS_PREFIX = "tfds:"
AHEAD = 4  # batches in preparation or waiting, at least

_order_lock = threading.Lock()


@functools.lru_cache(maxsize=32)  # two epochs of 16 seeds; 5 MB each for ImageNet
def _order(seed: int, epoch: int, examples: int) -> np.ndarray:
    return np.asarray(batches.epoch_permutation(seed, epoch, examples))


@dataclass(frozen=True)
class Stream:
    """Batches by step; made by `open_stream`, which describes the fields.

    `stream[step]` is this process's part of the global batch, as host arrays:
      image: uint8 [batch, image_size, image_size, channels], for `batches.normalize`.
      label: int32 [batch].
      weight: float32 [batch], in evaluation only; 0 marks the padding of the last batch.
    It raises UnreadableError where an example cannot be used.
    """

    prepared: prepared.Prepared
    split: str
    records: Any
    training: bool
    batch_size: int
    image_size: int
    seed: int
    process_index: int
    process_count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment_key: tuple[int, ...]
    augment: bool = True

    @property
    def examples(self) -> int:
        """Number of examples of the split."""
        return len(self.records)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.prepared.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images in a batch."""
        return self.image_size, self.image_size, self.prepared.channels

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of one pass; in training without the rest, of other examples each."""
        full, rest = divmod(self.examples, self.batch_size)
        # In evaluation the rest is a batch, too, filled up: every example counts.
        return full + bool(rest and not self.training)

    def rows(self, step: int) -> np.ndarray:
        """Which examples this process has in batch `step`: int [batch], -1 for padding.
        Raises IndexError: a step below 0, or one that evaluation, a single pass, does not have.
        """
        steps = self.steps_per_epoch
        if step < 0 or (step >= steps and not self.training):
            raise IndexError(f"step={step}: the stream has steps 0..{steps - 1}")
        epoch, within = divmod(step, steps)
        first, last = within * self.batch_size, (within + 1) * self.batch_size
        if self.training:
            with _order_lock:  # threads that begin an epoch together wait for one permutation
                rows = _order(self.seed, epoch, self.examples)[first:last]
        else:
            rows = np.arange(first, last)
            rows = np.where(rows < self.examples, rows, -1)
        # Parts of one global batch: a run sees the same one on any number of processes.
        part = len(rows) // self.process_count
        return rows[self.process_index * part :][:part]

    def __getitem__(self, step: int) -> Batch:
        rows = self.rows(step)
        live = np.flatnonzero(rows >= 0)
        images = np.zeros((len(rows), *self.image_shape), np.uint8)
        labels = np.zeros(len(rows), np.int32)
        epoch = step // self.steps_per_epoch
        records = self._records(rows[live].tolist()) if len(live) else []
        for place, record in zip(live, records, strict=True):
            row = int(rows[place])
            which = f"example {row} of split {self.split!r} in {self.prepared.path}"
            labels[place] = record[self.prepared.label]
            if not 0 <= labels[place] < self.num_classes:
                raise UnreadableError(
                    f"{which} has label {labels[place]}, not 0..{self.num_classes - 1}; a split "
                    "without labels cannot be used"
                )
            try:
                images[place] = self._view(record[self.prepared.image], epoch, row)
            except Exception as error:  # whatever pillow raises on a damaged file
                reason = str(error).partition(" <")[0]  # without the name of an object in memory
                raise UnreadableError(
                    f"cannot decode {which} ({type(error).__name__}: {reason}); prepare the set "
                    "again"
                ) from error
        batch: Batch = {"image": images, "label": labels}
        if not self.training:
            batch["weight"] = (rows >= 0).astype(np.float32)
        return batch

    def _records(self, rows: list[int]) -> Any:
        try:
            return self.records.__getitems__(rows)
        except Exception as error:  # whatever the reader raises on a damaged file
            raise UnreadableError(
                f"cannot read {len(rows)} examples, the first is {rows[0]}, of split "
                f"{self.split!r} in {self.prepared.path} ({type(error).__name__}: {error}); "
                "prepare the set again"
            ) from error

    def _view(self, encoded: bytes, epoch: int, row: int) -> np.ndarray:
        size, channels = self.image_size, self.image_shape[-1]
        if not (self.training and self.augment):
            return transforms.central(encoded, size, channels)
        # Epoch and example are words of Philox's counter: no two of them share random numbers.
        key = np.array(self.augment_key, np.uint64)
        bits = np.random.Philox(key=key, counter=[0, 0, epoch, row])  # NumPy's: no device decides
        return transforms.random_resized(encoded, size, channels, np.random.Generator(bits))

    def iterate(self, start: int = 0, *, threads: int | None = None) -> Iterator[Batch]:
        """`self[start], self[start + 1], ...` in order, prepared ahead by grain's threads.

        Endless in training, one pass in evaluation.

        Args:
          start: first step; a run that resumes gives the step it has reached.
          threads: batches in preparation at once; None for the number of cores, at most 16.

        Raises ValueError: grain is not installed.
        """
        grain = require_grain()
        stop = np.iinfo(np.int32).max if self.training else self.steps_per_epoch
        threads = threads or available_threads()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(AHEAD, threads))
        steps = grain.MapDataset.source(_Steps(self, start, stop))
        return iter(steps.to_iter_dataset(options))


def available_threads() -> int:
    """Threads that prepare batches unless told otherwise: the number of cores, at most 16."""
    return min(16, limits.cores())


def require_grain() -> Any:
    """The module grain; ConfigError with the way to install it where it is missing."""
    return optional.need("streaming", "grain")


@dataclass(frozen=True)
class _Steps:
    """The steps `start` to `stop - 1` of a stream as the random-access source grain asks for."""

    stream: Stream
    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __getitem__(self, index: int) -> Batch:
        return self.stream[self.start + int(index)]


def open_stream(
    name: str,
    *,
    training: bool,
    batch_size: int,
    image_size: int = 224,
    seed: int = 0,
    data_dir: Directory = None,
    process_index: int = 0,
    process_count: int = 1,
    augment: bool = True,
) -> Stream:
    """Opens a split of a prepared set (array_record) of images of any sizes for streaming.

    Args:
      name: a key of `STREAMS`, or "tfds:NAME" or "tfds:NAME/CONFIG" for any other set, which gets
        ImageNet's mean and std.
      training: the train split: endless epochs, shuffled, random parts of the images; else the
        evaluation split: one pass in order, central parts.
      batch_size: examples of the global batch, over all processes.
      image_size: side of the square images in a batch, in pixels.
      seed: of the streams "order" and "augment".
      data_dir: directory of prepared sets; else TFDS_DATA_DIR, else ~/tensorflow_datasets.
      process_index: this process gets the part `process_index` of each global batch.
      process_count: number of equal parts.
      augment: in training, random parts of the images; else central parts, as in evaluation.

    Raises:
      DataNotFoundError: not prepared.
      ValueError: unknown name, no image classification set, sizes that do not fit.
    """
    if name.startswith(TFDS_PREFIX):
        known, name = OTHER, name.removeprefix(TFDS_PREFIX)
    else:
        known = registry.lookup(STREAMS, name, "streamed data set")
    found = prepared.find(name, data_dir)
    split = found.split("train") if training else found.split(*known.evaluation)
    examples = found.lengths[split]
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index={process_index}: must be between 0 and {process_count - 1}"
        )
    if image_size < 1:
        raise ValueError(f"image_size={image_size}: must be at least 1 pixel")
    if training:
        batches.steps_per_epoch(examples, batch_size)  # refuses what does not fit
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size}: must be at least 1 and divide among {process_count} "
            "processes"
        )
    # These two words are the key of all views of the run.
    key = jax.random.bits(rng.at(seed, "augment"), (2,))
    return Stream(
        prepared=found, split=split, records=prepared.source(found, split), training=training,
        batch_size=batch_size, image_size=image_size, seed=seed, process_index=process_index,
        process_count=process_count, mean=known.mean[: found.channels],
        std=known.std[: found.channels], augment_key=tuple(int(word) for word in np.asarray(key)),
        augment=augment,
    )  # fmt: skip
