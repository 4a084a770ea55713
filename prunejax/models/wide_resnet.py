"""Wide ResNets (Zagoruyko & Komodakis 2016): blocks with BatchNorm before their convolutions."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prunejax.groups import INPUT, OUTPUT, Link
from prunejax.models.resnet import Block, ResNet
from prunejax.ops import layers


class WideResNet(ResNet):
    """WRN-d-k for small images: 3x3 stem of 16, three stages of pre-activation blocks, BatchNorm.

    A block is BatchNorm, ReLU, conv1, BatchNorm, ReLU, dropout, conv2, plus the shortcut: what came
    in, or, where the shape changes, a 1x1 convolution of what conv1 reads. Prunable are both
    convolutions; the BatchNorm that belongs to conv2 is the one that reads the sum, the next
    block's or the last one, and a gate after the addition removes the shortcut's share.
    Convolutions are Kaiming-normal over fan-out; no layer but the classifier has a bias.

    Attributes:
      stem: channels of the stem.
    """

    stem: int = 16

    def prunable(self) -> tuple[str | tuple[str, ...], ...]:
        """(layer, norm): (stage1_block1_conv1, stage1_block1_bn2), (..._conv2, ..._bn1), ..."""
        found, plan = list[str | tuple[str, ...]](), list(self._plan())
        for index, block in enumerate(plan):
            found.append((f"{block.name}_conv1", f"{block.name}_bn2"))
            found.append((f"{block.name}_conv2", _norm_of(plan, index + 1)))
        return tuple(found)

    def wiring(self) -> tuple[Link, ...]:
        """Sums are called like the conv2 that adds to them, what a BatchNorm makes of one like it.

        So that a shortcut reads a sum as it is, and convolutions read it after its BatchNorm.
        """

        def norm(name: str) -> tuple[tuple[str], tuple[str]]:
            return (f"{name}/scale",), (f"{name}/bias",)

        plan, before = list(self._plan()), "stem"
        links = [Link(INPUT, "stem", "stem_conv/kernel")]
        for index, block in enumerate(plan):
            first, one, two = _norm_of(plan, index), f"{block.name}_conv1", f"{block.name}_conv2"
            links.append(Link(before, first, "", *norm(first)))
            links.append(Link(first, one, f"{one}/kernel", *norm(f"{block.name}_bn2")))
            links.append(Link(one, two, f"{two}/kernel"))
            if block.projected:
                links.append(Link(first, two, f"{block.name}_shortcut_conv/kernel"))
            else:
                links.append(Link(before, two, take=block.take))
            before = two
        last = _norm_of(plan, len(plan))
        links.append(Link(before, last, "", *norm(last)))
        return (*links, Link(last, OUTPUT, "classifier/kernel", (), ("classifier/bias",)))

    def shrunk(self, gone: Mapping[str, np.ndarray]) -> tuple[ResNet, dict[str, np.ndarray]]:
        """As `Model.shrunk`: a sum's unit goes if its BatchNorm makes nothing of it either."""
        sums = {
            link.source: link.target for link in self.wiring() if link.gains and not link.kernel
        }
        both = {
            name: units & gone[sums[name]] if name in sums else units
            for name, units in gone.items()
        }
        small, kept = super().shrunk(both)
        return small, kept | {norm: kept[name] for name, norm in sums.items()}

    def _initializers(self) -> tuple[layers.Initializer, layers.Initializer]:
        return layers.kaiming_normal_out, layers.torch_default

    def _width(self) -> int:
        return self.scaled(self.stem)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        plan = list(self._plan())
        x = self._convolution(jnp.asarray(x, self.dtype), self._stem_units(), "stem_conv", 3, 1)
        for index, block in enumerate(plan):
            y = self._read(x, plan, index, train)
            shortcut = self._skip(x, y, block)
            y = self._convolution(y, block.units[0], f"{block.name}_conv1", 3, block.stride)
            y = self.norm(y, train, f"{block.name}_bn2")
            layers.record_activation(self, f"{block.name}_conv1", y)
            y = self.drop(nn.relu(y), train)
            y = self._convolution(y, block.units[1], f"{block.name}_conv2", 3, 1)
            x = layers.gate(self, f"{block.name}_conv2", y + shortcut)
        x = self._read(x, plan, len(plan), train)
        return self.logits(layers.global_avg_pool(x), self._initializers()[1])

    def _read(self, x: jax.Array, plan: list[Block], index: int, train: bool) -> jax.Array:
        """What block `index` makes of the sum before it: BatchNorm and ReLU."""
        x = self.norm(x, train, _norm_of(plan, index))
        if index:
            layers.record_activation(self, f"{plan[index - 1].name}_conv2", x)
        return nn.relu(x)

    def _skip(self, x: jax.Array, y: jax.Array, block: Block) -> jax.Array:
        """The shortcut of a block from the sum `x`, of which it reads `y`."""
        if block.projected:
            name = f"{block.name}_shortcut_conv"
            return self._convolution(y, block.units[-1], name, 1, block.stride)
        return self._shortcut(x, block, train=False)

    def _convolution(
        self, x: jax.Array, features: int, name: str, kernel: int, stride: int
    ) -> jax.Array:
        options = {"use_bias": False, "kernel_init": self._initializers()[0], "name": name}
        return self.conv(x, features, kernel, stride=stride, **options)


def _norm_of(plan: list[Block], index: int) -> str:
    """The BatchNorm that reads what comes before block `index`."""
    return f"{plan[index].name}_bn1" if index < len(plan) else "last_bn"
