"""The training step: pure functions of a program and a state, compiled once.

A `Program` holds what is fixed (model, shapes, features); a `TrainState` holds everything that
differs between the runs of a study (seed, interventions, schedule, learning rate) as arrays, so
that states can be stacked, mapped and sharded without touching the step.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from prunejax import data as data_lib
from prunejax import interventions, losses, rng, trees
from prunejax import masks as masks_lib
from prunejax import models as models_lib
from prunejax import scores as scores_lib
from prunejax.interventions import Table
from prunejax.ops import layers
from prunejax.train import forward, microbatch, regrowth, stopping
from prunejax.train import optim as optim_lib
from prunejax.train.state import Data as Data
from prunejax.train.state import Hyper as Hyper
from prunejax.train.state import Program as Program
from prunejax.train.state import Seeds as Seeds
from prunejax.train.state import Totals as Totals
from prunejax.train.state import TrainState as TrainState
from prunejax.train.state import Window as Window
from prunejax.train.state import batch_of as batch_of

Array = jax.Array
Value = Any  # an array of JAX or NumPy
Tree = Any


def initial_state(
    program: Program, seed: Array, table: Table, hyper: Hyper, seeds: Seeds | None = None
) -> TrainState:
    """A run before its first step; without `seeds` all its streams are of its own seed."""
    seeds = Seeds(*(jnp.asarray(s, jnp.uint32) for s in seeds or (seed, seed)))
    key = rng.stream(seeds.init, "init")
    variables = models_lib.init(program.module, key, program.image_shape)
    params, stats = variables["params"], variables.get("batch_stats", {})
    params = jax.tree.map(
        lambda kernel, p: p * hyper.init_scale if kernel else p, trees.kernels(params), params
    )
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
        totals=Totals(jnp.float32(0), jnp.int32(0), jnp.int32(0), jnp.float32(0)),
        bad_step=jnp.int32(-1),
        stopped=jnp.int32(-1),
        seeds=seeds,
        learnt=forward.initial_scores(program.groups, params, program.forward),
    )


def masks(program: Program, state: TrainState) -> Tree:
    """The masks of the state's parameters now."""
    return interventions.mask_tree(program.groups, state.params, state.windows, state.table)


def variables(program: Program, state: TrainState, params: Tree | None = None) -> dict[str, Tree]:
    """The model's variable collections with the masks applied."""
    params = state.params if params is None else params
    collections = {
        "params": masks_lib.apply(masks(program, state), params),
        "gates": interventions.gates(program.groups, state.windows, state.table),
    }
    if state.batch_stats:
        collections["batch_stats"] = state.batch_stats
    return collections


def inputs(program: Program, images: Array) -> Array:
    """What the network gets of stored examples: `prepare`, or normalized uint8 images."""
    if program.prepare is not None:
        return program.prepare(images)
    return data_lib.normalize(images, program.mean, program.std)


def logits(program: Program, state: TrainState, images: Array, params: Tree | None = None) -> Array:
    """Evaluation-mode outputs [batch, n] for stored examples (running BatchNorm statistics)."""
    x = inputs(program, images)
    outputs: Any = program.module.apply(variables(program, state, params), x, train=False)
    return outputs


def train_step(program: Program, state: TrainState, images: Array, labels: Array) -> TrainState:
    """One training step on a batch of stored examples [b, ...] and their targets [b] or [b, n]."""
    groups, features, table = program.groups, program.features, state.table
    images = inputs(program, images)
    if program.harden.acts:
        images = _hardened(program, state, images, labels)  # the network before this step's noise
    batch = split_batch(program, images), labels
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
    written = ["batch_stats"] + (["activations"] if program.needs_activations else [])
    key = rng.at(state.seeds.data, "dropout", state.step)  # by the step alone: resuming repeats it
    hidden = program.forward != "masked"  # then gradients are by masked weights, of dead ones too
    trained = masks_lib.apply(masks(program, state), params) if hidden else params

    def loss_fn(params: Tree, batch: tuple[Array, Array], key: Array) -> tuple[Array, Tree]:
        given = variables(program, state, params)
        outputs, updated = program.module.apply(
            given | {"params": params} if hidden else given,  # masked before: no second mask
            batch[0],
            train=True,
            mutable=written,
            rngs={"dropout": key},
        )
        values = losses.objective(program.loss, outputs, batch[1], program.label_smoothing)
        correct = jnp.sum(losses.hits(outputs, batch[1])).astype(jnp.int32)
        return jnp.mean(values), (correct, updated)

    slope = jax.value_and_grad(loss_fn, has_aux=True)
    split = program.split or (lambda gradients: gradients)  # over devices, as parameters are

    def of_part(part: tuple[Array, Array], number: Array) -> tuple[Any, Tree]:
        values, gradients = slope(trained, part, jax.random.fold_in(key, number))
        return values, split(gradients)

    parts = microbatch.parts(images.shape[0], program.microbatch)
    if parts == 1:
        (loss, (correct, updated)), gradients = slope(trained, batch, key)
        gradients = split(gradients)
    else:
        means = microbatch.mean_over_parts(of_part, batch, parts)
        (loss, (correct, updated)), gradients = means
    epoch = jnp.minimum(state.step // program.steps_per_epoch, program.epochs - 1)
    live, learnt = masks(program, state), state.learnt  # of this step: windows move on below
    if hidden:
        gradients, live, learnt = forward.steer(
            program.forward, groups, params, gradients, live, learnt, table
        )
    params, opt_state = program.optimizer.update(
        gradients,
        state.opt_state,
        params,
        live,
        state.hyper.learning_rate[epoch] * optim_lib.warmed(state.step, state.hyper.warmup),
        state.hyper.weight_decay,
    )
    begins = state.step % program.steps_per_epoch == 0  # not at its end: sums are read then
    ended = state.totals.past + state.totals.loss / jnp.maximum(state.totals.examples, 1)
    totals = jax.tree.map(lambda t: jnp.where(begins, 0, t), state.totals)
    params, stats, windows = interventions.advance(
        groups, params, updated.get("batch_stats", {}), state.windows, table, features
    )
    if features.growth:
        windows = regrowth.trained(windows)
    activations = state.activations
    if program.needs_activations:
        sums = updated["activations"]
        activations = {
            g.name: scores_lib.update_activation_mean(
                state.activations[g.name], layers.recorded_activation(sums, g.name), state.step
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
            totals.loss + loss * labels.shape[0],  # by examples: the last batch may be smaller
            totals.correct + correct,
            totals.examples + labels.shape[0],
            jnp.where(begins, ended, state.totals.past),
        ),
        bad_step=jnp.where((state.bad_step < 0) & ~jnp.isfinite(loss), state.step, state.bad_step),
        learnt=learnt,
    )


def train_steps(
    program: Program, state: TrainState, data: Data | Window, steps: Array, skips: bool = False
) -> TrainState:
    """`steps` training steps (a traced count) inside one epoch's full batches, or, where an epoch
    is one step, of as many epochs.

    The epoch's order is a pure function of (seed, epoch): stopping and continuing at any step
    gives the same bits. A window has the batches of these steps (and may have more). With `skips`
    a copy that only fills a stack up takes none of them.
    """
    size = program.batch_size
    order = _order(program, state) if program.steps_per_epoch > 1 else None  # once for the epoch

    def one(_: Any, state: TrainState) -> TrainState:
        if isinstance(data, Window):
            return train_step(program, state, *batch_of(data[:2], state.step - data.first))
        start = (state.step % program.steps_per_epoch) * size
        now = _order(program, state) if order is None else order  # each step an epoch of its own
        indices = jax.lax.dynamic_slice(now, (start,), (size,))
        return train_step(program, state, *_taken(program, state, data, indices))

    if skips:  # a count of 0 ends the loop at once; under vmap all would wait for the longest
        steps = jnp.where(state.stopped == stopping.PADDING, 0, steps)
    return jax.lax.fori_loop(0, steps, stopping.unless_stopped(program.stops, one), state)


def train_last_step(program: Program, state: TrainState, data: Data) -> TrainState:
    """The last, smaller batch of an epoch."""
    indices = _order(program, state)[-program.last_batch :]  # no padding: BatchNorm would see it

    def one(_: Any, state: TrainState) -> TrainState:
        return train_step(program, state, *_taken(program, state, data, indices))

    return stopping.unless_stopped(program.stops, one)(0, state)


def _order(program: Program, state: TrainState) -> Array:
    epoch = state.step // program.steps_per_epoch
    return data_lib.epoch_permutation(state.seeds.data, epoch, program.train_examples)


def _taken(program: Program, state: TrainState, data: Data, indices: Array) -> tuple[Array, Array]:
    """The stored examples of a batch, augmented, and their targets."""
    indices = split_batch(program, indices)
    if program.augment:
        key = rng.at(state.seeds.data, "augment", state.step)
        images = data_lib.augment(key, data.train_images, indices)
    else:
        images = jnp.take(data.train_images, indices, axis=0)
    return images, jnp.take(data.train_labels, indices, axis=0)


def _hardened(program: Program, state: TrainState, x: Array, labels: Array) -> Array:
    given = variables(program, state)

    def outputs(z: Array) -> Array:
        return jnp.asarray(program.module.apply(given, z, train=False))  # eval: statistics stay

    return program.harden.harden(
        x,
        labels,
        outputs,
        rng.at(state.seeds.data, "input noise", state.step),
        rng.at(state.seeds.data, "attack", state.step),
    )


def split_batch(program: Program, batch: Array) -> Array:
    """The same batch, its examples spread over the devices along `data` where they divide it."""
    if program.data_parallel == 1 or batch.shape[0] % program.data_parallel:
        return batch
    return jax.lax.with_sharding_constraint(batch, PartitionSpec("data"))
