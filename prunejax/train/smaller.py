"""Training steps on smaller arrays: without the units that are masked for good.

A state is whole wherever a study looks at it: events, evaluations, tables and checkpoints name
units by their place in the whole network. Around a call of training steps it is cut to the units
that are live, and put back afterwards, so that the steps cost what the smaller network costs. How
many units of each layer stay is planned (`Program.cuts`) and so static; which ones is read from the
state, so that runs which pruned different units share one compiled step.

Steps are those of the masked network up to rounding, with two differences. What reads a unit that
is cut goes with it: those weights are 0 afterwards, as if they had never been, and no score counts
them, while under a mask alone weight decay shrinks them slowly. And dropout draws for the units
that are there.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import groups as groups_lib
from prunejax import models, trees
from prunejax.groups import OUTPUT
from prunejax.train.step import Data, Program, TrainState

Array = jax.Array
Tree = Any
# Leaf path, of params or batch_stats -> (axis, layer whose units it runs over).
Axes = Mapping[str, tuple[tuple[int, str], ...]]
Units = Mapping[str, tuple[int, int]]  # layer that is cut -> units before and after


@dataclasses.dataclass(frozen=True)
class Smaller:
    """A program whose layers have fewer units, and where those of the whole one are."""

    program: Program  # of the smaller network
    units: Units
    axes: Axes  # where those of the layers that are cut stand


def sizes(program: Program, epoch: int) -> tuple[int, ...] | None:
    """Units of each group in an epoch; None: all of them."""
    due = [found for begins, found in program.cuts if begins <= epoch]
    return due[-1] if due else None


def of(program: Program, sizes: tuple[int, ...]) -> Smaller:
    """The program for networks with so many units in each of its groups.

    Raises:
      ValueError: the model has no smaller form, or one that depends on which units go.
      TypeError: its method `shrunk` ends in an error of another kind, or gives no model.
    """
    module, groups = program.module, program.groups
    units = {g.name: (g.units, n) for g, n in zip(groups, sizes, strict=True) if n < g.units}
    shapes = models.shapes(module, program.image_shape)
    links = groups_lib.wiring(module)
    name = type(module).__name__
    if not links or not hasattr(module, "shrunk"):
        raise ValueError(f"{name} does not say who reads its units (`wiring`, `shrunk`)")
    alive = jax.tree.map(lambda _: np.True_, shapes["params"])
    streams = groups_lib.live(links, shapes["params"], alive).read
    # Runs that prune other units share the step: first and last ones must leave the same network.
    if strange := [layer for layer in units if layer not in streams]:
        raise ValueError(f"{name}: `wiring` has no stream {strange[0]!r}, as the layer is named")
    try:
        small, other = (_without(module, streams, units, last) for last in (True, False))
        arrays = models.shapes(small, program.image_shape)
    except ValueError:
        raise
    except Exception as error:  # of whoever wrote the method
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise TypeError(f"{name}.shrunk gives no smaller model: {why}") from error
    if small != other:
        raise ValueError(
            f"{name}: which units of {', '.join(units)} go decides how its layers are wired (a "
            "residual sum), so that runs cannot share a compiled step; name other layers"
        )
    for link in links:
        shared = link.columns or link.take or link.blocks or link.times
        if shared and (link.target in units or link.source in units):
            raise ValueError(f"{name}: units of {link.target!r} share a leaf or a sum with others")
    axes = {
        path: tuple((axis, layer) for axis, layer, _ in all_of if layer in units)
        for path, all_of in groups_lib.unit_axes(links).items()
    }
    cut = Smaller(
        dataclasses.replace(
            program,
            module=small,
            groups=tuple(g._replace(units=n) for g, n in zip(groups, sizes, strict=True)),
            cuts=(),
        ),
        units,
        axes,
    )
    _check(cut, shapes, arrays, name)
    return cut


def _without(
    module: Any, streams: Mapping[str, Any], units: Mapping[str, tuple[int, int]], last: bool
) -> Any:
    """The model without the last, or the first, units of each layer."""
    gone = {name: np.zeros(read.size, bool) for name, read in streams.items() if name != OUTPUT}
    for name, (whole, kept) in units.items():
        gone[name][slice(kept, None) if last else slice(0, whole - kept)] = True
    return module.shrunk(gone)[0]


def _check(cut: Smaller, whole: Tree, small: Tree, name: str) -> None:
    """Whether cutting gives the smaller model's arrays."""
    index = {layer: np.arange(kept) for layer, (_, kept) in cut.units.items()}
    for part in ("params", "batch_stats"):
        found = jax.eval_shape(
            lambda tree: taken(tree, cut.units, cut.axes, index), whole.get(part, {})
        )
        made = [(path, x.shape) for path, x in trees.leaves_with_paths(found)]
        if made != [(path, x.shape) for path, x in trees.leaves_with_paths(small.get(part, {}))]:
            raise ValueError(f"{name}: its smaller form has other arrays than its wiring tells of")


def trained(
    cut: Smaller, train: Callable[..., TrainState], state: TrainState, data: Data, *steps: Array
) -> TrainState:
    """As `train(program, state, data, *steps)` of `step`, on the smaller network."""
    index = {
        # The live units in their order, then dead ones: planned is what the run with most has.
        name: jnp.argsort(state.windows.remaining[name] > 0, stable=True)[:kept]
        for name, (_, kept) in cut.units.items()
    }
    small = functools.partial(taken, units=cut.units, axes=cut.axes, index=index)
    whole = functools.partial(_back, cut=cut, index=index)

    def of_layers(found: Mapping[str, Array]) -> dict[str, Array]:
        return {k: x[index[k]] if k in index else x for k, x in found.items()}

    part = state._replace(
        params=small(state.params),
        # Moments are cut as their weights are.
        opt_state=trees.map_alike(small, state.params, state.opt_state),
        batch_stats=small(state.batch_stats),
        activations=of_layers(state.activations),
        windows=state.windows._replace(
            targeted=of_layers(state.windows.targeted), remaining=of_layers(state.windows.remaining)
        ),
    )
    part = train(cut.program, part, data, *steps)
    return part._replace(
        params=whole(state.params, part.params),
        opt_state=trees.map_alike(whole, state.params, state.opt_state, part.opt_state),
        # A dead unit's statistics and activations are read by none; they stay as they are.
        batch_stats=whole(state.batch_stats, part.batch_stats, keep=True),
        activations={
            k: state.activations[k].at[index[k]].set(x) if k in index else x
            for k, x in part.activations.items()
        },
        windows=state.windows,
    )


def taken(tree: Tree, units: Units, axes: Axes, index: Mapping[str, Any]) -> Tree:
    """`tree` (parameters or statistics) with the units `index` (layer -> [kept]) of each layer."""

    def one(path: str, leaf: Array) -> Array:
        for axis, layer in axes.get(path, ()):
            length = leaf.shape[axis]
            entries = groups_lib.repeated(index[layer], units[layer][0], length)
            leaf = jnp.take(leaf, entries, axis=axis)
        return leaf

    return trees.map_with_path(one, tree)


def chosen(tree: Tree, units: Units, axes: Axes, index: Mapping[str, Array]) -> Tree:
    """As `taken`, for what is differentiated.

    By products with 0 and 1, which are exact: their transposes are products as well, where that of
    a lookup is a scatter, slower to compile and to run.
    """

    def one(path: str, leaf: Array) -> Array:
        for axis, layer in axes.get(path, ()):
            length = leaf.shape[axis]
            entries = groups_lib.repeated(index[layer], units[layer][0], length)
            pick = jax.nn.one_hot(entries, length, dtype=leaf.dtype)
            picked = jnp.tensordot(leaf, pick, axes=((axis,), (1,)), precision="highest")
            leaf = jnp.moveaxis(picked, -1, axis)
        return leaf

    return trees.map_with_path(one, tree)


def _back(
    before: Tree, tree: Tree, cut: Smaller, index: Mapping[str, Any], keep: bool = False
) -> Tree:
    """Leaves in their old shapes: what was cut is as before (`keep`), or 0."""

    def one(path: str, leaf: Array, old: Array) -> Array:
        for axis, layer in reversed(cut.axes.get(path, ())):
            length = old.shape[axis]
            shape = list(leaf.shape)
            shape[axis] = length
            base = old if keep else jnp.zeros(shape, leaf.dtype)
            entries = groups_lib.repeated(index[layer], cut.units[layer][0], length)
            place = (*(slice(None),) * (leaf.ndim + axis), entries)
            leaf = base.at[place].set(leaf)
        return leaf

    return trees.map_with_path(one, tree, before)
