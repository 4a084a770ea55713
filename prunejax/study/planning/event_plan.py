"""Which layers a variant prunes, and how many units at which epoch: from settings to counts."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from prunejax import allocate, schedules, trees
from prunejax.errors import ConfigError
from prunejax.groups import Group
from prunejax.study.settings import ratio

KERNEL = "kernel:"  # before a rule: it is one for the paths of all kernels


class Arm(NamedTuple):
    """An arm on its model."""

    settings: ConfigDict
    label: str  # for errors
    groups: Sequence[Group]  # of the model
    params: Any  # shapes of the parameters


def layer_rules(settings: ConfigDict, groups: Sequence[Group]) -> dict[str, int]:
    """Layer name -> index of the rule that chooses it (the first that matches).

    A rule is matched with the names of the model's prunable layers; with "kernel:" before it, with
    the paths of all kernels (classifier, stem, shortcuts, ...), where single weights are pruned.

    Raises ConfigError: a rule matches nothing (the message lists the layers), or is no expression.
    """
    paths = {g.kernel: g.name for g in groups}
    names = {g.name: g.name for g in groups if g.name != g.kernel}
    if settings.prune.granularity != "weight":
        paths = {}
    chosen: dict[str, int] = {}
    for index, rule in enumerate(settings.prune.layers):
        known = paths if rule.startswith(KERNEL) else names
        try:
            pattern = re.compile(rule.removeprefix(KERNEL))
            hits = [name for text, name in known.items() if pattern.fullmatch(text)]
        except re.error as error:
            raise ConfigError(
                f"config.prune.layers: {rule!r} is no regular expression: {error}"
            ) from None
        if not hits:
            raise ConfigError(
                f"config.prune.layers: rule {rule!r} matches none of the model's "
                f"{'kernels' if known is paths else 'layers'}: "
                + (", ".join(known) or "with 'kernel:', set prune.granularity = 'weight'")
            )
        for name in hits:
            chosen.setdefault(name, index)
    return chosen


def units(group: Group, settings: ConfigDict, params: Any) -> int:
    """Units of a layer: its filters, or its weights where single weights are pruned."""
    if settings.prune.granularity == "weight":
        return int(np.prod(trees.get(params, group.kernel).shape))
    return group.units


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer that a rule of the arm chooses."""

    name: str
    units: int  # filters, or weights where single weights are pruned
    rule: int  # index of the first rule that matches it
    fraction: Fraction  # of its units that goes in the end
    blocks: int = 1  # that lose units alike: with N:M, groups of m consecutive inputs

    def planned(self, name: str, fields: Mapping[str, Any], **when: int) -> schedules.Events:
        """The events of a schedule; see `schedules.planned`.

        Args:
          fields: what it takes beside units and fraction, `prune` of the arm.
          when: start, end and period.
        """
        of: Any = {"units": self.units // self.blocks, "fraction": self.fraction}
        events = schedules.planned(name, fields, **of, **when)
        return [(time, count * self.blocks) for time, count in events]


def layers(arm: Arm, live: Mapping[str, int]) -> dict[str, Layer]:
    """The layers that an arm prunes, by name; of what is live (`prune.of`), and with a global
    scope, one entry for all of them.

    With `prune.allocation` "rules" a layer loses the fraction of its rule; with "uniform" or "erk"
    there is one fraction, of all these layers' units together, which the allocation shares out.

    Raises ConfigError: a rule matches nothing, or an allocation that cannot be.
    """
    settings, label, groups, params = arm
    p, of = settings.prune, {g.name: g for g in groups}
    rules = layer_rules(settings, groups)
    number = {name: units(of[name], settings, params) for name in rules}
    if p.times > 1 and p.of != "live":
        raise ConfigError(
            f"config.prune.times = {p.times} (variant {label!r}) repeats a fraction of what is "
            f"live; prune.of is {p.of!r}: set prune.of = 'live', or times = 1"
        )
    share = None
    if p.ratio_of == "all":
        share = ratio.of_all(settings, label, sum(number.values()), params)
        if p.scope == "global":
            first = next(iter(rules))
            return {first: Layer(first, sum(number.values()), 0, share)}
    if p.of == "live" and p.scope == "global":
        if len(set(p.fraction)) != 1:
            raise ConfigError(
                f"config.prune.fraction = {tuple(p.fraction)} (variant {label!r}): one number is "
                "needed of what is live in all layers together"
            )
        first, total = next(iter(rules)), sum(live.values())
        return {first: Layer(first, total, 0, ratio.of_live(p.fraction[0], total, p.times))}
    if p.nm:
        n, m = p.nm
        for name in rules:
            shape = trees.get(params, of[name].kernel).shape
            if shape[-2] % m:
                raise ConfigError(
                    f"config.prune.nm = {(n, m)} (variant {label!r}): the {shape[-2]} inputs of "
                    f"layer {name!r}, of shape {shape}, are no multiple of {m}; leave that layer "
                    "out of prune.layers, or choose another m"
                )
        gone = Fraction(m - n, m)
        return {x: Layer(x, number[x], rules[x], gone, number[x] // m) for x in rules}
    if p.of == "live":
        number = {name: live[name] for name in rules}
    if p.allocation == "rules":
        of_all = p.of == "all"
        parts = {
            name: schedules.exact(f) if of_all else ratio.of_live(f, number[name], p.times)
            for name, f in ((name, of_rule(p.fraction, rules[name])) for name in rules)
        }
        parts = parts if share is None else dict.fromkeys(rules, share)
    else:
        if len(p.fraction) != 1 or p.scope == "global" or p.granularity != "weight":
            raise ConfigError(
                f"config.prune.allocation = {p.allocation!r} (variant {label!r}) shares one "
                "fraction of single weights out over layers: give prune.fraction one number, and "
                "set prune.scope = 'layer' and prune.granularity = 'weight'; they are "
                f"{tuple(p.fraction)}, {p.scope!r} and {p.granularity!r}"
            )
        shapes = {name: trees.get(params, of[name].kernel).shape for name in rules}
        total = sum(number.values())
        if p.of == "all":
            keep = schedules.kept(total, p.fraction[0] if share is None else share)
        else:
            keep = int(total * (1 - ratio.of_live(p.fraction[0], total, p.times)))
        kept = allocate.allocated(p.allocation, shapes, keep)
        parts = {name: Fraction(number[name] - kept[name], number[name]) for name in rules}
    return {name: Layer(name, number[name], rules[name], parts[name]) for name in rules}


def of_rule(values: Sequence[Any], index: int) -> Any:
    """The entry of a layer rule: its own, or the one that all rules share."""
    return values[index % len(values)]


def event_counts(arm: Arm, live: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Layer name -> int32 [epochs + 1]: units to target; row e + 1 follows epoch e, row 0 is
    before training.

    Args: live: units that are live at the beginning, for `prune.of`; see `planning/live.py`.
    """
    settings, label, p = arm.settings, arm.label, arm.settings.prune
    if p.schedule == "none":
        return {}
    counts: dict[str, np.ndarray] = {}
    chosen = layers(arm, live or {})
    sizes = [x.units for x in chosen.values()]
    most = sum(sizes) if p.scope == "global" else max(sizes, default=0)
    if most >= 2**31:
        raise ConfigError(
            f"config.model.width = {arm.settings.model.width} (variant {arm.label!r}): {most} "
            f"units of one ranking (prune.scope = {p.scope!r}) are more than 32 bits count"
        )
    at_steps = p.unit == "step" and p.schedule != "scratch"
    if p.rounds > 1 or at_steps or p.schedule in ("phases", "threshold"):  # see `step_plan`
        return {name: np.zeros(settings.epochs + 1, np.int32) for name in chosen}
    for name, layer in chosen.items():
        events = planned(arm, layer, settings.epochs - 1)
        with told(label, name):
            counts[name] = schedules.counts(events, settings.epochs)
    return in_scope(arm, chosen, counts)


def planned(arm: Arm, layer: Layer, latest: int) -> schedules.Events:
    """The events of the arm's schedule in a layer, in its `prune.unit`.
    Raises ConfigError: one comes after the epoch, or step, `latest`, or the schedule cannot be.
    """
    p, label = arm.settings.prune, arm.label
    when = {"start": of_rule(p.start, layer.rule), "end": of_rule(p.end, layer.rule)}
    last = schedules.last_epoch(p.schedule, **when, period=p.period)
    # Less than a unit goes; other forward rules choose anew, also as many as before.
    idle = p.forward == "masked" and schedules.kept(layer.units, layer.fraction) == layer.units
    if idle:
        return []
    if last > latest:  # not listed: there may be billions of events
        has = f"has {latest}" if p.unit == "step" else f"ends after epoch {latest}"
        raise ConfigError(
            f"config.prune.end = {when['end']} (variant {label!r}, layer {layer.name!r}, in "
            f"{p.unit}s): the last event would come after {p.unit} {last}, but training {has}; end "
            "the schedule earlier or train longer"
        )
    with told(label, layer.name):
        return layer.planned(p.schedule, p, period=p.period, **when)


@contextlib.contextmanager
def told(label: str, layer: str) -> Iterator[None]:
    """Errors of a schedule as those of an arm's layer."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"variant {label!r}, layer {layer!r}: {error}") from None


def in_scope(arm: Arm, layers: Mapping[str, Layer], counts: Mapping[str, Any]) -> dict[str, Any]:
    """Counts by layer; of a global scope their sum, under the name of the arm's first layer."""
    if arm.settings.prune.scope != "global":
        return dict(counts)
    return {next(iter(layers)): sum(counts.values())}


def check_totals(arm: Arm, live: Mapping[str, int], gone: Mapping[str, int]) -> None:
    """Refuses an arm whose events, whenever they are, target nothing at all, or with noise all.

    Args:
      live: see `event_counts`.
      gone: units that all its events take from each layer, or together from the first.

    Raises ConfigError: they do.
    """
    settings, label, groups, params = arm
    if settings.prune.schedule in ("none", "threshold"):  # scores decide how many
        return
    noisy = settings.intervention.kind == "gaussian"
    if any(gone.values()) and not noisy:
        return
    sizes = {name: layer.units for name, layer in layers(arm, live).items()}
    if not any(gone.values()):
        there = ", ".join(f"{name} of {size}" for name, size in sizes.items())
        raise ConfigError(
            f"config.prune.fraction = {tuple(settings.prune.fraction)} (variant {label!r}) removes "
            f"no unit of any layer ({there}): raise it, or set config.prune.schedule = 'none'"
        )
    # The scale of the noise, the spread of what is not targeted, has to be there.
    of = {g.name: g for g in groups}
    single = settings.prune.granularity == "weight"
    where = f"(variant {label!r}, intervention.kind = 'gaussian')"
    left = {name: size - gone.get(name, 0) for name, size in sizes.items()}
    if settings.prune.scope == "global":  # the layers' shares are known only in training
        left = {"all layers": sum(left.values())}
    for name, rest in left.items():
        if rest < 1 + single:
            raise ConfigError(
                f"config.prune.fraction = {tuple(settings.prune.fraction)} {where} leaves {rest} "
                f"untargeted in {name}: the noise has the standard deviation of an untargeted "
                "filter (or of all untargeted weights), and would be none; lower the fraction"
            )
    for name in () if single else sizes:
        kernel = trees.get(params, of[name].kernel)
        if int(np.prod(kernel.shape[:-1])) < 2:
            raise ConfigError(
                f"config.prune.layers {where}: a filter of {name!r} is a single weight, which has "
                "no standard deviation for the noise; leave that layer out"
            )
