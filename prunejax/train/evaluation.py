"""Evaluation of whole splits in one compiled call, exact to the last partial batch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import data as data_lib
from prunejax import interventions, losses
from prunejax.train.probes import ALWAYS, PROBES, Seen
from prunejax.train.step import (
    Program,
    TrainState,
    batch_of,
    inputs,
    logits,
    masks,
    split_batch,
    variables,
)

Array = jax.Array


class Metrics(NamedTuple):
    """Mean loss (of cross entropy in nats) and accuracy (fraction; NaN without classes)."""

    loss: Array
    accuracy: Array
    probed: Any = ()  # name -> sums of the program's other probes


def _accuracy(program: Program, correct: Array, examples: Array | np.float32) -> Array:
    """Fraction of right answers; NaN, an empty cell in tables, where targets are numbers."""
    fraction = correct / examples
    return fraction if program.has_classes else jnp.full_like(fraction, jnp.nan)


def evaluate(program: Program, state: TrainState, images: Array, labels: Array) -> Metrics:
    """What the probes see of a whole split, the last partial batch weighted exactly."""
    # In the split's order: probes put what they see in the examples' places.
    indices, weights = data_lib.evaluation_batches(labels.shape[0], program.eval_batch_size)
    n = labels.shape[0]

    def body(sums: dict[str, Any], batch: tuple[Array, Array]) -> tuple[Any, None]:
        index = split_batch(program, batch[0])
        some = jnp.take(images, index, axis=0), jnp.take(labels, index, axis=0), batch[1], batch[0]
        return jax.tree.map(jnp.add, sums, batch_sums(program, state, *some, examples=n)), None

    zero = zeros(program, state, images, labels, n)
    # In one order, batch by batch: the sum's last bits depend on it.
    sums, _ = jax.lax.scan(body, zero, (jnp.asarray(indices), jnp.asarray(weights)))
    return metrics(program, sums, n)


def _nothing(x: jax.ShapeDtypeStruct) -> Array:
    return jnp.full(x.shape, jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0, x.dtype)


def evaluate_running(program: Program, state: TrainState, images: Array, labels: Array) -> Metrics:
    """`evaluate`; of padding, and of a run that has stopped (its rows are there), NaN at once."""
    needed = state.stopped == -1
    whole = functools.partial(evaluate, program, state, images, labels)
    nothing = jax.tree.map(_nothing, jax.eval_shape(whole))
    # Under vmap both are computed: it is saved where members go one by one.
    return jax.lax.cond(needed, whole, lambda: nothing)


def over_window(
    fn: Callable[..., Any], total: Any, batches: tuple[Array, ...], count: Array
) -> Any:
    """`total` plus `fn(*batch)` of the first `count` batches of a window, in their order."""
    add = lambda i, sums: jax.tree.map(jnp.add, sums, fn(*batch_of(batches, i)))  # noqa: E731
    # The count is traced: full windows and the last one share a program.
    return jax.lax.fori_loop(0, count, add, total)


def metrics(program: Program, sums: dict[str, Any], examples: int) -> Metrics:
    """Means of loss and accuracy, and the sums of the other probes, from those over a split."""
    sums, n = dict(sums), np.float32(examples)
    # Counts are exact as float32 below 2^24, so that the fraction is rounded once.
    loss, correct = sums.pop("loss") / n, sums.pop("accuracy").astype(np.float32)
    return Metrics(loss, _accuracy(program, correct, n), sums or ())


def zeros(
    program: Program, state: TrainState, images: Array, labels: Array, examples: int
) -> dict[str, Any]:
    """The sums of no batch; `images` and `labels` are read for their shapes past the first axis."""
    if not program.probes:  # known, without another look at the network
        return {"loss": jnp.float32(0), "accuracy": jnp.int32(0)}
    size = program.eval_batch_size
    one = lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)  # noqa: E731
    weight, place = (jax.ShapeDtypeStruct((size,), kind) for kind in (jnp.float32, jnp.int32))
    found = jax.eval_shape(
        lambda *batch: batch_sums(program, *batch, examples=examples),
        *(state, one(images), one(labels), weight, place),
    )
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)


def batch_sums(
    program: Program,
    state: TrainState,
    images: Array,
    labels: Array,
    weight: Array,
    positions: Array,
    *,
    examples: int,
) -> dict[str, Any]:
    """Probe -> its sums over the examples of weight above 0; see `probes.Seen`."""
    outputs = logits(program, state, images)
    values = losses.objective(program.loss, outputs, labels)
    seen = Seen(outputs, labels, values, weight, positions, examples)
    return {name: PROBES[name].sums(seen) for name in (*ALWAYS, *program.probes)}


def forecast(
    program: Program, before: TrainState, after: TrainState, images: Array, labels: Array
) -> Array:
    """What slope and curvature foretell of the change of the mean loss from `before` to `after`.

    With w what the network computes with (masked parameters, and the gates of residual channels as
    numbers), d its change, g and H gradient and Hessian of the loss at `before`: nested forward
    mode along w + t d, one quadratic form (LeCun et al. 1990, with the interactions of everything
    that is removed at once).

    Returns: float32 [2], nats: g'd, and g'd + d'Hd/2.
    """
    indices, weights = data_lib.evaluation_batches(labels.shape[0], program.eval_batch_size)
    along = expansion(program, before, after)

    def body(sums: Array, batch: tuple[Array, Array]) -> tuple[Array, None]:
        index = split_batch(program, batch[0])
        some = jnp.take(images, index, axis=0), jnp.take(labels, index, axis=0), batch[1]
        return sums + along(*some), None

    batches = (jnp.asarray(indices), jnp.asarray(weights))
    sums, _ = jax.lax.scan(body, jnp.zeros(2), batches)
    return sums / np.float32(labels.shape[0])


def expansion(
    program: Program, before: TrainState, after: TrainState
) -> Callable[[Array, Array, Array], Array]:
    """(images, labels, weight) of a batch -> the sums over its examples that `forecast` needs."""

    def continuous(state: TrainState) -> dict[str, Any]:
        found = variables(program, state)
        # A bool has no derivative.
        gates = jax.tree.map(lambda gate: gate.astype(jnp.float32), found["gates"])
        return {"params": found["params"], "gates": gates}

    start = continuous(before)
    change = jax.tree.map(jnp.subtract, continuous(after), start)

    def along(images: Array, labels: Array, weight: Array) -> Array:
        x = inputs(program, images)

        def loss(t: Array) -> Array:
            moved = jax.tree.map(lambda w, d: w + (t * d).astype(w.dtype), start, change)
            if before.batch_stats:
                # Constants along the way: evaluation mode.
                moved["batch_stats"] = before.batch_stats
            # Masked already: `moved` lies between the networks before and after.
            outputs: Any = program.module.apply(moved, x, train=False)
            values = losses.objective(program.loss, outputs, labels)
            return jnp.sum(jnp.where(weight > 0, values, 0.0))

        def slope(t: Array) -> Array:
            return jax.jvp(loss, (t,), (jnp.ones_like(t),))[1]

        # The slope at t = 0 and its derivative there: g'd and d'Hd.
        first, bend = jax.jvp(slope, (jnp.float32(0),), (jnp.float32(1),))
        return jnp.stack([first, first + bend / 2])

    return along


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
        number, index, weight = batch[0], split_batch(program, batch[1]), batch[2]
        counter = -1 - (
            (2 * state.step + after_event) * batches + number
        )  # training draws are >= 0
        params = interventions.act(  # as at the start of a training step: this pass sees its noise
            program.groups, state.params, state.windows, state.table, program.features,
            seed=state.seed, counter=counter, opening=False,
        )  # fmt: skip
        # Kept: noise piles up in the stored weights, also while testing.
        state = state._replace(params=params)
        outputs = logits(program, state, jnp.take(images, index, axis=0))
        target = jnp.take(labels, index, axis=0)
        values = losses.objective(program.loss, outputs, target)
        loss += jnp.sum(jnp.where(weight > 0, values, 0.0))
        correct += jnp.sum(losses.hits(outputs, target) & (weight > 0)).astype(jnp.int32)
        # A window may close within a test pass, and restore.
        params, stats, windows = interventions.advance(
            program.groups, state.params, state.batch_stats, state.windows, state.table,
            program.features,
        )  # fmt: skip
        return (
            state._replace(params=params, batch_stats=stats, windows=windows),
            loss,
            correct,
        ), None

    # The state is carried on: what a test pass does to weights and windows stays done.
    carry = (state, jnp.float32(0), jnp.int32(0))
    numbers = jnp.arange(batches)
    carry, _ = jax.lax.scan(body, carry, (numbers, jnp.asarray(indices), jnp.asarray(weights)))
    n = np.float32(labels.shape[0])
    return carry[0], Metrics(carry[1] / n, _accuracy(program, carry[2], n))


def summary(program: Program, state: TrainState) -> tuple[Metrics, Array, Array, Array]:
    """Training metrics of the epoch, first bad step, steps done, sparsity.

    The first are means over the epoch's batches, taken as they were trained (train mode).
    """
    n = jnp.maximum(state.totals.examples, 1)  # before the first step there are none: 0, not NaN
    trained = Metrics(state.totals.loss / n, _accuracy(program, state.totals.correct, n))
    return trained, state.bad_step, state.step, sparsity(program, state)


def sparsity(program: Program, state: TrainState) -> Array:
    """Fraction of all parameters that are masked now.

    Counts are exact integers where there are fewer than 2^31 parameters, then comes one division.
    """
    live = masks(program, state)
    total = sum(p.size for p in jax.tree.leaves(state.params))
    kind = jnp.int32 if total < 2**31 else jnp.float32  # then rounded, where integers would wrap
    removed = jax.tree.leaves(
        jax.tree.map(
            lambda m, p: jnp.sum(~m).astype(kind) * (p.size // m.size) if m.ndim else kind(0),
            live,
            # One entry of a filter's mask stands for all its weights.
            state.params,
        )
    )
    return sum(removed) / jnp.float32(total)
