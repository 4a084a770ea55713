"""Our reimplementation of the paper's pruning and noise in PyTorch, inside forward passes.

Not the released code: `released.py` takes this side where no checkout of that is at hand, and for
windows in training steps, which it does not have.

Needs torch and numpy, nothing of prunejax. For every path on standard input (an npz file with an
arm's settings, initial weights, images, batches and noise) it trains that arm and writes what
happened beside it: scores, targets, test results, and the parameters after every step.

What a layer does is in `mechanics_layer.py`. Computed in float64.
"""

import json
import math
import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mechanics_layer import Layer
from torch import Tensor, nn

VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


class Network(nn.Module):
    """VGG11 or ResNet18 for small images, of any width."""

    def __init__(self, name: str, width: float, channels: int, classes: int) -> None:
        super().__init__()
        self.plan: list[Any] = []
        self.layers = nn.ModuleDict()
        wide = lambda units: max(1, round(units * width))  # noqa: E731
        last = channels
        if name == "vgg11_bn":
            for entry in VGG11:
                if entry == "M":
                    self.plan.append("M")
                    continue
                number = sum(x != "M" for x in self.plan) + 1
                self.plan.append(f"conv{number}")
                self._add(f"conv{number}", f"bn{number}", last, wide(entry), 3, 1, bias=True)
                last = wide(entry)
        else:
            self._add("stem_conv", "stem_bn", last, wide(64), 3, 1)
            last = wide(64)
            for stage, units in enumerate((64, 128, 256, 512), 1):
                for block in (1, 2):
                    stride = 2 if stage > 1 and block == 1 else 1
                    prefix = f"stage{stage}_block{block}"
                    self.plan.append(prefix)
                    self._add(f"{prefix}_conv1", f"{prefix}_bn1", last, wide(units), 3, stride)
                    self._add(f"{prefix}_conv2", f"{prefix}_bn2", wide(units), wide(units), 3, 1)
                    if stride != 1 or last != wide(units):
                        shortcut = f"{prefix}_shortcut"
                        self._add(
                            f"{shortcut}_conv", f"{shortcut}_bn", last, wide(units), 1, stride
                        )
                    last = wide(units)
        self.classifier = nn.Linear(last, classes)

    def _add(
        self, name: str, norm: str, inputs: int, outputs: int, kernel: int, stride: int,
        bias: bool = False,
    ) -> None:  # fmt: skip
        self.layers[name] = Layer(
            name, norm, inputs, outputs,
            kernel_size=kernel, stride=stride, padding=kernel // 2, bias=bias,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        if "stem_conv" in self.layers:
            x = F.relu(self.layers["stem_conv"](x))
            for prefix in self.plan:
                second = self.layers[f"{prefix}_conv2"]
                y = second(F.relu(self.layers[f"{prefix}_conv1"](x)))
                shortcut = f"{prefix}_shortcut_conv"
                x = F.relu(
                    second.add_shortcut(
                        y, self.layers[shortcut](x) if shortcut in self.layers else x
                    )
                )
        else:
            for entry in self.plan:
                if entry == "M":
                    x = F.max_pool2d(x, 2) if x.shape[-1] > 1 else x
                else:
                    x = F.relu(self.layers[entry](x))
        return self.classifier(x.mean((2, 3)))

    def named(self) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
        """Path as in prunejax -> tensor, and the order of its axes there."""
        found: dict[str, tuple[Tensor, tuple[int, ...]]] = {}
        for layer in self.layers.values():
            found[f"params/{layer.name}/kernel"] = (layer.conv.weight, (2, 3, 1, 0))
            if layer.conv.bias is not None:
                found[f"params/{layer.name}/bias"] = (layer.conv.bias, (0,))
            found[f"params/{layer.norm}/scale"] = (layer.bn.weight, (0,))
            found[f"params/{layer.norm}/bias"] = (layer.bn.bias, (0,))
            found[f"batch_stats/{layer.norm}/mean"] = (layer.bn.running_mean, (0,))
            found[f"batch_stats/{layer.norm}/var"] = (layer.bn.running_var, (0,))
        found["params/classifier/kernel"] = (self.classifier.weight, (1, 0))
        found["params/classifier/bias"] = (self.classifier.bias, (0,))
        return found

    @torch.no_grad()
    def snapshot(self) -> dict[str, np.ndarray]:
        """Every tensor as prunejax has it: what the next call puts back first is back already."""
        for layer in self.layers.values():
            if layer.arm.get("counting") == "passes" and layer.count == layer.arm["passes"]:
                for i in list(layer.saved):
                    layer.put_back(i)
        return {p: t.permute(axes).numpy().copy() for p, (t, axes) in self.named().items()}

    @torch.no_grad()
    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes the values from arrays in prunejax's layout; every tensor has to be there."""
        for path, (tensor, axes) in self.named().items():
            value = torch.from_numpy(arrays[path]).double()
            tensor.copy_(value.permute(tuple(np.argsort(axes))))


def removals(filters: int, fraction: float, events: int) -> list[int]:
    """k_i: kept after event i is ceil(K + (N - K)(n - i)/n), with K = ceil((1 - f)N)."""
    final = math.ceil(round((1 - fraction) * filters, 9))
    kept = [math.ceil(round(final + (filters - final) * (events - i) / events, 9))
            for i in range(1, events + 1)]  # fmt: skip
    return [before - after for before, after in zip([filters, *kept], kept, strict=False)]


def train(settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Trains the arm; returns arrays by name and facts under "facts"."""
    arm = settings["arm"]
    images = {s: torch.from_numpy(arrays[f"images/{s}"]).double() for s in ("train", "test")}
    images = {s: x.permute(0, 3, 1, 2) for s, x in images.items()}
    labels = {s: torch.from_numpy(arrays[f"labels/{s}"]).long() for s in ("train", "test")}
    network = Network(settings["model"], settings["width"], images["train"].shape[1], 10).double()
    network.load(arrays)
    draws = {name: [torch.from_numpy(x).double() for x in arrays[f"noise/{name}"]]
             for name in arm["layers"] if f"noise/{name}" in arrays}  # fmt: skip
    for name, layer in network.layers.items():
        if name in arm["layers"]:
            layer.arm, layer.noise = arm, iter(draws.get(name, ()))
    o = settings["optimizer"]
    if o["name"] == "adam":
        optimizer = torch.optim.Adam(network.parameters(), o["rate"], weight_decay=o["decay"])
    else:
        optimizer = torch.optim.SGD(
            network.parameters(), o["rate"], momentum=0.9, weight_decay=o["decay"]
        )
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, o["milestones"], 0.1)
    schedule: dict[int, list[tuple[str, int]]] = {}
    for name, entry in arm["layers"].items():
        epochs = list(range(entry["start"], entry["end"] + 1, entry["period"]))
        filters = network.layers[name].conv.out_channels
        if arm["scratch"]:
            epochs = [-1]
        for epoch, k in zip(epochs, removals(filters, entry["fraction"], len(epochs)), strict=True):
            if k:
                schedule.setdefault(epoch, []).append((name, k))
    out: dict[str, Any] = {}
    facts: dict[str, Any] = {"losses": [], "tests": [], "events": {}}

    @torch.no_grad()
    def test() -> None:
        network.eval()
        loss, correct = 0.0, 0
        for x, y in zip(images["test"].split(settings["test_batch"]),
                        labels["test"].split(settings["test_batch"]), strict=True):  # fmt: skip
            logits = network(x)
            loss += F.cross_entropy(logits, y, reduction="sum").item()
            correct += int((logits.argmax(1) == y).sum())
        facts["tests"].append([loss / len(labels["test"]), correct])

    def event(epoch: int) -> None:
        for name, k in schedule.get(epoch, ()):
            layer = network.layers[name]
            out[f"scores/{epoch}/{name}"] = layer.scores().numpy().copy()
            given = settings["random"].get(f"{epoch}/{name}")
            facts["events"][f"{epoch}/{name}"] = sorted(layer.event(k, given))

    if arm["scratch"]:
        test()
        event(-1)
        test()
    step = 0
    for epoch, order in enumerate(arrays["order"]):
        for batch in torch.from_numpy(order).long().split(settings["batch"]):
            network.train()
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images["train"][batch]), labels["train"][batch])
            loss.backward()
            optimizer.step()
            facts["losses"].append(loss.item())
            for layer in network.layers.values():
                layer.after_step()
                if step % 10 == 9 and layer.pre is not None:
                    layer.activation = 0.9 * layer.activation + 0.1 * layer.pre
            out |= {f"step/{step}/{path}": x for path, x in network.snapshot().items()}
            step += 1
        test()
        event(epoch)
        scheduler.step()
        test()
    facts["noise left"] = sum(1 for layer in network.layers.values() for _ in layer.noise)
    return out | {"facts": json.dumps(facts)}


def main() -> None:
    """Answers each path on standard input with the path of its results."""
    torch.set_num_threads(1)
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        path = line.strip()
        with np.load(path) as file:
            arrays = dict(file)
        found = train(json.loads(str(arrays.pop("settings"))), arrays)
        np.savez(f"{path}.out.npz", **found)
        print(json.dumps({"written": f"{path}.out.npz"}), flush=True)


if __name__ == "__main__":
    main()
