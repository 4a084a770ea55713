"""The PyTorch side of `masks.py`: needs torch and numpy, nothing of prunejax.

Reads the leaves from an npz file, then obeys lines of JSON on standard input, {"how": "torch" or
"kthvalue", "keep": count}, and answers each with one: wall and CPU seconds, how many weights were
kept, the sum of their positions, and whether weights tie at the cut. Between commands it waits and
uses no processor time.
"""

import json
import sys
import time

import numpy as np
import torch
from torch.nn.utils import prune


def modules(leaves: list[torch.Tensor]) -> list[tuple[torch.nn.Module, str]]:
    """Fresh modules: pruning hooks would stack up."""
    found = []
    for leaf in leaves:
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(leaf)
        found.append((module, "weight"))
    return found


def main() -> None:
    with np.load(sys.argv[1]) as file:
        leaves = [torch.from_numpy(file[name]) for name in file.files]
    total = sum(leaf.numel() for leaf in leaves)
    print(json.dumps({"version": torch.__version__}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        keep, parameters = command["keep"], modules(leaves)
        start = time.perf_counter(), time.process_time()
        if command["how"] == "torch":
            prune.global_unstructured(
                parameters, pruning_method=prune.L1Unstructured, amount=total - keep
            )
            found = [module.weight_mask for module, _ in parameters]
        else:
            flat = torch.cat([leaf.flatten() for leaf in leaves]).abs()
            cut = torch.kthvalue(flat, total - keep).values
            found = [leaf.abs() > cut for leaf in leaves]
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        live = torch.cat([mask.flatten() for mask in found]).bool()
        size = torch.cat([leaf.flatten() for leaf in leaves]).abs()
        answer = {
            "wall": wall,
            "cpu": cpu,
            "kept": int(live.sum()),
            "sum": int(live.nonzero().sum()),
            "tied": bool(size[live].min() == size[~live].max()),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
