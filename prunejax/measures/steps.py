"""A trained network as a list of steps, each linear, a ReLU or a monotone function: for bounds."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prunejax import trees
from prunejax.measures import folding
from prunejax.models.convnets import ConvNet
from prunejax.models.mlp import MLP
from prunejax.models.vgg import VGG
from prunejax.ops import layers as layers_lib

Array = jax.Array
Tree = Any
KINDS = (MLP, ConvNet, VGG)


class Affine(NamedTuple):
    """`apply(kernel, x) + bias`, linear in both, in x without negative weights but the kernel's."""

    kernel: Array
    bias: Array
    apply: Callable[[Array, Array], Array]


class Relu(NamedTuple):
    """max(x, 0)."""


class Pool(NamedTuple):
    """A monotone function of the map: max pooling."""

    apply: Callable[[Array], Array]


Step = Affine | Relu | Pool


def _dense(kernel: Array, x: Array) -> Array:
    return x.reshape(x.shape[0], -1) @ kernel


def _averaged(kernel: Array, x: Array) -> Array:
    return x.mean((1, 2)) @ kernel


def _conv(pad: int) -> Callable[[Array, Array], Array]:
    def apply(kernel: Array, x: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    return apply


def steps_of(module: Any, variables: Tree, input_shape: Sequence[int]) -> list[Step]:
    """The steps of a shipped MLP, ConvNet or VGG in evaluation mode, BatchNorm folded.

    Args: module: of the package. variables: trained and masked. input_shape: of one example.

    Raises ValueError: another kind of network, or one with a layer of its own.
    """
    if not isinstance(module, KINDS):
        raise ValueError(
            f"bounds are for MLP, ConvNet and VGG, not for {type(module).__name__}; export the "
            "weights to a verifier"
        )
    found = folding.layers(module, variables, input_shape)
    params = folding.fold(variables, found)["params"]
    known = {layer.name: layer for layer in found}
    steps: list[Step] = []

    def affine(name: str, apply: Callable[[Array, Array], Array]) -> None:
        layer = known.pop(name)
        kernel = trees.get(params, layer.kernel)
        # of a folded layer its own bias is 0 and the norm's holds all
        bias = jnp.zeros(kernel.shape[-1])
        for path in (layer.bias, f"{layer.norm}/bias" if layer.norm else ""):
            if path:
                bias = bias + trees.get(params, path)
        steps.append(Affine(kernel, bias, apply))

    size, convolutions = tuple(input_shape[:2]), 0
    for entry in getattr(module, "features", ()):
        if entry == "M":
            if min(size) > 1:  # as the models: a map of one pixel is not pooled
                steps.append(Pool(layers_lib.max_pool))
                size = (size[0] // 2, size[1] // 2)
            continue
        convolutions += 1
        kernel = module.kernel if isinstance(module, ConvNet) else 3
        inside = getattr(module, "valid", False) and convolutions > 1 and min(size) > kernel
        pad = 0 if inside else kernel // 2
        affine(f"conv{convolutions}", _conv(pad))
        steps.append(Relu())
        size = (size[0] + 2 * pad - kernel + 1, size[1] + 2 * pad - kernel + 1)
    for i in range(1, len(getattr(module, "hidden", ())) + 1):
        affine(f"dense{i}", _dense)
        steps.append(Relu())
    affine("classifier", _averaged if isinstance(module, VGG) else _dense)
    if known:  # bounds without it would be those of another network
        raise ValueError(f"bounds of {type(module).__name__} know no layer {next(iter(known))!r}")
    return steps


def forward(steps: Sequence[Step], x: Array) -> Array:
    """The network's outputs [n, classes] for inputs `x` [n, ...]."""
    for step in steps:
        if isinstance(step, Affine):
            x = step.apply(step.kernel, x)
            x = x + jax.lax.broadcast_to_rank(step.bias, x.ndim)
        elif isinstance(step, Relu):
            x = jnp.maximum(x, 0)
        else:
            x = step.apply(x)
    return x
