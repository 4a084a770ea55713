"""Network in network (Lin, Chen & Yan 2014) as grids of generalization measures train it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from prunejax.models.base import Chain
from prunejax.ops import layers

IN_BLOCK = 3  # convolutions: 3x3 with stride 2, then two of 1x1


class NiN(Chain):
    """Blocks of a 3x3 convolution with stride 2 and two of 1x1, then a linear layer on the mean.

    BatchNorm and ReLU follow each convolution, as in Dziugaite et al. (NeurIPS 2020), whose width w
    is 25 w channels. The classes are a linear layer on the mean of the map: the 1x1 convolution to
    classes and the mean after it, without the BatchNorm and ReLU that they put between. Dropout
    follows each block.

    Attributes:
      features: output channels of the convolutions, three for each block.
      batch_norm: BatchNorm after each convolution.
    """

    features: tuple[int, ...] = (200,) * 6
    batch_norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        x = jnp.asarray(x, self.dtype)
        for i, units in enumerate(self.features, 1):
            kernel, stride = (3, 2) if i % IN_BLOCK == 1 else (1, 1)
            x = self.conv(x, self.scaled(units), kernel, stride=stride, name=f"conv{i}")
            if self.batch_norm:
                x = self.norm(x, train, f"bn{i}")
            layers.record_activation(self, f"conv{i}", x)
            x = nn.relu(x)
            if i % IN_BLOCK == 0:
                x = self.drop(x, train)
        return self.logits(layers.global_avg_pool(x))
