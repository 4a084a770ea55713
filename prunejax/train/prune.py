"""An event: scores -> targets -> windows, as one pure function of the train state."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType as ReadOnly
from typing import NamedTuple

import jax
import jax.numpy as jnp

from prunejax import interventions, rng, trees
from prunejax import masks as mask_algebra
from prunejax import scores as scores_lib
from prunejax.methods import before, growth, updates
from prunejax.train import evaluation, evidence, forward, regrowth
from prunejax.train.step import Data, Program, TrainState, masks

Array = jax.Array

SMALLEST, RANDOM, LARGEST = range(3)
# Read-only: events would treat a target that they do not know as "smallest".
TARGETS = ReadOnly({"smallest": SMALLEST, "random": RANDOM, "largest": LARGEST})


class Event(NamedTuple):
    """What an event did."""

    selected: dict[str, Array]  # per layer: bool per unit, the targets of this event
    targeted: Array  # int32 [layers]: how many
    live: Array  # int32 [layers]: units whose window is closed after the event
    predicted: Array  # float32 [2], nats: see `evaluation.forecast`; NaN where not asked for
    growth: "Growth | None" = None  # of programs whose units may come back


class Growth(NamedTuple):
    """What came back at an event: int32 [layers] each."""

    grown: Array  # units that came back
    zero: Array  # of them, those whose growth score is exactly 0 (behind dead units)
    before: Array  # units that came back at the last event that grew any
    survived: Array  # of those, how many this event has not dropped
    ever: Array  # units that were live in some training step


def _count(program: Program, units: Mapping[str, Array]) -> Array:
    """int32 [layers]: how many of the flags of each layer are true."""
    return jnp.stack([jnp.sum(units[g.name], dtype=jnp.int32) for g in program.groups])


def unit_scores(program: Program, state: TrainState, data: Data, event: Array) -> dict[str, Array]:
    """Per layer, the score of every unit by the score function of row `event`."""
    chosen, number = state.table.score[event], state.table.ids[event]
    wanted = functools.partial(evidence.wanted, program, chosen)
    gradients = wanted("gradient", lambda: evidence.saliency_gradient(program, state, data))
    network = evidence.network_scores(program, state, data, chosen)
    settled = wanted("stability", lambda: evidence.stability(program, state, data))
    keys = rng.each(rng.at(state.seed, "score", number), [g.name for g in program.groups])
    result = {}
    for g in program.groups:
        inputs = scores_lib.ScoreInputs(
            kernel=trees.get(state.params, g.kernel),
            scale=trees.get(state.params, g.norm[0]) if len(g.norm) == 2 else None,
            bias=trees.get(state.params, g.norm[1]) if len(g.norm) == 2 else None,
            activation=state.activations.get(g.name), gradient=gradients.get(g.kernel),
            key=keys[g.name], decay=jnp.asarray(state.hyper.score_decay),
            network={name: found[g.name] for name, found in network.items()},
            stability=settled.get(g.name), learnt=state.learnt.get(g.name),
        )  # fmt: skip
        values = [scores_lib.value(name, inputs) for name in program.scores]
        result[g.name] = jnp.take(jnp.stack(values), chosen, axis=0)  # which one is data
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
    gone = jnp.sum(counts) if scope == "global" else list(counts)
    kept = growth.dropped(list(eligible), list(worth), gone, scope=scope)
    return [before & ~after for before, after in zip(eligible, kept, strict=True)]


def _scoped(
    program: Program, state: TrainState, event: Array, choose: Callable[[str], list[Array]]
) -> list[Array]:
    """`choose(scope)` in the program's scope, or in a row's own where rows differ in it."""
    if program.global_scope or not program.features.pooled:
        return choose("global" if program.global_scope else "layer")
    pooled = state.table.pooled[event]
    both = zip(choose("global"), choose("layer"), strict=True)  # both: which counts is data
    return [jnp.where(pooled, a, b) for a, b in both]


def select(program: Program, state: TrainState, data: Data, event: Array) -> dict[str, Array]:
    """The targets of event number `event` (a row of `table.counts`): exactly that many units.

    What stays is chosen by `masks.prune`, so a study follows the library's rule: among equal
    units the earlier is kept (layer order first with a global scope), and NaN goes first. Only
    units never targeted before are eligible (all, where dead weights are hidden and not gone).
    Random targets do not look at the scores. With N:M the counts are of what is dead after the
    event, as many in every block.
    """
    counts = state.table.counts[event]
    none = {g.name: jnp.zeros_like(state.windows.targeted[g.name]) for g in program.groups}
    # A row of other arms needs no scores: members that go one by one skip them.
    some = functools.partial(_selected, program, state, data, event)
    return jax.lax.cond(jnp.any(counts > 0), some, lambda: none)


def _selected(program: Program, state: TrainState, data: Data, event: Array) -> dict[str, Array]:
    table, counts = state.table, state.table.counts[event]
    target, number = table.target[event], table.ids[event]
    scores = unit_scores(program, state, data, event)
    worth, eligible = [], []  # larger = kept longer; lists, since a dict would go by name
    drawn = scores  # not looked at where no arm asks for draws
    if program.features.random:
        drawn = rng.uniform(rng.at(state.seed, "mask", number), scores)
    for g in program.groups:
        score = scores[g.name]
        smallest_first = jnp.where(target == LARGEST, -score, score)  # -NaN is NaN: first, too
        worth.append(jnp.where(target == RANDOM, -drawn[g.name], smallest_first))
        taken = state.windows.targeted[g.name]
        eligible.append(~taken if program.forward == "masked" else jnp.ones_like(taken))
    if program.nm is not None:
        m, chosen = program.nm[1], list[Array]()
        for w, units, gone in zip(worth, eligible, counts, strict=True):
            chosen.append(units & ~mask_algebra.nm(w, m - gone // (w.size // m), m, masks=units))
    else:
        choose = functools.partial(targets, worth, counts, forward.own(table, eligible))
        chosen = _scoped(program, state, event, choose)
    return {g.name: c for g, c in zip(program.groups, chosen, strict=True)}


def grow(
    program: Program, state: TrainState, data: Data, event: Array
) -> tuple[dict[str, Array], Array]:
    """The dead units that come back after the drop of row `event`: exactly `table.grow` of each.

    All dead units are candidates, those just dropped too. By the size of the dense gradient
    (RigL, Evci et al. 2020; a filter's is the sum over its weights), or by random draws (SET,
    Mocanu et al. 2018). Ties and NaN, which comes back last, as in `masks.grow`.

    Returns:
      Bool per unit and layer, and how many of them have a gradient of exactly 0, int32 [layers].
    """
    table, gradients = state.table, evidence.saliency_gradient(program, state, data, dense=True)
    dead, sizes = [], {}
    for g in program.groups:
        gone = state.windows.remaining[g.name] > 0
        size = jnp.abs(gradients[g.kernel])
        if gone.ndim == 1:
            size = jnp.sum(size, axis=tuple(range(size.ndim - 1)))
        sizes[g.name] = size
        dead.append(gone)
    worth = list(sizes.values())
    if program.features.random:
        drawn = rng.uniform(rng.at(state.seed, "grow", table.ids[event]), sizes)
        worth = [jnp.where(table.random_growth, drawn[n], s) for n, s in sizes.items()]
    counts = table.grow[event]

    def choose(scope: str) -> list[Array]:
        many = jnp.sum(counts) if scope == "global" else list(counts)
        return mask_algebra.prune(worth, many, masks=forward.own(table, dead), scope=scope)

    back = _scoped(program, state, event, choose)
    grown = {g.name: b for g, b in zip(program.groups, back, strict=True)}
    zero = jnp.stack([jnp.sum(grown[n] & (sizes[n] == 0), dtype=jnp.int32) for n in sizes])
    return grown, zero


def _with_growth(
    program: Program, state: TrainState, data: Data, event: Array
) -> tuple[TrainState, Growth]:
    """The state after the drop -> after the growth of row `event`."""
    count, windows = functools.partial(_count, program), state.windows
    alive = {n: g & (windows.remaining[n] == 0) for n, g in windows.grown.items()}
    last, survived, ever = count(windows.grown), count(alive), count(windows.ever)

    def back(state: TrainState) -> tuple[TrainState, Array, Array]:
        grown, zero = grow(program, state, data, event)
        params, windows = regrowth.regrow(program.groups, state.params, state.windows, grown)
        where = mask_algebra.spread(grown, program.groups, params, rest=False)
        fresh = program.optimizer.init(params)
        moments = growth.zero_moments(state.opt_state, where, fresh)  # were of the weights before
        changed = state._replace(params=params, windows=windows, opt_state=moments)
        return changed, count(grown), zero

    none = jnp.zeros_like(last)
    happens = jnp.any(state.table.grow[event] > 0)
    state, grown, zero = jax.lax.cond(happens, back, lambda s: (s, none, none), state)
    return state, Growth(grown, zero, last, survived, ever)


def apply_event(
    program: Program,
    state: TrainState,
    data: Data,
    event: Array,
    replay: Mapping[str, Array] | None = None,
) -> tuple[TrainState, Event]:
    """Runs the event in row `event` of the run's table: the drop, then what comes back.

    A row of zeros changes nothing, bit for bit.

    Args:
      replay: per layer the targets (bool per unit) that a twin takes from its other; used only
        where `table.replay` is set. None: there are no twins.
    """
    if program.forward != "masked":
        return _rechosen(program, state, data, event)
    selected = select(program, state, data, event)  # of a twin, too: `replay` is data
    if replay is not None:
        again = state.table.replay
        selected = {n: jnp.where(again, replay[n], own) for n, own in selected.items()}
    windows = interventions.open_windows(
        program.groups, state.params, state.batch_stats, state.windows, state.table,
        program.features, selected,
    )  # fmt: skip
    params = interventions.act(
        program.groups, state.params, windows, state.table, program.features, seed=state.seed,
        counter=state.table.ids[event], opening=True, before=state.windows,
    )  # fmt: skip
    happens = jnp.any(jnp.stack([jnp.any(s) for s in selected.values()]))  # else fresh windows act
    params = jax.tree.map(lambda new, old: jnp.where(happens, new, old), params, state.params)
    before, state = state, state._replace(params=params, windows=windows)  # the drop alone
    predicted = jnp.full(2, jnp.nan)
    if program.forecast:  # on the test split, as the losses before and after
        predicted = jax.lax.cond(
            happens,
            functools.partial(
                evaluation.forecast, program, before, state, data.test_images, data.test_labels
            ),
            lambda: predicted,
        )
    back = None
    if program.features.growth:
        state, back = _with_growth(program, state, data, event)
        windows = state.windows
    live = _count(program, {n: left == 0 for n, left in windows.remaining.items()})
    return state, Event(selected, _count(program, selected), live, predicted, back)


def _rechosen(
    program: Program, state: TrainState, data: Data, event: Array
) -> tuple[TrainState, Event]:
    """An event where dead weights are hidden, not gone: its counts are of what is dead after it."""
    table, windows = state.table, state.windows
    dead = select(program, state, data, event)
    if program.features.threshold:
        kept = {n: updates.above(s, table.threshold) for n, s in state.learnt.items()}
        dead = {n: jnp.where(table.threshold >= 0, ~kept[n], dead[n]) for n in dead}
    dead = forward.others_stay(table, windows, dead)
    # A row of its own (`Table.ids`) chooses again even where it asks that nothing be dead.
    happens = jnp.any(table.counts[event] > 0) | (table.ids[event] > program.epochs)
    after, dropped, grown = forward.choose(windows, dead, happens)
    count = functools.partial(_count, program)
    alive = {n: g & (after.remaining[n] == 0) for n, g in windows.grown.items()}
    zero = jnp.full(len(program.groups), -1, jnp.int32)  # no gradient was asked
    last, survived, ever = count(windows.grown), count(alive), count(windows.ever)
    record = Growth(count(grown), zero, last, survived, ever)
    live = count({n: left == 0 for n, left in after.remaining.items()})
    made = Event(dropped, count(dropped), live, jnp.full(2, jnp.nan), record)
    return state._replace(windows=after), made


def with_sparse_fan_in(program: Program, state: TrainState) -> TrainState:
    """Initial weights scaled to the live inputs of their unit, where `table.fan_in` asks for it.

    See `methods.before.sparse_fan_in`. Dead weights are 0 and stay so.
    """
    scaled = before.sparse_fan_in(state.params, masks(program, state))
    params = jax.tree.map(
        lambda new, old: jnp.where(state.table.fan_in, new, old), scaled, state.params
    )
    return state._replace(params=params)
