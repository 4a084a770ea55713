"""The networks of `prunejax.models` in PyTorch, with our weights: needs torch and numpy only.

    network = MODELS["vgg11_bn"](shape=(32, 32, 3))
    load(network, numpy.load("variables.npz"))

Layers have our names in one `ModuleDict`: our leaf "conv1/kernel" is `layers.conv1.weight`. Inputs
are NCHW; where a map is flattened it is turned to NHWC first, as ours, so that dense kernels fit.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

Shape = tuple[int, int, int]


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution with padding of half the kernel unless another is given."""
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **options})


class MLP(nn.Module):
    """Dense, (BatchNorm), ReLU per hidden layer and a classifier."""

    def __init__(
        self,
        shape: Shape = (8, 8, 1),
        classes: int = 10,
        width: float = 1.0,
        hidden: tuple[int, ...] = (128, 128, 128),
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.layers, self.count = nn.ModuleDict(), len(hidden)
        size = int(np.prod(shape))
        for i, units in enumerate(hidden, 1):
            units = max(1, round(units * width))
            self.layers[f"dense{i}"] = nn.Linear(size, units, bias=not batch_norm)
            if batch_norm:
                self.layers[f"bn{i}"] = nn.BatchNorm1d(units)
            size = units
        self.layers["classifier"] = nn.Linear(size, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [batch, classes] of images [batch, channels, height, width]."""
        x = x.permute(0, 2, 3, 1).flatten(1)
        for i in range(1, self.count + 1):
            x = self.layers[f"dense{i}"](x)
            if f"bn{i}" in self.layers:
                x = self.layers[f"bn{i}"](x)
            x = F.relu(x)
        return self.layers["classifier"](x)


class ConvNet(nn.Module):
    """LeNet-5 and Conv-4."""

    def __init__(
        self,
        shape: Shape = (32, 32, 3),
        classes: int = 10,
        width: float = 1.0,
        features: tuple[int | str, ...] = (),
        hidden: tuple[int, ...] = (),
        kernel: int = 3,
        valid: bool = False,
    ) -> None:
        super().__init__()
        self.layers, self.plan, self.hidden = nn.ModuleDict(), [], len(hidden)
        side, channels = shape[0], shape[2]
        for entry in features:
            if entry == "M":
                if side > 1:
                    self.plan.append("M")
                    side //= 2
                continue
            units, name = max(1, round(int(entry) * width)), f"conv{len(self.layers) + 1}"
            inside = valid and len(self.layers) > 0 and side > kernel
            self.layers[name] = conv(channels, units, kernel, padding=0 if inside else kernel // 2)
            side -= kernel - 1 if inside else 0
            channels = units
            self.plan.append(name)
        size = side * side * channels
        for i, units in enumerate(hidden, 1):
            units = max(1, round(units * width))
            self.layers[f"dense{i}"] = nn.Linear(size, units)
            size = units
        self.layers["classifier"] = nn.Linear(size, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [batch, classes] of images [batch, channels, height, width]."""
        for name in self.plan:
            x = F.max_pool2d(x, 2) if name == "M" else F.relu(self.layers[name](x))
        x = x.permute(0, 2, 3, 1).flatten(1)
        for i in range(1, self.hidden + 1):
            x = F.relu(self.layers[f"dense{i}"](x))
        return self.layers["classifier"](x)


class VGG(nn.Module):
    """Convolution with bias, BatchNorm, ReLU; 2x2 max pooling; the mean of the last map."""

    def __init__(
        self,
        shape: Shape = (32, 32, 3),
        classes: int = 10,
        width: float = 1.0,
        features: tuple[int | str, ...] = (),
    ) -> None:
        super().__init__()
        self.layers, self.plan = nn.ModuleDict(), []
        side, channels, count = shape[0], shape[2], 0
        for entry in features:
            if entry == "M":
                if side > 1:
                    self.plan.append("M")
                    side //= 2
                continue
            units, count = max(1, round(int(entry) * width)), count + 1
            self.layers[f"conv{count}"] = conv(channels, units)
            self.layers[f"bn{count}"] = nn.BatchNorm2d(units)
            self.plan.append(str(count))
            channels = units
        self.layers["classifier"] = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [batch, classes] of images [batch, channels, height, width]."""
        for step in self.plan:
            if step == "M":
                x = F.max_pool2d(x, 2)
            else:
                x = F.relu(self.layers[f"bn{step}"](self.layers[f"conv{step}"](x)))
        return self.layers["classifier"](x.mean((2, 3)))


class ResNet(nn.Module):
    """Stem, stages of basic blocks, mean, classifier; shortcuts by padding or by projection."""

    def __init__(
        self,
        shape: Shape = (32, 32, 3),
        classes: int = 10,
        width: float = 1.0,
        stages: tuple[int, ...] = (16, 32, 64),
        blocks: tuple[int, ...] = (3, 3, 3),
        projection: bool = False,
    ) -> None:
        super().__init__()
        self.layers, self.plan = nn.ModuleDict(), []
        channels = max(1, round(stages[0] * width))
        self._add("stem_{}", shape[2], channels)
        for s, (units, count) in enumerate(zip(stages, blocks, strict=True), 1):
            units = max(1, round(units * width))
            for b in range(1, count + 1):
                name, stride = f"stage{s}_block{b}", 2 if s > 1 and b == 1 else 1
                self._add(name + "_{}1", channels, units, stride=stride)
                self._add(name + "_{}2", units, units)
                if projection and (stride > 1 or channels != units):
                    self._add(name + "_shortcut_{}", channels, units, kernel=1, stride=stride)
                self.plan.append((name, stride, units - channels))
                channels = units
        self.layers["classifier"] = nn.Linear(channels, classes)

    def _add(self, name: str, inputs: int, outputs: int, **options: int) -> None:
        self.layers[name.format("conv")] = conv(inputs, outputs, bias=False, **options)
        self.layers[name.format("bn")] = nn.BatchNorm2d(outputs)

    def _conv_bn(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return self.layers[name.format("bn")](self.layers[name.format("conv")](x))

    def _shortcut(self, x: torch.Tensor, block: str, stride: int, missing: int) -> torch.Tensor:
        if f"{block}_shortcut_conv" in self.layers:
            return self._conv_bn(x, f"{block}_shortcut_{{}}")
        if stride == 1 and missing == 0:
            return x
        before = missing // 2
        return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, missing - before))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [batch, classes] of images [batch, channels, height, width]."""
        x = F.relu(self._conv_bn(x, "stem_{}"))
        for block, stride, missing in self.plan:
            y = F.relu(self._conv_bn(x, f"{block}_{{}}1"))
            y = self._conv_bn(y, f"{block}_{{}}2")
            x = F.relu(y + self._shortcut(x, block, stride, missing))
        return self.layers["classifier"](x.mean((2, 3)))


VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
CONV4 = (64, 64, "M", 128, 128, "M")
LENET5 = (6, "M", 16, "M")

# name -> factory(shape=, classes=, width=)
MODELS: dict[str, Any] = {
    "mlp": MLP,
    "lenet300": partial(MLP, shape=(28, 28, 1), hidden=(300, 100), batch_norm=False),
    "lenet5": partial(ConvNet, features=LENET5, hidden=(120, 84), kernel=5, valid=True),
    "conv4": partial(ConvNet, features=CONV4, hidden=(256, 256)),
    "vgg11_bn": partial(VGG, features=VGG11),
    "resnet18": partial(ResNet, stages=(64, 128, 256, 512), blocks=(2, 2, 2, 2), projection=True),
    "resnet20": ResNet,
}
_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def to_torch(path: str, value: np.ndarray) -> torch.Tensor:
    """A leaf of ours as a tensor in PyTorch's layout."""
    if path.endswith("kernel"):
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return torch.tensor(np.ascontiguousarray(value, np.float32))


def to_ours(path: str, value: torch.Tensor) -> np.ndarray:
    """A tensor as the leaf of ours at `path`."""
    array = value.detach().float().cpu().numpy()
    if path.endswith("kernel"):
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return np.ascontiguousarray(array)


def name_of(path: str) -> str:
    """Our leaf path as a name in the network's state dict."""
    layer, leaf = path.split("/")
    return f"layers.{layer}.{_NAMES.get(leaf, leaf)}"


def load(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Copies our leaves ("conv1/kernel", "bn1/var", ...) into the network; other keys are ignored.

    Raises:
      ValueError: a leaf has no place, has another shape, or a tensor of the network is not given.
    """
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    for path in filter(lambda key: "/" in key, arrays):
        name, value = name_of(path), to_torch(path, arrays[path])
        if name not in state:
            raise ValueError(f"{path!r}: the network has no {name!r}")
        if state[name].shape != value.shape:
            raise ValueError(f"{path!r}: {tuple(value.shape)}, not {tuple(state[name].shape)}")
        with torch.no_grad():
            state.pop(name).copy_(value)
    if state:
        raise ValueError(f"no values for: {', '.join(state)}")
