"""Training inputs under noise or attack: recipes for networks that small changes do not turn."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import losses

Array = jax.Array


@dataclass(frozen=True)
class Harden:
    """What is done to a batch of training inputs; see `config.harden`."""

    noise: float = 0.0  # standard deviation of fresh normal noise, in pixels of 0..1 (or inputs)
    radius: float = 0.0  # half width of the box that an attack may use, in the same units
    steps: int = 3  # of the attack
    # mean, std: of pixels, per channel; (): inputs are no images.
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def acts(self) -> bool:
        """Whether anything is done."""
        return bool(self.noise or self.radius)

    def harden(
        self,
        x: Array,
        labels: Array,
        outputs: Callable[[Array], Array],
        noise_key: Array,
        attack_key: Array,
    ) -> Array:
        """The batch with noise, then moved to the worst place of the box that the attack finds.

        Args:
          x: normalized inputs.
          labels: of them.
          outputs: the network, x -> logits.
          noise_key, attack_key: streams of this step.
        """
        mean, std = (
            np.array(values or (default,)).reshape((1,) * (x.ndim - 1) + (-1,))
            for values, default in ((self.mean, 0.0), (self.std, 1.0))
        )
        if self.noise:
            # Of pixels, in units of what is normalized.
            noise = self.noise / std * jax.random.normal(noise_key, x.shape)
            x = x + noise.astype(x.dtype)
        if not self.radius:
            return x
        # Where pixels end: 0 and 1, normalized.
        least, most = (-mean / std, (1 - mean) / std) if self.mean else (-inf, inf)
        # Around the noisy inputs; of those further outside than the radius, the nearest pixel.
        low, high = (
            jnp.clip(x + side * self.radius / std, least, most).astype(x.dtype) for side in (-1, 1)
        )
        # One restart, which begins at x itself: what the key draws is not used.
        return losses.projected_gradient(
            outputs, x, labels, low, high, key=attack_key, steps=self.steps
        )
