"""VGG with BatchNorm for small images (Simonyan & Zisserman 2015, torchvision's A and D)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prunejax.models.base import Chain
from prunejax.ops import layers

VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
VGG4 = (8, "M", 16, "M", 128, "M", 128)  # narrow where maps are large: cheap on a CPU
VGG16 = (64, 64, "M", 128, 128, "M", *(256,) * 3, "M", *(512,) * 3, "M", *(512,) * 3, "M")


class VGG(Chain):
    """3x3 convolutions with bias, BatchNorm and ReLU, "M" for 2x2 max pooling, one linear layer.

    The dense head of torchvision's VGG is replaced by one linear layer on the mean over what is
    left of the map (1x1 for 32x32 images), as in the paper's CIFAR networks. Pooling is left out
    where the map is 1 wide, so 8x8 and 28x28 images work. Convolutions are Kaiming-normal over
    fan-out with zero bias, the linear layer has PyTorch's default. Dropout is before the
    classifier.

    Attributes:
      features: output channels of the convolutions and "M" for pooling.
    """

    features: tuple[int | str, ...] = VGG11
    batch_norm: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        x = jnp.asarray(x, self.dtype)
        count = 0
        for entry in self.features:
            if entry == "M":
                x = layers.max_pool(x) if min(x.shape[1:3]) > 1 else x
                continue
            count += 1
            x = self.conv(x, self.scaled(int(entry)), 3, name=f"conv{count}")
            x = self.norm(x, train, f"bn{count}")
            # BatchNorm's output before the ReLU, as scores by activations read it.
            layers.record_activation(self, f"conv{count}", x)
            x = nn.relu(x)
        return self.logits(self.drop(layers.global_avg_pool(x), train))
