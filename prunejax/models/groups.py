"""Prunable groups: what has to be masked together so that a unit is gone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from prunejax import trees


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

    @property
    def affine(self) -> tuple[str, ...]:
        """What goes with a unit's kernel: scale and bias of its BatchNorm, or its own bias."""
        return self.norm or self.bias


def norm_name(layer: str) -> str:
    """Name of the BatchNorm that a layer feeds: "stage1_block1_conv2" -> "stage1_block1_bn2"."""
    return layer.replace("conv", "bn").replace("dense", "bn")


def groups(module: nn.Module, variables: Mapping[str, Any]) -> tuple[Group, ...]:
    """The prunable groups of a model of this package, in forward order.

    For VGG all convolutions, for ResNets the convolutions of each block (never the stem, the
    shortcuts, or the linear layer), for ViT the first layer of each MLP, for the others all hidden
    layers.

    Args:
      module: a model made by `prunejax.models.create`.
      variables: its variables; "params" is needed, "batch_stats" and "gates" where it has them.

    Raises:
      ValueError: the module does not say what is prunable, or `variables` are not its own.
    """
    if not hasattr(module, "prunable"):
        raise ValueError(
            f"{type(module).__name__} has no method `prunable` that lists its prunable layers; "
            "make the groups by hand: prunejax.models.Group(name, kernel, norm, ...)"
        )
    params = dict(trees.leaves_with_paths(variables["params"]))
    stats = set(trees.paths(variables.get("batch_stats", {})))
    gates = variables.get("gates", {})
    found = []
    for name in module.prunable():
        kernel, bn = f"{name}/kernel", norm_name(name)
        if kernel not in params:
            raise ValueError(
                f"no leaf {kernel!r} in the parameters: they are not those of this "
                f"{type(module).__name__}; there are: {', '.join(params)}"
            )
        found.append(
            Group(
                name=name,
                kernel=kernel,
                norm=tuple(p for p in (f"{bn}/scale", f"{bn}/bias") if p in params),
                stats=tuple(p for p in (f"{bn}/mean", f"{bn}/var") if p in stats),
                gate=name if name in gates else None,
                units=params[kernel].shape[-1],
                bias=(f"{name}/bias",) if f"{name}/bias" in params else (),
            )
        )
    return tuple(found)
