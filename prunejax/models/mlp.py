"""Fully connected networks."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prunejax.groups import Link, chain
from prunejax.groups import kept as kept_units
from prunejax.models.base import Model
from prunejax.ops import layers

glorot_normal = nn.initializers.glorot_normal()


class MLP(Model):
    """Dense, (BatchNorm), ReLU, (dropout) per hidden layer, then a linear classifier.

    Attributes:
      hidden: units of the hidden layers.
      batch_norm: BatchNorm after each hidden layer, which then has no bias of its own.
      glorot: Glorot-normal kernels (Frankle & Carbin 2019) instead of Kaiming-normal and
        PyTorch's default for the classifier.
    """

    hidden: tuple[int, ...] = (128, 128, 128)
    batch_norm: bool = True
    glorot: bool = False

    def prunable(self) -> tuple[str, ...]:
        """dense1, dense2, ..."""
        return tuple(f"dense{i}" for i in range(1, len(self.hidden) + 1))

    def wiring(self) -> tuple[Link, ...]:
        """A chain."""
        norm = self.batch_norm and not self.folded
        return chain(self.prunable(), norm=norm, bias=not norm)

    def shrunk(self, gone: Mapping[str, np.ndarray]) -> tuple["MLP", dict[str, np.ndarray]]:
        """As `Model.shrunk`."""
        kept = {name: kept_units(gone[name]) for name in self.prunable()}
        return self.clone(hidden=tuple(k.size for k in kept.values()), width=1.0), kept

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits [batch, classes] of images (or vectors) [batch, ...]."""
        x = jnp.asarray(x, self.dtype).reshape(x.shape[0], -1)
        for i, units in enumerate(self.hidden, 1):
            x = nn.Dense(
                self.scaled(units),
                use_bias=self.folded or not self.batch_norm,  # BatchNorm's own shift replaces it
                kernel_init=glorot_normal if self.glorot else layers.kaiming_normal_in,
                dtype=self.dtype,
                name=f"dense{i}",
            )(x)
            if self.batch_norm:
                x = self.norm(x, train, f"bn{i}")
            layers.record_activation(self, f"dense{i}", x)
            x = self.drop(nn.relu(x), train)
        return self.logits(x, glorot_normal if self.glorot else layers.torch_default)
