"""Smaller networks, for real: arrays without the units that are gone, and the same outputs.

    small, variables = shrink.shrink(module, variables, masks)              # a model of prunejax
    small, variables = shrink.shrink(module, variables, masks, fold=True)   # without BatchNorm

A unit is cut where it is exactly 0 behind its activation, or where nothing live reads it on the
way to the output. Outputs (evaluation mode) are those of the masked network up to rounding: sums
have fewer terms. In residual networks every block's output has units of its own, so that a channel
whose gate is shut goes in that block, whatever the others do.

`with_optimizer` cuts the state of an optax optimizer as well, so that training goes on.

A model of your own takes part by a method `shrunk` beside `wiring` (see `models.base.Model`), or
without either, through groups that name their readers (docs/shrink.md has an example).
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import groups as groups_lib
from prunejax import trees
from prunejax.groups import EPSILON, OUTPUT, Cuts, Group, Link

Tree = Any
Array = np.ndarray
TOLERANCE = 1e-5  # of outputs, relative to the largest; rounding makes less than 1e-6
CONSTANTS = ("refuse", "keep")


def shrink(
    model: Any,
    variables: Mapping[str, Any],
    masks: Tree = None,
    *,
    fold: bool = False,
    constants: str = "refuse",
    example: Any = None,
    groups: Sequence[Group] | None = None,
    rebuild: Callable[[dict[str, int]], Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """The network without its dead units.

    Args:
      model: a module with the methods `wiring` and `shrunk`, or any with `groups` and `rebuild`.
      variables: "params", and "batch_stats" and "gates" where it has them; a gate that is not
        given is open.
      masks: of the parameters; None: the zeros of the parameters are their masks, as in a study's
        states.
      fold: BatchNorm goes into kernels and biases (models of this package); for evaluation only.
      constants: what is done where a kernel's mask leaves nothing of a unit, but its bias or norm
        gives something else than 0: "refuse", or "keep" the unit.
      example: a batch of inputs; both networks are run on it and compared.
      groups: of a model without `wiring`; each names in `reads` all that reads its units.
      rebuild: group -> number of units -> the smaller model.

    Returns:
      The smaller model and its variables. At least one unit of each layer stays.

    Raises:
      ValueError: the model cannot be shrunk, a pruned unit is not exactly 0 (see `constants`), or
        the outputs on `example` differ by more than 1e-5 of the largest, however small that is.
    """
    small, found, _ = _shrunk(model, variables, masks, fold, constants, example, groups, rebuild)
    return small, found


def with_optimizer(
    model: Any,
    variables: Mapping[str, Any],
    state: Tree,
    masks: Tree = None,
    *,
    constants: str = "refuse",
    example: Any = None,
    groups: Sequence[Group] | None = None,
    rebuild: Callable[[dict[str, int]], Any] | None = None,
) -> tuple[Any, dict[str, Any], Tree]:
    """`shrink` for training on: the state of an optax optimizer is cut with the parameters.

    What belongs to a parameter by its path (moments, traces, masks; histories of several too, and
    inside `optax.masked` or `optax.partition`) is cut as the parameter is; counts and everything
    else stay. A step of the smaller network is then the masked step, up to rounding, while the
    masks do not change.

    Args:
      model, variables, masks, constants, example, groups, rebuild: as of `shrink`.
      state: what the optimizer's `init` or `update` returned for the whole parameters.

    Returns:
      The smaller model, its variables, and the optimizer's state for them.

    Raises:
      ValueError: as `shrink`, or a part of the state has no entry for each weight (Adafactor's).
    """
    small, found, cuts = _shrunk(
        model, variables, masks, False, constants, example, groups, rebuild
    )
    return small, found, _cut_state(state, variables["params"], cuts)


def _cut_state(state: Tree, params: Tree, cuts: Cuts) -> Tree:
    """An optimizer's state for the smaller parameters."""
    known, names = trees.leaves_with_paths(params), trees.paths(state)
    leaves, structure = jax.tree.flatten(state)
    for i, at in enumerate(trees.owners(state, params)):
        path, shape = ("", ()) if at is None else (known[at][0], np.shape(known[at][1]))
        whole = np.shape(leaves[i])
        if not whole or path not in cuts:
            continue
        if not trees.ends_like((*whole[: len(whole) - len(shape)], *shape), whole):
            raise ValueError(
                f"the optimizer's state has {names[i]!r} of shape {whole} for {path!r} {shape}: no "
                "entry for each weight, so that it cannot be cut; shrink, and begin it anew"
            )
        for axis, index in cuts[path]:
            place = axis % len(shape) - len(shape)  # from behind: histories have axes in front
            if whole[place] != 1 or shape[place] == 1:
                leaves[i] = np.take(np.asarray(leaves[i]), index, axis=place)
        leaves[i] = jax.device_put(leaves[i])
    return jax.tree.unflatten(structure, leaves)


def _shrunk(
    model: Any, variables: Mapping[str, Any], masks: Tree, fold: bool, constants: str, example: Any,
    groups: Sequence[Group] | None, rebuild: Callable[[dict[str, int]], Any] | None,
) -> tuple[Any, dict[str, Any], Cuts]:  # fmt: skip
    """As `shrink`, and what was cut of each parameter."""
    if constants not in CONSTANTS:
        raise ValueError(f"constants {constants!r} is not one of: {', '.join(CONSTANTS)}")
    params = groups_lib.params_of(variables)
    if masks is None:
        masks = trees.map_with_path(lambda _, p: np.asarray(p) != 0, params)
    live = dict(variables) | {"params": _applied(groups_lib.whole(params, masks), params)}
    if groups is not None:
        if rebuild is None or fold:
            raise ValueError(
                "groups: give rebuild as well, a function from {group: units} to the smaller "
                "model, and no fold"
            )
        gone, cuts = groups_lib.stated_cuts(groups, live, masks, constants)
        small = rebuild({g.name: int(groups_lib.kept(gone[g.name]).size) for g in groups})
        found = {name: groups_lib.cut(tree, cuts) for name, tree in live.items()}
    else:
        if not hasattr(model, "shrunk") or not groups_lib.wiring(model):
            raise ValueError(
                f"{type(model).__name__} has no method `shrunk` beside `wiring`; give groups that "
                "name their readers, and rebuild"
            )
        small, found, cuts = _of_links(model, live, masks, constants)
        if fold:
            small, found = _folded(small, found)
    if example is not None:
        _compare(model, live, small, found, example)
    return small, found, cuts


def _applied(masks: Mapping[str, Array], params: Tree) -> Tree:
    """Masked parameters on the host: one compilation for each shape would take longer."""

    def one(path: str, leaf: Any) -> Array:
        host = np.asarray(leaf)
        return np.where(masks[path], host, np.zeros((), host.dtype))

    return trees.map_with_path(one, params)


def _compare(model: Any, live: Tree, small: Any, found: Tree, example: Any) -> None:
    before = np.asarray(model.apply(live, example))
    try:
        after = np.asarray(small.apply(found, example))
    except Exception as error:  # of whatever framework
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"the smaller model does not take its arrays: {why}") from error
    worst = float(np.max(np.abs(before - after), initial=0))
    largest = float(np.max(np.abs(before), initial=0))
    if not worst <= TOLERANCE * largest:  # NaN is refused as well
        raise ValueError(
            f"the smaller network's outputs differ by {worst:.2g} where the largest is "
            f"{largest:.2g}; check that groups, or `wiring` and `shrunk`, name all that reads units"
        )


def _of_links(
    model: Any, live: Mapping[str, Any], masks: Tree, constants: str
) -> tuple[Any, dict[str, Any], Cuts]:
    links = groups_lib.wiring(model)
    gates = groups_lib.host(live.get("gates", {}))
    net = groups_lib.live(links, live["params"], masks, gates=gates)
    zero = _zeros(links, live, masks, gates, net.read if constants == "refuse" else {})
    small, kept = _kept(model, {s: zero[s] | ~net.read[s] for s in zero if s != OUTPUT})
    whole = {s: np.arange(z.size) for s, z in zero.items()}
    index = whole | kept
    shapes = {path: x.shape for path, x in trees.leaves_with_paths(live["params"])}
    cuts: Cuts = {}
    for path, axes in groups_lib.unit_axes(links).items():
        cuts[path] = [
            (axis, groups_lib.repeated(index[source], whole[source].size, shapes[path][axis]))
            for axis, source, _ in axes
            if axis == -2
        ]
        # Links may write parts of one leaf, each from its own first entry on.
        cuts[path] += [(-1, np.concatenate([index[s] + n for a, s, n in axes if a == -1]))]
    parts = [name for name in ("params", "batch_stats") if live.get(name)]
    found = {name: groups_lib.cut(live[name], cuts) for name in parts}
    if gates:
        found["gates"] = {name: jax.device_put(gate[index[name]]) for name, gate in gates.items()}
    return small, found, cuts


def _kept(model: Any, gone: Mapping[str, Array]) -> tuple[Any, dict[str, Array]]:
    """What `model.shrunk(gone)` gives: the smaller model, and stream -> units that it keeps."""
    found = model.shrunk(gone)
    with contextlib.suppress(TypeError, ValueError, LookupError, AttributeError):
        small, kept = found
        index = {s: np.arange(gone[s].size)[np.asarray(units)] for s, units in kept.items()}
        if all(units.ndim == 1 and units.size for units in index.values()):
            return small, index
    raise ValueError(
        f"{type(model).__name__}.shrunk gives ... {' '.join(repr(found).split())[-60:]}; a pair is "
        "needed: the smaller model, and which units it keeps of streams that it cuts, at least one "
        f"each; there are: {', '.join(gone)}"
    )


def _zeros(
    links: Sequence[Link], live: Mapping[str, Any], masks: Tree, gates: Mapping[str, Array],
    refused: Mapping[str, Array],
) -> dict[str, Array]:  # fmt: skip
    """Stream -> the units that are exactly 0 behind their activation, whatever the input.

    ValueError tells of a unit of `refused` (stream -> units that are read) whose kernel is wholly
    masked, and that is not 0 all the same. `live` has masked parameters.
    """
    params, stats = groups_lib.host(live["params"]), groups_lib.host(live.get("batch_stats", {}))
    masked = groups_lib.whole(live["params"], masks)
    zero: dict[str, Array] = {}
    # what only scales a target is no part of its sum
    alone = [link.target for link in links if not link.times]
    for link in links:
        if link.times:
            continue
        part, value = groups_lib.zero_part(link, params, stats, zero)
        gate = gates.get(link.target, np.ones(part.size, bool))
        # In a sum a unit without a kernel may be what the other links bring.
        if link.kernel and link.target in refused and alone.count(link.target) == 1:
            kernel = groups_lib.columns(link, masked[link.kernel])
            pruned = ~kernel.any(axis=tuple(range(kernel.ndim - 1)))
            wrong = np.flatnonzero(pruned & ~part & gate & refused[link.target])
            if wrong.size and link.target != OUTPUT:
                raise ValueError(
                    f"layer {link.kernel!r}: nothing is live of unit {wrong[0]}, but it gives "
                    f"{value[wrong[0]]:.4g}, not 0; mask its bias and norm with it "
                    "(masks.from_units), or keep such units by constants='keep'"
                )
        part = part | ~gate
        # A sum is 0 for certain only where each part is; what cancels by chance is kept.
        zero[link.target] = zero.get(link.target, np.ones(part.size, bool)) & part
    return zero


def _folded(model: Any, variables: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The same function with BatchNorm in kernels and biases, and no BatchNorm left.

    With s = scale / sqrt(var + epsilon): kernel s, and bias beta + s (own bias - mean).
    """
    params, stats = (
        groups_lib.host(variables["params"]),
        groups_lib.host(variables.get("batch_stats", {})),
    )
    for link in groups_lib.wiring(model):
        norm = link.gains[0].rpartition("/")[0] if link.gains else ""
        if f"{norm}/var" not in stats:
            continue
        if not link.kernel:
            raise ValueError(f"fold: BatchNorm {norm!r} reads a sum: no kernel can take it up")
        layer = link.kernel.rpartition("/")[0]
        # the running statistics, as in evaluation mode
        gain = params.pop(f"{norm}/scale") / np.sqrt(stats[f"{norm}/var"] + EPSILON)
        own = params.get(f"{layer}/bias", np.zeros_like(gain))
        params[link.kernel] = params[link.kernel] * gain
        params[f"{layer}/bias"] = params.pop(f"{norm}/bias") + gain * (own - stats[f"{norm}/mean"])
    from flax.traverse_util import unflatten_dict  # not for who folds nothing

    nested = unflatten_dict({p: jnp.asarray(leaf) for p, leaf in params.items()}, sep="/")
    found = {k: v for k, v in variables.items() if k != "batch_stats"} | {"params": nested}
    return model.clone(folded=True), found
