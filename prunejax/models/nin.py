"""Network in network (Lin, Chen & Yan 2014) as grids of generalization measures train it."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prunejax.groups import Link, chain
from prunejax.groups import kept as kept_units
from prunejax.models.base import Model
from prunejax.ops import layers

IN_BLOCK = 3  # convolutions: 3x3 with stride 2, then two of 1x1


class NiN(Model):
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

    def prunable(self) -> tuple[str, ...]:
        """conv1, conv2, ... (all convolutions)."""
        return tuple(f"conv{i}" for i in range(1, len(self.features) + 1))

    def wiring(self) -> tuple[Link, ...]:
        """A chain."""
        return chain(self.prunable(), norm=self.batch_norm and not self.folded, bias=True)

    def shrunk(self, gone: Mapping[str, np.ndarray]) -> tuple["NiN", dict[str, np.ndarray]]:
        """As `Model.shrunk`."""
        kept = {name: kept_units(gone[name]) for name in self.prunable()}
        return self.clone(features=tuple(k.size for k in kept.values()), width=1.0), kept

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
