"""ResNets (He et al. 2016): ResNet-18, 20 and 56 for small images, ResNet-50 for large ones."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from prunejax.groups import INPUT, OUTPUT, Link
from prunejax.groups import kept as kept_units
from prunejax.models.base import Model
from prunejax.ops import layers


class Block(NamedTuple):
    """One block as it is built."""

    name: str
    stride: int
    units: tuple[int, ...]  # of its convolutions
    projected: bool  # whether its shortcut is a convolution
    take: tuple[int, ...] | None  # else, per unit of the output the input's, -1: none; None: all


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
      cut: of a shrunken network, the stem's channels and those of each block: (of its
        convolutions, what its shortcut takes: see `Block`).
    """

    stages: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    projection: bool = True
    kaiming: bool = False
    cut: tuple[int, tuple[tuple[tuple[int, ...], tuple[int, ...] | None], ...]] | tuple[()] = ()
    convolutions: ClassVar[tuple[int, ...]] = (1, 2)  # of a block
    expansion: ClassVar[int] = 1  # channels of a block's output over those of its stage

    def prunable(self) -> tuple[str | tuple[str, ...], ...]:
        """stage1_block1_conv1, stage1_block1_conv2, stage1_block2_conv1, ..."""
        return tuple(
            f"stage{s}_block{b}_conv{c}"
            for s, count in enumerate(self.blocks, 1)
            for b in range(1, count + 1)
            for c in self.convolutions
        )

    def wiring(self) -> tuple[Link, ...]:
        """A block's output is a stream of its own: its last convolution plus what was before."""

        def conv_bn(source: str, target: str, name: str) -> Link:
            if self.folded:
                return Link(source, target, f"{name}/kernel", (), (f"{name}/bias",))
            norm = name.replace("conv", "bn")
            return Link(source, target, f"{name}/kernel", (f"{norm}/scale",), (f"{norm}/bias",))

        links, before = [conv_bn(INPUT, "stem", "stem_conv")], "stem"
        for block in self._plan():
            names = [f"{block.name}_conv{c}" for c in self.convolutions]
            sources = [before, *names[:-1]]
            links += [conv_bn(x, y, y) for x, y in zip(sources, names, strict=True)]
            if block.projected:
                links.append(conv_bn(before, names[-1], f"{block.name}_shortcut_conv"))
            else:
                links.append(Link(before, names[-1], take=block.take))
            before = names[-1]
        return (*links, Link(before, OUTPUT, "classifier/kernel", (), ("classifier/bias",)))

    def _plan(self) -> Iterator[Block]:
        """The blocks in forward order."""
        width, index = self._width(), 0
        for s, (channels, count) in enumerate(zip(self.stages, self.blocks, strict=True), 1):
            narrow = self.scaled(channels)
            wide = self.expansion * narrow
            for b in range(1, count + 1):
                stride = 2 if s > 1 and b == 1 else 1
                take: tuple[int, ...] | None = None
                same = stride == 1 and width == wide
                if not same and not self.projection:
                    low = (wide - width) // 2
                    take = tuple(i - low if 0 <= i - low < width else -1 for i in range(wide))
                units: tuple[int, ...] = (*(narrow for _ in self.convolutions[1:]), wide)
                if self.cut:
                    units, take = self.cut[1][index]
                name = f"stage{s}_block{b}"
                yield Block(name, stride, units, self.projection and not same, take)
                width, index = wide, index + 1

    def shrunk(self, gone: Mapping[str, np.ndarray]) -> tuple["ResNet", dict[str, np.ndarray]]:
        """As `Model.shrunk`; every block's output has its own units, which shortcuts pick."""
        kept = {"stem": kept_units(gone["stem"])}
        cut, before = list[tuple[tuple[int, ...], tuple[int, ...] | None]](), "stem"
        for block in self._plan():
            names = [f"{block.name}_conv{c}" for c in self.convolutions]
            kept |= {name: kept_units(gone[name]) for name in names}
            place = dict(zip(kept[before].tolist(), range(kept[before].size), strict=True))
            whole = range(gone[before].size) if block.take is None else block.take
            take = () if block.projected else tuple(whole[u] for u in kept[names[-1]].tolist())
            take = tuple(place.get(unit, -1) for unit in take)
            same = block.stride == 1 and take == tuple(range(kept[before].size))
            sizes = tuple(kept[name].size for name in names)
            cut.append((sizes, None if block.projected or same else take))
            before = names[-1]
        return self.clone(cut=(kept["stem"].size, tuple(cut))), kept

    def _initializers(self) -> tuple[layers.Initializer, layers.Initializer]:
        """Of the convolutions and of the classifier."""
        init = layers.kaiming_normal_in if self.kaiming else layers.torch_default
        return init, init

    def _stem_units(self) -> int:
        return self.cut[0] if self.cut else self._width()

    def _width(self) -> int:
        """Channels of the whole network's stem."""
        return self.scaled(self.stages[0])

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        """What comes before the first stage."""
        return nn.relu(self._conv_bn(x, self._stem_units(), train, "stem_{}"))

    def _conv_bn(
        self, x: jax.Array, features: int, train: bool, name: str, kernel: int = 3, stride: int = 1
    ) -> jax.Array:
        """Convolution without bias, then BatchNorm; `name` has a {} for "conv" or "bn"."""
        x = self.conv(
            x, features, kernel, stride=stride, use_bias=self.folded,
            kernel_init=self._initializers()[0], name=name.format("conv"),
        )  # fmt: skip
        return self.norm(x, train, name.format("bn"))

    def _shortcut(self, x: jax.Array, block: Block, train: bool) -> jax.Array:
        """The input in the shape of the block's output."""
        if block.projected:
            name = f"{block.name}_shortcut_{{}}"
            return self._conv_bn(x, block.units[-1], train, name, 1, block.stride)
        if block.take is None:
            return x
        return _taken(x[:, :: block.stride, :: block.stride], block.take)

    def _block(self, x: jax.Array, block: Block, train: bool) -> jax.Array:
        """conv1, BatchNorm, ReLU, conv2, BatchNorm, plus the shortcut, gate, ReLU."""
        name, (first, last) = block.name, block.units
        y = self._conv_bn(x, first, train, f"{name}_{{}}1", stride=block.stride)
        layers.record_activation(self, f"{name}_conv1", y)
        y = self._conv_bn(nn.relu(y), last, train, f"{name}_{{}}2")
        y = y + self._shortcut(x, block, train)
        # A shortcut would carry the channel of a filter that is gone.
        y = layers.gate(self, f"{name}_conv2", y)
        # Behind the addition: what the block hands on, as the released score sees it.
        layers.record_activation(self, f"{name}_conv2", y)
        return nn.relu(y)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        x = jnp.asarray(x, self.dtype)
        x = self._stem(x, train)
        for block in self._plan():
            x = self._block(x, block, train)
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
        x = self._conv_bn(x, self._stem_units(), train, "stem_{}", 7, 2)
        return layers.max_pool(nn.relu(x), (3, 3), (2, 2), padding=1)

    def _block(self, x: jax.Array, block: Block, train: bool) -> jax.Array:
        name, (first, second, last) = block.name, block.units
        y = self._conv_bn(x, first, train, f"{name}_{{}}1", 1)
        layers.record_activation(self, f"{name}_conv1", y)
        y = self._conv_bn(nn.relu(y), second, train, f"{name}_{{}}2", stride=block.stride)
        layers.record_activation(self, f"{name}_conv2", y)
        y = self._conv_bn(nn.relu(y), last, train, f"{name}_{{}}3", 1)
        y = y + self._shortcut(x, block, train)
        y = layers.gate(self, f"{name}_conv3", y)
        layers.record_activation(self, f"{name}_conv3", y)
        return nn.relu(y)


def _taken(x: jax.Array, take: tuple[int, ...]) -> jax.Array:
    """Channels of `x` by index, zeros where it is -1; one pad where the channels lie together."""
    first = next((i for i, u in enumerate(take) if u >= 0), len(take))
    low, size = first - take[first] if first < len(take) else 0, x.shape[-1]
    # Widths may be scaled down to where a later stage is not wider: negative padding crops.
    if take == tuple(i - low if 0 <= i - low < size else -1 for i in range(len(take))):
        none = (0, 0, 0)
        sides = (low, len(take) - size - low, 0)
        return lax.pad(x, jnp.zeros((), x.dtype), (none, none, none, sides))
    index = np.asarray(take)
    found = jnp.take(x, np.maximum(index, 0), axis=-1)
    return found if (index >= 0).all() else jnp.where(index >= 0, found, jnp.zeros((), x.dtype))
