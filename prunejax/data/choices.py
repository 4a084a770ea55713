"""Seeded choices made from a data set: who stays, how often each class comes, wrong labels."""

import dataclasses
from typing import Any

import jax
import numpy as np

from prunejax import registry, rng
from prunejax.data.dataset import Dataset


def _check_count(field: str, value: int | None, low: int, high: int, of: str) -> None:
    if value is not None and not (registry.is_whole(value) and low <= value <= high):
        raise ValueError(
            f"{field}={value!r}: must be between {low} and {high} ({of}), a whole number"
        )


def check_label_noise(label_noise: float) -> None:
    """ValueError unless `label_noise` is a fraction in [0, 1)."""
    if not 0.0 <= label_noise < 1.0:
        raise ValueError(f"label_noise={label_noise}: must be a fraction, at least 0, less than 1")


def take(
    data: Dataset,
    *,
    train_examples: int | None = None,
    test_examples: int | None = None,
    validation_examples: int = 0,
    label_noise: float = 0.0,
    imbalance: float = 1.0,
    seed: int = 0,
) -> Dataset:
    """Chooses examples and spoils labels; a pure function of `data`, the sizes and `seed`.

    The training examples are shuffled once by the stream "subset": the first
    `validation_examples` of that order are the validation split, the next `train_examples` (or
    all that is left) the training split. So, for one seed, the validation split does not depend
    on `train_examples`, and a smaller training split is part of every larger one. Classes are
    as balanced as a uniform draw makes them. Chosen examples keep the order of the data set.

    Args:
      data: a whole data set, without validation split.
      train_examples: number of training examples; None for all that are not held out.
      test_examples: number of test examples; None for all.
      validation_examples: number of training examples held out.
      label_noise: fraction of the training labels that get another class, drawn uniformly from
        the other classes; exactly `round(label_noise * n)` labels change. Validation and test
        labels stay clean.
      imbalance: r >= 1, how many times more training examples the most frequent class has than
        the rarest; see `unbalanced`. Taken of the training split, before labels are spoiled.
      seed: of the streams "subset", "labels" and "imbalance".

    Raises ValueError: a size that the data set does not have, label_noise outside [0, 1), imbalance
    below 1, or one of them for targets that are no classes.
    """
    for field, value, neutral in (("label_noise", label_noise, 0), ("imbalance", imbalance, 1)):
        if value != neutral and not data.has_classes:
            raise ValueError(
                f"{field}={value}: the targets of {data.name} are numbers, no classes; leave it at "
                f"{neutral}"
            )
    total = len(data.train_labels)
    of = f"{data.name} has {total} training examples"
    _check_count("validation_examples", validation_examples, 0, total - 1, f"{of}; 1 must stay")
    left = total - validation_examples
    if validation_examples:
        of += f", {validation_examples} of them held out"
    _check_count("train_examples", train_examples, 1, left, of)
    tests = len(data.test_labels)
    _check_count("test_examples", test_examples, 1, tests, f"{data.name} has {tests} test examples")
    check_label_noise(label_noise)

    count = left if train_examples is None else train_examples
    changes: dict[str, Any] = {}
    if count < total:  # a whole set stays in its order
        # Counters keep the draws of the two splits apart.
        order = np.asarray(jax.random.permutation(rng.at(seed, "subset", 0), total))
        held_out = np.sort(order[:validation_examples])
        chosen = np.sort(order[validation_examples : validation_examples + count])
        changes.update(
            validation_images=data.train_images[held_out],
            validation_labels=data.train_labels[held_out],
            train_images=data.train_images[chosen],
            train_labels=data.train_labels[chosen],
        )
    if test_examples is not None and test_examples < tests:
        order = np.asarray(jax.random.permutation(rng.at(seed, "subset", 1), tests))
        chosen = np.sort(order[:test_examples])
        changes.update(test_images=data.test_images[chosen], test_labels=data.test_labels[chosen])
    if imbalance != 1:
        labels = changes.get("train_labels", data.train_labels)
        chosen, ranked = unbalanced(labels, data.num_classes, imbalance, seed)
        images = changes.get("train_images", data.train_images)
        changes.update(train_images=images[chosen], train_labels=labels[chosen], ranked=ranked)
    if label_noise:
        labels = changes.get("train_labels", data.train_labels)
        changes["train_labels"] = spoil(labels, data.num_classes, label_noise, seed)
    return dataclasses.replace(data, **changes)


def unbalanced(
    labels: np.ndarray, num_classes: int, ratio: float, seed: int
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Which examples stay so that class frequencies fall geometrically.

    The c-th ranked class (c = 0, 1, ...) of C keeps `round(s r^(-c / (C - 1)))` examples, at least
    one, with the largest s for which every class has that many (Cui et al. 2019, section 5).

    Args:
      labels: int32 [n].
      num_classes: C, at least 2.
      ratio: r >= 1.
      seed: of the stream "imbalance": counter 0 ranks the classes, counter 1 draws who stays.

    Returns: indices of what stays, in order; the classes from most to least frequent.

    Raises ValueError: a ratio below 1 or not finite, fewer than two classes, one without examples.
    """
    if not 1 <= ratio < np.inf:
        raise ValueError(f"imbalance={ratio}: must be a ratio of at least 1 (1: as they are)")
    have = np.bincount(labels, minlength=num_classes)
    if num_classes < 2 or not have.all():
        raise ValueError(
            f"imbalance={ratio}: needs two or more classes, each with training examples; "
            f"they have {have.tolist()}"
        )
    ranked = np.asarray(jax.random.permutation(rng.at(seed, "imbalance", 0), num_classes))
    order = np.asarray(jax.random.permutation(rng.at(seed, "imbalance", 1), len(labels)))
    share = float(ratio) ** (-np.arange(num_classes) / (num_classes - 1))
    # The class that is scarcest for its rank sets the scale; rint takes halves to the even number.
    counts = np.maximum(1, np.rint(min(have[ranked] / share) * share).astype(int))
    # One order for all ratios: of a class the smaller share is a part of the larger.
    kept = [order[labels[order] == c][:n] for c, n in zip(ranked, counts, strict=True)]
    return np.sort(np.concatenate(kept)), tuple(ranked.tolist())


def spoil(labels: np.ndarray, num_classes: int, fraction: float, seed: int) -> np.ndarray:
    """A copy of `labels` in which exactly `round(fraction * n)` have another class.

    Which labels, and the new class (uniform over the `num_classes - 1` others), come from the
    stream "labels" of `seed`; a larger fraction spoils the same labels and more.
    """
    if num_classes < 2:
        raise ValueError(f"label_noise={fraction}: there is no other class, num_classes=1")
    where = np.asarray(jax.random.permutation(rng.at(seed, "labels", 0), len(labels)))
    shift = np.asarray(
        # 1 .. C - 1: never the same class again, every other one alike.
        jax.random.randint(rng.at(seed, "labels", 1), (len(labels),), 1, num_classes)
    )
    where = where[: round(fraction * len(labels))]
    spoiled = labels.copy()
    spoiled[where] = (labels[where] + shift[where]) % num_classes
    return spoiled
