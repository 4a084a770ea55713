"""What differs between the runs of a program, as arrays; and the data that they share."""

from typing import Any, NamedTuple

import jax
import numpy as np

from prunejax.interventions import Table, Windows

Array = jax.Array
Value = Any  # an array of JAX or NumPy
Tree = Any


class Hyper(NamedTuple):
    """Numbers of a run's optimizer."""

    learning_rate: Value  # float32 [epochs]
    weight_decay: Value  # float32 []
    score_decay: Value = np.float32(0)  # float32 [], lambda of the score `undecayed`
    init_scale: Value = np.float32(1)  # float32 [], factor on the initial kernels
    stop_loss: Value = np.float32(0)  # float32 [], nats: see `stopping`; 0: never
    warmup: Value = np.float32(0)  # float32 [], first steps, in which the rate rises in a line


class Totals(NamedTuple):
    """Sums over the current epoch's training examples."""

    loss: Array  # float32, nats
    correct: Array  # int32
    examples: Array  # int32


class Seeds(NamedTuple):
    """The seeds of streams that a copy of a run may have of its own; uint32 each."""

    init: Value  # of the initial weights
    data: Value  # of order, augmentation and dropout


class TrainState(NamedTuple):
    """One run, complete: what a checkpoint holds."""

    seed: Array  # uint32
    seeds: Seeds
    step: Array  # int32, training steps done
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    activations: dict[str, Array]  # running means of |pre-ReLU activations| (scores only)
    windows: Windows
    table: Table
    hyper: Hyper
    totals: Totals
    learnt: dict[str, Array]  # score parameters by layer; of movement pruning only
    bad_step: Array  # int32: first step with a non-finite loss, -1 if none
    stopped: Array  # int32: steps done when the run stopped by its training loss, -1 if it did not


class Data(NamedTuple):
    """Inputs and targets of the splits on the device: see `data.Dataset`."""

    train_images: Value
    train_labels: Value
    test_images: Value
    test_labels: Value
    validation_images: Value
    validation_labels: Value
