"""The released code's side of `released.py`: runs the authors' own functions from their checkout.

    python benchmarks/released_driver.py DIR

Needs torch, numpy and scipy, nothing of prunejax. DIR is a checkout of
github.com/bbartoldson/GeneralizationStabilityTradeoff. For every path on standard input (an npz
file with an arm's settings, initial weights, images, batches and noise) their `experiments.main`
runs: their networks, scores, pruning, noise, schedules, optimizers, training and test loops. What
happened is written beside the path. Nothing of theirs is copied or changed on disk; around their
functions stand these shims (the first four in `released_shims.py`):

    float64     as torch's default dtype, and in `.float()`
    `.cuda()`   does nothing; `Tensor.view` falls back on `reshape` (their `accuracy` needs it)
    imports     torchvision and pandas are empty where they are missing; the table of results is
                dropped
    widths      layers are made with scaled numbers of channels
    run table   epochs, periods and windows of an entry are shortened as in `released_arms.py`
    loaders     give the batches that were sent; random targets and Gaussian draws too
"""

import contextlib
import io
import json
import math
import re
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from released_shims import load, named, narrow, shims, tensors
from torch import nn


class Recorder:
    """One run of their `main`: gives it what was sent, and keeps what happens."""

    def __init__(self, told: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.told, self.arrays = told, arrays
        self.out: dict[str, Any] = {}
        self.facts: dict[str, Any] = {"losses": [], "tests": [], "events": {}, "stopped": ""}
        self.epoch, self.ranked, self.current = -1 if told["scratch"] else 0, None, ""
        self.draws: dict[str, Iterator[np.ndarray]] = {
            path.removeprefix("noise/"): iter(draws)
            for path, draws in arrays.items() if path.startswith("noise/")
        }  # fmt: skip

    def model(self, make: Any, **options: Any) -> nn.Module:
        """Their network with our widths and weights, watched."""
        with narrow(self.told["width"], 10):
            network = make(**options)
        layers = named(network)
        self.network, self.tensors = network, tensors(layers)
        for path, (tensor, axes) in self.tensors.items():
            value = torch.from_numpy(self.arrays[path]).double()
            tensor.copy_(value.permute(tuple(np.argsort(axes))))
        self.prunable: dict[str, Any] = {}
        for name, layer in layers.items():
            if hasattr(layer, "prune_frac"):
                conv = name.replace("bn", "conv")  # E[BN] prunes the norm
                self.prunable[conv] = layer
                layer.register_forward_pre_hook(lambda *_, n=conv: setattr(self, "current", n))
                layer.prune_layer = self._watched(conv, layer, layer.prune_layer)
        return network

    def _watched(self, name: str, layer: Any, prune_layer: Any) -> Any:
        """Notes scores and targets of an event of this layer."""

        def event(*args: Any) -> float:
            before, self.ranked, self.current = layer.mask.bool().clone(), None, name
            found = prune_layer(*args)
            if self.ranked is not None:
                key = f"{self.epoch}/{name}"
                scores = np.full(len(before), np.nan)
                scores[before.numpy()] = self.ranked[0].numpy()
                self.out[f"scores/{key}"] = scores
                gone = before & ~layer.mask.bool()
                self.facts["events"][key] = gone.nonzero().flatten().tolist()
            return found

        return event

    def topk(self, values: torch.Tensor, k: int, *args: Any, **options: Any) -> Any:
        """`torch.topk`, through which the scores of an event pass."""
        found = self.real_topk(values, k, *args, **options)
        self.ranked = (values.clone(), found[1])
        return found

    def permutation(self, entries: Any) -> np.ndarray:
        """Takes the k entries that they would shuffle to the places of the given targets."""
        given = self.told["random"][f"{self.epoch}/{self.current}"]
        alive = self.prunable[self.current].mask.bool().nonzero().flatten().tolist()
        places, chosen = [alive.index(i) for i in given], self.ranked[1].tolist()
        order = np.empty(len(entries), int)
        order[places] = chosen
        rest = np.setdiff1d(np.arange(len(entries)), places)
        order[rest] = np.setdiff1d(np.arange(len(entries)), chosen)
        return order

    def normal(self, mean: float, std: float) -> Any:
        """Gaussian noise from the draws that were sent, in standard deviations."""

        def sample(shape: Any) -> torch.Tensor:
            drawn = [next(self.draws[self.current]) for _ in range(shape[0])]
            return std * torch.from_numpy(np.stack(drawn))

        return types.SimpleNamespace(sample=sample)

    def optimizer(self, make: Any, *args: Any) -> Any:
        """Their optimizer, with rates as single precision has them; snapshots after each step."""
        optimizer, scheduler = make(*args)

        def rounded(*_: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"] = float(np.float32(group["lr"]))

        optimizer.register_step_pre_hook(rounded)
        optimizer.register_step_post_hook(self._snapshot)
        return optimizer, scheduler

    def _snapshot(self, *_: Any) -> None:
        """Every tensor after a step; what the next pass puts back first is back already."""
        step = len(self.facts["losses"]) - 1
        arrays = {p: t.permute(a).numpy().copy() for p, (t, a) in self.tensors.items()}
        for name, layer in self.prunable.items():
            noise = getattr(layer, "noise", None) or ""
            if "restore" in noise and layer.batches_since_targeting == layer.batches_of_noise:
                gone = ~layer.mask.bool() if noise[:4] != "iter" else layer.newly_pruned
                bn = name.replace("conv", "bn")
                for path, kept in (
                    (f"params/{name}/kernel", layer.orig.permute(2, 3, 1, 0)),
                    (f"params/{bn}/scale", layer.orig_bn_weight),
                    (f"params/{bn}/bias", layer.orig_bn_bias),
                    (f"batch_stats/{bn}/mean", layer.orig_bn_mu),
                    (f"batch_stats/{bn}/var", layer.orig_bn_sig2),
                ):
                    arrays[path][..., gone.numpy()] = kept.numpy()
        self.out |= {f"step/{step}/{path}": x for path, x in arrays.items()}

    def loaders(self, *_: Any) -> tuple[Any, Any, None, None]:
        """Training batches in our order, epoch after epoch; test batches."""
        given = {name: torch.from_numpy(x) for name, x in self.arrays.items() if name != "order"}
        splits = ("train", "test")
        images = {s: given[f"images/{s}"].double().permute(0, 3, 1, 2) for s in splits}
        labels = {s: given[f"labels/{s}"].long() for s in splits}
        order = iter(torch.from_numpy(self.arrays["order"]).long())

        class Train:
            def __iter__(_) -> Any:
                for batch in next(order).split(self.told["batch"]):
                    yield images["train"][batch], labels["train"][batch]

            def __len__(_) -> int:
                return math.ceil(len(labels["train"]) / self.told["batch"])

        size = self.told["test_batch"]
        tests = list(zip(images["test"].split(size), labels["test"].split(size), strict=True))
        return Train(), tests, None, None

    def validated(self, validate: Any, *args: Any) -> Any:
        """Their `validate`; an epoch ends with its second one."""
        found = validate(*args)
        count = len(self.arrays["labels/test"])
        self.facts["tests"].append([found[2], round(float(found[0]) * count / 100)])
        self.epoch += len(self.facts["tests"]) % 2 == 0
        return found


def entry(table: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """Their entry of the run table on the short clock."""
    found, clock, (here, full) = dict(table[told["entry"]]), told["clock"], told["passes"]
    short = lambda epochs: [1 + e // clock for e in epochs]  # noqa: E731
    found |= {"pre_prune_acc": True, "gen_matrices": False}
    found["lr_schedule"] = short(found["lr_schedule"])
    if "prune_frac" in found and not found.get("scratch_prune"):
        for name in ("prune_start_epoch", "prune_end_epoch"):
            found[name] = short(found[name])
        found["retrain_period"] = max(1, found["retrain_period"] // clock)
    if found.get("noise"):
        shorter = lambda m: f"_{max(min(int(m[1]), 1), round(int(m[1]) * here / full))}_"  # noqa: E731
        found["noise"] = re.sub(r"_(\d+)_", shorter, found["noise"])
    return found


def train(experiments: Any, models: Any, told: dict, arrays: dict) -> dict[str, Any]:
    """Runs their `main` on the arm; returns arrays by name and facts under "facts"."""
    run = Recorder(told, arrays)
    run.real_topk = torch.topk
    make, optim, validate = (
        models.__dict__[told["arch"]], experiments.get_optim_and_scheduler, experiments.validate,
    )  # fmt: skip

    class Loss(nn.CrossEntropyLoss):
        def forward(self, *args: Any) -> torch.Tensor:
            loss = super().forward(*args)
            if torch.is_grad_enabled() and run.network.training:
                run.facts["losses"].append(loss.item())
            return loss

    argv = ["experiments.py", "-r", told["entry"], "--arch", told["arch"],
            "--epochs", str(told["epochs"]), "--lr", repr(told["rate"]),
            *(["--adam"] if told["adam"] else [])]  # fmt: skip
    patch = mock.patch.object
    with contextlib.ExitStack() as stack:
        for shim in (
            mock.patch.dict(models.__dict__, {told["arch"]: lambda **o: run.model(make, **o)}),
            mock.patch.dict(experiments.run_cfgs,
                            {told["entry"]: entry(experiments.run_cfgs, told)}),
            patch(experiments, "get_optim_and_scheduler", lambda *a: run.optimizer(optim, *a)),
            patch(experiments, "get_train_test_data", run.loaders),
            patch(experiments, "validate", lambda *a: run.validated(validate, *a)),
            patch(experiments.os.path, "isfile", lambda path: False),
            patch(models, "permutation", run.permutation),
            patch(torch, "topk", run.topk),
            patch(torch.distributions, "Normal", run.normal),
            patch(nn, "CrossEntropyLoss", Loss),
            patch(sys, "argv", argv),
            contextlib.redirect_stdout(io.StringIO()),
        ):  # fmt: skip
            stack.enter_context(shim)
        try:
            experiments.main()
        except AssertionError as error:
            run.facts["stopped"] = f"epoch {run.epoch}: {error}"
    run.facts["noise left"] = sum(1 for draws in run.draws.values() for _ in draws)
    return run.out | {"facts": json.dumps(run.facts)}


def main() -> None:
    """Answers each path on standard input with the path of its results."""
    torch.set_num_threads(1)
    experiments, models = load(sys.argv[1])
    shims()
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        path = line.strip()
        with np.load(path) as file:
            arrays = dict(file)
        found = train(experiments, models, json.loads(str(arrays.pop("settings"))), arrays)
        np.savez(f"{path}.out.npz", **found)
        print(json.dumps({"written": f"{path}.out.npz"}), flush=True)


if __name__ == "__main__":
    main()
