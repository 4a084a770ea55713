"""What the studies of the paper share: arguments, recipes, event schedules, and the small form.

Numbers are those of the released code (github.com/bbartoldson/GeneralizationStabilityTradeoff,
its run table and scripts). Epochs count from 0, as in its run table.

Every study takes arguments after the colon of `--config`, separated by commas:

* `small`: minutes on two CPU cores instead of hours on an accelerator. Narrow networks, a few
  seeds, epochs divided by about eight, on scikit-learn's digits (no download). It keeps the
  mechanics: the number of large events of each layer, exact counts, windows in the same
  proportion to an epoch, the order of stabilities. It does not keep the claim about accuracy: too
  few steps lie between events (the learning rate falls later than in the paper for that reason),
  and the last layer loses 80 % instead of 90 or 95 %, so that more filters than classes are left.
  The thirteen small forms together took about 1,400 CPU seconds, compilation included.
* `small,cifar10` (or `fashion_mnist`): the small form on 4,096 images of that set, which has to be
  prepared; minutes become tens of minutes.
"""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from prunejax.configs import default, recipes

SMALL_DATA = ("cifar10", "fashion_mnist")
SMALL_FORM = {
    "small": "a reduced form for two CPU cores",
    **{name: f"the small form on {name}" for name in SMALL_DATA},
}

# Which layers lose filters, what fraction, and when. A study adds target, period and score.
VGG11: dict[str, Any] = {
    "schedule": "linear",
    "layers": ("conv5", "conv6", "conv7", "conv8"),
    "fraction": (0.3, 0.3, 0.3, 0.9),  # of the last layer 52 of 512 filters stay
    "start": (3, 4, 5, 6),  # one layer an epoch, as released
    "end": (150, 150, 150, 275),
}
RESNET18: dict[str, Any] = {
    "schedule": "linear",
    "layers": (
        "stage4_block1_conv1",
        "stage4_block1_conv2",
        "stage4_block2_conv1",
        "stage4_block2_conv2",
    ),
    "fraction": (0.25, 0.4, 0.25, 0.95),  # of the last layer 26 of 512 filters stay
    "start": (7, 8, 9, 10),  # one layer an epoch, as released
    "end": (150, 150, 170, 275),
}
# The same in 40 epochs: large events (period 40, here 5) fall as often as in 325 epochs.
VGG11_SMALL = VGG11 | {
    "fraction": (0.3, 0.3, 0.3, 0.8),
    "start": (0, 1, 2, 3),
    "end": (18, 18, 18, 34),
}
RESNET18_SMALL = RESNET18 | {
    "fraction": (0.25, 0.4, 0.25, 0.8),
    "start": (0, 1, 2, 3),
    "end": (18, 18, 22, 34),
}
SMALL_PERIODS = {4: 1, 20: 2, 40: 5, 60: 7, 100: 12, 200: 25, 300: 37}


def arguments(arg: str | None, file: str, **others: str) -> frozenset[str]:
    """The words of `arg`, checked.

    Args:
      arg: what follows the colon of `--config=FILE:`, e.g. "small,twins".
      file: the config file, for the message.
      **others: further arguments of this study and what they do.

    Raises ValueError: a word that this study does not know, or words that exclude each other.
    """
    given = recipes.words(arg, file, SMALL_FORM | others)
    data = [word for word in given if word in SMALL_DATA]
    if data and "small" not in given:
        raise ValueError(f"{file}:{arg}: {data[0]!r} goes with 'small': {file}:small,{data[0]}")
    if len(set(data)) > 1:
        raise ValueError(f"{file}:{arg}: name one data set, not {' and '.join(data)}")
    return frozenset(given)


def size(given: Iterable[str]) -> str:
    """Which of a study's sizes the arguments choose: "full", "digits" or "images" (small forms)."""
    if "small" not in given:
        return "full"
    return "images" if any(word in SMALL_DATA for word in given) else "digits"


def adam(name: str, model: str) -> ConfigDict:
    """CIFAR-10 without augmentation, Adam without weight decay, 325 epochs, ten seeds."""
    config = _study(name, model)
    config.epochs = 325
    config.optimizer.name = "adam"  # recovers from events better than SGD, says the paper
    config.optimizer.learning_rate = 1e-3
    config.optimizer.milestones = (150, 300)
    return config


def sgd(name: str, model: str) -> ConfigDict:
    """CIFAR-10 with crops and flips, SGD with momentum and weight decay, 165 epochs, ten seeds."""
    config = _study(name, model)
    config.epochs = 165
    config.data.augment = True
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    # in the gradient, of all parameters, as PyTorch's SGD has it
    config.optimizer.weight_decay = 1e-4
    config.optimizer.milestones = (83, 125)
    return config


def _study(name: str, model: str) -> ConfigDict:
    config = default.get_config()
    config.name = name
    config.seeds = 10
    config.batch_size = 128  # 391 steps an epoch, the last one partial
    config.eval_batch_size = 256  # as released, where noise windows count test batches too
    config.data.name = "cifar10"
    config.model.name = model
    config.model.unbiased_variance = True  # as PyTorch keeps it
    config.optimizer.schedule = "multistep"
    config.optimizer.decay = 0.1
    return config


def make_small(
    config: ConfigDict,
    given: Iterable[str],
    *,
    epochs: int = 40,
    milestones: tuple[int, ...] = (35, 38),
    width: float = 0.125,
    seeds: int = 2,
) -> None:
    """Turns a study into its small form, in place; its schedules are the study's to change.

    By default that of the studies of `adam`.
    """
    config.name += " (small form)"
    config.report.mechanics_only = True
    config.seeds = seeds
    config.epochs = epochs
    config.batch_size = 64
    config.optimizer.milestones = milestones
    config.model.width = width
    config.population.layout = "sharded"  # "auto" would compile each program twice
    chosen = [word for word in given if word in SMALL_DATA]
    config.data.name = chosen[0] if chosen else "digits"
    if chosen:
        config.data.train_examples, config.data.test_examples = 4096, 2000
    else:
        config.data.train_examples = 1024


def arm(
    events: dict[str, Any], target: str, period: int, score: str, **more: Any
) -> dict[str, Any]:
    """A variant that prunes.

    Args:
      events: layers, fractions, starts and ends, e.g. `VGG11`.
      target: smallest, random or largest.
      period: epochs between events.
      score: what ranks the filters.
      **more: further overrides, e.g. `intervention={...}`.
    """
    return {"prune": events | {"target": target, "period": period, "score": score}} | more


def vgg11_arm(small: bool, target: str, period: int, score: str = "") -> dict[str, Any]:
    """A variant of VGG11 that prunes, in the small form with the E[BN] score.

    L2 norms hardly tell filters of a small network apart, since BatchNorm makes them scale-free;
    with E[BN] the order of stabilities shows in minutes.

    Args:
      small: whether it is the small form.
      target: as in `arm`.
      period: of the full form, a key of `SMALL_PERIODS`.
      score: the same in both forms, where it is not the L2 norm and E[BN].
    """
    if small:
        return arm(VGG11_SMALL, target, SMALL_PERIODS[period], score or "ebn")
    return arm(VGG11, target, period, score or "l2")


def scratch(events: dict[str, Any], target: str, score: str, epochs: int) -> dict[str, Any]:
    """A variant that prunes before the first step and never again.

    The released loop spends epoch 0 of such a run on pruning alone and does not step the learning
    rate in it: its drops fall one epoch later on its clock, after as many *trained* epochs as in
    the other runs, and one epoch less is trained in all. Here epochs are trained epochs.

    Args:
      events: layers and fractions, e.g. `VGG11`; its epochs do not matter.
      target: smallest, random or largest.
      score: what ranks the filters.
      epochs: trained epochs.
    """
    pruning = events | {"schedule": "scratch", "start": (0,), "end": (0,), "period": 1}
    return {"epochs": epochs, "prune": pruning | {"target": target, "score": score}}
