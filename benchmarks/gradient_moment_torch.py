"""The PyTorch side of `gradient_moment.py`: one backward pass per example.

This is how the paper's code does it. Needs torch and numpy. Reads variables and examples from an
npz file, then answers each line of JSON on standard input, {"examples": n, "double": false}, with
the squared gradient norms of the first n examples, wall and CPU seconds as one line of JSON.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch_worker import MODELS, load


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
        command, norms = json.loads(line), []
        dtype = torch.float64 if command.get("double") else torch.float32
        model.to(dtype)
        x = images.to(dtype)
        wall, cpu = time.perf_counter(), time.process_time()
        for i in range(command["examples"]):
            model.zero_grad()
            F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
            norms.append(sum((p.grad**2).sum() for p in model.parameters()).item())
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps({"norms": norms, **seconds}), flush=True)


if __name__ == "__main__":
    main()
