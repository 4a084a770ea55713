"""Functions that make arms: chains of runs that would be long to write by hand.

Each returns a dict from label to overrides for `default.arms`; arms of several recipes and of your
own go into one study. Settings that all arms share (model, data, optimizer, epochs,
`prune.granularity`) are set on the config itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from ml_collections import ConfigDict

Arms = dict[str, dict[str, Any]]
RETRAIN = ("weights", "learning_rate", "fine_tune")
CONTROLS = (
    *("fresh", "layer_shuffle", "global_shuffle", "erk", "one_shot", "inverted"),
    *("extended", "restart"),
)
QUICK = {"quick": "mechanics only"}


def words(arg: str | None, file: str, known: Mapping[str, str] = QUICK) -> tuple[str, ...]:
    """The words, with commas between them, of a config file's argument (what follows its colon).

    Args:
      arg: "" for the study itself.
      file: the config file, for the message.
      known: word -> what it does.

    Raises:
      ValueError: a word that is not known.
    """
    given = tuple(word for word in (arg or "").split(",") if word)
    for word in given:
        if word not in known:
            there = "; ".join(f"{name} ({what})" for name, what in known.items())
            raise ValueError(f"{file}:{arg}: unknown argument {word!r}; there are: {there}")
    return given


def form(arg: str, file: str, known: Mapping[str, str] = QUICK) -> str:
    """The form of a study that such an argument names: "" for the study itself; see `words`.

    Raises:
      ValueError: a name that is not known, or several.
    """
    given = words(arg, file, known)
    if len(given) > 1:
        raise ValueError(f"{file}:{arg}: give one of them: {' or '.join(given)}")
    return "".join(given)


def lottery(
    config: ConfigDict,
    *,
    levels: int = 12,
    fraction: float | Sequence[float] = 0.2,
    rewind: str = "start",
    retrain: str = "weights",
    order: str = "same",
    layers: Sequence[str] = (".*",),
    score: str = "magnitude",
    scope: str = "global",
    controls: Mapping[str, Sequence[int]] | None = None,
    prefix: str = "ticket",
) -> Arms:
    """Iterative magnitude pruning with rewinding (Frankle & Carbin 2019; Frankle et al. 2020).

    The arm `dense` is trained; level L begins with the weights at the end of level L - 1, loses
    `ceil(fraction * live)` of what is live, is put back, and is trained again.

    Args:
      config: the study's: single weights are set as what is pruned, epochs are read.
      levels: how many.
      fraction: of the live weights that goes at every level; with scope "layer" also one for each
        of `layers`, e.g. (0.2, 0.1) for (".*[^3]", "dense3"): half as much of the output layer.
      rewind: to which state of `dense`: "start", "epoch:N" or "step:N".
      retrain: "weights" (weights, statistics and schedule are put back), "learning_rate" (only
        the schedule is), "fine_tune" (nothing is; the arm's own learning rate applies).
      order: "same" data order at every level, or "new" (streams "level1", "level2", ...).
      layers: rules for the layers that are pruned.
      score: what is smallest goes.
      scope: "global" or "layer".
      controls: name -> levels at which it runs; of CONTROLS. "fresh", "layer_shuffle" and
        "global_shuffle" have the mask of that level; "erk" as many weights at random, by layer;
        "one_shot" is without the smallest final weights of `dense`; "inverted" keeps the smallest
        where that keeps the largest. Two are dense and have had as many steps as all levels up to
        it: "extended" in one schedule of that length, "restart" in trainings of which each goes
        on from the weights of the one before and begins the schedule anew (learning-rate
        rewinding of the dense network).
      prefix: of the labels.

    Raises:
      ValueError: no such mode or control, or a level that is not there.
    """
    if retrain not in RETRAIN:
        raise ValueError(f"retrain {retrain!r} is not one of: {', '.join(RETRAIN)}")
    if order not in ("same", "new"):
        raise ValueError(f"order {order!r} is not one of: same, new")
    if not _is_whole(levels) or levels < 1:
        raise ValueError(f"levels {levels!r} must be a whole number, at least 1")
    config.prune.granularity = "weight"
    config.prune.scope = scope
    back: dict[str, Any] = {"rewind_run": "dense", "rewind_at": rewind}
    if retrain == "learning_rate":
        back["rewind"] = ("step",)  # the weights stay as they are trained
    elif retrain == "fine_tune":
        back = {}
    prune: dict[str, Any] = {
        "schedule": "scratch",
        "of": "live",  # of what is left at each level, not of all
        "fraction": tuple(fraction) if isinstance(fraction, Sequence) else (fraction,),
        "layers": tuple(layers),
        "score": score,
    }
    arms: Arms = {"dense": {}}
    for level in range(1, levels + 1):
        parent = "dense" if level == 1 else f"{prefix}{level - 1}"
        start = {"run": parent} | back
        if order == "new":
            start["copy"] = f"level{level}"  # other streams: order, augmentation, dropout
        arms[f"{prefix}{level}"] = {"prune": prune, "start": start}
    for name, at in (controls or {}).items():
        if name not in CONTROLS:
            raise ValueError(f"control {name!r} is not one of: {', '.join(CONTROLS)}")
        if isinstance(at, str) or not isinstance(at, Iterable):
            raise ValueError(f"control {name!r}: {at!r} are no levels; give a tuple, as (1, 2)")
        for level in at:
            if not _is_whole(level) or not 1 <= level <= levels:
                raise ValueError(f"control {name!r} at level {level!r}: there are 1 to {levels}")
            arms |= _control(config, name, level, prefix, prune, back)
    return arms


def _is_whole(count: Any) -> bool:
    return isinstance(count, Integral) and not isinstance(count, bool)


def copies(label: str, start: Mapping[str, Any]) -> Arms:
    """Two arms, LABEL-a and LABEL-b, from one state, that differ in order, augmentation, dropout.

    With `config.connect.pairs = ("LABEL-a:LABEL-b",)` they tell how stable the state is
    (Frankle et al., ICML 2020).

    Args:
      label: what stands before "-a" and "-b".
      start: `start` of an arm: how both begin.
    """
    return {f"{label}-{copy}": {"start": {**start, "copy": copy}} for copy in ("a", "b")}


def sanity(label: str, prune: Mapping[str, Any]) -> Arms:
    """Controls of a mask made before training (Frankle et al. 2021): is it the weights it chose?

    `<label>` with its mask shuffled within every layer on the same weights, with its mask on
    weights drawn anew, and with the score turned round (the smallest stay). A number at the end of
    the label stays there: "snip-05" gives "snip_shuffled-05", "snip_fresh-05", "snip_inverted-05".

    Args:
      label: of the arm.
      prune: its overrides of `prune`.

    Returns:
      The three arms, without the one they belong to.
    """
    name, dash, number = label.rpartition("-")
    if not number.isdigit():
        name, dash, number = label, "", ""
    called = lambda word: f"{name}_{word}{dash}{number}"  # noqa: E731
    masks = {"run": label, "at": "end", "take": ("masks",)}
    return {
        called("shuffled"): {"start": masks | {"shuffle": "layer"}},
        called("fresh"): {"start": masks | {"fresh": True}},
        called("inverted"): {"prune": {**prune, "target": "largest"}},
    }


def _control(
    config: ConfigDict,
    name: str,
    level: int,
    prefix: str,
    prune: Mapping[str, Any],
    back: Mapping[str, Any],
) -> Arms:
    ticket, label = f"{prefix}{level}", f"{name}{level}"
    if name == "fresh":
        return {label: {"start": {"run": ticket, "take": ("masks",), "fresh": True}}}
    if name in ("layer_shuffle", "global_shuffle"):
        # The weights a ticket has: those of the state that it was put back to.
        start = {"run": ticket, "take": ("masks",), "shuffle": name.removesuffix("_shuffle")}
        return {label: {"start": start | dict(back)}}
    at_once = {**prune, "times": level}  # as many as that level has lost, in one event
    if name == "erk":
        # random weights, and counts by layer that are ERK's
        random = {"score": "weight_random", "allocation": "erk", "scope": "layer"}
        return {label: {"prune": at_once | random}}
    if name == "one_shot":
        return {label: {"prune": at_once, "start": {"run": "dense"} | dict(back)}}
    if name == "inverted":
        turned = at_once | {"target": "largest"}
        return {label: {"prune": turned, "start": {"run": "dense"} | dict(back)}}
    if name == "extended":
        # the dense training and one for each level
        return {label: {"epochs": config.epochs * (level + 1)}}
    arms: Arms = {}
    for part in range(1, level + 1):  # each from the one before
        parent = "dense" if part == 1 else f"restart{part - 1}"
        arms[f"restart{part}"] = {"start": {"run": parent, "take": ("weights", "statistics")}}
    return arms
