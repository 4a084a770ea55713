"""An event: scores -> targets -> windows, as one pure function of the train state."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from prunejax import interventions, losses, rng, trees
from prunejax import masks as mask_algebra
from prunejax import scores as scores_lib
from prunejax.train import evaluation
from prunejax.train.step import Data, Program, TrainState, logits, masks, split_batch

Array = jax.Array

SMALLEST, RANDOM, LARGEST = range(3)
TARGETS = {"smallest": SMALLEST, "random": RANDOM, "largest": LARGEST}


class Event(NamedTuple):
    """What an event did."""

    selected: dict[str, Array]  # per layer: bool per unit, the targets of this event
    targeted: Array  # int32 [layers]: how many
    live: Array  # int32 [layers]: units whose window is closed after the event
    predicted: Array  # float32 [2], nats: see `evaluation.forecast`; NaN where not asked for


def saliency_gradient(program: Program, state: TrainState, data: Data) -> dict[str, Array]:
    """Gradient of the mean training loss at the running BatchNorm statistics, per kernel path.

    Taken over the first `saliency_examples` training examples, so that the score is a function
    of the weights alone and does not depend on the order of batches.
    """
    n = min(program.saliency_examples, program.train_examples)
    images, labels = split_batch(program, data.train_images[:n]), data.train_labels[:n]

    def loss(params: dict) -> Array:
        outputs = logits(program, state, images, params)
        return jnp.mean(losses.objective(program.loss, outputs, labels))

    gradients = jax.grad(loss)(state.params)
    return {g.kernel: trees.get(gradients, g.kernel) for g in program.groups}


def unit_scores(program: Program, state: TrainState, data: Data, event: Array) -> dict[str, Array]:
    """Per layer, the score of every unit by the run's score function (`table.score`).

    Args:
      event: int32, distinguishes the random draws of a run's events.
    """
    needs = frozenset[str]().union(*(scores_lib.SCORES[s].needs for s in program.scores))
    gradients = saliency_gradient(program, state, data) if "gradient" in needs else {}
    result = {}
    for g in program.groups:
        inputs = scores_lib.ScoreInputs(
            kernel=trees.get(state.params, g.kernel),
            scale=trees.get(state.params, g.norm[0]) if len(g.norm) == 2 else None,
            bias=trees.get(state.params, g.norm[1]) if len(g.norm) == 2 else None,
            activation=state.activations.get(g.name),
            gradient=gradients.get(g.kernel),
            key=rng.at(state.seed, "score", event, g.name),
        )
        values = [scores_lib.SCORES[name].fn(inputs) for name in program.scores]
        result[g.name] = jnp.take(jnp.stack(values), state.table.score, axis=0)
    return result


def targets(
    worth: Sequence[Array], counts: Array, eligible: Sequence[Array], scope: str
) -> list[Array]:
    """Which units `masks.prune` gives up when so many have to go, per layer (bool per unit).

    Args:
      worth: per layer a number per unit; the larger stays.
      counts: int32 [layers], units to take; in the global scope their sum counts.
      eligible: per layer, the units that may be taken.
      scope: "global" or "layer".
    """
    left = jnp.stack([jnp.sum(units, dtype=jnp.int32) for units in eligible]) - counts
    keep = jnp.sum(left) if scope == "global" else list(left)
    kept = mask_algebra.prune(list(worth), keep, masks=list(eligible), scope=scope)
    return [before & ~after for before, after in zip(eligible, kept, strict=True)]


def select(program: Program, state: TrainState, data: Data, event: Array) -> dict[str, Array]:
    """The targets of event number `event` (a row of `table.counts`): exactly that many units.

    What stays is chosen by `masks.prune`, so a study follows the library's rule: among equal
    units the earlier is kept (layer order first with a global scope), and NaN goes first. Only
    units never targeted before are eligible. Random targets do not look at the scores.
    """
    table, counts = state.table, state.table.counts[event]
    scores = unit_scores(program, state, data, event)
    worth, eligible = [], []  # larger = kept longer; lists, since a dict would go by name
    for g in program.groups:
        score = scores[g.name]
        draws = jax.random.uniform(rng.at(state.seed, "mask", event, g.name), score.shape)
        smallest_first = jnp.where(table.target == LARGEST, -score, score)
        worth.append(jnp.where(table.target == RANDOM, -draws, smallest_first))
        eligible.append(~state.windows.targeted[g.name])
    chosen = targets(worth, counts, eligible, "global" if program.global_scope else "layer")
    return {g.name: c for g, c in zip(program.groups, chosen, strict=True)}


def apply_event(
    program: Program,
    state: TrainState,
    data: Data,
    event: Array,
    replay: Mapping[str, Array],
) -> tuple[TrainState, Event]:
    """Runs the event in row `event` of the run's counts (row e + 1 follows epoch e).

    A row of zeros changes nothing, bit for bit.

    Args:
      replay: per layer the targets (bool per unit) that a twin takes from its other; used only
        where `table.replay` is set.
    """
    own = select(program, state, data, event)
    selected = {name: jnp.where(state.table.replay, replay[name], own[name]) for name in own}
    windows = interventions.open_windows(
        program.groups,
        state.params,
        state.batch_stats,
        state.windows,
        state.table,
        program.features,
        selected,
    )
    params = interventions.act(
        program.groups,
        state.params,
        windows,
        state.table,
        program.features,
        seed=state.seed,
        counter=event,
        opening=True,
    )
    happens = jnp.any(jnp.stack([jnp.any(s) for s in selected.values()]))
    params = jax.tree.map(lambda new, old: jnp.where(happens, new, old), params, state.params)
    before, state = state, state._replace(params=params, windows=windows)
    predicted = jnp.full(2, jnp.nan)
    if program.forecast:
        predicted = jax.lax.cond(
            happens,
            lambda: evaluation.forecast(program, before, state, data.test_images, data.test_labels),
            lambda: predicted,
        )
    targeted = jnp.stack([jnp.sum(selected[g.name]) for g in program.groups])
    live = jnp.stack([jnp.sum(windows.remaining[g.name] == 0) for g in program.groups])
    return state, Event(selected, targeted.astype(jnp.int32), live.astype(jnp.int32), predicted)


def sparsity(program: Program, state: TrainState) -> Array:
    """Fraction of all parameters that are masked now (exact integer counts, then one division)."""
    live = masks(program, state)
    sizes = jax.tree.leaves(jax.tree.map(lambda p: p.size, state.params))
    removed = jax.tree.leaves(
        jax.tree.map(
            lambda m, p: jnp.sum(~m) * (p.size // m.size) if m.ndim else jnp.int32(0),
            live,
            state.params,
        )
    )
    return sum(removed) / jnp.float32(sum(sizes))
