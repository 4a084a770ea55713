"""Prunable groups: what has to be masked together so that a unit is gone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from prunejax import trees
from prunejax import wiring as wiring_lib
from prunejax.trees import whole as whole
from prunejax.wiring import INPUT as INPUT
from prunejax.wiring import OUTPUT as OUTPUT
from prunejax.wiring import Link as Link
from prunejax.wiring import Live as Live
from prunejax.wiring import chain as chain
from prunejax.wiring import columns as columns
from prunejax.wiring import kept as kept
from prunejax.wiring import live as live

EPSILON = 1e-5  # of this package's BatchNorm
Cuts = dict[str, list[tuple[int, np.ndarray]]]  # leaf -> (axis, entries that stay)


class Group(NamedTuple):
    """The filters (or neurons) of one layer and everything that belongs to each of them.

    Masking unit `u` in the kernel's last axis, in `norm`, in `bias` (where there is no norm), and
    in the gate makes the unit's output exactly zero, in the residual stream too.
    """

    name: str  # of the layer: "conv5", "stage4_block1_conv2", "dense2"
    kernel: str  # leaf path in params; the LAST axis of the leaf runs over the units
    norm: tuple[str, ...]  # leaf paths in params of the BatchNorm scale and bias it feeds, or ()
    stats: tuple[str, ...]  # leaf paths in batch_stats of that BatchNorm's mean and variance, or ()
    gate: str | None  # name in collection "gates" of the gate after a residual addition
    units: int  # number of filters or neurons
    bias: tuple[str, ...] = ()  # leaf path in params of the layer's own bias, or ()
    # (leaf path in params, axis) of each kernel that reads the units; an axis k times as long (a
    # flattened map) has the unit as its fastest index. () where nobody said.
    reads: tuple[tuple[str, int], ...] = ()

    @property
    def layer(self) -> str:
        """Its name in tables: of a kernel that a rule chose by its path, that of its layer."""
        return self.name.removesuffix("/kernel")

    @property
    def affine(self) -> tuple[str, ...]:
        """What goes with a unit's kernel: scale and bias of its BatchNorm, or its own bias."""
        return self.norm or self.bias


def norm_name(layer: str) -> str:
    """Name of the BatchNorm that a layer of this package feeds, "" if its name tells of none.

    "stage1_block1_conv2" -> "stage1_block1_bn2", "h1" -> "".
    """
    name = layer.replace("conv", "bn").replace("dense", "bn")
    return "" if name == layer else name


def of_kernels(params: Mapping[str, Any], known: Sequence[Group]) -> tuple[Group, ...]:
    """Groups of all other kernels, for single weights alone: a leaf each, by its path.

    The classifier, the stem, shortcuts, attention, embeddings: every leaf of two or more axes
    that is no kernel of a group in `known`. Their biases and norms stay.
    """
    mine = {g.kernel for g in known}
    return tuple(
        Group(path, path, (), (), None, leaf.shape[-1])
        for path, leaf in trees.leaves_with_paths(params)
        if leaf.ndim > 1 and path not in mine
    )


def _leaves(module: Any, entry: Any, params: Mapping[str, Any]) -> tuple[str, str, str]:
    """Layer, norm ("" for none) and path of the bias ("" for none) of an entry of `prunable`."""
    names = (entry,) if isinstance(entry, str) else entry
    if (
        not isinstance(names, tuple)
        or not 1 <= len(names) <= 3
        or not all(isinstance(n, str) for n in names)
    ):
        raise ValueError(
            f"{type(module).__name__}.prunable: {entry!r} is neither the name of a layer nor "
            "(layer, norm) nor (layer, norm, path of the bias)"
        )
    layer = names[0]
    known = f"{type(module).__name__}; there are: {', '.join(params)}"
    if f"{layer}/kernel" not in params:
        raise ValueError(
            f"no leaf '{layer}/kernel' in the parameters: they are not those of this {known}"
        )
    norm = names[1] if len(names) > 1 else norm_name(layer)
    if len(names) > 1 and norm and not {f"{norm}/scale", f"{norm}/bias"} & set(params):
        raise ValueError(
            f"prunable: {entry!r} names the norm {norm!r}, which has neither "
            f"'{norm}/scale' nor '{norm}/bias' in the parameters of this {known}"
        )
    bias = names[2] if len(names) > 2 else f"{layer}/bias"
    if len(names) > 2 and bias and bias not in params:
        raise ValueError(
            f"prunable: {entry!r} names the bias {bias!r}, which is no parameter of this {known}"
        )
    return layer, norm, bias if bias in params else ""


def params_of(variables: Any) -> Any:
    """The collection "params" of a module's variables; ValueError where there is none."""
    if isinstance(variables, Mapping) and "params" in variables:
        return variables["params"]
    there = str(list(variables) if isinstance(variables, Mapping) else type(variables).__name__)
    raise ValueError(f"variables have no 'params' ({there:.80}); give all that `init` gives")


def groups(module: Any, variables: Mapping[str, Any]) -> tuple[Group, ...]:
    """The prunable groups of a model of this package, in forward order.

    For VGG all convolutions, for ResNets those of each block (never stem, shortcuts or linear
    layer), for ViT the first layer of each MLP, for the others all hidden layers. What else goes
    with a unit is found by name: the BatchNorm "bn1" of "conv1" or "dense1", the layer's own
    "bias"; or an entry of `prunable` says it (`models.base.Model`).

    Args:
      module: a model made by `prunejax.models.create`, or any with a method `prunable`.
      variables: its variables; "params" is needed, "batch_stats" and "gates" where it has them.

    Raises:
      ValueError: the module does not say what is prunable, once, or `variables` are not its own.
    """
    if not hasattr(module, "prunable"):
        raise ValueError(
            f"{type(module).__name__} has no method `prunable` that lists its prunable layers; "
            "make the groups by hand: prunejax.models.Group(name, kernel, norm, ...)"
        )
    params, links = dict(trees.leaves_with_paths(params_of(variables))), wiring(module)
    stats = set(trees.paths(variables.get("batch_stats", {})))
    gates = variables.get("gates", {})
    found: list[Group] = []
    entries = module.prunable()
    for entry in (entries,) if isinstance(entries, str | None) else entries:
        name, norm, bias = _leaves(module, entry, params)
        kernel = f"{name}/kernel"
        if name in {g.name for g in found}:
            raise ValueError(f"{type(module).__name__}.prunable names {name!r} twice")
        found.append(
            Group(
                name=name, kernel=kernel,
                norm=tuple(p for p in (f"{norm}/scale", f"{norm}/bias") if p in params),
                stats=tuple(p for p in (f"{norm}/mean", f"{norm}/var") if p in stats),
                gate=name if name in gates else None, units=params[kernel].shape[-1],
                bias=(bias,) if bias else (), reads=readers(links, kernel),
            )
        )  # fmt: skip
    return tuple(found)


def wiring(module: Any) -> tuple[Link, ...]:
    """The links of a model that states them by a method `wiring`, else ()."""
    return tuple(module.wiring()) if hasattr(module, "wiring") else ()


def readers(links: Sequence[Link], kernel: str) -> tuple[tuple[str, int], ...]:
    """(leaf, axis) of all that reads the units that a kernel writes; () where no link has it."""
    streams = dict.fromkeys(k.target for k in links if k.kernel == kernel)
    return tuple(r for stream in streams for r in wiring_lib.readers(links, stream))


def cut(tree: Any, cuts: Cuts) -> Any:
    """A tree with the entries of its leaves that stay."""

    def one(path: str, leaf: Any) -> Any:
        for axis, index in cuts.get(path, ()):
            leaf = np.take(np.asarray(leaf), index, axis=axis)
        return jax.device_put(leaf)  # `jnp.asarray` compiles a program for each shape

    return trees.map_with_path(one, tree)


def host(tree: Any) -> dict[str, np.ndarray]:
    """Leaf path -> array, of the shapes of the leaves."""
    return {path: np.asarray(leaf) for path, leaf in trees.leaves_with_paths(tree)}


def repeated(kept: Any, units: int, length: int) -> Any:
    """Entries, of units that may be traced, of an axis on which the unit is the fastest index."""
    return (np.arange(length // units)[:, None] * units + kept[None]).reshape(-1)


def unit_axes(links: Sequence[Link]) -> dict[str, list[tuple[int, str, int]]]:
    """Leaf path, of params or batch_stats -> (axis, stream, first entry) of all that it runs over.

    Axis -2 of a kernel reads the units of its source (a flattened map: unit fastest), axis -1
    writes, from a first entry on, those of a target; so do norms, biases and statistics.
    """
    found: dict[str, list[tuple[int, str, int]]] = {}
    for link in links:
        first = (link.columns or (0, 0))[0]
        for path in filter(None, (link.kernel, *link.leaves)):
            axes = found.setdefault(path, [])
            known = {(axis, entry) for axis, _, entry in axes}  # a leaf may stand in several links
            if path == link.kernel and link.source != INPUT and (-2, 0) not in known:
                axes.insert(0, (-2, link.source, 0))
            if (-1, first) not in known:
                axes.append((-1, link.target, first))
        for gain in link.gains:
            norm = gain.rpartition("/")[0]
            found |= {f"{norm}/{part}": [(-1, link.target, 0)] for part in ("mean", "var")}
    return found


def stated_cuts(
    groups: Sequence[Group], live: Mapping[str, Any], masks: Any, constants: str
) -> tuple[dict[str, np.ndarray], Cuts]:
    """Group -> units that go (bool [units]), and leaf -> (axis, entries that stay [kept])."""
    params = host(live["params"])
    gone: dict[str, np.ndarray] = {}
    cuts: Cuts = {}
    for g in groups:
        if g.gate is not None or not g.reads:
            why = "ends in a residual sum" if g.gate is not None else "names no readers"
            raise ValueError(
                f"group {g.name!r} {why}; state the model's wiring, or leave the group out"
            )
        named = (g.kernel, *g.affine, *(path for path, _ in g.reads))
        trees.demand(live["params"], named, f"group {g.name!r}")
        kernel = params[g.kernel]
        empty = ~(kernel != 0).any(axis=tuple(range(kernel.ndim - 1)))
        zero = empty & np.all([params[p] == 0 for p in g.affine] or [empty], axis=0)
        views = [np.moveaxis(params[path], axis, -1) for path, axis in g.reads]
        for view, (path, axis) in zip(views, g.reads, strict=True):
            if view.shape[-1] % g.units:
                raise ValueError(
                    f"group {g.name!r}: axis {axis} of {path!r} {params[path].shape} is no "
                    f"multiple of its {g.units} units"
                )
        read = np.any([(v != 0).reshape(-1, g.units).any(axis=0) for v in views], axis=0)
        wrong = np.flatnonzero(empty & ~zero & read)
        if wrong.size and constants == "refuse":
            raise ValueError(
                f"layer {g.kernel!r}: nothing is live of unit {wrong[0]}, but its bias or norm is "
                "not 0; mask them with it (masks.from_units), or constants='keep'"
            )
        gone[g.name] = zero | ~read
        stay = kept(gone[g.name])
        for path in dict.fromkeys((g.kernel, *g.norm, *g.bias, *g.stats)):
            cuts.setdefault(path, []).append((-1, stay))
        for path, axis in g.reads:
            length = params[path].shape[axis]
            cuts.setdefault(path, []).append((axis, repeated(stay, g.units, length)))
    return gone, cuts


def zero_part(
    link: Link,
    params: dict[str, np.ndarray],
    stats: dict[str, np.ndarray],
    zero: dict[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """What a link adds to its target, [units] each: where exactly 0, and how much without inputs.

    `params` and `stats` are leaf path -> array of the leaf's shape, `zero` stream -> bool [units].
    """
    source = zero.get(link.source, np.zeros(1, bool))
    if link.kernel:
        kernel = columns(link, params[link.kernel])
        there = (kernel != 0).any(axis=tuple(range(kernel.ndim - 2)))
        there = there.reshape(-1, source.size, there.shape[-1]).any(axis=0)
        signal = (there & ~source[:, None]).any(axis=0)
    elif link.take is not None:
        index = np.asarray(link.take)
        signal = (index >= 0) & ~source[np.maximum(index, 0)]  # -1 would read the last unit
    else:
        # what is mixed counts as never 0
        signal = np.ones(source.size, bool) if link.blocks else ~source
    after = {gain.rpartition("/")[0] for gain in link.gains}
    before = [p for p in link.biases if p.rpartition("/")[0] not in after]
    behind = [p for p in link.biases if p.rpartition("/")[0] in after]
    rows = lambda paths: [columns(link, params[p]) for p in paths]  # noqa: E731
    flat = [x.reshape(-1, x.shape[-1]) for x in rows(before)]
    constant: np.ndarray = sum((x.sum(axis=0) for x in flat), np.zeros(signal.size, np.float32))
    biased = np.any([(x != 0).any(axis=0) for x in flat] or [np.zeros(signal.size, bool)], axis=0)
    if not link.gains:
        return ~signal & ~biased, constant
    norm = link.gains[0].rpartition("/")[0]
    gains, shifts = (
        [x.reshape(-1, x.shape[-1]) for x in rows(paths)] for paths in (link.gains, behind)
    )
    shift: np.ndarray = sum((x.sum(axis=0) for x in shifts), np.zeros(signal.size, np.float32))
    shut = np.any([(x == 0).all(axis=0) for x in gains], axis=0)
    shut &= np.all([(x == 0).all(axis=0) for x in shifts] or [shut], axis=0)
    if f"{norm}/var" not in stats or sum(map(len, gains)) > 1:  # LayerNorm: never without input
        return shut, shift
    (gain,) = gains[0]
    scale = gain / np.sqrt(stats[f"{norm}/var"] + EPSILON)  # running statistics: evaluation mode
    value = scale * (constant - stats[f"{norm}/mean"]) + shift
    return np.where(signal, shut, value == 0), value
