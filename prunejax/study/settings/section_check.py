"""Checks of one section of an arm's settings each; they raise ConfigError.

`where` names the arm in their messages.
"""

from ml_collections import ConfigDict

from prunejax import registry
from prunejax.errors import ConfigError
from prunejax.measures import suite


def prune(settings: ConfigDict, where: str) -> None:
    """Layer rules, their fractions and times."""
    p = settings.prune
    if not p.layers and p.schedule != "none":
        raise ConfigError(f"config.prune.layers = (){where}: name at least one layer rule")
    for name in ("fraction", "start", "end"):
        values = p[name]
        if len(values) not in (1, len(p.layers)):
            raise ConfigError(
                f"config.prune.{name} = {tuple(values)!r}{where} has {len(values)} entries for "
                f"{len(p.layers)} layer rules; give one entry, or one per rule"
            )
        for value in values:
            if name == "fraction" and not 0 <= value <= 1:
                raise ConfigError(f"config.prune.fraction = {value!r}{where} must be in [0, 1]")
            if name != "fraction" and value < 0:
                raise ConfigError(f"config.prune.{name} = {value!r}{where} must be 0 or later")
    if p.schedule in ("none", "scratch", "phases", "threshold"):
        return
    for index in range(len(p.layers)):
        start, end = p.start[index % len(p.start)], p.end[index % len(p.end)]
        if p.schedule != "one_shot" and end < start:
            raise ConfigError(
                f"config.prune.end = {end}{where} is before config.prune.start = {start} "
                f"(layer rule {p.layers[index]!r})"
            )
        if p.unit == "epoch" and start >= settings.epochs:
            raise ConfigError(
                f"config.prune.start = {start}{where} is not before config.epochs = "
                f"{settings.epochs} (epochs count from 0): the layer would never be pruned"
            )


def intervention(settings: ConfigDict, where: str) -> None:
    """Windows, what is put back, and noise."""
    i = settings.intervention
    if i.restore != "no" and i.duration < 0:
        raise ConfigError(
            f"config.intervention.restore = {i.restore!r}{where} needs a window that ends: "
            "give config.intervention.duration in training steps"
        )
    acts = settings.prune.schedule != "none" and i.kind != "none"
    if acts and i.kind == "gaussian" and i.noise_scale == 0:
        raise ConfigError(
            f"config.intervention.noise_scale = 0{where} adds no noise; give a multiple of a "
            "filter's standard deviation, or config.intervention.kind = 'none'"
        )
    single = settings.prune.granularity == "weight"
    if single and i.restore == "weights+norm":
        raise ConfigError(
            f"config.intervention.restore = 'weights+norm'{where} with prune.granularity = "
            "'weight': a single weight has no BatchNorm of its own; use restore='weights'"
        )
    finite = i.kind == "zero" and i.duration >= 0
    if finite and i.mask_norm and i.restore != "weights+norm" and not single:
        raise ConfigError(
            f"config.intervention.mask_norm = True{where} with kind 'zero' sets BatchNorm scale "
            "and bias to 0 for good, and the unit can never come back; use restore='weights+norm' "
            "or mask_norm=False"
        )
    if single and i.kind == "gaussian" and i.as_released:
        raise ConfigError(f"config.intervention.as_released{where}: the release has filters only")


def measures(settings: ConfigDict, where: str) -> None:
    """Names and epochs of measures, and what they go with."""
    m = settings.measures
    for name in m.names:
        if name not in suite.MEASURES:
            raise ConfigError(
                f"config.measures.names: unknown measure {name!r}; there are: "
                f"{', '.join(suite.MEASURES)}."
                + registry.suggestion(name, suite.MEASURES)
                + (" Several are written ('a', 'b')." if "," in name else "")
            )
    if len(set(m.names)) < len(m.names):
        raise ConfigError(f"config.measures.names = {tuple(m.names)!r} names a measure twice")
    for epoch in m.epochs:
        if not 0 <= epoch < settings.epochs:
            raise ConfigError(
                f"config.measures.epochs = {tuple(m.epochs)!r}: {epoch} is not in "
                f"0..{settings.epochs - 1} (config.epochs = {settings.epochs}, from 0)"
            )
    alone = [name for name in m.names if suite.MEASURES[name].running_only]
    if m.batch_norm == "train" and alone:
        raise ConfigError(
            f"config.measures.batch_norm = 'train' does not go with {', '.join(alone)}: with the "
            "statistics of a batch an example has no loss of its own; use 'eval' or leave them out"
        )
    if m.forecast and settings.intervention.as_released:
        raise ConfigError(
            "config.measures.forecast = True does not go with config.intervention.as_released"
            f"{where}: the released evaluation itself changes the network between the two losses"
        )
