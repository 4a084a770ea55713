"""Zeroing and noise for a number of steps in anybody's optax loop: events that end again.

    tx = windows(optax.sgd(0.1), [(100, 500)], kind="zero", duration=50)

What studies do with `config.intervention` (`prunejax.interventions`), here on any parameters.
"""

import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prunejax import interventions, registry, rng, trees
from prunejax import masks as masks_lib
from prunejax import scores as scores_lib
from prunejax.groups import Group
from prunejax.methods import before, growth
from prunejax.methods import updates as updates_lib
from prunejax.ops import radix

Array = jax.Array
Tree = Any
KINDS = ("zero", "gaussian")
TARGETS = ("smallest", "largest", "random")
RESTORES = ("no", "weights")


class WindowsState(NamedTuple):
    """The state of `windows`: the wrapped optimizer's, the windows, and the updates done."""

    inner: optax.OptState
    windows: interventions.Windows
    step: Array


def windows(
    optimizer: optax.GradientTransformation,
    events: Sequence[tuple[int, int]],
    *,
    kind: str = "zero",
    duration: int | None = None,
    restore: str = "no",
    noise_scale: float = 1.0,
    target: str = "smallest",
    rules: str | Iterable[str] | None = None,
    score: Callable[[Array], Array] = scores_lib.magnitude,
    scope: str = "global",
    seed: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer: units that events target are zeroed, or get noise, for `duration` steps.

    After the update numbered `step` of an event, `count` units that no event has targeted are set
    to 0 or get noise; so are they after each further update, until `duration` gradients have been
    taken of parameters so changed. Then the window closes: they train on from where they are, or
    from the value before the event (to a rounding error: an update is added). Between two changes
    they are trained as all others are. Outermost, as `sparsify`.

    Args:
      optimizer: any optax transformation.
      events: (step, count) pairs, units to target at that update; what has no gradient (None) gets
        no update.
      kind: "zero", or "gaussian": N(0, (noise_scale * s)^2), drawn anew at every step, s the
        standard deviation of the leaf's first filter that is no target (of all its weights that
        are none, where units are weights).
      duration: steps; None: for ever.
      restore: "no" or "weights".
      noise_scale: see `kind`.
      target: the "smallest" or "largest" scores, or "random" units.
      rules: of the leaves, as in `sparsify`.
      score: leaf -> a number per weight, or one per filter of its last axis, (1, ..., 1, units).
      scope: "global", or "layer" (then each leaf gives `count` units).
      seed: of noise and random targets.

    Raises:
      ValueError: an unknown word, a duration below 1, a noise scale below 0, events that are no
        pairs of such integers; from `init`: nothing to target, more targets than units, noise
        without a spread to follow, or a score of another shape; from `update`: no parameters.
    """
    for value, known, what in (
        (kind, KINDS, "kind"), (target, TARGETS, "target"), (restore, RESTORES, "restore"),
        (scope, masks_lib.SCOPES, "scope"),
    ):  # fmt: skip
        registry.lookup(dict.fromkeys(known, value), value, what)
    whole = registry.is_whole(duration) and 1 <= duration < interventions.FOREVER
    if duration is not None and not whole:
        raise ValueError(
            f"duration {duration!r}: an integer of at least 1 step, below 2^30, or None for ever"
        )
    real = isinstance(noise_scale, numbers.Real) or getattr(noise_scale, "shape", None) == ()
    if not real or not 0 <= noise_scale < math.inf:
        raise ValueError(f"noise_scale {noise_scale!r}: a finite number of at least 0")
    pairs, rules = updates_lib.pairs(events, zeros=True), updates_lib.listed(rules)
    steps, counts = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
    table = interventions.Table(
        kind=np.int32(interventions.KINDS[kind]),
        duration=np.int32(interventions.FOREVER if duration is None else duration),
        restore=np.int32(interventions.RESTORES[restore]),
        noise_scale=np.float32(noise_scale),
    )
    features = interventions.Features(
        finite=True, zero=kind == "zero", gaussian=kind == "gaussian", restore=restore != "no",
        random=target == "random",
    )  # fmt: skip
    inner = optax.with_extra_args_support(optimizer)

    def groups_of(params: Tree) -> tuple[Group, ...]:
        shapes = before.shapes_of(params, trees.prunable(params, rules))
        return tuple(Group(path, path, (), (), None, s[-1]) for path, s in shapes.items())

    def init(params: Tree) -> WindowsState:
        trees.arrays(params)
        groups = groups_of(params)
        shapes = {g.name: _units(g, trees.get(params, g.kernel), score) for g in groups}
        # Copies: loops may donate parameters and state.
        saved = {n: jnp.array(trees.get(params, n)) for n in shapes if features.restore}
        empty = {n: jnp.zeros(s, bool) for n, s in shapes.items()}
        whole = {n: ~none for n, none in empty.items()}
        asked = int(counts.sum(dtype=np.int64))
        updates_lib.enough("target", asked, whole, scope)
        if kind == "gaussian" and asked:
            _has_spread(
                {g.name: trees.get(params, g.kernel).shape for g in groups}, shapes, asked, scope
            )
        left = {n: jnp.zeros(s, jnp.int32) for n, s in shapes.items()}
        state = interventions.Windows(empty, left, saved, {}, {})
        return WindowsState(inner.init(params), state, jnp.int32(0))

    def select(params: Tree, state: WindowsState, due: Array) -> dict[str, Array]:
        eligible = [~units for units in state.windows.targeted.values()]
        worth = {
            n: jnp.reshape(score(trees.get(params, n)), units.shape)
            for n, units in state.windows.targeted.items()
        }
        if target == "random":
            worth = rng.uniform(rng.at(seed, "mask", state.step), worth)
        elif target == "largest":
            worth = {n: radix.opposite(w) for n, w in worth.items()}
        kept = growth.dropped(eligible, list(worth.values()), due, scope=scope)
        return {n: e & ~k for n, e, k in zip(worth, eligible, kept, strict=True)}

    def update(
        gradients: Tree, state: WindowsState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, WindowsState]:
        if params is None:
            raise ValueError("windows needs the parameters: tx.update(gradients, state, params)")
        groups, own = groups_of(params), jnp.asarray(seed)
        updates, inside = inner.update(gradients, state.inner, params, **extra)
        # Windows end, and give back, before an event looks at what is there.
        new, _, held = interventions.advance(
            groups, updates_lib.applied(params, updates), {}, state.windows, table, features
        )
        due = jnp.sum(jnp.where(steps == state.step, counts, 0))  # several pairs may name one step

        def event(new: Tree, held: interventions.Windows) -> tuple[Tree, interventions.Windows]:
            chosen = select(new, state, due)
            held = interventions.open_windows(groups, new, {}, held, table, features, chosen)
            return interventions.act(
                groups, new, held, table, features, seed=own, counter=state.step, opening=True
            ), held

        new, held = jax.lax.cond(due > 0, event, lambda *same: same, new, held)
        # Numbered by the gradient that comes next, as a study numbers its steps.
        new = interventions.act(
            groups, new, held, table, features, seed=own, counter=state.step + 1, opening=False
        )
        changed = jax.tree.map(
            lambda w, x, u: None if u is None else jnp.subtract(x, w), params, new, updates
        )
        return changed, WindowsState(inside, held, state.step + 1)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def _units(group: Group, leaf: Array, score: Callable[[Array], Array]) -> tuple[int, ...]:
    """The shape of a leaf's units: its own, or (units,) for those of its last axis."""
    found = jax.eval_shape(score, leaf).shape
    if found == leaf.shape:
        return tuple(found)
    if math.prod(found) == group.units and found[-1:] == (group.units,):
        return (group.units,)
    raise ValueError(
        f"the score of leaf {group.name!r} {leaf.shape} has shape {found}; give one number per "
        f"weight, or one per filter of the last axis, (1, ..., 1, {group.units})"
    )


def _has_spread(
    leaves: dict[str, tuple[int, ...]], units: dict[str, tuple[int, ...]], asked: int, scope: str
) -> None:
    """Refuses noise that no spread is left for: see `interventions.reference_std`."""
    rest = {n: math.prod(units[n]) - (units[n] == shape) for n, shape in leaves.items()}
    for name, shape in leaves.items():
        if units[name] != shape and math.prod(shape[:-1]) < 2:
            raise ValueError(
                f"a filter of leaf {name!r} {shape} is a single weight, which has no standard "
                "deviation for the noise; name other leaves with rules="
            )
    if asked >= (min(rest.values()) if scope == "layer" else sum(rest.values())):
        raise ValueError(
            f"events target {asked} units in all: the noise has the standard deviation of what no "
            "event targets, a filter or two weights of a leaf; ask for fewer"
        )
