"""Plain convolutional networks without BatchNorm: LeNet-5 and Conv-4."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from prunejax.models.base import Chain
from prunejax.models.mlp import glorot_normal
from prunejax.ops import layers


class ConvNet(Chain):
    """Convolutions with ReLU, "M" for 2x2 max pooling, then dense layers and a classifier.

    Dropout follows each hidden dense layer's ReLU. Pooling is left out where a map is 1 wide.

    Attributes:
      features: output channels of the convolutions and "M" for pooling.
      hidden: units of the hidden dense layers.
      kernel: height and width of all kernels.
      valid: zero padding (to the same size) for the first convolution only, as in LeNet-5 on
        28x28 images; a map too small for the kernel is padded all the same.
    """

    features: tuple[int | str, ...] = ()
    hidden: tuple[int, ...] = ()
    kernel: int = 3
    valid: bool = False

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
            # Small images (8x8 digits) leave no room for unpadded kernels.
            inside = self.valid and count > 1 and min(x.shape[1:3]) > self.kernel
            x = self.conv(
                x, self.scaled(int(entry)), self.kernel, padding=0 if inside else None,
                kernel_init=glorot_normal, name=f"conv{count}",
            )  # fmt: skip
            layers.record_activation(self, f"conv{count}", x)
            x = nn.relu(x)
        # Place by place, channels innermost; PyTorch flattens otherwise (`study.torch_file`).
        x = x.reshape(x.shape[0], -1)
        for i, units in enumerate(self.hidden, 1):
            x = nn.Dense(
                self.scaled(units), kernel_init=glorot_normal, dtype=self.dtype, name=f"dense{i}"
            )(x)
            layers.record_activation(self, f"dense{i}", x)
            x = self.drop(nn.relu(x), train)
        return self.logits(x, glorot_normal)
