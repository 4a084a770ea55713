"""Scores of a whole network from what it computes: one number per weight, larger = kept longer.

A score is a function of `Evidence` (weights, dense gradient, H g, flow; each computed when it is
first asked for) and returns a tree of the parameters' structure: an array per prunable leaf, a
scalar for the others, as `masks.prune` wants it.

    e = Evidence(params, loss=lambda p: cross_entropy(net.apply(p, x), y))
    live = masks.prune(snip(e), keep=10_000)

`before.prune` does that by name, in one round or in many.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prunejax import masks as masks_lib
from prunejax import registry, rng, scores, trees
from prunejax.methods import modes

Array = jax.Array
Tree = Any
Loss = Callable[[Tree], Array]


class Evidence:
    """What scores may look at, at parameters whose dead weights are 0.

    Args:
      params: any pytree of parameters.
      rules: path rules (`trees.match`) of the leaves that are pruned. None: `trees.kernels`.
      masks: which weights are live. None: all.
      loss: parameters -> scalar, the batch inside. Its BatchNorm, if any, must use the statistics
        of the batch and leave the running ones alone, which a pure function of `params` does.
      output: parameters -> the network's outputs for an input of ones, norms in eval form with
        unit scale (SynFlow).
      seed: of random numbers, an integer that may be traced.

    Attributes:
      weights: `params` with dead weights 0, where scores are taken: `jax.grad(e.loss)(e.weights)`.
      chosen: of the structure of `params`, True at the leaves that are pruned.
      masks: those given, or all live.
    """

    def __init__(
        self,
        params: Tree,
        *,
        rules: str | Iterable[str] | None = None,
        masks: Tree | None = None,
        loss: Loss | None = None,
        output: Loss | None = None,
        seed: int | Array | None = None,
    ) -> None:
        self.chosen = trees.prunable(params, rules)
        self.masks = masks_lib.ones(params) if masks is None else masks
        # Where, not times: NaN stays out.
        self.weights = params if masks is None else masks_lib.apply(masks, params)
        self._loss, self._output, self._seed = loss, output, seed

    @functools.cached_property
    def gradient(self) -> Tree:
        """dL/dw of the prunable weights, dead ones too (dense), scalar 0 elsewhere."""
        part, whole = self.parts(self.weights)
        return self.tree(jax.grad(lambda p: self.loss(whole(p)))(part))

    @functools.cached_property
    def hessian_gradient(self) -> Tree:
        """H g: the Hessian among prunable weights, times the gradient of the live ones.

        One forward derivative of the gradient; scalar 0 at leaves that are not pruned.
        """
        part, whole = self.parts(self.weights)
        gradient = jax.grad(lambda p: self.loss(whole(p)))
        live, _ = self.parts(self.masks)
        # conj: of complex weights the way uphill is dL/dx + i dL/dy
        along = [jnp.where(m, g.conj(), 0) for m, g in zip(live, gradient(part), strict=True)]
        return self.tree(jax.jvp(gradient, (part,), (along,))[1])

    @functools.cached_property
    def hessian(self) -> Array:
        """The exact Hessian among prunable weights [weights, weights], see `modes.hessian`."""
        return modes.hessian(self)

    @functools.cached_property
    def flow(self) -> Tree:
        """|w| dR/d|w| of R, the sum of outputs of the network of absolute values.

        In float64 whatever the setting of JAX (products of many layers leave the range of single
        precision), then divided by the largest and given in float32: ranks are what counts.
        """
        output = self.need("output")

        def flow(weights: Tree) -> list[Array]:
            part, whole = self.parts(jax.tree.map(_wide_magnitude, weights))
            slopes = jax.grad(lambda p: jnp.sum(output(whole(p)), dtype=jnp.float64))(part)
            flows = [w * g for w, g in zip(part, slopes, strict=True)]
            top = jnp.max(jnp.stack([jnp.max(x, initial=0) for x in flows]))
            # Where no path is left all flows are 0: zeros then, not 0 / 0.
            return [(x / jnp.where(top == 0, 1, top)).astype(jnp.float32) for x in flows]

        return self.tree(_in_double(flow)(self.weights))

    @functools.cached_property
    def noise(self) -> Tree:
        """Uniform numbers by the stream "mask" and the leaf's path: independent of the weights."""
        seed = self.need("seed")
        return self.map(lambda path, w: scores.random(rng.at(seed, "mask", path), w))

    def loss(self, params: Tree) -> Array:
        """The loss at `params`, a scalar; ValueError where it gives anything else."""
        value = self.need("loss")(params)
        if isinstance(value, tuple) or jnp.shape(value) != ():
            raise ValueError(
                "loss= must give one scalar, the mean over its batch; got shapes "
                f"{jax.tree.map(jnp.shape, value)}. Drop auxiliary outputs, take the mean"
            )
        return value

    def need(self, name: str) -> Any:
        """The ingredient `name`; ValueError where the caller gave none."""
        if (value := getattr(self, f"_{name}")) is None:
            raise ValueError(f"this score needs {name}=: {NEEDS[name]}")
        return value

    def map(self, fn: Callable[..., Array], *rest: Tree) -> Tree:
        """`fn(path, weight, *others)` at the prunable leaves, scalar 0 at the others."""

        def at(path: str, chosen: bool, w: Array, *others: Any) -> Array:
            return fn(path, jnp.asarray(w), *others) if chosen else jnp.float32(0)

        return trees.map_with_path(at, self.chosen, self.weights, *rest)

    def parts(self, tree: Tree) -> tuple[list[Array], Callable[[list[Array]], Tree]]:
        """The prunable leaves of `tree`, of their shapes, and how to put others in their place."""
        leaves, structure = jax.tree.flatten(tree)
        where = [i for i, c in enumerate(jax.tree.leaves(self.chosen)) if c]
        if not where:
            raise trees.none_pruned(tree)

        def whole(part: list[Array]) -> Tree:
            new = dict(zip(where, part, strict=True))
            return jax.tree.unflatten(structure, [new.get(i, x) for i, x in enumerate(leaves)])

        return [jnp.asarray(leaves[i]) for i in where], whole

    def tree(self, part: list[Array]) -> Tree:
        """A tree with `part`, of the shapes of the prunable leaves; scalar 0 elsewhere."""
        rest = iter(part)
        return jax.tree.map(lambda c: next(rest) if c else jnp.float32(0), self.chosen)


def _wide_magnitude(w: Array) -> Array:
    if not jnp.issubdtype(jnp.result_type(w), jnp.inexact):
        return w
    return jnp.abs(jnp.asarray(w)).astype(jnp.float64)


def _in_double(fn: Callable[[Tree], list[Array]]) -> Callable[[Tree], list[Array]]:
    """`fn` traced with 64-bit types on; under vmap too, which traces anew and later than a call."""

    def traced(tree: Tree) -> list[Array]:
        # The caller may forbid promotion, and arrays inside `output` be in single precision.
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            return jax.jit(fn)(tree)

    call: Any = jax.custom_batching.custom_vmap(traced)

    @call.def_vmap
    def _(size: int, batched: list[Tree], tree: Tree) -> tuple[list[Array], list[bool]]:
        del size
        axes = jax.tree.map(lambda b: 0 if b else None, batched[0])
        found = _in_double(jax.vmap(fn, in_axes=(axes,)))(tree)
        return found, [True] * len(found)

    return call


def random(e: Evidence) -> Tree:
    """Uniform numbers, independent of the weights."""
    return e.noise


def magnitude(e: Evidence) -> Tree:
    """|w|: at initialization the "magnitude at init" baseline."""
    return e.map(lambda _, w: scores.magnitude(w))


def snip(e: Evidence) -> Tree:
    """|w dL/dw| = |dL/dm| at m = 1: the connection sensitivity of Lee et al. 2019."""
    return e.map(lambda _, w, g: scores.saliency(w, g), e.gradient)


def grasp(e: Evidence) -> Tree:
    """W (H g): the largest are kept, which preserves gradient flow (Wang et al. 2020).

    The paper divides logits by 200 and keeps the smallest of -w (H g): the loss that the caller
    gives does the first, the sign here the second. H and g are of the weights that may be pruned
    (`rules`; in a study the arm's `prune.layers`), as in the paper's code: others are constants.
    """
    return e.map(lambda _, w, h: scores.product(w, h), e.hessian_gradient)


def synflow(e: Evidence) -> Tree:
    """|w dR/dw| of the network of absolute values: synaptic flow (Tanaka et al. 2020).

    Needs no data; for the paper's 100 rounds `before.prune(..., rounds=100)`.
    """
    return e.flow


class NetworkScore(NamedTuple):
    """An entry of EVIDENCE."""

    fn: Callable[[Evidence], Tree]
    needs: str = ""  # of "loss", "output", "seed", with spaces between: "loss seed"
    rounds: int = 1  # by default


NEEDS = {
    "loss": "a function from parameters to the loss on one batch (for GraSP: of logits / 200)",
    "output": "a function from parameters to the network's outputs for an input of ones",
    "seed": "an integer that random numbers are drawn from",
}
EVIDENCE: dict[str, NetworkScore] = {
    "random": NetworkScore(random, "seed"),
    "magnitude": NetworkScore(magnitude),
    "snip": NetworkScore(snip, "loss"),
    "grasp": NetworkScore(grasp, "loss"),
    "synflow": NetworkScore(synflow, "output", 100),
    "curvature": NetworkScore(modes.curvature, "loss"),
    "curvature_saliency": NetworkScore(modes.curvature_saliency, "loss"),
    "mode_leverage": NetworkScore(modes.mode_leverage, "loss"),
}
SHIPPED = dict(EVIDENCE)


def demand(name: str, given: dict[str, Any]) -> NetworkScore:
    """The entry of EVIDENCE called `name`.

    Raises:
      ValueError: there is none, or what it needs is not among what was `given`.
    """
    entry = registry.lookup(EVIDENCE, name, "score of a network")
    for need in entry.needs.split():
        if given.get(need) is None:
            raise ValueError(f"{name} needs {need}=: {NEEDS[need]}")
    return entry
