"""A study's config: overrides of variants, and every check that needs no model and no data."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from prunejax import registry
from prunejax.configs import fields
from prunejax.errors import ConfigError
from prunejax.record.arms import OF_STUDY
from prunejax.study.settings import (
    checks,
    lineage,
    pairs,
    presets,
    probing,
    ranges,
    rule_check,
    section_check,
)
from prunejax.study.settings.resolved import to_dict as to_dict
from prunejax.train import trackers


@dataclasses.dataclass(frozen=True)
class Variant:
    """One arm of a study: its label and its complete settings (every field, overrides applied)."""

    label: str
    settings: ConfigDict


def _flat(tree: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    return dict(fields.flat(tree))


def _check_type(name: str, value: Any, default: Any) -> Any:
    """The value in the default's type, or a ConfigError."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) <= checks.LARGEST else math.inf
    if isinstance(default, tuple) and value in ("", ("",)):  # --config.measures.names=
        return ()
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(default, tuple) and isinstance(value, int | float | str):
        return (value,)
    if type(value) is not type(default):
        raise ConfigError(
            f"config.{name} = {value!r} is of type {type(value).__name__}; "
            f"it must be of type {type(default).__name__}, as in {default!r}"
        )
    return value


def _merge(
    target: ConfigDict, overrides: Mapping[str, Any], known: dict[str, Any], where: str
) -> None:
    """Writes overrides (nested or flat) into `target`, refusing fields that do not exist."""
    for name, value in _flat(overrides).items():
        inside = [] if name in known else [k for k in known if k.startswith(f"{name}.")]
        if inside:
            raise ConfigError(
                f"{where}: {name} = {value!r} is a group of fields; give a dict of some of: "
                + ", ".join(k.removeprefix(f"{name}.") for k in inside)
            )
        if name not in known and not name.startswith("model."):
            raise ConfigError(
                f"{where}: unknown field {name!r}." + registry.suggestion(name, known)
            )
        if name in known:
            value = _check_type(f"{name} ({where})", value, known[name])
        node = target
        *parents, leaf = name.split(".")
        for parent in parents:
            node = node[parent]
        with node.unlocked():
            node[leaf] = value


def variants(config: ConfigDict, defaults: ConfigDict) -> list[Variant]:
    """The arms of a study, each with complete, checked settings.

    Args:
      config: what a config file and its overrides give.
      defaults: `configs/default.py`: the fields there are and their types.

    Raises ConfigError: unknown field, wrong type, value outside its range, impossible combination.
    """
    known = _flat(defaults)
    overrides = _flat(config)
    labels = overrides.pop("variants", {}) or {}
    base = ConfigDict(defaults.copy_and_resolve_references())
    _merge(base, overrides, known, "config")
    arms = []
    if not isinstance(labels, Mapping | ConfigDict):
        raise ConfigError(f"config.variants = {labels!r}: give a dict from label to overrides")
    for label, changes in (labels or {"none": {}}).items():
        checks.label(label)
        settings = ConfigDict(base.copy_and_resolve_references())
        plain = checks.changes(label, changes)
        for name in _flat(plain):
            if name.split(".")[0] in OF_STUDY:
                raise ConfigError(f"variant {label!r} sets {name!r}, which is of the whole study")
        _merge(settings, plain, known, f"variant {label!r}")
        presets.apply(settings.prune, defaults.prune, set(plain.get("prune") or {}))
        validate(settings, label)
        arms.append(Variant(label, settings))
    checks.distinct(labels)
    checks.twins({arm.label: to_dict(arm.settings) for arm in arms})
    lineage.check({arm.label: arm.settings for arm in arms})
    pairs.check({arm.label: arm.settings for arm in arms})
    return arms


def validate(settings: ConfigDict, label: str) -> None:
    """Checks one arm's values; raises ConfigError naming the field, the value and what may be."""
    where = f" (variant {label!r})"
    flat = _flat(settings)
    checks.fields(flat, where)
    for name, allowed in ranges.choices().items():
        value = flat[name]
        registry.one_of(value, allowed, f"config.{name} = {value!r}{where} is not one of")
    for name, (low, high, unit) in ranges.bounds().items():
        whole = name.split(".")[0] in OF_STUDY
        checks.in_range(name, flat[name], low, high, unit, "" if whole else where)
    if settings.model.width <= 0:
        raise ConfigError(f"config.model.width = {settings.model.width!r}{where} must be above 0")
    if settings.data.label_noise >= 1:
        raise ConfigError(f"config.data.label_noise = 1.0{where} must be below 1")
    last = settings.first_seed + settings.seeds - 1
    if last >= 2**32:  # seeds are uint32
        raise ConfigError(
            f"config.first_seed = {settings.first_seed} with config.seeds = {settings.seeds}: the "
            f"last seed would be {last}; {2**32 - 1} at most"
        )
    o = settings.optimizer
    if o.label_smoothing and settings.loss != "cross_entropy":
        raise ConfigError(
            f"config.optimizer.label_smoothing = {o.label_smoothing}{where} goes with config.loss "
            f"= 'cross_entropy', not with {settings.loss!r}"
        )
    checks.rising("optimizer.milestones", o.milestones, where)
    checks.rising("optimizer.restarts", o.restarts, where)
    if o.nesterov and (o.name != "sgd" or not o.momentum):
        raise ConfigError(
            f"config.optimizer.nesterov = True{where} goes with config.optimizer.name = 'sgd' and "
            "a momentum above 0"
        )
    if settings.intervention.duration == 0 and not settings.intervention.as_released:
        raise ConfigError(
            f"config.intervention.duration = 0{where}: 1 or more steps, or -1: forever (0 only "
            "with config.intervention.as_released, which adds one pass)"
        )
    for name in settings.trackers:
        told = f"config.trackers: unknown tracker {name!r}; there are"
        registry.one_of(name, trackers.TRACKERS, told)
    if settings.evaluate_every > 1 and settings.intervention.as_released:
        raise ConfigError(
            f"config.evaluate_every = {settings.evaluate_every} does not go with "
            "config.intervention.as_released: its evaluations change the network, one after every "
            "epoch; set it to 1"
        )
    section_check.prune(settings, where)
    rule_check.check(settings, where)
    section_check.intervention(settings, where)
    section_check.measures(settings, where)
    probing.check(settings)
