"""The PyTorch side of `training.py`: needs torch and numpy, nothing of prunejax.

Arguments: model, npz file, dtype, threads. The file holds weights, batches `x` [steps, batch, h, w,
c] float32 and `y`, `images` uint8 with `mean` and `std` for the loader, and the optimizer's
numbers. Each line of JSON {"way": ..., "steps": n, "state": path} trains n steps with that way's
own network, and answers with the losses and the wall and CPU seconds of a step; "state" asks for
the variables. Ways: "eager", "compiled", "graphs" (CUDA graphs), each " nchw" or " nhwc";
"released" (a loader that handles one example at a time, as the paper's released code does; the loop
is ours); "population eager" and "population compiled" ("members" of them, `torch.func`);
"peak" (the rate of a matrix product).
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap
from torch_worker import MODELS, load, name_of, to_ours

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def clocks() -> tuple[float, float]:
    """Wall and CPU seconds when the device is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


class Examples(torch.utils.data.Dataset):
    """One example at a time: to float, normalized, channels first."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: Any, std: Any) -> None:
        self.images, self.labels = images, labels
        self.mean, self.std = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(self.images[i]).permute(2, 0, 1).float().div(255)
        return image.sub_(self.mean).div_(self.std), int(self.labels[i])


class Way:
    """A network, its optimizer and its source of batches."""

    def __init__(self, how: str, model: str, arrays: Any, dtype: str) -> None:
        _, batch, *shape, channels = arrays["x"].shape
        self.network = MODELS[model](shape=(*shape, channels), width=float(arrays["width"]))
        load(self.network, arrays)
        layout = torch.channels_last if how.endswith("nhwc") else torch.contiguous_format
        self.network = self.network.to(DEVICE, memory_format=layout)
        self.start = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.seen: dict[str, int] = {}  # values per channel of each BatchNorm
        x = torch.from_numpy(arrays["x"]).permute(0, 1, 4, 2, 3)
        self.x = [b.to(DEVICE).contiguous(memory_format=layout) for b in x]
        self.y = list(torch.from_numpy(arrays["y"]).long().to(DEVICE))
        rate, momentum, decay = (float(v) for v in arrays["sgd"])
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            rate,
            momentum,
            weight_decay=decay,
            fused=DEVICE == "cuda" and how != "released",
        )
        half = dtype == "bfloat16"

        def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
                return F.cross_entropy(self.network(x).float(), y)

        self.loss = torch.compile(loss) if how.startswith("compiled") else loss
        if how.startswith("graphs"):  # one launch for all kernels: what a small network needs
            self.loss = torch.compile(loss, mode="reduce-overhead")
        self.done = 0
        self.loader: Iterator[Any] | None = None
        if how == "released":
            examples = Examples(
                arrays["images"], arrays["y"].ravel(), arrays["mean"], arrays["std"]
            )
            self.loader = self._forever(examples, batch)

    def _forever(self, examples: Examples, batch: int) -> Iterator[Any]:
        while True:
            yield from torch.utils.data.DataLoader(examples, batch, shuffle=True)

    def train(self, steps: int) -> list[float]:
        """The loss of each step."""
        losses = []
        for _ in range(steps):
            if self.loader is not None:
                x, y = (t.to(DEVICE) for t in next(self.loader))
            else:
                k = self.done % len(self.x)
                x, y = self.x[k], self.y[k]
            self.optimizer.zero_grad()
            loss = self.loss(x, y)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach().clone())  # a graph writes the next loss over it
            self.done += 1
        return torch.stack(losses).tolist()  # one transfer: each of them waits for the device

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of the variables."""
        return {k: v.clone() for k, v in self.network.state_dict().items()}

    def variables(self, paths: list[str], path: str) -> None:
        """Writes our leaves after one step; running variances as Flax keeps them, biased."""
        counts: dict[str, int] = {}

        def count(name: str) -> Any:
            return lambda _, args: counts.update({name: args[0].numel() // args[0].shape[1]})

        hooks = [
            m.register_forward_pre_hook(count(name))
            for name, m in self.network.named_modules()
            if "BatchNorm" in type(m).__name__
        ]
        state = self.state()
        with torch.no_grad():
            self.network.eval()(self.x[0])
            self.network.train()
        for hook in hooks:
            hook.remove()
        found = {}
        for leaf in paths:
            name = name_of(leaf)
            value = state[name]
            if leaf.endswith("/var"):
                n, old = counts[name.rpartition(".")[0]], 0.9 * self.start[name]
                value = old + (value - old) * (n - 1) / n
            found[leaf] = to_ours(leaf, value)
        np.savez(path, **found)


class Members(Way):
    """Many networks in one program: `vmap` of `grad` over stacked variables, one optimizer.

    All begin with the same weights; each sees its own batches, the first in the file's order.
    """

    def __init__(self, how: str, model: str, arrays: Any, dtype: str, count: int) -> None:
        super().__init__("eager nchw", model, arrays, dtype)
        stack = lambda v: torch.stack([v.detach()] * count)  # noqa: E731
        self.parameters = {k: stack(v) for k, v in self.network.named_parameters()}
        self.buffers = {k: stack(v) for k, v in self.network.named_buffers()}
        rate, momentum, decay = (float(v) for v in arrays["sgd"])
        self.optimizer = torch.optim.SGD(
            list(self.parameters.values()), rate, momentum, weight_decay=decay, foreach=True
        )

        def loss(parameters: Any, buffers: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
            with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
                outputs = functional_call(self.network, (parameters, buffers), (x,))
                value = F.cross_entropy(outputs.float(), y)
            return value, (value.detach(), buffers)  # running statistics, changed in place

        slopes = vmap(grad(loss, has_aux=True))
        self.slopes = torch.compile(slopes) if how.endswith("compiled") else slopes
        many = [[(k + i) % len(self.x) for i in range(count)] for k in range(len(self.x))]
        self.batches = [
            (torch.stack([self.x[i] for i in row]), torch.stack([self.y[i] for i in row]))
            for row in many
        ]

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of the first member's variables."""
        return {k: v[0].clone() for k, v in (self.parameters | self.buffers).items()}

    def train(self, steps: int) -> list[float]:
        """The loss of the first member in each step."""
        losses = []
        for _ in range(steps):
            x, y = self.batches[self.done % len(self.batches)]
            slopes, (loss, self.buffers) = self.slopes(self.parameters, self.buffers, x, y)
            for name, value in self.parameters.items():
                value.grad = slopes[name]
            self.optimizer.step()
            losses.append(loss[0].clone())
            self.done += 1
        return torch.stack(losses).tolist()


def peak(dtype: str, size: int) -> float:
    """Operations per second of the fastest of ten matrix products."""
    a, best = torch.randn(size, size, device=DEVICE, dtype=getattr(torch, dtype)), float("inf")
    for _ in range(10):
        start = clocks()[0]
        a @ a
        best = min(best, clocks()[0] - start)
    return 2 * size**3 / best


def main() -> None:
    model, file, dtype, threads = sys.argv[1:5]
    if int(threads):
        torch.set_num_threads(int(threads))
    if DEVICE == "cuda":  # as a JAX program does by itself: TF32 products, the fastest convolution
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    arrays = np.load(file)
    ways: dict[str, Way] = {}
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": DEVICE}
    print(json.dumps(about), flush=True)

    def act(command: dict[str, Any]) -> dict[str, Any]:
        how = command["way"]
        if how == "peak":
            return {"peak": peak(dtype, command["size"])}
        if how not in ways and how.startswith("population"):
            ways[how] = Members(how, model, arrays, dtype, command["members"])
        elif how not in ways:
            ways[how] = Way(how, model, arrays, dtype)
        start, steps = clocks(), command["steps"]
        losses = ways[how].train(steps)
        wall, cpu = (b - a for a, b in zip(start, clocks(), strict=True))
        if command.get("state"):
            ways[how].variables([k for k in arrays.files if "/" in k], command["state"])
        return {"losses": losses, "wall": wall / steps, "cpu": cpu / steps}

    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = act(command)
        except Exception as error:  # a compiler that is not there, memory: the others go on
            answer = {"failed": f"{type(error).__name__}: {str(error).strip()[:300]}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
