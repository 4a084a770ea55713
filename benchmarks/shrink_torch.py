"""The PyTorch side of `shrink.py`: needs torch, torch_pruning and numpy, nothing of prunejax.

Arguments: model, npz file (weights, a batch `x` [batch, h, w, c], `y`), threads. The first line
tells versions, how far outputs of the pruned network are from those of the dense one with the same
filters zeroed (of the largest), and MiB of parameters, buffers and momentum. Each line of JSON
{"which": "dense" | "pruned", "what": "train" | "infer"} answers with the
wall and CPU seconds of a step.
"""

import copy
import json
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn
from torch_worker import MODELS, load


def pruned(network: nn.Module, x: torch.Tensor) -> tuple[nn.Module, nn.Module]:
    """Half of the filters of each layer removed at random, and the network with them zeroed."""
    zeroed, small = copy.deepcopy(network), copy.deepcopy(network)
    names = {module: name for name, module in small.named_modules()}
    modules = dict(zeroed.named_modules())
    pruner = tp.pruner.BasePruner(
        small,
        x[:1],
        importance=tp.importance.RandomImportance(),
        pruning_ratio=0.5,
        ignored_layers=[small.layers["classifier"]],
    )
    for group in pruner.step(interactive=True):
        for dependency, index in group:
            module = dependency.target.module
            if isinstance(module, nn.BatchNorm2d):
                twin = modules[names[module]]
                with torch.no_grad():
                    twin.weight[index] = 0
                    twin.bias[index] = 0
        group.prune()
    return small, zeroed


class Contender:
    """A network that goes on training."""

    def __init__(self, network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        self.network, self.x, self.y = network, x, y
        self.optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)

    def round(self, what: str) -> dict[str, float]:
        """Wall and CPU seconds of one step, or of one batch inferred."""
        wall, cpu = time.perf_counter(), time.process_time()
        if what == "train":
            self.network.train()
            self.optimizer.zero_grad()
            F.cross_entropy(self.network(self.x), self.y).backward()
            self.optimizer.step()
        else:
            self.network.eval()
            with torch.inference_mode():
                self.network(self.x)
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}

    def kept(self) -> float:
        """MiB of parameters (twice, for momentum) and buffers."""
        size = sum(2 * p.nbytes for p in self.network.parameters())
        return (size + sum(b.nbytes for b in self.network.buffers())) / 2**20


def main() -> None:
    model, file, threads = sys.argv[1:4]
    if int(threads):
        torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    arrays = np.load(file)
    _, *shape = arrays["x"].shape
    network = MODELS[model](shape=tuple(shape)).eval()
    load(network, arrays)
    x = torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(arrays["y"]).long()
    small, zeroed = pruned(network, x)
    with torch.inference_mode():
        expected, got = zeroed.eval()(x), small.eval()(x)
    ways = {"dense": Contender(network, x, y), "pruned": Contender(small, x, y)}
    about: dict[str, Any] = {
        "torch": torch.__version__,
        "torch_pruning": tp.__version__,
        "threads": torch.get_num_threads(),
        "apart": float((got - expected).abs().max() / expected.abs().max()),
        "memory": {name: {"kept": way.kept()} for name, way in ways.items()},
    }
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(ways[command["which"]].round(command["what"])), flush=True)


if __name__ == "__main__":
    main()
