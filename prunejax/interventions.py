"""What is done to the targets of an event, for how long, and whether it comes back: as data.

Pruning, zeroing for N steps, Gaussian noise, zero-then-restore and dense-sparse-dense are rows of
one table (`Table`); one pure transform serves them all, so every arm of a study shares one
compiled step. A *window* is the time an intervention acts on a unit: an integer count of training
steps left, one per unit. Bartoldson et al. 2020, section 4.2, appendix D, and the released code.

A unit is a filter (all of `kernel[..., j]`) or a single weight; arrays per unit have shape
`(units,)` or the kernel's shape, and both broadcast against the kernel.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType as ReadOnly
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import masks, trees
from prunejax.groups import Group
from prunejax.ops import noise
from prunejax.ops.noise import reference_std as reference_std

NONE, PRUNE, ZERO, GAUSSIAN = range(4)  # nothing acts on another: the tables are read-only
KINDS = ReadOnly({"none": NONE, "prune": PRUNE, "zero": ZERO, "gaussian": GAUSSIAN})
NAMES = {number: name for name, number in KINDS.items()}
RESTORE_NO, RESTORE_WEIGHTS, RESTORE_ALL = range(3)  # in order: each brings back more
RESTORES = ReadOnly({"no": RESTORE_NO, "weights": RESTORE_WEIGHTS, "weights+norm": RESTORE_ALL})
SCOPES = ReadOnly({"newest": False, "cumulative": True})
FORWARDS = ("masked", "straight_through", "movement")  # see `prunejax.train.forward`
FOREVER = 2**30  # steps; never counted down

Array = jax.Array
Value = Any  # an array of JAX or NumPy
Params = dict


class Table(NamedTuple):
    """One run's intervention: all entries are arrays, so runs can be stacked and swapped."""

    kind: Value  # int32, one of KINDS
    duration: Value  # int32 training steps, FOREVER for a window that never closes
    cumulative: Value = np.bool_(False)  # an event re-opens its layer's earlier windows
    restore: Value = np.int32(RESTORE_NO)  # one of RESTORES
    mask_norm: Value = np.bool_(False)  # the BatchNorm scale and bias of a target go as well
    noise_scale: Value = np.float32(1)  # multiple of the reference standard deviation
    replay: Value = np.bool_(False)  # targets are those of another run, its twin
    # Per row, that is per event. Row 0 is before training, row e + 1 follows epoch e; the others
    # fall between, or before training too, and the runs of a program share their steps.
    target: Value = ()  # int32 [rows]: 0 smallest, 1 random, 2 largest
    score: Value = ()  # int32 [rows]: index into the program's scores
    counts: Value = ()  # int32 [rows, layers]: units to target
    grow: Value = ()  # int32 [rows, layers]: dead units that come back right after
    random_growth: Value = ()  # bool: random units come back, not those of the largest gradient
    steps: Value = ()  # int32 [rows]: training steps done before it
    ids: Value = ()  # int32 [rows]: names its random draws; of the run alone, whoever shares rows
    pooled: Value = ()  # bool [rows]: its counts are of all layers together
    layers: Value = ()  # bool [layers]: those that its own events choose among; (): all
    fan_in: Value = ()  # bool: initial weights scaled to the live inputs of their unit
    # Of programs with another forward rule than "masked", float32 each.
    dead_decay: Value = ()  # times w, added to gradients of dead weights
    score_rate: Value = ()
    threshold: Value = ()  # live where sigmoid(score) exceeds it; negative: by counts
    penalty: Value = ()  # weight of the mean sigmoid of scores


ROWS = ("target", "score", "counts", "grow", "steps", "ids", "pooled")  # of a Table: its rows


class Features(NamedTuple):
    """What the arms of a compiled program may do (static): the step holds no code beyond it."""

    finite: bool = False  # windows that close, or whose first step differs (endless, no mask)
    zero: bool = False
    gaussian: bool = False
    restore: bool = False
    released: bool = False  # windows count evaluation passes too, as the released code does
    growth: bool = False  # dead units may come back
    pooled: bool = False  # some events rank all layers together, others layer by layer
    threshold: bool = False  # some events keep scores above a threshold
    random: bool = True  # some events draw what they target or grow


class Windows(NamedTuple):
    """The state of the windows, per layer name; part of the train state and its checkpoint."""

    targeted: dict[str, Array]  # bool per unit: was the target of an event
    # Per unit, training steps that its window stays open: int32, or a bool where none ever closes.
    remaining: dict[str, Array]
    saved: dict[str, Array]  # leaf path -> the values to restore (empty without restore arms)
    grown: dict[str, Array]  # bool per unit: came back at the last event that grew any
    ever: dict[str, Array]  # bool per unit: was live in some step (both empty without growth)


def initial(
    groups: Sequence[Group],
    params: Params,
    batch_stats: Params,
    *,
    weights: bool = False,
    features: Features = Features(),  # noqa: B008 (an immutable tuple)
) -> Windows:
    """No targets, no open windows.

    Args:
      groups: the layers that may be targeted.
      params, batch_stats: the model's variables (for shapes and the saved values).
      weights, features: whether units are single weights; what the program's arms may do.
    """
    shapes = {g.name: trees.get(params, g.kernel).shape if weights else (g.units,) for g in groups}

    def none(dtype: Any) -> dict[str, Array]:
        return {name: jnp.zeros(shape, dtype) for name, shape in shapes.items()}

    saved: dict[str, Array] = {}
    if features.restore:
        for g in groups:
            saved |= _leaves(g, params, batch_stats)
    grown, ever = (none(bool) if features.growth else {} for _ in range(2))
    return Windows(none(bool), none(jnp.int32 if features.finite else bool), saved, grown, ever)


def _leaves(group: Group, params: Params, batch_stats: Params) -> dict[str, Array]:
    """Path -> leaf of all that belongs to a layer's units, statistics too."""
    found = {path: trees.get(params, path) for path in (group.kernel, *group.affine)}
    return found | {path: trees.get(batch_stats, path) for path in group.stats}


def dead(windows: Windows, table: Table) -> dict[str, Array]:
    """Layer -> what open windows of kind prune mask: bool [units], or the shape of its kernel."""
    return {name: (left > 0) & (table.kind == PRUNE) for name, left in windows.remaining.items()}


def mask_tree(groups: Sequence[Group], params: Params, windows: Windows, table: Table) -> Params:
    """The masks of `params` (prunejax.masks contract): True = live, scalar True = never pruned."""
    live = {name: ~gone for name, gone in dead(windows, table).items()}
    affine = lambda units: units | ~table.mask_norm  # noqa: E731
    return masks.spread(live, groups, params, rest=True, affine=affine)


def gates(groups: Sequence[Group], windows: Windows, table: Table) -> dict[str, Array]:
    """Per gate name, which channels pass after a residual addition (bool [units]).

    A channel whose norm is held at zero is cut after the addition too, so that it is exactly
    zero downstream although the shortcut still carries it.
    """
    holds = table.mask_norm & ((table.kind == PRUNE) | (table.kind == ZERO))
    return {
        g.gate: ~((windows.remaining[g.name] > 0) & holds)
        for g in groups
        if g.gate is not None and windows.remaining[g.name].ndim == 1  # single weights shut none
    }


def endless(dead: Array, left: Array) -> Array:
    """`remaining` [...] as `left` [...] (weak types compile again): what is `dead` [...] stays."""
    return dead if left.dtype == bool else jnp.where(dead, jnp.int32(FOREVER), 0)


def _first(table: Table, features: Features) -> Array:
    """What `remaining` is when a window has just opened: before its first step.

    As released: one pass more than asked for; a restore happens at the start of that pass. Endless
    noise and zeroing start one higher and stay at FOREVER, so that their first step can be told
    apart.
    """
    if not features.finite:
        return table.kind != NONE
    always = table.duration >= FOREVER
    extra = features.released & (table.restore == RESTORE_NO) & ~always
    extra |= always & (table.kind != PRUNE)
    return jnp.where(table.kind == NONE, 0, table.duration + extra)


def act(
    groups: Sequence[Group],
    params: Params,
    windows: Windows,
    table: Table,
    features: Features,
    *,
    seed: Array,
    counter: Array,
    opening: bool,
    before: Windows | None = None,
) -> Params:
    """Applies zeroing and noise to the stored parameters, once.

    Called at an event (`opening=True`, so that the evaluation after it sees the effect) and
    at the start of every training step. The event's application *is* that of the first step of
    the window: N steps mean N draws of noise, not N + 1. An event leaves windows that were open
    before it to the next step.

    Args:
      seed: the run's seed, a scalar. counter: row of the event or number of the step, a scalar.
      before: the windows without this event: noise of one on the same step was drawn by that.
    """
    if not (features.zero or features.gaussian or opening):
        return params
    values, kernels, noisy_units = dict[str, Array](), {}, {}
    for g in groups:
        kernel, left = trees.get(params, g.kernel), windows.remaining[g.name]
        fresh = left == _first(table, features)
        active = (left > 0) & (fresh | (not opening))  # older windows wait for the next step
        held = active & (table.kind == ZERO)
        gone = held | (active & (table.kind == PRUNE)) if opening else held
        if features.zero or opening:
            kernel = jnp.where(gone, 0, kernel)  # not a product: NaN times 0 stays NaN
            # Under a mask that will be lifted, scale and bias are hidden but keep their values.
            erased = jnp.where(table.kind == PRUNE, gone & (table.duration >= FOREVER), gone)
            if erased.ndim == 1:
                for path in g.affine:
                    leaf = trees.get(params, path)
                    values[path] = jnp.where(erased & table.mask_norm, 0, leaf)
        if features.gaussian and not (features.released and opening):  # released: tests draw
            noisy = active & (table.kind == GAUSSIAN)
            if not (features.released or opening):
                noisy &= ~fresh  # the event drew for their first step; zeroing twice is the same
            if before is not None:
                noisy &= before.remaining[g.name] != _first(table, features)
            noisy_units[g.name] = noisy
        kernels[g.name] = kernel
    if noisy_units:
        stream = "noise at events" if opening else "noise"  # a row and a step may be one number
        kernels = noise.add_to(
            kernels, noisy_units, windows.targeted, table.noise_scale, seed, stream, counter
        )
    values |= {g.kernel: kernels[g.name] for g in groups}
    return trees.replace(params, values)


def open_windows(
    groups: Sequence[Group],
    params: Params,
    batch_stats: Params,
    windows: Windows,
    table: Table,
    features: Features,
    selected: Mapping[str, Array],
) -> Windows:
    """The windows after an event that targets `selected` (layer -> bool, shapes as in `dead`).

    A layer without new targets is left alone. Values to restore are those before the event;
    a unit whose window is open already keeps the values saved when it opened.
    """
    targeted, remaining, saved = {}, {}, dict(windows.saved)
    steps = _first(table, features)
    for g in groups:
        newest, left = selected[g.name], windows.remaining[g.name]
        targeted[g.name] = windows.targeted[g.name] | newest
        happens = jnp.any(newest)
        opening = jnp.where(table.cumulative, targeted[g.name] & happens, newest)
        if features.released:  # one window a layer: a new event ends the one before it
            left = jnp.where(happens & (table.kind != PRUNE), jnp.zeros_like(left), left)
        if features.restore:
            fresh = opening & (left == 0)
            for path, leaf in _leaves(g, params, batch_stats).items():
                if fresh.ndim == 1 or path == g.kernel:
                    saved[path] = jnp.where(fresh, leaf, saved[path])
        remaining[g.name] = jnp.where(opening, steps, left)
    return windows._replace(targeted=targeted, remaining=remaining, saved=saved)


def advance(
    groups: Sequence[Group],
    params: Params,
    batch_stats: Params,
    windows: Windows,
    table: Table,
    features: Features,
) -> tuple[Params, Params, Windows]:
    """Counts one pass down and closes the windows that end with it, restoring what is asked for.

    Called after the update of every training step (and, as released, after evaluation batches).
    """
    if not features.finite:
        return params, batch_stats, windows
    remaining = {
        name: jnp.where((left > 0) & (left != FOREVER), left - 1, left)
        for name, left in windows.remaining.items()
    }
    if features.restore:
        params_back, stats_back = {}, {}
        for g in groups:
            closing = (windows.remaining[g.name] > 0) & (remaining[g.name] == 0)
            weights = closing & (table.restore >= RESTORE_WEIGHTS)
            norm = closing & (table.restore >= RESTORE_ALL)
            leaf = trees.get(params, g.kernel)
            params_back[g.kernel] = jnp.where(weights, windows.saved[g.kernel], leaf)
            if norm.ndim == 1:
                for path in g.affine:
                    leaf = trees.get(params, path)
                    params_back[path] = jnp.where(norm, windows.saved[path], leaf)
                for path in g.stats:
                    leaf = trees.get(batch_stats, path)
                    stats_back[path] = jnp.where(norm, windows.saved[path], leaf)
        params = trees.replace(params, params_back)
        batch_stats = trees.replace(batch_stats, stats_back)
    return params, batch_stats, windows._replace(remaining=remaining)
