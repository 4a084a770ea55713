"""What training and using a sparse network would cost, relative to the dense one: by counting.

Multiply-adds of a layer are counted in the network itself (`multiply_adds`); a weight that is
masked would cost none on hardware that skips it, which is the convention of the literature on
sparse training (Evci et al. 2020) and not the time that masked training takes. With
F_l multiply-adds of layer l in one forward pass of one example and d_l its density:

    using it:            sum_l d_l F_l / sum_l F_l
    a training step:     sum_l (2 d_l + g_l) F_l / (3 sum_l F_l)

forward pass, gradient for the layer's inputs, gradient for its weights; g_l = d_l, or 1 where the
gradient of dead weights is taken too (straight-through, movement, the passes that growth by
gradient sees). Biases, norms, activations and the update itself are not counted.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import jax

from prunejax import trees

Tree = Any
_DATA = -1  # depends on more than one leaf, or on products
_NEUTRAL = -2  # constants


def multiply_adds(fn: Callable[[Tree], Any], params: Tree) -> dict[str, int]:
    """Path -> multiply-adds in `fn(params)` of products with that leaf; only traces, of shapes.

    Matrix products, convolutions (padding counts as input) and what is inside `jit`, `scan` and
    the like. A leaf may be masked, cast or reshaped before it is used.

    Args:
      fn: the forward pass of one example, e.g. `lambda p: net.apply(p, jnp.ones((1, 28, 28, 1)))`.
      params: arrays, or their shapes.

    Raises ValueError: products inside of a `while`, whose length is not known.
    """
    names = trees.paths(params)
    counts = _traced(fn, list(range(len(names))), params)
    return {path: counts[i] for i, path in enumerate(names)}


def products(fn: Callable[..., Any], *args: Tree) -> int:
    """Multiply-adds in `fn(*args)` of all products, also of those between activations (attention).

    Args and errors as in `multiply_adds`.
    """
    return _traced(fn, [_DATA] * len(jax.tree.leaves(args)), *args)[_DATA]


def _traced(fn: Callable[..., Any], owners: list[int], *args: Tree) -> Counter[int]:
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), args)
    counts: Counter[int] = Counter()
    _walk(jax.make_jaxpr(fn)(*shapes).jaxpr, owners, 1, counts)
    return counts


def _walk(jaxpr: Any, owners: list[int], times: int, counts: Counter[int]) -> list[int]:
    """Adds the counts of a jaxpr whose inputs belong to `owners`; the owners of its outputs."""
    known: dict[Any, int] = dict.fromkeys(jaxpr.constvars, _NEUTRAL)
    known |= dict(zip(jaxpr.invars, owners, strict=True))
    of = lambda v: _NEUTRAL if hasattr(v, "val") else known[v]  # noqa: E731
    for eqn in jaxpr.eqns:
        given = [of(v) for v in eqn.invars]
        own = {o for o in given if o != _NEUTRAL}
        # What is made of one leaf alone, masked or cast, still counts as that leaf.
        out = own.pop() if len(own) == 1 else _DATA if own else _NEUTRAL
        outs = [out] * len(eqn.outvars)
        work = _work(eqn)
        if work is not None:
            for owner in dict.fromkeys((_DATA, *(o for o in given if o >= 0))):  # _DATA: of all
                counts[owner] += times * work
            outs = [_DATA] * len(eqn.outvars)
        elif inner := _inner(eqn):
            body, inputs, again = inner
            outs = _walk(body, given[inputs:], times * again, counts)
        known |= dict(zip(eqn.outvars, outs, strict=True))
    return [of(v) for v in jaxpr.outvars]


def _work(eqn: Any) -> int | None:
    """Multiply-adds of a product, None of anything else."""
    name = eqn.primitive.name
    if name not in ("dot_general", "conv_general_dilated", "prunejax_conv"):
        return None
    outputs, shape = prod(eqn.outvars[0].aval.shape), eqn.invars[1].aval.shape
    if name == "dot_general":
        (_, contracted), _ = eqn.params["dimension_numbers"]
        return outputs * prod(shape[a] for a in contracted)
    if name == "conv_general_dilated":
        return outputs * prod(shape) // shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    return outputs * prod(shape[:-1])


def _inner(eqn: Any) -> tuple[Any, int, int] | None:
    """What a call computes: its jaxpr, its first input, and how often."""
    name, p = eqn.primitive.name, eqn.params
    if name == "while" and _multiplies(p["body_jaxpr"].jaxpr):
        raise ValueError("products inside of a while loop: how often it runs is not known")
    if name == "cond":
        return p["branches"][-1].jaxpr, 1, 1  # where the condition holds
    body = p.get("jaxpr", p.get("call_jaxpr", p.get("fun_jaxpr")))
    if body is None or name == "while":
        return None
    return getattr(body, "jaxpr", body), 0, p["length"] if name == "scan" else 1


def _multiplies(jaxpr: Any) -> bool:
    inner = [i[0] for eqn in jaxpr.eqns if (i := _inner(eqn))]
    return any(_work(eqn) is not None for eqn in jaxpr.eqns) or any(map(_multiplies, inner))


def inference(work: Mapping[str, int], density: Mapping[str, float]) -> float:
    """Multiply-adds of a sparse network in one forward pass, as a part of the dense one's.

    Args:
      work: of `multiply_adds`.
      density: path -> share of its weights that is live; 1 where it is not named.
    """
    total = sum(work.values())
    return sum(n * density.get(path, 1.0) for path, n in work.items()) / total if total else 1.0


def training(
    work: Mapping[str, int],
    density: Mapping[str, float],
    *,
    dense_gradient: bool = False,
    extra_passes: float = 0.0,
) -> float:
    """Multiply-adds of training, as a part of those of as many dense steps.

    Args:
      work: of `multiply_adds`.
      density: path -> mean over the steps of the share of live weights; 1 where not named.
      dense_gradient: whether every step takes the gradient of dead weights, too.
      extra_passes: passes with a dense gradient besides, per step: those of growth by gradient,
        at the mean density.
    """
    d = inference(work, density)
    step = 2 * d + (1.0 if dense_gradient else d)
    return (step + extra_passes * (2 * d + 1.0)) / 3  # a dense step is 3 forward passes
