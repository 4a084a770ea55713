"""Members of a stack that do not train while others do: runs that have stopped, and padding."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
PADDING = -2  # `stopped` of a copy that fills a stack up: it need not train, nobody looks at it
State = Any  # a `train.step.TrainState`
Step = Callable[[Any, State], State]


def unless_stopped(stops: bool, step: Step) -> Step:
    """A training step; of a run that has stopped only the count of steps goes on.

    Args:
      stops: whether some run of the program may stop (static).
      step: the training step, as the body of a loop: of a number and the state.
    """
    if not stops:
        return step
    # The members of a stack go through epochs and rows together, by this count.
    counted = lambda s: s._replace(step=s.step + 1)  # noqa: E731
    return lambda i, s: jax.lax.cond(s.stopped < 0, functools.partial(step, i), counted, s)


def stopped(state: State, loss: Array, ready: Array) -> Array:
    """`state.stopped`: the step at which the run has stopped, or stops now; -1 if it goes on.

    It stops if `loss` on the training set is at most its `stop_loss`; with 0 never.

    Args:
      state: of a run.
      loss: on the whole training set, evaluation mode, nats.
      ready: whether all its events are behind it.
    """
    least = state.hyper.stop_loss
    now = (state.stopped < 0) & ready & (least > 0) & (loss <= least)  # losses of 0 occur
    return jnp.where(now, state.step, state.stopped)
