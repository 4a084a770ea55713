"""Pruning inside anybody's optax loop: a transformation that carries the masks in its state."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prunejax import masks as masks_lib
from prunejax import methods, trees
from prunejax.methods import timetable
from prunejax.methods.transformation import SparsifyState, transformation
from prunejax.methods.updates import listed, pairs
from prunejax.methods.windows import windows as windows

Tree = Any


def sparsify(
    optimizer: optax.GradientTransformation,
    events: str | methods.Method | Sequence[tuple[int, int]] = (),
    *,
    rules: str | Iterable[str] | None = None,
    score: Callable[[jax.Array], jax.Array] | str | None = None,
    scope: str | None = None,
    masks: Tree | None = None,
    loss: Callable[[Tree], jax.Array] | None = None,
    output: Callable[[Tree], jax.Array] | None = None,
    seed: int | jax.Array | None = None,
    forward: Callable[..., Tree] | None = None,
    **parts: Any,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that its updates also prune: by a method's name, or by events.

        tx = sparsify(optax.adam(1e-3), "rigl", sparsity=0.9, every=100, end=7_500, seed=0)
        tx = sparsify(optax.adam(1e-3), schedules.cubic(units=n, fraction=0.9, start=0,
                      end=5_000, period=100))

    With a name of `methods.METHODS` (docs/methods.md says what each does and needs), every part of
    the method may be given as a keyword: sparsity, allocation, start, end, every, drop, ...: see
    `methods.Method`. Masks that a method begins with are made by `init`: mask the parameters then,
    `params = masked(params, state)`. Growth looks at the gradients that `update` gets: those of the
    loss at the masked parameters, themselves not masked, which is what `jax.grad` gives. Methods
    with forward= need `jax.grad(lambda p: loss(forward(p, state)))`; it is right for all of them.

    With events:

    At the update numbered `step` of an event, the `count` units with the smallest scores of the
    current parameters go; gradients and momentum of dead weights count as zero and cannot revive
    them, and `params + updates` is exactly 0 where the mask is and the parameter was finite: an
    update is added, and no number added to NaN or infinity gives 0. `masked(params, state)` does
    that too. Works under jit (the mask is recomputed in a `lax.cond`, so other steps pay nothing
    for it) and vmap; extra arguments of `update` go to the optimizer.

    It has to be the outermost transformation: what comes after it in an `optax.chain` would move
    dead weights (put clipping and the like into `optimizer`). `optax.MultiSteps` goes around it;
    events then count its updates. So do `optax.masked` and `optax.partition`, for some parameters.

    Args:
      optimizer: any optax transformation.
      events: a method's name, a `methods.Method`, or (step, count) pairs: units to remove at that
        update, e.g. of `prunejax.schedules` with epochs read as steps. May be empty where `masks`
        are given, which are then kept.
      rules: path rules (`trees.match`) of the leaves that are pruned. None: `trees.kernels`, every
        leaf with more than one axis but norms and biases.
      score: parameter leaf [...] -> scores; their shape is the granularity (`masks.prune`). None:
        `scores.magnitude`, or the method's.
      scope: "global" (None) or "layer" (then each leaf loses `count` units); methods have
        `allocation` instead.
      masks: masks to begin with, of the parameters' structure, each broadcasting against its
        parameter: of a ticket, or `masks.of` a sparse checkpoint. None: everything is live.
      loss: parameters -> scalar loss on one batch that "snip" and "grasp" differentiate in `init`.
      output: parameters -> outputs [...] for an input of ones, for "synflow".
      seed: of masks and growth at random, an integer scalar that may be traced.
      forward: `prunejax.sparsify.forward`, given to say that the loop applies it: "ste" and
        "movement" need that.
      parts: settings of the method.

    Raises:
      ValueError: no event and no masks, a step or count that is negative or no integer, an unknown
        scope. From `init`: a rule that matches nothing, a scalar score, masks that do not fit, or
        events that remove more units than there are. With a method: what `methods.resolve` says,
        or an ingredient that it needs is missing.
    """
    rules = listed(rules)
    made: dict[str, Any] = {"loss": loss, "output": output, "seed": seed}
    if isinstance(events, str | methods.Method):
        name = events if isinstance(events, str) else "this method"
        if scope is not None:
            raise ValueError(f"{name}: scope= goes with events; methods have allocation=")
        parts |= {"score": score} if score is not None else {}
        parts |= {"initial": "masks"} if masks is not None else {}
        method = methods.resolve(events, ingredients=made | {"forward": forward}, **parts)
        return transformation(optimizer, method, name, rules=rules, masks=masks, made=made)
    extra_names = [*parts, *(["score"] if isinstance(score, str) else [])]
    if extra_names:
        raise ValueError(
            f"{extra_names[0]}= is a setting of a method, but the method has no name: "
            'sparsify(tx, "rigl", ...); there are: ' + ", ".join(methods.METHODS)
        )
    found = pairs(events, needed=masks is None, instead=" (or masks= to be kept)")
    if scope not in (None, *masks_lib.SCOPES):
        raise ValueError(f"scope {scope!r} is not one of: {', '.join(masks_lib.SCOPES)}")
    plan = timetable.of_events(found, scope or "global")
    method = methods.Method(score=score or "magnitude")
    return transformation(
        optimizer, method, "events", rules=rules, masks=masks, made=made, events=plan
    )


def masked(params: Tree, state: Any) -> Tree:
    """`params`, after `optax.apply_updates`, with dead weights exactly 0, whatever they were: NaN
    and infinities too; `state` as in `masks_of`.
    """
    return masks_lib.apply(masks_of(state, params), params)


def forward(params: Tree, state: Any) -> Tree:
    """The network that is trained: `params` masked, with gradients for dead weights too.

        gradients = jax.grad(lambda p: loss(forward(p, state)))(params)

    Values are those of `masked`; derivatives pass as if nothing were masked (straight-through,
    Bengio et al. 2013). `sparsify` decides what dead weights do with them: they train ("ste"),
    move their scores ("movement"), or count in growth ("rigl"). `params` are dense or masked,
    `state` is as in `masks_of`.
    """
    given = trees.aligned(params, masks_of(state, params), "the masks")
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(
        structure,
        [_straight(m, p) if jnp.ndim(m) else p for m, p in zip(given, leaves, strict=True)],
    )


@jax.custom_jvp
def _straight(mask: jax.Array, w: jax.Array) -> jax.Array:
    return masks_lib.apply(mask, w)


@_straight.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    return _straight(*primals), tangents[1]


def masks_of(state: Any, params: Tree = None) -> Tree:
    """The masks that an optimizer's state carries.

    Parameters that `optax.masked` or `optax.partition` keep from a `sparsify` inside them have the
    scalar True.

    Args:
      state: the optimizer's state, which holds a `SparsifyState` (at any depth).
      params: the parameters; needed where a label of `optax.partition` is that of a subtree.

    Raises:
      ValueError: it holds none, or several.
    """
    inside = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, SparsifyState))
    found = [x for x in inside if isinstance(x, SparsifyState)]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} states of sparsify in this {type(state).__name__}, one is needed: give "
            "the state that sparsify(...).init returned, or one that holds it"
        )
    hidden = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    masks = found[0].masks
    if not any(map(hidden, jax.tree.leaves(masks, is_leaf=hidden))):
        return masks
    if params is None:
        return jax.tree.map(lambda m: jnp.array(True) if hidden(m) else m, masks, is_leaf=hidden)
    full = lambda m, p: masks_lib.ones(p) if hidden(m) else m  # noqa: E731
    return jax.tree.map(full, masks, params, is_leaf=hidden)
