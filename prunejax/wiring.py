"""Who reads whom in a network: its layers as links between streams of units; live paths.

    links = groups.wiring(module)                 # a model of this package, or any that states it
    found = wiring.live(links, params, masks)
    found.sparsity                                # fraction of entries on no live path
    found.units["dense2"]                         # bool per unit

A stream is what one layer hands to others: "conv3", "stage2_block1_conv2" (after the residual
addition), "input", "output". A unit is live if an unbroken path of live weights leads from the
input to it and another from it to the output; a weight is, if its units are (Vysogorets & Kempe,
"Connectivity matters", JMLR 2023). Activations, pooling and maps do not matter: what a kernel's
tap does at one position counts for all, also where it would see padding alone.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from prunejax import trees

Tree = Any
Bools = np.ndarray
INPUT, OUTPUT = "input", "output"


class Link(NamedTuple):
    """One layer, or one shortcut, from a stream to a stream. Links stand in forward order.

    A stream that several links lead to is their sum. Without a kernel the units themselves are
    handed on: unit by unit, those of `take`, or (`blocks`) all of a block to all of that block.
    """

    source: str
    target: str
    kernel: str = ""  # leaf: axis -2 reads the source (a flattened map: unit fastest), -1 writes
    gains: tuple[str, ...] = ()  # leaves over the target's units that multiply, as a norm's scale
    biases: tuple[str, ...] = ()  # leaves over the target's units that are added
    columns: tuple[int, int] | None = None  # [first, last) of the kernel's and biases' last axis
    take: tuple[int, ...] | None = None  # per unit of the target the source's unit, -1: none
    blocks: int = 0  # equal blocks that are mixed: LayerNorm has 1, attention one a head
    times: str = ""  # stream that multiplies the source; the product scales the target's block

    @property
    def leaves(self) -> tuple[str, ...]:
        """The leaves with an entry for each unit of the target, but for the kernel."""
        return (*self.gains, *self.biases)


def chain(names: Sequence[str], *, norm: bool, bias: bool) -> tuple[Link, ...]:
    """Layers that each read the one before, with "bn1", "bn2", ... or an own bias; a classifier."""
    links, before = list[Link](), INPUT
    for i, name in enumerate(names, 1):
        gains = (f"bn{i}/scale",) * norm
        biases = (f"{name}/bias",) * bias + (f"bn{i}/bias",) * norm
        links.append(Link(before, name, f"{name}/kernel", gains, biases))
        before = name
    return (*links, Link(before, OUTPUT, "classifier/kernel", (), ("classifier/bias",)))


@dataclasses.dataclass(frozen=True)
class Live:
    """What is on a live path.

    Attributes:
      units: stream -> bool per unit (those of the input are not known and left out).
      read: stream -> bool per unit: whether it reaches the output, fed or not.
      leaves: path -> bool per entry, True where it is live and on a live path. Leaves that no link
        names are as their masks say.
    """

    units: dict[str, Bools]
    read: dict[str, Bools]
    leaves: dict[str, Bools]

    @cached_property
    def sparsity(self) -> float:
        """Fraction of all entries that are masked or on no live path: the effective sparsity."""
        total = sum(x.size for x in self.leaves.values())
        live = sum(int(np.count_nonzero(x)) for x in self.leaves.values())
        return 1 - live / total if total else 0.0


def readers(links: Sequence[Link], stream: str) -> tuple[tuple[str, int], ...]:
    """(leaf, axis) of all kernels that read a stream's units; axes as in `Link.kernel`.

    Also those behind a norm that reads the stream and nothing else.
    """
    found = [(k.kernel, -2) for k in links if k.source == stream and k.kernel]
    for k in links:
        if k.source == stream and k.gains and not (k.kernel or k.take or k.blocks or k.times):
            found += readers(links, k.target)
    return tuple(found)


def columns(link: Link, leaf: np.ndarray) -> np.ndarray:
    """What a link reads or writes of the last axis of `leaf` [..., entries]: [..., columns]."""
    return leaf[..., slice(*link.columns)] if link.columns else leaf


def kept(gone: Bools) -> np.ndarray:
    """Indices [kept] of the units that stay; the first where all are gone, against size 0."""
    found = np.flatnonzero(~gone)
    return found if found.size else np.zeros(1, int)


def live(
    links: Sequence[Link], params: Tree, masks: Tree, *, gates: Mapping[str, Any] | None = None
) -> Live:
    """Units and entries on a live path from input to output.

    Args:
      links: of the network, in forward order.
      params: the parameters (only shapes are read).
      masks: masks of `params`; scalars and leading axes of 1 broadcast.
      gates: stream -> bool per unit: False where a unit is shut whatever leads to it.

    Raises:
      ValueError: links name a leaf or a stream that is not there, or sizes do not fit.
    """
    full = trees.whole(params, masks)
    for link in links:
        named = filter(None, (link.kernel, *link.leaves))
        trees.demand(params, named, f"link {link.source} -> {link.target}")
    net = _Net(links, full, {k: np.asarray(v, bool) for k, v in (gates or {}).items()})
    return net.result()


class _Net:
    """One pass forwards and one backwards over the links."""

    def __init__(
        self, links: Sequence[Link], masks: dict[str, Bools], gates: dict[str, Bools]
    ) -> None:
        self.links, self.masks, self.gates = links, masks, gates
        self.sizes = self._sizes()
        for stream, gate in gates.items():
            if stream in self.sizes and gate.shape != (self.sizes[stream],):
                raise ValueError(
                    f"gate {stream!r} has shape {gate.shape}; the stream has "
                    f"{self.sizes[stream]} units"
                )
        # stream -> reached from the input
        self.forward = {s: np.zeros(n, bool) for s, n in self.sizes.items()}
        self.reached: list[Bools] = []  # per link: the target's units that it leads a signal to
        for link in links:
            out = self._out(link)
            self.reached.append(out)
            self.forward[link.target] = self.forward[link.target] | out
        self.back = {s: np.zeros(n, bool) for s, n in self.sizes.items()}
        if OUTPUT in self.back:
            self.back[OUTPUT][:] = True  # every output is wanted
        self.wanted: list[Bools] = []  # per link: the target's units through which it is read
        for link in reversed(links):  # after the pass forwards, whose result `times` looks at
            wanted = self.back[link.target] & self._open(link)
            self.wanted.insert(0, wanted)
            self._pull(link, wanted)

    def _sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for link in self.links:
            for stream in filter(None, (link.source, link.times)):
                if stream not in (INPUT, *sizes):
                    text = (
                        f"link {link.source} -> {link.target}: no earlier link leads to {stream!r}"
                    )
                    raise ValueError(
                        f"{text}; give them in forward order, the first from {INPUT!r}"
                    )
            if link.kernel:
                size = columns(link, self.masks[link.kernel]).shape[-1]
            elif link.take is not None:
                size = len(link.take)
            else:
                size = sizes.get(link.target, sizes[link.source])
            self._check(link, size, sizes)
            sizes[link.target] = size
        return sizes

    def _check(self, link: Link, size: int, sizes: Mapping[str, int]) -> None:
        """Refuses leaves and units that do not go with a link of `size` units."""
        wrong = [p for p in link.leaves if columns(link, self.masks[p]).shape[-1:] != (size,)]
        text = f"{wrong[0]!r} has not {size} entries along its last axis" if wrong else ""
        first, last = link.columns or (0, size)
        if last - first != size or (link.kernel and self.masks[link.kernel].ndim < 2):
            text = f"{link.kernel!r} has fewer than two axes, or no columns {link.columns}"
        if link.take and max(link.take) >= sizes.get(link.source, max(link.take) + 1):
            text = f"take names unit {max(link.take)} of {sizes[link.source]}"
        if sizes.get(link.target, size) != size:
            text = f"{size} units; other links lead to {sizes[link.target]}"
        if text:
            raise ValueError(f"link {link.source} -> {link.target}: {text}")

    def kernel(self, link: Link) -> Bools:
        """[units of the source, units of the target]; the input counts as one unit."""
        mask = columns(link, self.masks[link.kernel])
        flat = np.asarray(mask.any(axis=tuple(range(mask.ndim - 2))))
        units = self.sizes.get(link.source, 1)
        if flat.shape[0] % units:
            raise ValueError(
                f"link {link.source} -> {link.target}: axis -2 of {link.kernel!r} has "
                f"{flat.shape[0]} entries, no multiple of the {units} units of {link.source!r}"
            )
        return np.asarray(flat.reshape(-1, units, flat.shape[1]).any(axis=0))

    def _open(self, link: Link) -> Bools:
        """The target's units that neither a masked gain nor a gate shuts."""
        size = self.sizes[link.target]
        found = self.gates.get(link.target, np.ones(size, bool))
        for path in link.gains:
            gain = columns(link, self.masks[path])
            found = found & gain.reshape(-1, gain.shape[-1]).any(axis=0)
        return found

    def _source(self, link: Link) -> Bools:
        return np.ones(1, bool) if link.source == INPUT else self.forward[link.source]

    def _blocks(self, link: Link, source: Bools, size: int) -> Bools:
        """Any of a block of the source, for each unit of that block of the target."""
        if source.size % link.blocks or size % link.blocks:
            raise ValueError(
                f"link {link.source} -> {link.target}: {source.size} and {size} units do not "
                f"divide into {link.blocks} blocks"
            )
        return np.repeat(source.reshape(link.blocks, -1).any(axis=1), size // link.blocks)

    def _out(self, link: Link) -> Bools:
        source, size = self._source(link), self.sizes[link.target]
        if link.kernel:
            out = (source[:, None] & self.kernel(link)).any(axis=0)
        elif link.times:  # it changes how much of the target there is, and brings nothing new
            both = source & self.forward[link.times]
            out = self.forward[link.target] & self._blocks(link, both, size)
        elif link.blocks:
            out = self._blocks(link, source, size)
        elif link.take is not None:
            index = np.asarray(link.take)
            out = (index >= 0) & source[np.maximum(index, 0)]
        else:
            out = source
        return out & self._open(link)

    def _pull(self, link: Link, wanted: Bools) -> None:
        """The source's units that reach the output through this link."""
        if link.source == INPUT:
            return
        size = self.sizes[link.source]
        if link.kernel:
            found = (self.kernel(link) & wanted).any(axis=1)
        elif link.times:
            moved = wanted & self.forward[link.target]
            found = self._blocks(link, moved, size) & self.forward[link.times]
        elif link.blocks:
            found = self._blocks(link, wanted, size)
        elif link.take is not None:
            index = np.asarray(link.take)
            found = np.zeros(size, bool)
            found[index[(index >= 0) & wanted]] = True
        else:
            found = wanted
        self.back[link.source] = self.back[link.source] | found

    def _entries(self) -> Iterator[tuple[Link, str, Bools]]:
        """Link, leaf, and which of its entries (in the link's columns) are on a path."""
        for link, reached, wanted in zip(self.links, self.reached, self.wanted, strict=True):
            both = reached & wanted  # a unit that no signal reaches emits a constant: on no path
            if link.kernel:
                source = self._source(link)
                rows = self.masks[link.kernel].shape[-2]
                # A flattened map has the unit as its fastest index: positions repeat the units.
                yield link, link.kernel, np.tile(source, rows // source.size)[:, None] & wanted
            for path in link.leaves:
                yield link, path, both

    def result(self) -> Live:
        leaves = dict(self.masks)
        touched: dict[str, Bools] = {}
        for link, path, on_path in self._entries():
            mask = touched.setdefault(path, np.zeros(self.masks[path].shape, bool))
            part = columns(link, mask)
            part |= on_path  # a leaf that two links share is live if either uses it
        leaves |= {path: mask & leaves[path] for path, mask in touched.items()}
        units = {s: self.forward[s] & self.back[s] for s in self.sizes}
        return Live(units, self.back, leaves)
