"""The linear layers of a Linen network as they are applied, and BatchNorm folded into them.

Norms and margins of a network with BatchNorm mean nothing before its scale is in the weights: the
kernel before a BatchNorm can be multiplied by anything. `layers` traces the network once, without
computing, and says of every linear layer which map it sees; `fold` gives variables of the same
structure, the same function (evaluation mode) and BatchNorms that do nothing but add a bias.

A BatchNorm that reads something else than one layer's output, which nothing else reads (the sum
of a residual block before its activation), is no part of a layer: in evaluation mode it is one
itself, x -> gain x + shift channel by channel, and its gains are the kernel of a diagonal map.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import jaxprs_in_params

from prunejax import groups as groups_lib
from prunejax import trees
from prunejax.curvature.callables import primitives

Tree = Any
# Operations that no network of linear layers, ReLUs and pools has, not with BatchNorm either.
_CURVED = {
    *("exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "erf", "erfc", "sin", "cos"),
    *("pow", "integer_pow", "square", "abs"),
}
_PRODUCTS = {"mul", "div", "dot_general", "conv_general_dilated", "prunejax_conv"}


@dataclass(frozen=True)
class Layer:
    """A linear layer: `nn.Dense`, an `nn.Conv` of two dimensions, or a BatchNorm by itself.

    Attributes:
      name: path of the module, "stage1_block1_conv1".
      kernel: path in params, its last axis runs over outputs; of a BatchNorm by itself its scale,
        [channels], which is its gains once it is folded.
      bias: path in params, "" for none, or where it is the BatchNorm's.
      map: (height, width) of the map that a convolution reads; None for a dense layer.
      strides: of the convolution.
      norm: path of the BatchNorm that reads its output and nothing else does, or of the one that
        it is, "" for none.
      epsilon: of that BatchNorm.
    """

    name: str
    kernel: str
    bias: str = ""
    map: tuple[int, int] | None = None
    strides: tuple[int, int] = (1, 1)
    norm: str = ""
    epsilon: float = 1e-5

    @property
    def diagonal(self) -> bool:
        """Whether it is a BatchNorm by itself."""
        return self.name == self.norm


def layers(module: Any, variables: Tree, input_shape: Sequence[int]) -> tuple[Layer, ...]:
    """The linear layers of a Linen module in the order in which they are applied.

    Args:
      module: a Linen module; called as `module.apply(variables, x)`, in evaluation mode.
      variables: "params", and "batch_stats" where it has them.
      input_shape: of one example, e.g. (height, width, channels).

    Raises ValueError: a convolution that is grouped, dilated, or not of two dimensions; a BatchNorm
    by itself without a scale.
    """
    import flax.linen as nn

    found: dict[str, Layer] = {}
    made: list[tuple[Any, str]] = []  # outputs, kept alive, and the layer each is of
    fed: dict[str, str] = {}  # BatchNorm -> the layer whose output it reads
    calls: Counter[str] = Counter()
    within: set[str] = set()  # of a class that calls the one it extends: one call, not two
    params = set(trees.paths(groups_lib.params_of(variables)))

    def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, name = context.module, "/".join(context.module.path)
        if context.method_name != "__call__" or name in within:
            return call(*args, **kwargs)
        within.add(name)
        out = call(*args, **kwargs)
        within.remove(name)
        calls[name] += 1
        if isinstance(module, nn.Dense | nn.Conv):
            own = f"{name}/bias" if f"{name}/bias" in params else ""
            spatial = _geometry(name, module, args[0]) if isinstance(module, nn.Conv) else {}
            found[name] = Layer(name, f"{name}/kernel", own, **spatial)
            out = checkpoint_name(out, name)  # a name in the trace, nothing else
            made.append((out, name))
        elif isinstance(module, nn.BatchNorm):
            fed.update((name, layer) for tensor, layer in made if tensor is args[0])
            epsilon = float(module.epsilon)
            found[name] = Layer(name, f"{name}/scale", norm=name, epsilon=epsilon)
        return out

    def run(variables: Tree, x: jax.Array) -> Any:
        with nn.intercept_methods(look):
            return module.apply(variables, x)

    image = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    readers = dict(_readers(jax.make_jaxpr(run)(variables, image).jaxpr))
    for norm, layer in fed.items():
        once = calls[norm] == calls[layer] == 1  # else one of them is for other maps, too
        if once and readers.get(layer) == 1:
            one = found.pop(norm)
            found[layer] = replace(found[layer], norm=norm, epsilon=one.epsilon)
    for one in found.values():
        if one.diagonal and one.kernel not in params:
            raise ValueError(
                f"BatchNorm {one.name!r} reads no output of one layer alone and has no scale: "
                "its gains are nowhere in the parameters; give it a scale"
            )
    return tuple(found.values())


def _readers(jaxpr: Any) -> Iterator[tuple[str, int]]:
    """(layer, how many operations read its output, a result of the trace counts as one)."""
    for at in jaxpr.eqns:
        if at.primitive.name == "name":
            out = at.outvars[0]
            read = [v for e in jaxpr.eqns for v in e.invars] + list(jaxpr.outvars)
            yield at.params["name"], sum(v is out for v in read)
        for inner in jaxprs_in_params(at.params):
            yield from _readers(inner)


def has_paths(module: Any, variables: Tree, input_shape: Sequence[int]) -> bool:
    """Whether outputs are sums over paths: no softmax, GELU or norm over an example's own values.

    Nor products of what depends on the input, as of a gate. Arguments as in `layers`.
    """
    image = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    run = lambda v, x: module.apply(v, x)  # noqa: E731
    if _CURVED & primitives(run, variables, image):
        return False
    traced = jax.make_jaxpr(run)(variables, image).jaxpr
    return not _multiplied(traced, [False] * (len(traced.invars) - 1) + [True])[1]


def _multiplied(jaxpr: Any, given: Sequence[bool]) -> tuple[list[bool], bool]:
    """Which results depend on the inputs that do (`given`), and whether two such are multiplied.

    What a loop carries is taken to depend, and so is all in calls with operands of their own.
    """
    depends, found = dict(zip(jaxpr.invars, given, strict=True)), False
    of = lambda v: not hasattr(v, "val") and depends.get(v, False)  # noqa: E731
    for at in jaxpr.eqns:
        own = [of(v) for v in at.invars]
        found |= at.primitive.name in _PRODUCTS and sum(own) > 1
        outs = [any(own)] * len(at.outvars)
        for inner in jaxprs_in_params(at.params) if any(own) else ():
            if at.primitive.name == "scan":
                first, many = at.params["num_consts"], at.params["num_carry"]
                own = [*own[:first], *[True] * many, *own[first + many :]]
            fits = len(inner.invars) == len(own)
            outs, inside = _multiplied(inner, own if fits else [True] * len(inner.invars))
            found |= inside
        depends |= dict(zip(at.outvars, outs, strict=False))
    return [of(v) for v in jaxpr.outvars], found


def _geometry(name: str, module: Any, x: jax.Array) -> dict[str, Any]:
    """Map and strides of a convolution."""

    def pair(value: Any) -> tuple[int, ...]:
        one = 1 if value is None else value
        return (one,) * len(module.kernel_size) if isinstance(one, int) else tuple(one)

    plain = module.feature_group_count == 1 and set(pair(module.kernel_dilation)) == {1}
    if len(module.kernel_size) != 2 or not plain or set(pair(module.input_dilation)) != {1}:
        raise ValueError(
            f"layer {name!r}: norms of convolutions are for two dimensions without groups and "
            "dilation; leave the layer out of the list by hand"
        )
    return {"map": tuple(x.shape[-3:-1]), "strides": pair(module.strides)}


def fold(variables: Mapping[str, Any], layers: Sequence[Layer]) -> dict[str, Any]:
    """The same function with every layer's BatchNorm folded into its kernel, in evaluation mode.

    With gain s = scale / sqrt(var + epsilon): kernel <- s kernel, the layer's own bias b <- 0,
    BatchNorm's scale 1, mean 0, variance 1 - epsilon, and its bias beta + s (b - mean) (its mean
    minus that, where it has no bias). Of a BatchNorm by itself: scale <- s, variance 1 - epsilon,
    and bias beta - s mean with mean 0 (without a bias its mean stays).

    Args: variables: "params" and "batch_stats". layers: from `layers`; those without a norm stay.
    """
    params = dict(trees.leaves_with_paths(groups_lib.params_of(variables)))
    stats = dict(trees.leaves_with_paths(variables.get("batch_stats", {})))
    new: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for layer in layers:
        if not layer.norm:
            continue
        mean, variance = (stats[f"{layer.norm}/{k}"] for k in ("mean", "var"))
        scale, bias = (params.get(f"{layer.norm}/{k}") for k in ("scale", "bias"))
        gain = jnp.asarray(1.0 if scale is None else scale) / jnp.sqrt(variance + layer.epsilon)
        own = params[layer.bias] if layer.bias else 0.0
        shift = (0.0 if bias is None else bias) + gain * (own - mean)
        kernel = jnp.ones_like(gain) if layer.diagonal else params[layer.kernel]
        new[layer.kernel] = kernel * jax.lax.broadcast_to_rank(gain, kernel.ndim)
        if layer.bias:
            new[layer.bias] = jnp.zeros_like(own)
        if scale is not None and not layer.diagonal:
            new[f"{layer.norm}/scale"] = jnp.ones_like(scale)
        if bias is not None:
            new[f"{layer.norm}/bias"] = shift
        rest = mean if layer.diagonal else -shift  # where it has no bias
        state[f"{layer.norm}/mean"] = jnp.zeros_like(mean) if bias is not None else rest
        # plus epsilon it is 1
        state[f"{layer.norm}/var"] = jnp.full_like(variance, 1 - layer.epsilon)
    found = {**variables, "params": trees.replace(variables["params"], new)}
    return found | (
        {"batch_stats": trees.replace(variables["batch_stats"], state)} if state else {}
    )


def weights(params: Tree, layers: Sequence[Layer]) -> Tree:
    """Masks of what is a weight once BatchNorm is folded: kernels and one bias for each layer.

    False at BatchNorm's scales, which are 1, and at the biases before it, which are 0: noise and
    norms leave them out. The gains of a BatchNorm by itself are a kernel. Leaves of other modules
    are True.
    """
    folded = {f"{layer.norm}/scale" for layer in layers if layer.norm and not layer.diagonal}
    folded |= {layer.bias for layer in layers if layer.norm and layer.bias}
    return trees.map_with_path(lambda path, _: jnp.array(path not in folded), params)
