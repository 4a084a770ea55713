"""The PyTorch side of `gradient_moment.py`: one backward pass per example, or `torch.func`.

The first is how the paper's code does it, `vmap(grad)` of chunks how users write it today. Needs
torch and numpy. Reads variables and examples from an npz file, then answers each line of JSON on
standard input, {"examples": n, "double": false, "chunk": 0}, with the squared gradient norms of the
first n examples, wall and CPU seconds as one line of JSON; a chunk above 0 asks for `torch.func`.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap
from torch_worker import MODELS, load


def singly(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[float]:
    norms = []
    for i in range(len(x)):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        norms.append(sum((p.grad**2).sum() for p in model.parameters()).item())
    return norms


def by_func(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, chunk: int) -> list[float]:
    """Per-example gradients of a chunk stored, squared, summed."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(params: dict, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        outputs = functional_call(model, (params, buffers), (image[None],))
        return F.cross_entropy(outputs, label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    norms: list[float] = []
    for i in range(0, len(x), chunk):
        found = each(params, x[i : i + chunk], y[i : i + chunk])
        norms += sum(g.flatten(1).square().sum(1) for g in found.values()).tolist()
    return norms


def main() -> None:
    name, path, threads = sys.argv[1:4]
    torch.set_num_threads(int(threads))
    arrays = np.load(path)
    model = MODELS[name](arrays["x"].shape[1:])
    with torch.no_grad():
        load(model, arrays)
    model.eval()
    images = torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(arrays["y"]).long()
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        dtype = torch.float64 if command.get("double") else torch.float32
        model.to(dtype)
        x = images.to(dtype)
        wall, cpu = time.perf_counter(), time.process_time()
        examples = (model, x[: command["examples"]], y[: command["examples"]])
        chunk = command.get("chunk", 0)
        norms = by_func(*examples, chunk) if chunk else singly(*examples)
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps({"norms": norms, **seconds}), flush=True)


if __name__ == "__main__":
    main()
