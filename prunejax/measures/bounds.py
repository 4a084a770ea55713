"""Bounds of a ReLU network's outputs over a box of inputs: intervals and CROWN.

    steps = steps.steps_of(module, variables, shape)
    found = crown(steps, x - r, x + r, margins_of(labels, classes))
    certified = found.lower.min(1) > 0            # no input of the box has another class

Interval bounds (Gowal et al. 2019) go forward; CROWN (Zhang et al., NeurIPS 2018) goes back from a
linear function of the outputs, with two lines around each ReLU whose sign the box does not settle.
Max pooling takes interval bounds, and CROWN starts anew behind it: sound, and looser than exact.
Both are exact for a network of one linear layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import losses
from prunejax.measures.steps import Affine, Pool, Relu, Step, steps_of

Array = jax.Array
Tree = Any
MOST_UNITS = 1024  # of a layer whose bounds CROWN tightens: it costs their square


@dataclass(frozen=True)
class Bounds:
    """Of linear functions of the outputs.

    Attributes:
      lower: [n, functions].
      upper: [n, functions].
      unstable: [n] share of ReLUs whose input may have either sign.
    """

    lower: Array
    upper: Array
    unstable: Array


Box = tuple[Array, Array]


def _through(step: Step, box: Box) -> Box:
    """Interval bounds after a step."""
    low, high = box
    if isinstance(step, Relu):
        return jnp.maximum(low, 0), jnp.maximum(high, 0)
    if isinstance(step, Pool):
        return step.apply(low), step.apply(high)
    middle = step.apply(step.kernel, (low + high) / 2)  # middle and radius: two products, not four
    middle = middle + jax.lax.broadcast_to_rank(step.bias, middle.ndim)
    radius = step.apply(jnp.abs(step.kernel), (high - low) / 2)
    return middle - radius, middle + radius


def intervals(steps: Sequence[Step], low: Array, high: Array) -> list[Box]:
    """The boxes before the first step, after it, ..., of the outputs: interval bound propagation.

    `low` and `high` [n, ...] are the box of inputs.
    """
    boxes = [(low, high)]
    for step in steps:
        boxes.append(_through(step, boxes[-1]))
    return boxes


def _sum(x: Array, axes: int) -> Array:
    """Sum over all axes behind the first `axes`."""
    return jnp.sum(x, axis=tuple(range(axes, x.ndim)))


def _lower(steps: Sequence[Step], boxes: Sequence[Box], rows: Array) -> Array:
    """Lower bounds [n, functions] of `rows` [n, functions, ...] times what the steps end with.

    Args: steps: the first steps of a network. boxes: before each of them. rows: linear functions.
    """
    total = jnp.zeros(rows.shape[:2])
    place = len(steps)
    while place and not isinstance(steps[place - 1], Pool):
        place -= 1
        step, (low, high) = steps[place], boxes[place]
        if isinstance(step, Affine):
            total = total + _sum(rows * jax.lax.broadcast_to_rank(step.bias, rows.ndim), 2)
            back = jax.linear_transpose(lambda x, s=step: s.apply(s.kernel, x), low)
            rows = jax.vmap(lambda r, b=back: b(r)[0], in_axes=1, out_axes=1)(rows)
            continue
        unstable = (low < 0) & (high > 0)
        # Where the sign is settled the ReLU is linear: slope 0 or 1.
        slope = jnp.where(unstable, high / jnp.where(unstable, high - low, 1), low >= 0)
        shift = jnp.where(unstable, -slope * low, 0)
        # The lower line through 0 that loses less area (Zhang et al. 2018, adaptive).
        under = jnp.where(unstable, (high > -low).astype(low.dtype), (low >= 0).astype(low.dtype))
        slope, shift, under = (x[:, None] for x in (slope, shift, under))
        # A negative row is lowest on the upper line, whose offset is `shift`.
        total = total + _sum(jnp.where(rows < 0, rows * shift, 0), 2)
        rows = rows * jnp.where(rows < 0, slope, under)
    low, high = boxes[place]
    middle, radius = (low + high)[:, None] / 2, (high - low)[:, None] / 2
    return total + _sum(rows * middle, 2) - _sum(jnp.abs(rows) * radius, 2)


def _unstable(steps: Sequence[Step], boxes: Sequence[Box]) -> Array:
    """[n]: share of ReLUs whose input box holds both signs."""
    pairs = [box for step, box in zip(steps, boxes, strict=False) if isinstance(step, Relu)]
    if not pairs:
        return jnp.zeros(boxes[0][0].shape[0])
    counts = jnp.zeros(boxes[0][0].shape[0])
    for low, high in pairs:
        counts = counts + _sum(((low < 0) & (high > 0)).astype(jnp.float32), 1)
    return counts / sum(low[0].size for low, _ in pairs)


def _functions(rows: Array, outputs: Array) -> Array:
    """[n, functions, outputs]."""
    return jnp.broadcast_to(rows, (outputs.shape[0], *rows.shape[-2:]))


def interval(steps: Sequence[Step], low: Array, high: Array, rows: Array) -> Bounds:
    """Interval bounds of `rows` [(n,) functions, classes] times the outputs.

    The last linear layer and the functions are taken together, which is tighter than bounds of
    each output. Other arguments as in `intervals`.
    """
    boxes = intervals(steps, low, high)
    last = steps[-1]
    assert isinstance(last, Affine)
    given = _functions(rows, boxes[-1][0])
    before = steps[:-1]
    lower = _lower([last], boxes[len(before) :], given)
    upper = -_lower([last], boxes[len(before) :], -given)  # of the negative, turned round
    return Bounds(lower, upper, _unstable(steps, boxes))


def tightened(steps: Sequence[Step], low: Array, high: Array, most: int = MOST_UNITS) -> list[Box]:
    """As in `intervals`, with CROWN's bounds of what ReLUs read in layers of up to `most` units."""
    boxes: list[Box] = [(low, high)]
    for place, step in enumerate(steps):
        box = _through(step, boxes[-1])
        first = all(isinstance(s, Affine) for s in steps[: place + 1])  # intervals are exact there
        tighten = isinstance(step, Affine) and not first and place + 1 < len(steps)
        if tighten and box[0][0].size <= most:
            n, *shape = box[0].shape
            one = jnp.eye(box[0][0].size).reshape(1, -1, *shape)  # a function for each unit
            units = jnp.broadcast_to(one, (n, *one.shape[1:]))
            own = steps[: place + 1]
            below = _lower(own, boxes, units).reshape(box[0].shape)
            above = -_lower(own, boxes, -units).reshape(box[0].shape)
            # Both hold, so their intersection does.
            box = jnp.maximum(box[0], below), jnp.minimum(box[1], above)
        boxes.append(box)
    return boxes


def crown(
    steps: Sequence[Step], low: Array, high: Array, rows: Array, most: int = MOST_UNITS
) -> Bounds:
    """CROWN bounds of `rows` [(n,) functions, classes] times the outputs.

    Args:
      steps: from `steps_of`.
      low, high: the box of inputs, [n, ...].
      rows: linear functions of the outputs.
      most: units of a layer before a ReLU whose bounds are tightened by CROWN; others have
        interval bounds.
    """
    boxes = tightened(steps, low, high, most)
    given = _functions(rows, boxes[-1][0])
    lower, upper = _lower(steps, boxes, given), -_lower(steps, boxes, -given)
    plain = interval(steps, low, high, rows)
    return Bounds(
        jnp.maximum(lower, plain.lower), jnp.minimum(upper, plain.upper), _unstable(steps, boxes)
    )


def margins_of(labels: Array, classes: int) -> Array:
    """The own class's output less each other one's: [n, classes - 1, classes] of `labels` [n].

    Labels are judged as in `losses`: NaN, which is never certified, where a traced one is no class.
    """
    losses.check_labels(labels, (*np.shape(labels), classes))
    known = ((labels >= 0) & (labels < classes))[:, None]
    own = jnp.where(known, jax.nn.one_hot(labels, classes), jnp.nan)
    others = (labels[:, None] + 1 + jnp.arange(classes - 1)[None]) % classes
    return own[:, None] - jax.nn.one_hot(others, classes)


def certified(bounds: Bounds) -> Array:
    """Bool [n]: every margin of `margins_of` stays above 0."""
    return jnp.min(bounds.lower, axis=1) > 0


def stability(
    module: Any, variables: Tree, x: Array, radius: Array | float, most: int = MOST_UNITS
) -> dict[str, Array]:
    """Layer -> score [units], the larger the more stable: for pruning by `masks.prune`.

    Minus the share of examples (and positions of a map) at which the sign of the unit's input is
    not settled in the box of half width `radius`, by CROWN; an unstable neuron loosens every bound
    behind it (Li et al., TMLR 2023, prune by instability).

    Args:
      module, variables: of the package, see `steps_of`.
      x: inputs [n, ...].
      radius: half width of the box, a scalar or an array that broadcasts against x.
      most: see `crown`.
    """
    steps = steps_of(module, variables, x.shape[1:])
    radius = jax.lax.broadcast_to_rank(jnp.asarray(radius), x.ndim)
    boxes = tightened(steps, x - radius, x + radius, most)
    pairs = [box for step, box in zip(steps, boxes, strict=False) if isinstance(step, Relu)]
    found = {}
    for name, (low, high) in zip(module.prunable(), pairs, strict=True):
        unstable = ((low < 0) & (high > 0)).astype(jnp.float32)
        found[name] = -unstable.mean(tuple(range(unstable.ndim - 1)))
    return found
