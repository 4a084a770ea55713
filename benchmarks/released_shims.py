"""Shims around the released code, for `released_driver.py`: imports, PyTorch on a CPU, widths.

Needs torch and numpy, nothing of prunejax. Nothing of theirs is copied or changed on disk.
"""

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn


class Quiet:
    """Stands for what is missing or unwanted: any attribute, call or item is another one."""

    def __getattr__(self, name: str) -> "Quiet":
        return Quiet()

    def __call__(self, *args: Any, **options: Any) -> "Quiet":
        """Nothing happens."""
        return Quiet()


def missing(name: str) -> types.ModuleType:
    """An empty module whose attributes are `Quiet`."""

    def attribute(wanted: str) -> Quiet:
        if wanted.startswith("__"):
            raise AttributeError(wanted)
        return Quiet()

    module = types.ModuleType(name)
    module.__path__ = []  # a package, for its submodules
    module.__getattr__ = attribute  # type: ignore[method-assign]
    return module


def load(folder: str) -> tuple[Any, Any]:
    """Their `experiments` and `models`."""
    sys.path.insert(0, folder)
    absent = [name for name in ("torchvision", "pandas") if not importlib.util.find_spec(name)]
    stubs = [f"torchvision.{name}" for name in ("transforms", "datasets")]
    stubs = absent + (stubs if "torchvision" in absent else [])
    with mock.patch.dict(sys.modules, {name: missing(name) for name in stubs}):
        import experiments  # type: ignore[import-not-found]
        import models  # type: ignore[import-not-found]
    experiments.pd = missing("pandas")
    sys.modules |= {"experiments": experiments, "models": models}
    return experiments, models


def shims() -> None:
    """What current PyTorch on a CPU needs."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.cuda = nn.Module.cuda = lambda self, *a, **k: self  # type: ignore
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    view = torch.Tensor.view

    def lenient(self: torch.Tensor, *shape: Any) -> torch.Tensor:
        try:
            return view(self, *shape)
        except RuntimeError:
            return self.reshape(*shape)

    torch.Tensor.view = lenient  # type: ignore[assignment]


@contextlib.contextmanager
def narrow(width: float, classes: int) -> Iterator[None]:
    """Layers made inside have `width` times the channels; images and classes keep theirs."""

    def scaled(units: int) -> int:
        return units if units in (3, classes) else max(1, round(units * width))

    def pair(kind: Any) -> Any:
        make = kind.__init__
        return mock.patch.object(
            kind, "__init__", lambda self, i, o, *a, **k: make(self, scaled(i), scaled(o), *a, **k)
        )

    one = nn.BatchNorm2d.__init__
    norm = mock.patch.object(nn.BatchNorm2d, "__init__", lambda self, i: one(self, scaled(i)))
    with pair(nn.Conv2d), pair(nn.Linear), norm:
        yield


def named(model: nn.Module) -> dict[str, nn.Module]:
    """Layers by their names in prunejax ("conv3", "stage4_block1_bn2", "classifier")."""
    found: dict[str, nn.Module] = {}
    if hasattr(model, "features"):
        kinds = {nn.modules.conv.Conv2d: "conv", nn.modules.batchnorm.BatchNorm2d: "bn"}
        for kind, name in kinds.items():
            layers = [m for m in model.features.modules() if type(m) is kind]
            found |= {f"{name}{i}": m for i, m in enumerate(layers, 1)}
        return found | {"classifier": model.classifier[0]}
    found = {"stem_conv": model.conv1, "stem_bn": model.bn1, "classifier": model.linear}
    for stage in range(1, 5):
        for number, block in enumerate(getattr(model, f"layer{stage}", ()), 1):
            prefix = f"stage{stage}_block{number}"
            for name in ("conv1", "bn1", "conv2", "bn2"):
                found[f"{prefix}_{name}"] = getattr(block, name)
            if isinstance(block.shortcut, nn.Sequential) and len(block.shortcut):
                found[f"{prefix}_shortcut_conv"], found[f"{prefix}_shortcut_bn"] = block.shortcut
    return found


def tensors(layers: dict[str, nn.Module]) -> dict[str, tuple[torch.Tensor, tuple[int, ...]]]:
    """Path as in prunejax -> tensor, and the order of its axes there."""
    found = {}
    for name, layer in layers.items():
        normal = isinstance(layer, nn.modules.batchnorm.BatchNorm2d)
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[layer.weight.ndim]
        found[f"params/{name}/{'scale' if normal else 'kernel'}"] = (layer.weight.data, axes)
        if layer.bias is not None:
            found[f"params/{name}/bias"] = (layer.bias.data, (0,))
        if normal:
            found[f"batch_stats/{name}/mean"] = (layer.running_mean, (0,))
            found[f"batch_stats/{name}/var"] = (layer.running_var, (0,))
    return found
