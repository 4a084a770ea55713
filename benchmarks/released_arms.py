"""The arms that `released.py` compares: those of configs/paper on a short clock and tiny networks.

An arm's settings come from its config file, and the release's side of it from the release's own
run table; both are shortened by the same rules, so that a difference between the two shows:

    epochs      divided by `CLOCK`, rounded down, plus one; periods divided, at least one
    windows     in forward passes, as many epochs long as they are in full
    networks    an eighth of the width; ResNet20 and ResNet56 in full (their shortcuts fix it)
    data        88 learnable images of CIFAR's shape in batches of 16, no augmentation; 50 tests
                in batches of 20

Windows that lasted a part of a period in full then reach over several events.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from prunejax import data as data_lib
from prunejax.configs import default
from prunejax.configs.paper import (  # fmt: skip
    fig2_resnet18,
    fig2_vgg11,
    fig3,
    fig4,
    fig5,
    figB2,
    figC3,
    figD2,
    tableC1,
    tableF1,
)
from prunejax.data.dataset import make
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib

BATCH, TEST_BATCH, TRAIN, TEST, WIDTH = 16, 20, 88, 50, 0.125
STEPS, TESTS = -(-TRAIN // BATCH), -(-TEST // TEST_BATCH)  # of an epoch; of one evaluation
CLOCK = {325: 20, 324: 20, 165: 10, 4000: 250, 3999: 250}  # epochs in full -> divisor
FULL = {"train": 50_000, "batch": 128, "test": 10_000}
PAPER = {
    "fig2_vgg11": fig2_vgg11, "fig2_resnet18": fig2_resnet18, "fig3": fig3, "fig4": fig4,
    "fig5": fig5, "figB2": figB2, "figC3": figC3, "figD2": figD2, "tableC1": tableC1,
    "tableF1": tableF1,
}  # fmt: skip
# (file, argument) of each study; the release knows no windows in training steps
RELEASED = [*((name, "") for name in PAPER if name not in ("fig5", "figD2")),
            ("fig5", "released"), ("figD2", "released")]  # fmt: skip
STEPWISE = [("fig5", ""), ("figD2", "")]
_RATES = {"S_1": 1, "S_13": 2, "S_14": 2, "L_13": 3, "L_14": 3}


def their_name(study: str, label: str) -> str:
    """The entry of the release's run table that an arm stands for."""
    network, _, short = label.rpartition("-")
    tag = "RN" if "resnet18" in study + network else "VGG"
    if short == "none":
        return {"tableF1": "TF1_0", "figC3": "FC3_2"}.get(study, f"F2_{tag}_0")
    if study == "fig2_vgg11":
        return f"F2_VGG_{['none', 'S_1', 'S_13', 'R_13', 'L_13', 'scratch'].index(short)}"
    if study in ("fig2_resnet18", "figB2", "tableC1"):
        start = {"fig2_resnet18": "F2_RN", "tableC1": "TC1"}.get(study, f"FB2_{tag}")
        return f"{start}_{_RATES[short]}"
    if study == "fig3":
        return f"F3_{short}"
    if study == "fig4":
        return f"F4_{network.removeprefix('resnet')}_{('S_3', 'S_5').index(short)}"
    if study == "figC3":
        return f"FC3_{('S_total10', 'S_total6').index(short)}"
    if study == "tableF1":
        return f"TF1_{('none', 'L_15', 'S_15', 'scratch').index(short)}"
    if short == "L_13":
        return "F5_0"
    windows = fig5.STEPS["full"] if study == "fig5" else figD2.STEPS["full"]
    kind, _, steps = short.rpartition("_")
    return {"zero": "F5_{}", "gauss": "F5_{}", "restore": "FD2_{}"}[kind].format(
        windows.index(int(steps)) + {"zero": 1, "gauss": 4, "restore": 0}[kind]
    )


@dataclasses.dataclass(frozen=True)
class Arm:
    """An arm of a study of the paper, shortened."""

    label: str  # "fig2_vgg11.S_1"
    settings: Any  # what our side runs
    theirs: str  # entry of the release's run table; "" for windows in training steps
    clock: int  # divisor of epochs
    passes: tuple[int, int]  # forward passes of an epoch, here and in full

    @property
    def scratch(self) -> bool:
        """Pruned before training."""
        return self.settings.prune.schedule == "scratch"


def images() -> None:
    """Registers learnable images of CIFAR's shape: a pattern per class under noise."""
    r = np.random.default_rng(0)
    patterns = r.uniform(60, 200, (10, 8, 8, 3)).repeat(4, 1).repeat(4, 2)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = (np.arange(count) % 10).astype(np.int32)
        noisy = patterns[labels] + r.normal(0, 40, (count, 32, 32, 3))
        return np.clip(noisy, 0, 255).astype(np.uint8), labels

    dataset = make("patterns", split(TRAIN), split(TEST), 10)
    data_lib.DATASETS["patterns"] = lambda data_dir: dataset


def arms(stepwise: bool) -> Iterator[Arm]:
    """The arms of the paper's studies; `stepwise`: those with windows in training steps."""
    for study, argument in STEPWISE if stepwise else RELEASED:
        config = PAPER[study].get_config(argument)
        for variant in config_lib.variants(config, default.get_config()):
            if stepwise and variant.settings.intervention.kind == "prune":
                continue
            s = variant.settings
            clock = CLOCK[s.epochs]
            full = -(-FULL["train"] // FULL["batch"]) + 2 * -(-FULL["test"] // s.eval_batch_size)
            passes = (STEPS + 2 * TESTS, full)
            theirs = "" if stepwise else their_name(study, variant.label)
            _shorten(s, clock, passes)
            yield Arm(f"{study}.{variant.label}", s, theirs, clock, passes)


def _shorten(s: Any, clock: int, passes: tuple[int, int]) -> None:
    """The settings on the short clock, in place."""
    short = lambda epochs: tuple(1 + e // clock for e in epochs)  # noqa: E731
    s.seeds, s.epochs = 1, 1 + -(-s.epochs // clock)
    s.batch_size, s.eval_batch_size = BATCH, TEST_BATCH
    s.data.name, s.data.augment = "patterns", False
    s.model.width = 1.0 if s.model.name in ("resnet20", "resnet56") else WIDTH
    s.optimizer.milestones = short(s.optimizer.milestones)
    if s.prune.schedule == "linear":
        s.prune.start, s.prune.end = short(s.prune.start), short(s.prune.end)
        s.prune.period = max(1, s.prune.period // clock)
    if s.intervention.duration > 0:
        full = passes[1] if s.intervention.as_released else FULL["train"] / FULL["batch"]
        here = passes[0] if s.intervention.as_released else STEPS
        s.intervention.duration = max(1, round(s.intervention.duration * here / full))


def build(chosen: list[Arm]) -> list[plan.Batch]:
    """Programs and members; arms that may share a compiled program do."""
    for arm in chosen:
        config_lib.validate(arm.settings, arm.label)
    return plan.build([config_lib.Variant(arm.label, arm.settings) for arm in chosen])
