"""Networks by name, their variables, and their prunable groups.

    module = models.create("resnet20", num_classes=10, width=0.5)
    variables = models.init(module, prunejax.rng.at(seed, "init"), (32, 32, 3))
    logits = module.apply(variables, images)                # evaluation
    for group in models.groups(module, variables): ...      # what can be pruned

Variables have the collections "params", "batch_stats" (BatchNorm networks) and "gates" (ResNets;
see `layers.gate`). With `mutable=["activations"]`, `apply` also returns per group the sum
of |pre-activation| over examples and positions: `updates["activations"][group.name]`, (units,).
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import registry
from prunejax.groups import Group, groups
from prunejax.models.base import Model
from prunejax.models.convnets import ConvNet
from prunejax.models.mlp import MLP
from prunejax.models.nin import NiN
from prunejax.models.resnet import Bottleneck, ResNet
from prunejax.models.two_patch import TwoPatch
from prunejax.models.vgg import VGG, VGG4, VGG11, VGG16
from prunejax.models.vit import ViT
from prunejax.models.wide_resnet import WideResNet

__all__ = ["MODELS", "Group", "Model", "create", "groups", "init", "options", "shapes"]

_LEVEL = "xla_backend_optimization_level"
_CIFAR_RESNET = {"stages": (16, 32, 64), "projection": False, "kaiming": True}

# name -> (class, attributes that the name fixes); the other attributes of the class are options
MODELS: dict[str, tuple[type[Model], dict[str, Any]]] = {
    "mlp": (MLP, {}),
    "mlp64_64": (MLP, {"hidden": (64, 64), "batch_norm": False}),
    "mlp128_64": (MLP, {"hidden": (128, 64), "batch_norm": False}),
    "two_patch": (TwoPatch, {}),  # random pruning at initialization, Yang et al. 2025
    # LeNet-300-100: 266,610 parameters on 28x28 images and 10 classes
    "lenet300": (MLP, {"hidden": (300, 100), "batch_norm": False, "glorot": True}),
    # LeNet-5 as in LeCun et al. 1998 with ReLU and max pooling: 61,706 parameters on 28x28
    "lenet5": (
        ConvNet,
        {"features": (6, "M", 16, "M"), "hidden": (120, 84), "kernel": 5, "valid": True},
    ),
    # Conv-4 of Frankle & Carbin 2019: 2,425,930 parameters on CIFAR-10
    "conv4": (
        ConvNet,
        {
            "features": (64, 64, "M", 128, 128, "M"),
            "hidden": (256, 256),
            "kernel": 3,
            "valid": False,
        },
    ),
    "nin": (NiN, {}),  # 531,010 on CIFAR-10
    "vgg4_bn": (VGG, {"features": VGG4}),  # 169,242 on Fashion-MNIST
    "vgg11_bn": (VGG, {"features": VGG11}),  # 9,231,114 on CIFAR-10
    "vgg16_bn": (VGG, {"features": VGG16}),  # 14,728,266
    "resnet18": (  # 11,173,962
        ResNet,
        {
            "stages": (64, 128, 256, 512),
            "blocks": (2, 2, 2, 2),
            "projection": True,
            "kaiming": False,
        },
    ),
    "resnet20": (ResNet, {"blocks": (3, 3, 3), **_CIFAR_RESNET}),  # 269,722
    "resnet56": (ResNet, {"blocks": (9, 9, 9), **_CIFAR_RESNET}),  # 853,018
    "wrn22_2": (WideResNet, {"stages": (32, 64, 128), "blocks": (3, 3, 3)}),  # 1,079,642
    # 25,557,032 parameters with 1000 classes
    "resnet50": (
        Bottleneck,
        {
            "stages": (64, 128, 256, 512),
            "blocks": (3, 4, 6, 3),
            "projection": True,
            "kaiming": False,
        },
    ),
    # 22,050,664 parameters on 224x224 images and 1000 classes
    "vit_s16": (ViT, {"depth": 12, "heads": 6, "head_units": 64, "mlp_units": 1536, "patch": 16}),
}
SHIPPED = dict(MODELS)


def options(name: str) -> dict[str, Any]:
    """The options of model `name` besides `num_classes`, with their defaults."""
    kind, fixed = registry.lookup(MODELS, name, "model")
    made = {"folded", "cut"}  # by `prunejax.shrink`
    hidden = {"parent", "name", "num_classes", *made, *fixed}
    return {
        field.name: field.default for field in dataclasses.fields(kind) if field.name not in hidden
    }


def create(
    name: str, num_classes: int = 10, width: float = 1.0, dropout: float = 0.0, **extra: Any
) -> Model:
    """Makes the module of a model.

    Args:
      name: one of `MODELS`.
      num_classes: width of the output, at least 1.
      width: factor on the units of all hidden layers, positive.
      dropout: probability of dropping a unit, in [0, 1); 0 is none.
      **extra: further options of the model, see `options(name)`: `dtype` ("float32", "bfloat16" or
        a dtype), `conv_method`, and for `mlp` also `hidden`, `batch_norm`, `glorot`.

    Raises ValueError: unknown model or option, or a value outside its range.
    """
    known = options(name)
    for key in extra:
        told = f"model {name!r} has no option {key!r}; there are"
        registry.one_of(key, ["num_classes", *known], told)
    if isinstance(num_classes, bool) or int(num_classes) != num_classes or num_classes < 1:
        raise ValueError(f"num_classes is {num_classes!r}; it must be an integer of at least 1")
    if not 0 < width < float("inf"):
        raise ValueError(f"width is {width!r}; it must be a positive factor, 1.0 for full size")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout!r}; it must be in [0, 1), 0 for none")
    if extra.get("conv_method", "auto") not in ("auto", "lax"):
        raise ValueError(f"conv_method {extra['conv_method']!r} is not one of: auto, lax")
    if "dtype" in extra:
        extra["dtype"] = _floating(extra["dtype"])
    if "hidden" in extra:
        sizes = extra["hidden"]
        if not isinstance(sizes, (list, tuple)) or any(
            not isinstance(s, int) or isinstance(s, bool) or s < 1 for s in sizes
        ):
            raise ValueError(f"hidden is {sizes!r}; it must be a sequence of positive integers")
        extra["hidden"] = tuple(sizes)
    kind, fixed = MODELS[name]
    return kind(
        num_classes=int(num_classes), width=float(width), dropout=float(dropout), **fixed, **extra
    )


def _floating(dtype: Any) -> Any:
    """The floating-point dtype meant by a name or a dtype."""
    try:
        kind = jnp.dtype(dtype)
    except TypeError:
        kind = None
    if kind is None or not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"dtype {dtype!r} is no floating-point type; try float32 or bfloat16")
    return kind


def drawing_options(cpu: bool) -> dict[str, int] | None:
    """Compiler options of what runs once and draws: level 1 on a CPU, where no other is asked for.

    XLA:CPU takes 0.5 s for each random array at its full optimization level, and a third of that at
    level 1 (same values). What XLA_FLAGS ask of all programs they ask of this one, too.
    """
    asked = _LEVEL in os.environ.get("XLA_FLAGS", "")
    return {_LEVEL: 1} if cpu and not asked else None


def init(module: Model, key: jax.Array, input_shape: Sequence[int]) -> dict[str, Any]:
    """Fresh variables of a model: "params", "batch_stats" and "gates" where it has them.

    Args:
      module: from `create`.
      key: typed PRNG key, e.g. `prunejax.rng.at(seed, "init")`; may be traced.
      input_shape: (height, width, channels) of one example.
    """
    # Compiled, the forward pass of the initialization is dropped. Only an outermost jit may have
    # options.
    outermost = jax.default_backend() == "cpu" and not isinstance(key, jax.core.Tracer)
    options = drawing_options(outermost)
    try:
        fresh = _fresh(module, tuple(input_shape))
    except TypeError:  # a module of one's own with a list among its fields has no hash
        fresh = _fresh.__wrapped__(module, tuple(input_shape))
    return jax.jit(fresh, compiler_options=options)(key)


@functools.lru_cache(128)  # one function for equal modules: it is traced and compiled once
def _fresh(module: Model, input_shape: tuple[int, ...]) -> Callable[[jax.Array], dict[str, Any]]:
    def fresh(key: jax.Array) -> dict[str, Any]:
        # Zeros: initial values are drawn by shape alone, whatever the input.
        return dict(module.init({"params": key}, jnp.zeros((1, *input_shape)), train=False))

    return fresh


def shapes(module: Model, input_shape: Sequence[int]) -> dict[str, Any]:
    """Shapes and types of what `init` gives."""
    found: dict[str, Any] = jax.eval_shape(
        lambda key: init(module, key, input_shape), jax.random.key(0)
    )
    return found


def recorded(
    module: Model, variables: Mapping[str, Any], input_shape: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Layers whose activations a model records (`ops.layers.record_activation`) -> their shapes.

    Args:
      module: any model. variables: its collections, or their shapes. input_shape: of one example.
    """
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    run = lambda v, x: module.apply(v, x, train=False, mutable=["activations"])[1]  # noqa: E731
    seen = jax.eval_shape(run, dict(variables), x)
    return {
        path[-1].key: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(dict(seen))
    }
