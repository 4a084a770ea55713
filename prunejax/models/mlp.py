"""Fully connected networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from prunejax.models.base import Chain
from prunejax.ops import layers

glorot_normal = nn.initializers.glorot_normal()


class MLP(Chain):
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
