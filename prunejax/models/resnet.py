"""ResNets (He et al. 2016): ResNet-18, 20 and 56 for small images, ResNet-50 for large ones."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from prunejax.models.base import Model
from prunejax.ops import layers


class ResNet(Model):
    """3x3 stem, stages of basic blocks, global average pooling, one linear layer.

    The first block of each stage but the first halves the map. Dropout is before the classifier.
    Prunable are the two convolutions of each block; a gate after the addition removes the
    shortcut of a channel whose filter in conv2 is pruned. Parameters of a block are named
    "stage2_block1_conv1/kernel", "stage2_block1_bn1/scale", ...

    Attributes:
      stages: channels of each stage.
      blocks: number of blocks of each stage.
      projection: where the shape changes, the shortcut is a 1x1 convolution with BatchNorm
        (option B, ResNet-18); otherwise a subsampled input padded with zero channels (option A).
      kaiming: Kaiming-normal kernels over fan-in, in the classifier too (CIFAR ResNets);
        otherwise PyTorch's default initialization.
    """

    stages: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    projection: bool = True
    kaiming: bool = False
    convolutions: ClassVar[tuple[int, ...]] = (1, 2)  # of a block

    def prunable(self) -> tuple[str, ...]:
        """stage1_block1_conv1, stage1_block1_conv2, stage1_block2_conv1, ..."""
        return tuple(
            f"stage{s}_block{b}_conv{c}"
            for s, count in enumerate(self.blocks, 1)
            for b in range(1, count + 1)
            for c in self.convolutions
        )

    def _initializers(self) -> tuple[layers.Initializer, layers.Initializer]:
        """Of the convolutions and of the classifier."""
        init = layers.kaiming_normal_in if self.kaiming else layers.torch_default
        return init, init

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        """What comes before the first stage."""
        return nn.relu(self._conv_bn(x, self.scaled(self.stages[0]), train, "stem_{}"))

    def _conv_bn(
        self, x: jax.Array, features: int, train: bool, name: str, kernel: int = 3, stride: int = 1
    ) -> jax.Array:
        """Convolution without bias, then BatchNorm; `name` has a {} for "conv" or "bn"."""
        x = self.conv(
            x,
            features,
            kernel,
            stride=stride,
            use_bias=False,
            kernel_init=self._initializers()[0],
            name=name.format("conv"),
        )
        return self.norm(x, train, name.format("bn"))

    def _shortcut(
        self, x: jax.Array, features: int, stride: int, train: bool, block: str
    ) -> jax.Array:
        """The input in the shape of the block's output."""
        missing = features - x.shape[-1]
        if stride == 1 and missing == 0:
            return x
        if self.projection:
            return self._conv_bn(x, features, train, f"{block}_shortcut_{{}}", 1, stride)
        # Widths may be scaled down to where a later stage is not wider: negative padding crops.
        channels = (missing // 2, missing - missing // 2, 0)
        none = (0, 0, 0)
        x = x[:, ::stride, ::stride]
        return lax.pad(x, jnp.zeros((), x.dtype), (none, none, none, channels))

    def _block(
        self, x: jax.Array, features: int, stride: int, train: bool, block: str
    ) -> jax.Array:
        """conv1, BatchNorm, ReLU, conv2, BatchNorm, plus the shortcut, gate, ReLU."""
        y = self._conv_bn(x, features, train, f"{block}_{{}}1", stride=stride)
        layers.record_activation(self, f"{block}_conv1", y)
        y = self._conv_bn(nn.relu(y), features, train, f"{block}_{{}}2")
        y = y + self._shortcut(x, features, stride, train, block)
        y = layers.gate(self, f"{block}_conv2", y)
        layers.record_activation(self, f"{block}_conv2", y)
        return nn.relu(y)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        x = jnp.asarray(x, self.dtype)
        x = self._stem(x, train)
        for s, (channels, count) in enumerate(zip(self.stages, self.blocks, strict=True), 1):
            for b in range(1, count + 1):
                stride = 2 if s > 1 and b == 1 else 1
                x = self._block(x, self.scaled(channels), stride, train, f"stage{s}_block{b}")
        return self.logits(self.drop(layers.global_avg_pool(x), train), self._initializers()[1])


class Bottleneck(ResNet):
    """ResNet of bottleneck blocks for large images: ResNet-50, version 1.5, as in torchvision.

    The stem is a 7x7 convolution of stride 2 and 3x3 max pooling of stride 2. A block narrows with
    a 1x1 convolution, has its stride in the 3x3 convolution, and widens with a 1x1 convolution to
    four times its stage's channels; shortcuts are projections. Prunable are the three convolutions
    of each block; the gate after the addition belongs to conv3. Convolutions are Kaiming-normal
    over fan-out, the classifier has PyTorch's default. `kaiming` has no effect.
    """

    convolutions: ClassVar[tuple[int, ...]] = (1, 2, 3)
    expansion: ClassVar[int] = 4

    def _initializers(self) -> tuple[layers.Initializer, layers.Initializer]:
        return layers.kaiming_normal_out, layers.torch_default

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        x = self._conv_bn(x, self.scaled(self.stages[0]), train, "stem_{}", 7, 2)
        return layers.max_pool(nn.relu(x), (3, 3), (2, 2), padding=1)

    def _block(
        self, x: jax.Array, features: int, stride: int, train: bool, block: str
    ) -> jax.Array:
        wide = self.expansion * features
        y = self._conv_bn(x, features, train, f"{block}_{{}}1", 1)
        layers.record_activation(self, f"{block}_conv1", y)
        y = self._conv_bn(nn.relu(y), features, train, f"{block}_{{}}2", stride=stride)
        layers.record_activation(self, f"{block}_conv2", y)
        y = self._conv_bn(nn.relu(y), wide, train, f"{block}_{{}}3", 1)
        y = y + self._shortcut(x, wide, stride, train, block)
        y = layers.gate(self, f"{block}_conv3", y)
        layers.record_activation(self, f"{block}_conv3", y)
        return nn.relu(y)
