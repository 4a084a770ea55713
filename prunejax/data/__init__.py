"""Data sets as arrays, and batches of them as pure functions of (seed, step).

`load` gives the arrays, and `open_streamed` what stands for them where a set is too large for
memory; the functions of `prunejax.data.batches` are order, batches,
augmentation and normalization. A new data set is one function that returns a `Dataset`, and
its entry in `DATASETS`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

from prunejax import registry
from prunejax.data import arrays, gaussian, scikit, signal_noise
from prunejax.data.batches import augment, epoch_permutation, evaluation_batches, normalize
from prunejax.data.choices import check_label_noise, take
from prunejax.data.dataset import Dataset, Directory
from prunejax.data.embedded import EXTRACTS, load_embedded
from prunejax.data.pooled import POOLED, load_pooled
from prunejax.data.prepared import MOMENTS, DataNotFoundError, load_prepared
from prunejax.data.streamed import StreamedSet, must_stream, open_streamed
from prunejax.data.streaming import TFDS_PREFIX

__all__ = [
    "DATASETS", "DataNotFoundError", "Dataset", "StreamedSet", "augment", "epoch_permutation",
    "evaluation_batches", "load", "must_stream", "normalize", "open_streamed",
]  # fmt: skip

# Sets that are drawn: constants in their names, by the seed of `load`.
DRAWN = {signal_noise.NAME: signal_noise.load_signal_noise, gaussian.NAME: gaussian.load_gaussian}


def _drawn(name: str, seed: int, data_dir: Directory = None) -> Dataset:
    del data_dir
    return DRAWN[name.partition(":")[0]](name, seed)


DATASETS: dict[str, Callable[[Directory], Dataset]] = {
    **{name: partial(scikit.load_digits, name) for name in scikit.SPLITS},
    "diabetes": scikit.load_diabetes,
    "uneven_gaussians": gaussian.load_uneven_gaussians,
    **{name: partial(_drawn, name, 0) for name in DRAWN},  # by name alone; `load` gives its seed
    **{name: partial(load_embedded, name) for name in EXTRACTS},
    **{name: partial(load_prepared, name) for name in MOMENTS},
    **{name: partial(load_pooled, name) for name in POOLED},
}
SHIPPED = dict(DATASETS)


def load(
    name: str,
    *,
    data_dir: Directory = None,
    train_examples: int | None = None,
    test_examples: int | None = None,
    validation_examples: int = 0,
    label_noise: float = 0.0,
    imbalance: float = 1.0,
    pad: int = 0,
    noise: float = 0.0,
    standardize: bool = True,
    seed: int = 0,
) -> Dataset:
    """Loads a data set and chooses from it; nothing but `seed` decides which examples.

    Args:
      name: a key of `DATASETS`, or "tfds:NAME" or "tfds:NAME/CONFIG" for any other image
        classification set prepared by TFDS as array_record (all images of one size), or
        "npz:FILE" for arrays of one's own, see `arrays.load_arrays`, or a set of `DRAWN` with its
        constants, "signal_noise:dimension=500", drawn by `seed`.
      data_dir: directory of prepared sets; else TFDS_DATA_DIR, else ~/tensorflow_datasets.
      train_examples: number of training examples; None for all that are not held out.
      test_examples: number of test examples; None for all.
      validation_examples: number of training examples held out as validation split.
      label_noise: fraction of training labels, in [0, 1), replaced by another class.
      imbalance: how many times more examples the most frequent class has than the rarest.
      pad: coordinates of pure noise behind an image's; see `signal_noise.with_noise`.
      noise: standard deviation of what is added to every coordinate, once for each example.
      standardize: whether a network reads pixels less their mean, over their deviation, or, False,
        as they are, in 0..1.
      seed: of these choices; `choices.take` says how it makes them.

    Raises:
      ValueError: unknown name, or sizes that the set does not have; `standardize` False
        where the examples are not pixels.
      DataNotFoundError: not prepared; says where it was looked for and how to prepare it.
    """
    check_label_noise(label_noise)
    if name.startswith(arrays.PREFIX):
        whole = arrays.load_arrays(name, data_dir)
    elif name.startswith(TFDS_PREFIX):
        whole = load_prepared(name.removeprefix(TFDS_PREFIX), data_dir)
    elif name.partition(":")[0] in DRAWN:
        whole = _drawn(name, seed)
    else:
        whole = registry.lookup(DATASETS, name, "data set")(data_dir)
        if not isinstance(whole, Dataset):
            raise ValueError(
                f"data set {name!r}: its loader gives {type(whole).__name__}; a Dataset is needed, "
                "see data.dataset.make"
            )
    chosen = take(
        whole, train_examples=train_examples, test_examples=test_examples,
        validation_examples=validation_examples, label_noise=label_noise, imbalance=imbalance,
        seed=seed,
    )  # fmt: skip
    if not standardize:
        chosen = _as_pixels(chosen)
    # Last: in units of what is read.
    return signal_noise.with_noise(chosen, pad, noise, seed) if pad or noise else chosen


def _as_pixels(dataset: Dataset) -> Dataset:
    """The same, of which a network reads pixel / 255."""
    if dataset.prepare is not None:
        raise ValueError(
            f"standardize=False: the examples of {dataset.name!r} are not pixels; leave it at True"
        )
    channels = len(dataset.mean)
    return dataclasses.replace(dataset, mean=(0.0,) * channels, std=(1.0,) * channels)
