"""The PyTorch side of `curvature.py`: quadratic forms v'Hv by PyHessian and by curvlinops.

Needs torch and numpy, and PyHessian and curvlinops-for-pytorch for the contenders of those names.
Reads variables and examples from an npz file, then answers lines of JSON on standard input,
{"method": ..., "probes": path, "batch": ..., "columns": ...}, with one line of JSON each: the forms
of the probes in the file, wall and CPU seconds, and the peak memory of the process so far. With
"examples": n they are of the first n examples, with "double": true in float64. Between commands it
waits and uses no processor time.

    gradient    one gradient of the mean loss (no probes), for scale
    pyhessian   `dataloader_hv_product`, reverse over reverse, forward and backward for each probe
    curvlinops  `HessianLinearOperator` on `columns` probes at a time
"""

import json
import resource
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch_worker import MODELS, load

warnings.filterwarnings("ignore")  # PyHessian keeps graphs on purpose; torch warns each time


def to_torch(path: str, value: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """A leaf of ours in PyTorch's layout."""
    if path.endswith("kernel"):
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return torch.from_numpy(np.ascontiguousarray(value, np.float32)).to(dtype)


def name_of(path: str) -> str:
    """The parameter's name in the PyTorch network."""
    layer, leaf = path.split("/")
    return f"layers.{layer}.{ {'scale': 'weight', 'kernel': 'weight'}.get(leaf, leaf) }"


class Contender:
    """One network with its data, and the ways to get quadratic forms."""

    def __init__(self, name: str, arrays: Any, dtype: torch.dtype, examples: int) -> None:
        self.model = MODELS[name]()
        with torch.no_grad():
            load(self.model, arrays)
        self.model.eval().to(dtype)
        self.dtype = dtype
        images = torch.from_numpy(arrays["x"][:examples])
        self.x = images.permute(0, 3, 1, 2).contiguous().to(dtype)
        self.y = torch.from_numpy(arrays["y"][:examples]).long()

    def _data(self, batch: int) -> list[Any]:
        return list(zip(self.x.split(batch), self.y.split(batch), strict=True))

    def gradient(self, vectors: Any, batch: int, columns: int) -> list[float]:
        """One gradient, no forms."""
        for x, y in self._data(batch):
            self.model.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
        return []

    def vectors(self, probes: Any) -> list[list[torch.Tensor]]:
        """Per probe the tensors in the order of the model's parameters."""
        paths = {name_of(path): path for path in probes.files}
        order = [paths[name] for name, _ in self.model.named_parameters()]
        stacks = {path: probes[path] for path in order}
        count = len(stacks[order[0]])
        return [
            [to_torch(path, stacks[path][i], self.dtype) for path in order] for i in range(count)
        ]

    def pyhessian(self, vectors: Any, batch: int, columns: int) -> list[float]:
        """One product per probe and batch."""
        from pyhessian import hessian

        work = hessian(
            self.model, torch.nn.CrossEntropyLoss(), dataloader=self._data(batch), cuda=False
        )
        return [work.dataloader_hv_product(v)[0] for v in vectors]

    def curvlinops(self, vectors: Any, batch: int, columns: int) -> list[float]:
        """One block product per `columns` probes."""
        from curvlinops import HessianLinearOperator

        operator = HessianLinearOperator(
            self.model,
            torch.nn.CrossEntropyLoss(),
            list(self.model.parameters()),
            self._data(batch),
            check_deterministic=False,
            num_data=len(self.x),
        )
        flat = [torch.cat([t.flatten() for t in v]) for v in vectors]
        forms: list[float] = []
        for start in range(0, len(flat), columns):
            block = torch.stack(flat[start : start + columns], dim=1)
            forms.extend((block * (operator @ block)).sum(0).tolist())
        return forms


def main() -> None:
    name, path, threads = sys.argv[1:4]
    torch.set_num_threads(int(threads))
    arrays = np.load(path)
    whole = Contender(name, arrays, torch.float32, len(arrays["y"]))
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        contender = whole
        if "examples" in command:
            dtype = torch.float64 if command.get("double") else torch.float32
            contender = Contender(name, arrays, dtype, command["examples"])
        vectors = contender.vectors(np.load(command["probes"]))
        wall, cpu = time.perf_counter(), time.process_time()
        forms = getattr(contender, command["method"])(
            vectors, command["batch"], command.get("columns", 1)
        )
        answer = {
            "forms": forms,
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
