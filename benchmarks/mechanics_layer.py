"""A prunable convolution in PyTorch: our reimplementation, for `mechanics_torch.py`.

A layer knows its mask and its window and acts on its own weights whenever it is called, test
batches included, as in the release; windows of training steps are told when training is
on and when a step has ended.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    """A convolution and the BatchNorm after it, with what pruning or noise does to them."""

    def __init__(self, name: str, norm: str, inputs: int, outputs: int, **options: Any) -> None:
        super().__init__()
        self.name, self.norm = name, norm
        self.conv = nn.Conv2d(inputs, outputs, **options)
        self.bn = nn.BatchNorm2d(outputs)
        self.arm: dict[str, Any] = {"kind": "none"}
        self.alive = torch.ones(outputs, dtype=torch.bool)  # never targeted
        self.newest: list[int] = []
        self.count = math.inf  # passes since the newest event
        self.left: dict[int, int] = {}  # filter -> training steps of its window
        self.saved: dict[int, list[Tensor]] = {}
        self.first_draws: dict[int, Tensor] = {}  # noise given at the event, ahead of the step
        self.noise: Iterator[Tensor] = iter(())
        self.activation = torch.zeros(outputs, dtype=torch.float64)
        self.pre: Tensor | None = None  # sum of |what goes into the ReLU| of this batch

    # -- what stands in the way of a forward pass ------------------------------------------------

    def tensors(self) -> list[Tensor]:
        """What a restore puts back."""
        bn = self.bn
        return [self.conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var]

    def sigma(self) -> Tensor:
        """Standard deviation of the first filter that was never targeted."""
        return self.conv.weight[int(self.alive.nonzero()[0])].std()

    @torch.no_grad()
    def disturb(self, i: int, sigma: Tensor) -> None:
        """One application of the arm's kind to filter `i`."""
        if self.arm["kind"] == "gaussian":
            self.conv.weight[i] += sigma * next(self.noise)
            return
        self.conv.weight[i] = 0
        if self.arm["mask_norm"]:
            self.bn.weight[i] = self.bn.bias[i] = 0

    @torch.no_grad()
    def put_back(self, i: int) -> None:
        """Filter `i` as it was saved."""
        for tensor, value in zip(self.tensors(), self.saved.pop(i), strict=True):
            tensor[i] = value

    def noisy(self) -> bool:
        """Whether the arm has windows."""
        return self.arm["kind"] in ("zero", "gaussian")

    def before(self) -> None:
        """As released: at most `passes` + 1 calls after an event change the stored weights."""
        if not self.noisy():
            return
        if self.arm["counting"] == "steps":
            sigma = self.sigma()
            for i in [i for i in sorted(self.left) if self.training and self.left[i] > 0]:
                if i in self.first_draws:
                    del self.first_draws[i]
                else:
                    self.disturb(i, sigma)
            return
        if self.count > self.arm["passes"]:
            return
        self.count += 1
        dead = (~self.alive).nonzero().flatten().tolist()
        targets = sorted(self.newest) if self.arm["newest"] else dead
        if self.arm["restore"] and self.count == 1:
            self.saved = {i: [t[i].detach().clone() for t in self.tensors()] for i in targets}
        if self.arm["restore"] and self.count > self.arm["passes"]:
            for i in list(self.saved):
                self.put_back(i)
            return
        sigma = self.sigma()
        for i in targets:
            self.disturb(i, sigma)

    def after_step(self) -> None:
        """Windows in training steps: one less."""
        for i in list(self.left):
            self.left[i] -= 1
            if self.left[i] == 0:
                del self.left[i]
                if self.arm["restore"]:
                    self.put_back(i)

    def forward(self, x: Tensor) -> Tensor:
        """Convolution and BatchNorm under the mask."""
        self.before()
        weight, scale, shift = self.conv.weight, self.bn.weight, self.bn.bias
        if self.arm["kind"] == "prune":
            mask = self.alive.to(weight)
            if not self.arm["score"].startswith("ebn"):  # E[BN] prunes BatchNorm alone
                weight = weight * mask[:, None, None, None]
            if self.arm["mask_norm"]:
                scale, shift = scale * mask, shift * mask
        y = F.conv2d(x, weight, self.conv.bias, self.conv.stride, self.conv.padding)
        if not self.training:
            mean, var = self.bn.running_mean, self.bn.running_var
            return F.batch_norm(y, mean, var, scale, shift, False, 0.0, self.bn.eps)
        with torch.no_grad():
            mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=True)
            self.bn.running_mean.mul_(0.9).add_(mean, alpha=0.1)
            self.bn.running_var.mul_(0.9).add_(var, alpha=0.1)
        y = F.batch_norm(y, None, None, scale, shift, True, 0.0, self.bn.eps)
        self.pre = y.detach().abs().sum((0, 2, 3))
        return y

    def add_shortcut(self, y: Tensor, shortcut: Tensor) -> Tensor:
        """A pruned channel of a block's second convolution does not get its shortcut."""
        if self.arm["kind"] == "prune" and self.arm["mask_norm"]:
            shortcut = shortcut * self.alive.to(y)[:, None, None]
        y = y + shortcut
        if self.training:
            self.pre = y.detach().abs().sum((0, 2, 3))
        return y

    # -- scores and events -----------------------------------------------------------------------

    @torch.no_grad()
    def scores(self) -> Tensor:
        """One number per filter."""
        flat = self.conv.weight.flatten(1)
        kind = self.arm["score"]
        if kind == "l1":
            return flat.abs().sum(1)
        if kind == "l2":
            return flat.norm(dim=1)
        if kind == "activations":
            return self.activation
        scale, shift = self.bn.weight, self.bn.bias
        s = scale.abs() if kind == "ebn" else scale
        normal = torch.distributions.Normal(0.0, 1.0)
        alpha = -shift / s
        above = 1 - normal.cdf(alpha)
        expected = above * (shift + s * normal.log_prob(alpha).exp() / above)
        return torch.where(above > 0, expected, 0.0)

    @torch.no_grad()
    def event(self, k: int, given: list[int] | None) -> list[int]:
        """Targets k surviving filters: those with extreme scores, or (random ones) as given."""
        values = self.scores()
        alive = self.alive.nonzero().flatten().tolist()
        if given is None:
            largest = self.arm["target"] == "largest"
            cut = sorted((float(values[i]) for i in alive), reverse=largest)[k - 1]
            reach = [i for i in alive if (values[i] >= cut if largest else values[i] <= cut)]
            given = reach[:k]
        assert len(given) == k
        assert all(self.alive[i] for i in given)
        self.alive[given] = False
        self.newest, self.count = given, 0
        if self.arm["kind"] == "prune" and not self.arm["score"].startswith("ebn"):
            self.conv.weight[given] = 0
        if self.noisy() and self.arm["counting"] == "steps":
            sigma, dead = self.sigma(), (~self.alive).nonzero().flatten().tolist()
            for i in sorted(given) if self.arm["newest"] else dead:
                if self.left.get(i, 0) == 0 and self.arm["restore"]:
                    self.saved[i] = [t[i].detach().clone() for t in self.tensors()]
                self.left[i] = self.arm["passes"]
                self.disturb(i, sigma)  # the test after the event sees it; the first step's noise
                self.first_draws[i] = torch.tensor(True)
        return given
