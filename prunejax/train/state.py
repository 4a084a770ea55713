"""What is fixed for the runs of a program, what differs between them, and the data they share."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from prunejax import models as models_lib
from prunejax import scores as scores_lib
from prunejax.groups import Group
from prunejax.interventions import Features, Table, Windows
from prunejax.train import optim as optim_lib
from prunejax.train.hardening import Harden

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
    """Sums over the current epoch's training examples, and over the epochs before it."""

    loss: Array  # float32, nats
    correct: Array  # int32
    examples: Array  # int32
    past: Array  # float32, nats: of the mean losses of the epochs before


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


class Window(NamedTuple):
    """Batches of steps in a row, of a set that memory does not hold."""

    images: Value  # [steps, batch, ...]
    labels: Value  # [steps, batch, ...]
    first: Value  # int32, the step of the first


def batch_of(batches: tuple[Any, ...], number: Array) -> tuple[Array, ...]:
    """Entry `number` of arrays that hold batches along their first axis."""
    return tuple(jax.lax.dynamic_index_in_dim(x, number, keepdims=False) for x in batches)


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything static: one program serves all arms of a study that share it."""

    module: models_lib.Model
    groups: tuple[Group, ...]  # the layers that may be targeted, in forward order
    optimizer: optim_lib.Optimizer
    features: Features
    scores: tuple[str, ...]  # the scores that arms use; Table.score indexes it
    train_examples: int  # that an epoch trains on
    image_shape: tuple[int, ...]  # of a network's input
    epochs: int
    batch_size: int
    eval_batch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    prepare: Callable[[Array], Array] | None = None  # see `data.Dataset`
    has_classes: bool = True  # else there is no accuracy
    loss: str = "cross_entropy"  # one of `losses.LOSSES`
    augment: bool = False
    label_smoothing: float = 0.0
    weights: bool = False  # units are single weights
    global_scope: bool = False
    domains: tuple[tuple[bool, ...], ...] = ()  # see `tables.domains`
    saliency_examples: int = 512
    evidence: str = "first"  # which examples scores see: see `prune.evidence_batch`
    evidence_examples: tuple[int, ...] = ()  # "balanced": their indices
    # (variables, inputs) -> layer -> stability of each unit, for the score of that name
    stability: Callable[[Any, Array], dict[str, Array]] | None = None
    harden: Harden = Harden()  # noqa: RUF009 (frozen)
    trackers: tuple[str, ...] = ()  # of `trackers.TRACKERS`
    stops: bool = False  # whether some run may stop by its training loss
    probes: tuple[str, ...] = ()  # of `probes.PROBES`, besides loss and accuracy
    average: int = 1  # "batch": how many of the last batches
    forward: str = "masked"  # one of `interventions.FORWARDS`
    nm: tuple[int, int] | None = None  # n of m consecutive inputs stay at events
    # (epoch, units of each group) from which on training steps are on smaller arrays: `smaller`
    cuts: tuple[tuple[int, tuple[int, ...]], ...] = ()
    forecast: bool = False  # events predict their change of the test loss
    microbatch: int = 0  # examples whose gradient is taken at once; 0: the whole batch
    data_parallel: int = 1  # devices along the mesh axis `data`, which share a member's batch
    split: Callable[[Tree], Tree] | None = None  # lays gradients out as they split its parameters

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in an epoch; the last one may be a smaller batch."""
        return -(-self.train_examples // self.batch_size)

    @property
    def last_batch(self) -> int:
        """Examples in the last batch of an epoch."""
        return self.train_examples - (self.steps_per_epoch - 1) * self.batch_size

    @property
    def needs_activations(self) -> bool:
        """Whether a score of some arm reads the running mean of activations."""
        return any("activations" in scores_lib.SCORES[name].needs for name in self.scores)

    def beside_events(self) -> "Program":
        """The program as all but its events read it: what only they look at, left out."""
        return dataclasses.replace(
            self,
            features=self.features._replace(pooled=False, threshold=False, random=True),
            # Activations are averaged while training, so that their scores stay.
            scores=tuple(s for s in self.scores if "activations" in scores_lib.SCORES[s].needs),
            global_scope=False,
            domains=(),
            saliency_examples=0,
            evidence="first",
            evidence_examples=(),
            stability=None,
            average=1,
            nm=None,
            forecast=False,
        )
