"""The train state, the training step and the evaluation: pure functions, compiled once.

A `Program` holds what is fixed (model, shapes, features); a `TrainState` holds everything that
differs between the runs of a study (seed, interventions, schedule, learning rate) as arrays, so
that states can be stacked, mapped and sharded without touching the step.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from prunejax import data as data_lib
from prunejax import interventions, losses, rng
from prunejax import masks as masks_lib
from prunejax import models as models_lib
from prunejax import optim as optim_lib
from prunejax import scores as scores_lib
from prunejax.interventions import Features, Table, Windows
from prunejax.models.groups import Group

Array = jax.Array
Tree = Any


class Hyper(NamedTuple):
    """Numbers of a run's optimizer."""

    learning_rate: Array  # float32 [epochs]
    weight_decay: Array  # float32 []


class Totals(NamedTuple):
    """Sums over the current epoch's training examples."""

    loss: Array  # float32, nats
    correct: Array  # int32
    examples: Array  # int32


class TrainState(NamedTuple):
    """One run, complete: what a checkpoint holds."""

    seed: Array  # uint32
    step: Array  # int32, training steps done
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    activations: dict[str, Array]  # running means of |pre-ReLU activations| (scores only)
    windows: Windows
    table: Table
    hyper: Hyper
    totals: Totals
    bad_step: Array  # int32: first step with a non-finite loss, -1 if none


class Data(NamedTuple):
    """Images and labels of the splits on the device (uint8 [n, h, w, c], int32 [n])."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    validation_images: Array
    validation_labels: Array


class Metrics(NamedTuple):
    """Mean loss in nats and accuracy (fraction) over a split."""

    loss: Array
    accuracy: Array


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything static: one program serves all arms of a study that share it."""

    module: nn.Module
    groups: tuple[Group, ...]  # the layers that may be targeted, in forward order
    optimizer: optim_lib.Optimizer
    features: Features
    scores: tuple[str, ...]  # the scores that arms use; Table.score indexes it
    train_examples: int
    image_shape: tuple[int, int, int]
    epochs: int
    batch_size: int
    eval_batch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool = False
    label_smoothing: float = 0.0
    weights: bool = False  # units are single weights
    global_scope: bool = False
    saliency_examples: int = 512

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


def initial_state(program: Program, seed: Array, table: Table, hyper: Hyper) -> TrainState:
    """A run before its first step."""
    variables = models_lib.init(program.module, rng.stream(seed, "init"), program.image_shape)
    params, stats = variables["params"], variables.get("batch_stats", {})
    activations = (
        {g.name: jnp.zeros(g.units) for g in program.groups} if program.needs_activations else {}
    )
    return TrainState(
        seed=jnp.asarray(seed, jnp.uint32),
        step=jnp.int32(0),
        params=params,
        batch_stats=stats,
        opt_state=program.optimizer.init(params),
        activations=activations,
        windows=interventions.initial(
            program.groups, params, stats, weights=program.weights, features=program.features
        ),
        table=table,
        hyper=hyper,
        totals=Totals(jnp.float32(0), jnp.int32(0), jnp.int32(0)),
        bad_step=jnp.int32(-1),
    )


def masks(program: Program, state: TrainState) -> Tree:
    """The masks of the state's parameters now."""
    return interventions.mask_tree(program.groups, state.params, state.windows, state.table)


def variables(program: Program, state: TrainState, params: Tree | None = None) -> dict[str, Tree]:
    """The model's variable collections with the masks applied."""
    params = state.params if params is None else params
    found = {
        "params": masks_lib.apply(masks(program, state), params),
        "gates": interventions.gates(program.groups, state.windows, state.table),
    }
    if state.batch_stats:
        found["batch_stats"] = state.batch_stats
    return found


def logits(program: Program, state: TrainState, images: Array, params: Tree | None = None) -> Array:
    """Evaluation-mode outputs [batch, classes] for uint8 images (running BatchNorm statistics)."""
    x = data_lib.normalize(images, program.mean, program.std)
    return program.module.apply(variables(program, state, params), x, train=False)


def train_step(program: Program, state: TrainState, images: Array, labels: Array) -> TrainState:
    """One training step on a batch (float images [b, h, w, c], int32 labels [b])."""
    groups, features, table = program.groups, program.features, state.table
    params = interventions.act(
        groups,
        state.params,
        state.windows,
        table,
        features,
        seed=state.seed,
        counter=state.step,
        opening=False,
    )
    collections = ["batch_stats"] + (["activations"] if program.needs_activations else [])

    def loss_fn(params: Tree) -> tuple[Array, tuple[Array, Tree]]:
        outputs, updated = program.module.apply(
            variables(program, state, params),
            images,
            train=True,
            mutable=collections,
            rngs={"dropout": rng.at(state.seed, "dropout", state.step)},
        )
        values = losses.cross_entropy(outputs, labels, program.label_smoothing)
        return jnp.mean(values), (losses.correct(outputs, labels), updated)

    (loss, (correct, updated)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    epoch = jnp.minimum(state.step // program.steps_per_epoch, program.epochs - 1)
    params, opt_state = program.optimizer.update(
        gradients,
        state.opt_state,
        params,
        masks(program, state),
        state.hyper.learning_rate[epoch],
        state.hyper.weight_decay,
    )
    params, stats, windows = interventions.advance(
        groups, params, updated.get("batch_stats", {}), state.windows, table, features
    )
    activations = state.activations
    if program.needs_activations:
        sums = updated["activations"]
        activations = {
            g.name: scores_lib.update_activation_mean(
                state.activations[g.name], _sown(sums, g.name), state.step
            )
            for g in groups
        }
    return state._replace(
        step=state.step + 1,
        params=params,
        batch_stats=stats,
        opt_state=opt_state,
        activations=activations,
        windows=windows,
        totals=Totals(
            state.totals.loss + loss * labels.shape[0],
            state.totals.correct + jnp.sum(correct).astype(jnp.int32),
            state.totals.examples + labels.shape[0],
        ),
        bad_step=jnp.where((state.bad_step < 0) & ~jnp.isfinite(loss), state.step, state.bad_step),
    )


def _sown(collection: Tree, name: str) -> Array:
    """The value sown under a layer's name, wherever in the module tree it was sown."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(collection):
        if any(getattr(entry, "key", None) == name for entry in path):
            return leaf
    raise KeyError(f"the model sows no activations for layer {name!r}")


def train_steps(program: Program, state: TrainState, data: Data, steps: Array) -> TrainState:
    """`steps` training steps (a traced count) that stay inside one epoch's full batches.

    The epoch's order is a pure function of (seed, epoch): stopping and continuing at any step
    gives the same bits.
    """
    size = program.batch_size
    order = _order(program, state)

    def body(_: Array, state: TrainState) -> TrainState:
        start = (state.step % program.steps_per_epoch) * size
        return _step_on(program, state, data, jax.lax.dynamic_slice(order, (start,), (size,)))

    return jax.lax.fori_loop(0, steps, body, state)


def train_last_step(program: Program, state: TrainState, data: Data) -> TrainState:
    """The last, smaller batch of an epoch."""
    order = _order(program, state)
    return _step_on(program, state, data, order[-program.last_batch :])


def _order(program: Program, state: TrainState) -> Array:
    epoch = state.step // program.steps_per_epoch
    return data_lib.epoch_permutation(state.seed, epoch, program.train_examples)


def _step_on(program: Program, state: TrainState, data: Data, indices: Array) -> TrainState:
    if program.augment:
        key = rng.at(state.seed, "augment", state.step)
        images = data_lib.augment(key, data.train_images, indices)
    else:
        images = jnp.take(data.train_images, indices, axis=0)
    images = data_lib.normalize(images, program.mean, program.std)
    return train_step(program, state, images, jnp.take(data.train_labels, indices, axis=0))


def start_epoch(state: TrainState) -> TrainState:
    """Clears the sums over the epoch."""
    return state._replace(totals=jax.tree.map(jnp.zeros_like, state.totals))


def train_metrics(state: TrainState) -> Metrics:
    """Means over the epoch's training batches, taken as they were trained (train mode)."""
    n = jnp.maximum(state.totals.examples, 1)
    return Metrics(state.totals.loss / n, state.totals.correct / n)


def evaluate(program: Program, state: TrainState, images: Array, labels: Array) -> Metrics:
    """Mean loss and accuracy over a whole split, the last partial batch weighted exactly."""
    indices, weights = data_lib.evaluation_batches(labels.shape[0], program.eval_batch_size)

    def body(sums: tuple[Array, Array], batch: tuple[Array, Array]) -> tuple[Any, None]:
        index, weight = batch
        outputs = logits(program, state, jnp.take(images, index, axis=0))
        target = jnp.take(labels, index, axis=0)
        loss = jnp.sum(jnp.where(weight > 0, losses.cross_entropy(outputs, target), 0.0))
        correct = jnp.sum(losses.correct(outputs, target) & (weight > 0))
        return (sums[0] + loss, sums[1] + correct.astype(jnp.int32)), None

    zero = (jnp.float32(0), jnp.int32(0))
    (loss, correct), _ = jax.lax.scan(body, zero, (jnp.asarray(indices), jnp.asarray(weights)))
    n = np.float32(labels.shape[0])
    return Metrics(loss / n, correct / n)


def released_evaluate(
    program: Program, state: TrainState, images: Array, labels: Array, after_event: Array
) -> tuple[TrainState, Metrics]:
    """Evaluation as the released code does it: every test batch counts as a pass of the windows.

    Noise is added and windows are counted down *during* the evaluation, batch by batch of
    `eval_batch_size`; only for studies with `intervention.as_released`. `after_event` (0 or 1)
    tells the two evaluations of an epoch apart, so that their noise is independent.
    """
    indices, weights = data_lib.evaluation_batches(labels.shape[0], program.eval_batch_size)
    batches = len(indices)

    def body(carry: tuple[Any, Array, Array], batch: tuple[Array, ...]) -> tuple[Any, None]:
        state, loss, correct = carry
        number, index, weight = batch
        counter = -1 - (
            (2 * state.step + after_event) * batches + number
        )  # training draws are >= 0
        params = interventions.act(
            program.groups,
            state.params,
            state.windows,
            state.table,
            program.features,
            seed=state.seed,
            counter=counter,
            opening=False,
        )
        state = state._replace(params=params)
        outputs = logits(program, state, jnp.take(images, index, axis=0))
        target = jnp.take(labels, index, axis=0)
        loss += jnp.sum(jnp.where(weight > 0, losses.cross_entropy(outputs, target), 0.0))
        correct += jnp.sum(losses.correct(outputs, target) & (weight > 0)).astype(jnp.int32)
        params, stats, windows = interventions.advance(
            program.groups,
            state.params,
            state.batch_stats,
            state.windows,
            state.table,
            program.features,
        )
        return (
            state._replace(params=params, batch_stats=stats, windows=windows),
            loss,
            correct,
        ), None

    carry = (state, jnp.float32(0), jnp.int32(0))
    numbers = jnp.arange(batches)
    carry, _ = jax.lax.scan(body, carry, (numbers, jnp.asarray(indices), jnp.asarray(weights)))
    n = np.float32(labels.shape[0])
    return carry[0], Metrics(carry[1] / n, carry[2] / n)
