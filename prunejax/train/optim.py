"""Optimizers as optax chains without a learning rate: rate and weight decay are data of a run."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prunejax import masks as masks_lib
from prunejax import registry

Tree = Any
Make = Callable[[float, bool], optax.GradientTransformation]


def _adam(momentum: float, nesterov: bool) -> optax.GradientTransformation:
    del momentum, nesterov
    return optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)  # PyTorch's, as in the paper


def _sgd(momentum: float, nesterov: bool) -> optax.GradientTransformation:
    # t = momentum t + g: no dampening, as in PyTorch.
    return optax.trace(momentum, nesterov) if momentum else optax.identity()


OPTIMIZERS: dict[str, Make] = {"adam": _adam, "sgd": _sgd}
SHIPPED = dict(OPTIMIZERS)
SCHEDULES = ("constant", "multistep", "cosine")


class Optimizer(NamedTuple):
    """`update` gives the step to add to the parameters; rate and decay are arguments (arrays)."""

    transform: optax.GradientTransformation
    clip_norm: float
    decoupled: bool
    decays: Tree  # bool per parameter leaf (static): whether weight decay applies
    frozen: Tree = None  # bool per parameter leaf (static): what is not trained; None: nothing

    def init(self, params: Tree) -> optax.OptState:
        """Optimizer state: moments of zero."""
        return self.transform.init(params)

    def update(
        self,
        gradients: Tree,
        state: optax.OptState,
        params: Tree,
        masks: Tree,
        learning_rate: jax.Array,
        weight_decay: jax.Array,
    ) -> tuple[Tree, optax.OptState]:
        """New parameters and optimizer state.

        Gradients of dead weights count as zero, and neither momentum nor decay moves a dead
        weight. Order as in PyTorch: clip, add the coupled decay, momentum or Adam, scale.
        A frozen leaf stays as it is: its gradient counts as zero (in the norm of a clip as well),
        and no decay moves it.
        """
        gradients = masks_lib.apply(masks, gradients)  # first: a clip's norm is of live ones
        start = params
        if self.frozen is not None:
            gradients = jax.tree.map(
                lambda f, g: jnp.zeros_like(g) if f else g, self.frozen, gradients
            )
        if self.clip_norm > 0:
            norm = optax.tree.norm(gradients)
            factor = jnp.minimum(1.0, self.clip_norm / (norm + 1e-6))  # 1e-6: PyTorch's
            gradients = jax.tree.map(lambda g: g * factor, gradients)

        def decayed(tree: Tree, scale: jax.Array) -> Tree:
            return jax.tree.map(
                lambda d, t, p: t + scale * p if d else t, self.decays, tree, params
            )

        if not self.decoupled:  # momentum keeps it, and Adam rescales it
            gradients = decayed(gradients, weight_decay)
        updates, state = self.transform.update(gradients, state, params)
        if self.decoupled:
            updates = decayed(updates, weight_decay)
        # A dead weight stays, though moments from when it lived may not be 0 yet.
        params = jax.tree.map(
            lambda m, p, u: jnp.where(m, p - learning_rate * u, p), masks, params, updates
        )
        if self.frozen is not None:
            # Decay, and an optimizer's own terms, have moved it.
            params = jax.tree.map(lambda f, old, p: old if f else p, self.frozen, start, params)
        return params, state


def build(
    name: str,
    decays: Tree,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    clip_norm: float = 0.0,
    decoupled: bool = False,
    frozen: Tree = None,
) -> Optimizer:
    """The optimizer `name` ("adam", "sgd").

    Args:
      name: one of OPTIMIZERS.
      decays: tree of bools with the parameters' structure: where weight decay applies.
      momentum: of sgd.
      nesterov: whether sgd looks ahead.
      clip_norm: bound of the global gradient norm; 0 for none.
      decoupled: weight decay as in AdamW (scaled by the learning rate, outside the moments).
      frozen: tree of bools as `decays`: leaves that are not trained; None for none.
    """
    make = registry.lookup(OPTIMIZERS, name, "optimizer")
    return Optimizer(_made(make, momentum, nesterov), clip_norm, decoupled, decays, frozen)


@functools.cache  # optax compares transformations by identity: equal settings, equal optimizers
def _made(make: Make, momentum: float, nesterov: bool) -> optax.GradientTransformation:
    return make(momentum, nesterov)


def warmed(step: jax.Array, warmup: jax.Array) -> jax.Array:
    """The share of its learning rate that a training step has: min(1, (step + 1) / warmup).

    Args: step: counted from 0. warmup: steps until the share is 1; 0: it is 1 from the first.
    """
    return jnp.minimum(jnp.float32(1), (step + 1) / jnp.maximum(warmup, 1))  # step 0 moves already


def learning_rates(
    schedule: str,
    rate: float,
    epochs: int,
    *,
    milestones: tuple[int, ...] = (),
    decay: float = 0.1,
    restarts: tuple[int, ...] = (),
) -> list[float]:
    """The learning rate of every epoch (a list of `epochs` numbers).

    constant: `rate`. multistep: times `decay` from each milestone epoch on. cosine: half a cosine
    from `rate` to 0 over the epochs (stepped per epoch, as PyTorch's CosineAnnealingLR). At each
    epoch of `restarts` the schedule begins anew: with milestones counted from there, and half a
    cosine for each stretch (Loshchilov & Hutter 2017).
    """
    # A restart at 0, or past the end, is none.
    cuts = sorted({0, *(r for r in restarts if 0 < r < epochs), epochs})
    if len(cuts) > 2:
        options: dict[str, Any] = {"milestones": milestones, "decay": decay}
        return [
            value
            for start, end in itertools.pairwise(cuts)
            for value in learning_rates(schedule, rate, end - start, **options)
        ]
    if schedule == "constant":
        return [rate] * epochs
    if schedule == "multistep":
        # A milestone epoch has the lower rate already.
        return [rate * decay ** sum(m <= e for m in milestones) for e in range(epochs)]
    registry.one_of(schedule, SCHEDULES, f"unknown learning-rate schedule {schedule!r}; there are")
    return list(_cosine(rate, epochs))


@functools.lru_cache(64)  # arms ask for the same, and each number is a computation by JAX
def _cosine(rate: float, epochs: int) -> tuple[float, ...]:
    cosine = optax.cosine_decay_schedule(rate, max(epochs, 1))
    return tuple(float(cosine(e)) for e in range(epochs))  # 0 would be reached after the last epoch
