"""What a study follows beside loss and accuracy: `TRACKERS`, columns of `trackers.csv`.

A tracker is a function of one run's state and its training set, compiled with the layout of the
study. A new one is a function and its entry in `TRACKERS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prunejax import masks as masks_lib
from prunejax.errors import ConfigError
from prunejax.train.step import Program, TrainState, masks

Array = jax.Array


class Tracker(NamedTuple):
    """What is followed of a run."""

    run: Callable[[Program, TrainState, Array, Array], Array]  # (.., images, labels) -> [columns]
    columns: tuple[str, ...]
    # Refuses, by a ConfigError, programs that have no such thing.
    check: Callable[[Program], None] = lambda program: None


def projections(kernel: Array, live: Array, signal: Array, noise: Array, labels: Array) -> Array:
    """How the neurons of each class answer to signal and noise (Yang et al. 2025).

    With w_jr the r-th neuron of class j, s_j the mean signal of the class's examples, xi_i the
    noise of example i and y_i its class:

    * mean over classes j of max_r <w_jr, s_j>;
    * mean and largest over i, r of <w_jr, xi_i> for j = y_i;
    * mean and largest of the same over all other j;
    * mean and least over classes of the number of neurons that keep the signal: the sum over r of
      sum_k m_jrk s_jk^2 / sum_k s_jk^2, a count where the signal has one coordinate.

    Args:
      kernel: float [inputs, classes, neurons], masked.
      live: bool of that shape.
      signal: [n, inputs].
      noise: [n, inputs].
      labels: int32 [n].

    Returns:
      float32 [7]. NaN for classes without examples where a class counts.
    """
    classes = kernel.shape[1]
    own = jax.nn.one_hot(labels, classes)  # [n, classes]
    means = (own.T @ signal) / own.sum(0)[:, None]
    answers = jnp.einsum("jk,kjr->jr", means, kernel)
    to_noise = jnp.einsum("ik,kjr->ijr", noise, kernel)
    mine = own[:, :, None] > 0
    neurons = kernel.shape[2]
    mean = lambda where, x: jnp.sum(jnp.where(where, x, 0)) / (jnp.sum(where) * neurons)  # noqa: E731
    largest = lambda where, x: jnp.max(jnp.where(where, x, -jnp.inf))  # noqa: E731
    share = means**2 / jnp.sum(means**2, axis=1, keepdims=True)
    kept = jnp.einsum("jk,kjr->j", share, live.astype(jnp.float32))
    return jnp.stack(
        [
            jnp.mean(jnp.max(answers, axis=1)),
            mean(mine, to_noise), largest(mine, to_noise),
            mean(~mine, to_noise), largest(~mine, to_noise),
            jnp.mean(kept), jnp.min(kept),
        ]
    )  # fmt: skip


def _signal_noise(program: Program, state: TrainState, images: Array, labels: Array) -> Array:
    signal, noise = program.prepare.parts(images)  # type: ignore[union-attr]
    params, live = state.params, masks(program, state)
    kernel = masks_lib.apply(live, params)["neurons"]["kernel"]
    split: Any = lambda x: x.reshape(kernel.shape[0], program.module.num_classes, -1)  # noqa: E731
    mask = jnp.broadcast_to(live["neurons"]["kernel"], kernel.shape)
    return projections(split(kernel), split(mask), signal, noise, labels)


def _check_signal_noise(program: Program) -> None:
    if not hasattr(program.prepare, "parts") or not hasattr(program.module, "neurons"):
        raise ConfigError(
            "config.trackers: 'signal_noise' needs config.model.name = 'two_patch' and inputs that "
            "tell signal from noise: config.data.name = 'signal_noise', or images with "
            "config.data.noise above 0"
        )


TRACKERS: dict[str, Tracker] = {
    "signal_noise": Tracker(
        _signal_noise,
        (
            *("signal", "noise_own_mean", "noise_own_max", "noise_other_mean"),
            *("noise_other_max", "signal_neurons", "signal_neurons_least"),
        ),
        _check_signal_noise,
    )
}
SHIPPED = dict(TRACKERS)
KEYS = ("run", "variant", "seed", "epoch", "step")  # of every row of trackers.csv


def columns(names: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of `trackers.csv` that trackers fill."""
    return tuple(c for name in names for c in TRACKERS[name].columns)


def track(program: Program, state: TrainState, images: Array, labels: Array) -> Array:
    """float32 [columns] of the program's trackers on the training set."""
    found = []
    for name in program.trackers:
        values, columns = TRACKERS[name].run(program, state, images, labels), TRACKERS[name].columns
        if getattr(values, "shape", None) != (len(columns),) or jnp.iscomplexobj(values):
            raise ConfigError(
                f"config.trackers: {name!r} gives {getattr(values, 'shape', values)}; one array "
                f"[{len(columns)}] is needed, of real numbers, for {', '.join(columns)}"
            )
        found.append(values)
    return jnp.concatenate(found)
