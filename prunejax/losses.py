"""Per-example losses and metrics, and the one weighted mean that averages them.

Everything is per example first: partial batches, padding and per-example gradients then need no
second definition.

Class labels are integers from 0 to classes - 1, one for each example. Others are refused where they
are known; where they are traced, the loss of such an example is NaN, and its answer wrong.

`LOSSES` is the table that studies choose from by `config.loss`; a loss of your own is a function
of (outputs [..., n], targets) to one number per example, and its entry there.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import registry


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float | jax.Array = 0.0
) -> jax.Array:
    """Cross entropy of each example, with label smoothing s over K classes.

    `-(1 - s) log p[label] - (s / K) sum_k log p[k]`: the target is the mixture of the label and
    the uniform distribution over all classes (Szegedy et al. 2016, section 7).

    Args:
      logits: [..., classes]; computed in float32 at least.
      labels: int [...].
      smoothing: s, a scalar in [0, 1); may be traced.

    Returns:
      float32 [...], in nats.

    Raises:
      ValueError: smoothing outside [0, 1), labels that are no integers, none of the classes, or
        not one for each example.
    """
    check_labels(labels, _need_array("outputs", logits).shape)
    known = not isinstance(smoothing, jax.Array)
    if known and not 0.0 <= smoothing < 1.0:
        raise ValueError(f"label smoothing {smoothing}: must be at least 0 and less than 1")
    log_p = jax.nn.log_softmax(_at_least_float32(logits), axis=-1)
    loss = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    loss = _of_classes(loss, labels, logits)
    if not known or smoothing:  # a known 0 leaves the term out: 0 times an infinite log p is NaN
        loss = (1.0 - smoothing) * loss - smoothing * log_p.mean(axis=-1)
    return loss


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the largest logit is the label's: bool [...], so that sums are exact counts.

    Of equal logits the first class counts as predicted. An example with a NaN logit is wrong.

    Args:
      logits: [..., classes].
      labels: int [...].

    Raises:
      ValueError: labels that are no integers, none of the classes, or not one for each example.
    """
    check_labels(labels, _need_array("outputs", logits).shape)
    return (predicted(logits) == labels) & (labels >= 0)  # -1 stands for NaN in predictions


def mse(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over the outputs of (output - target)^2, per example: float32 [...].

    Args:
      outputs: [..., n].
      targets: float [..., n], or int [...], which stands for the one-hot vector of a class.
    """
    outputs = _at_least_float32(_need_array("outputs", outputs))
    if is_classes(targets) and targets.ndim == outputs.ndim - 1:
        check_labels(targets, outputs.shape)
        row = jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype)
        return _of_classes(jnp.square(outputs - row).mean(axis=-1), targets, outputs)
    if targets.shape != outputs.shape:
        raise ValueError(f"outputs {outputs.shape} and targets {targets.shape}: shapes differ")
    return jnp.square(outputs - targets).mean(axis=-1)


def hinge(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """`max(0, 1 + max_{k != label} z_k - z_label)`: by how much the margin falls short of 1.

    The multiclass hinge of Crammer & Singer 2001: float32 [...]. Where several classes tie for
    the largest wrong output, the derivative is split among them.

    Args:
      outputs: z [..., classes], at least two classes.
      labels: int [...].
    """
    check_labels(labels, _need_array("outputs", outputs).shape)
    outputs = _at_least_float32(outputs)
    own = jax.nn.one_hot(labels, outputs.shape[-1], dtype=bool)
    # below all others, whatever the outputs are
    other = jnp.max(jnp.where(own, -jnp.inf, outputs), axis=-1)
    right = jnp.take_along_axis(outputs, labels[..., None], axis=-1)[..., 0]
    return _of_classes(jnp.maximum(0.0, 1.0 + other - right), labels, outputs)


# name -> (outputs [..., n], targets) -> loss per example [...], in at least float32
LOSSES: dict[str, Callable[..., jax.Array]] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
    "hinge": hinge,
}
SHIPPED = dict(LOSSES)


def objective(
    name: str, outputs: jax.Array, targets: jax.Array, smoothing: float | jax.Array = 0.0
) -> jax.Array:
    """The loss `name` of each example: what is trained, evaluated, scored and measured.

    Args:
      name: one of LOSSES.
      outputs: of the network, [examples, n].
      targets: class labels (integers [examples]) or numbers (float [examples, n]).
      smoothing: of labels, a scalar; of cross_entropy only.

    Returns:
      [examples].

    Raises:
      ValueError: unknown loss, or smoothing of another loss than cross_entropy.
    """
    fn = registry.lookup(LOSSES, name, "loss")
    if name == "cross_entropy":
        return fn(outputs, targets, smoothing)
    if isinstance(smoothing, jax.Array) or smoothing:
        raise ValueError(f"label smoothing {smoothing} goes with cross_entropy, not with {name!r}")
    return fn(outputs, targets)


def is_classes(targets: Any) -> bool:
    """Whether `targets`, of any shape, are class labels: integers, which alone have an accuracy."""
    return bool(jnp.issubdtype(_need_array("targets", targets).dtype, jnp.integer))


def predicted(outputs: jax.Array) -> jax.Array:
    """Classes [...] of `outputs` [..., classes]: of equal logits the first; -1 where one is NaN.

    Whoever turns outputs into classes asks here, so that all agree on what a NaN output is.
    """
    # argmax gives the place of the first NaN, which may be the label's.
    return jnp.where(jnp.isnan(outputs).any(axis=-1), -1, jnp.argmax(outputs, axis=-1))


def hits(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """`correct` per example, bool [examples]; all False where targets are numbers.

    `outputs` and `targets` are those of `objective`.
    """
    if not is_classes(targets):
        return jnp.zeros(targets.shape[:1], bool)
    return correct(outputs, targets)


def check_labels(labels: Any, outputs: tuple[int, ...]) -> None:
    """ValueError for class labels [...] that do not fit outputs of the shape [..., classes].

    They are no integers; not one for each; or known (not traced, all here) and no classes.
    """
    if not is_classes(labels):
        raise ValueError(
            f"this needs class labels, integers; these targets are {labels.dtype}: use 'mse', or a "
            "loss of your own"
        )
    if labels.shape != outputs[:-1]:  # they would broadcast: [n] against [n, 1] is n x n
        raise ValueError(f"labels of shape {labels.shape} for outputs {outputs}: one each")
    classes, traced = outputs[-1], isinstance(labels, jax.core.Tracer) or not labels.size
    if traced or not getattr(labels, "is_fully_addressable", True):
        return
    known = np.asarray(labels)  # NumPy's: JAX would trace what is closed over
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels go from {low} to {high}; classes are 0 to {classes - 1}")


def _of_classes(loss: jax.Array, labels: jax.Array, outputs: jax.Array) -> jax.Array:
    """NaN in place of the losses [...] of labels that are no class (-1 would be the last one).

    The gradient of such an example is 0, so that a loop that leaves it out by `jnp.where` has none.
    """
    return jnp.where((labels >= 0) & (labels < outputs.shape[-1]), loss, jnp.nan)


def _need_array(name: str, x: Any) -> Any:
    """`x`; TypeError where it is a list, say, which JAX does not compute with either."""
    if not hasattr(x, "dtype"):
        raise TypeError(f"{name} are a {type(x).__name__}; give an array: jnp.asarray(...)")
    return x


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# -- under attack: projected gradient descent in a box (Madry et al., ICLR 2018) ----


def projected_gradient(
    outputs: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    labels: jax.Array,
    low: jax.Array,
    high: jax.Array,
    *,
    key: jax.Array,
    steps: int = 20,
    restarts: int = 1,
) -> jax.Array:
    """Inputs of the box at which the cross entropy is largest, of all that were seen.

    Signed gradient steps of `2.5 (high - low) / 2 / steps`, cut to the box: in all a coordinate may
    go 2.5 half widths of it. The first restart begins at x, the others at uniform points. A loss
    that is NaN is the largest where the answer is wrong (NaN outputs are), and the smallest where
    it is right (infinite outputs may be). The largest, which is for training, need not be wrong
    where a smaller one was: see `survives`.

    Args:
      outputs: x -> logits [n, classes].
      x: [n, ...].
      labels: int32 [n].
      low, high: the box, of x's shape.
      key: of the points that restarts begin at.
      steps: 0 gives the largest of the points that restarts begin at.
      restarts: at least 1.

    Raises ValueError: counts or labels that are none.
    """
    return _attack(outputs, x, labels, low, high, key, steps, restarts)[0]


def _attack(
    outputs: Callable[[jax.Array], jax.Array], x: jax.Array, labels: jax.Array, low: jax.Array,
    high: jax.Array, key: jax.Array, steps: int, restarts: int,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """(as `projected_gradient`, bool [n]: an input was seen that is classified wrongly)."""

    def loss(given: jax.Array) -> jax.Array:
        return objective("cross_entropy", given, labels)

    registry.whole(0, steps=steps)
    registry.whole(1, restarts=restarts)
    gradient = jax.grad(lambda z: jnp.sum(loss(outputs(z))))  # each example gets its own gradient
    size = 2.5 * (high - low) / 2 / max(steps, 1)
    wide = (-1,) + (1,) * (x.ndim - 1)

    def better(best: Any, z: jax.Array) -> Any:
        given = outputs(z)
        values, right = loss(given), correct(given, labels)
        # A NaN kept as the best would be beaten by nothing, in no restart.
        values = jnp.where(jnp.isnan(values), jnp.where(right, -jnp.inf, jnp.inf), values)
        more = values > best[1]  # of equal ones the first seen
        worst = jnp.where(more.reshape(wide), z, best[0])
        return worst, jnp.maximum(values, best[1]), best[2] | ~right

    def restart(best: Any, number: jax.Array) -> tuple[Any, None]:
        drawn = jax.random.uniform(
            jax.random.fold_in(key, number), x.shape, minval=low, maxval=high
        )
        start = jnp.clip(jnp.where(number == 0, x, drawn), low, high)

        def step(carry: Any, _: jax.Array) -> tuple[Any, None]:
            z, found = carry
            # A coordinate without a slope stays: the sign of 0 is 0, and a NaN is none. A step by
            # it would leave the box, and a NaN input "finds" what no input of the box does.
            slope = jnp.nan_to_num(jnp.sign(gradient(z)))
            z = jnp.clip(z + size * slope, low, high)
            return (z, better(found, z)), None

        (_, best), _ = jax.lax.scan(step, (start, better(best, start)), jnp.arange(steps))
        return best, None

    nothing = (x, jnp.full(x.shape[0], -jnp.inf), jnp.zeros(x.shape[0], bool))
    (worst, _, wrong), _ = jax.lax.scan(restart, nothing, jnp.arange(restarts))
    return worst, wrong


@partial(jax.jit, static_argnames=("steps", "restarts"))
def survives(
    outputs: Any, x: jax.Array, labels: jax.Array, low: jax.Array, high: jax.Array, key: jax.Array,
    steps: int, restarts: int,
) -> jax.Array:  # fmt: skip
    """Bool [n]: classified right at x and at each input that the attack saw.

    Of more than two classes a wrong answer may have a smaller cross entropy than a right one, so
    that the worst input alone tells too little. Arguments as in `projected_gradient`, `outputs` as
    a `jax.tree_util.Partial`.
    """
    _, wrong = _attack(outputs, x, labels, low, high, key, steps, restarts)
    return correct(outputs(x), labels) & ~wrong  # x as well, which the box may not hold
