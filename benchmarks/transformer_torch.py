"""The PyTorch side of `transformer.py`: gradients of our ViT, eager and compiled.

Reads weights and a batch from an npz file (`variables.npz sizes threads`), then answers lines of
JSON, {"way": "eager" | "compiled", "repeats": n}, with the loss, the norm of the gradient and the
wall and CPU seconds of the fastest call. Needs torch and numpy.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


def forward(p: dict[str, torch.Tensor], x: torch.Tensor, depth: int, heads: int) -> torch.Tensor:
    """Logits [batch, classes]: pre-LayerNorm blocks as in `prunejax.models.vit`."""

    def dense(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, p[f"{name}/kernel"], p[f"{name}/bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], p[f"{name}/scale"], p[f"{name}/bias"], 1e-6)

    patch = p["patches/kernel"].shape[-1]
    x = F.conv2d(x, p["patches/kernel"], p["patches/bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2)
    first = p["tokens/class"].expand(len(x), -1, -1)
    x = torch.cat([first, x], 1) + p["tokens/positions"]
    for b in range(1, depth + 1):
        n, t, units = x.shape
        q, k, v = (
            dense(norm(x, f"block{b}_norm1"), f"block{b}_attention_in")
            .reshape(n, t, 3, heads, -1)
            .permute(2, 0, 3, 1, 4)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, units)
        x = x + dense(attended, f"block{b}_attention_out")
        hidden = F.gelu(dense(norm(x, f"block{b}_norm2"), f"block{b}_dense1"))
        x = x + dense(hidden, f"block{b}_dense2")
    return dense(norm(x, "norm")[:, 0], "classifier")


def main() -> None:
    path, depth, heads, threads = sys.argv[1:5]
    torch.set_num_threads(int(threads))
    arrays = np.load(path)
    p: dict[str, torch.Tensor] = {}
    for name in arrays.files:
        value = arrays[name]
        if name.endswith("kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        if name not in ("x", "y"):
            p[name] = torch.from_numpy(np.ascontiguousarray(value)).requires_grad_()
    x = torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(arrays["y"]).long()

    def loss() -> torch.Tensor:
        return F.cross_entropy(forward(p, x, int(depth), int(heads)), y)

    ways: dict[str, Any] = {"eager": loss, "compiled": torch.compile(loss)}
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        best = [float("inf")] * 2
        for _ in range(command["repeats"]):
            wall, cpu = time.perf_counter(), time.process_time()
            value = ways[command["way"]]()
            found = torch.autograd.grad(value, list(p.values()))
            best[0] = min(best[0], time.perf_counter() - wall)
            best[1] = min(best[1], time.process_time() - cpu)
        norm = float(sum(g.double().square().sum() for g in found).sqrt())
        answer = {"loss": float(value.detach()), "norm": norm, "wall": best[0], "cpu": best[1]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
