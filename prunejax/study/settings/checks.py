"""Checks of a study's settings that look at one field at a time: numbers, entries, labels."""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from prunejax import registry
from prunejax.errors import ConfigError
from prunejax.study.settings import ranges

LARGEST = 3.4e38  # of single precision, which all numbers of a run have
LARGEST_INTEGER = 2**63 - 1
LABEL_LENGTH = 80  # names of files hold a label, a seed, and more


def fields(settings: Mapping[str, Any], where: str = "") -> None:
    """Checks every number and every tuple; `settings` maps dotted names to values.

    Raises ConfigError: a number that is not finite in single precision or has more than 64 bits, or
    an entry of a wrong type.
    """
    kinds = ranges.entries()
    for name, value in settings.items():
        entries = value if isinstance(value, tuple | list) else (value,)
        kind, what = kinds.get(name, (object, ""))
        for entry in entries:
            if not isinstance(entry, kind) or (kind is not object and isinstance(entry, bool)):
                raise ConfigError(
                    f"config.{name} = {tuple(entries)!r}{where}: {what} only, not {entry!r}"
                )
            if isinstance(entry, int) and abs(entry) > LARGEST_INTEGER:
                bits = entry.bit_length()  # of millions of digits Python prints none
                what = str(entry) if bits < 200 else f"a number of {bits} bits"
                raise ConfigError(f"config.{name}{where} holds {what}; {LARGEST_INTEGER} at most")
            if isinstance(entry, float) and not abs(entry) <= LARGEST:
                raise ConfigError(
                    f"config.{name} = {value!r}{where} must be a finite number of single precision"
                )


def in_range(
    name: str, value: float, low: float | None, high: float | None, unit: str, where: str
) -> None:
    """Checks `low <= value <= high` (None: no bound). Raises ConfigError: it is not."""
    below = low is not None and not value >= low
    if below or (high is not None and value > high):
        span = f"at least {_plain(low)}"
        if high is not None:
            span = f"between {_plain(low)} and {_plain(high)}"
        raise ConfigError(f"config.{name} = {value!r}{where} must be {span} ({unit})")


def _plain(number: float | None) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def label(text: Any) -> None:
    """Checks a variant's label, which names files and appears in rules for runs.
    Raises ConfigError: it is not of letters, digits and `_+=-`, or too long.
    """
    if not isinstance(text, str) or not re.fullmatch(r"\w[\w+=-]*", text):
        nearest = re.sub(r"[^\w+=-]+", "_", str(text)).strip("_+=-")[:LABEL_LENGTH] or "arm"
        raise ConfigError(
            f"variants: the label {text!r} names files; it must start with a letter, digit or "
            f"'_' and go on with those or '+', '=', '-', e.g. {nearest!r}"
        )
    if len(text) > LABEL_LENGTH:
        raise ConfigError(
            f"variants: the label {text[:20]!r}... has {len(text)} characters; {LABEL_LENGTH} "
            "at most"
        )


def distinct(labels: Iterable[str]) -> None:
    """Refuses labels that name the same files where file systems do not tell case apart (macOS).
    Raises ConfigError: names two of them.
    """
    seen: dict[str, str] = {}
    for text in labels:
        other = seen.setdefault(text.casefold(), text)
        if other != text:
            raise ConfigError(
                f"variants: the labels {other!r} and {text!r} name the same files on some systems; "
                "let them differ in more than case"
            )


def changes(variant: str, overrides: Any) -> dict[str, Any]:
    """A variant's overrides as a plain dict. Raises ConfigError: they are no dict."""
    if hasattr(overrides, "to_dict"):
        return dict(overrides.to_dict())
    if not isinstance(overrides, Mapping):
        raise ConfigError(
            f"variant {variant!r} = {overrides!r}: give a dict of overrides, e.g. "
            "{'prune': {'target': 'largest'}}, or {} for none"
        )
    return dict(overrides)


def rising(name: str, values: Iterable[int], where: str) -> None:
    """Checks that epochs are 0 or later and rise. Raises ConfigError: they do not."""
    values = tuple(values)
    if any(v < 0 for v in values) or any(a >= b for a, b in itertools.pairwise(values)):
        raise ConfigError(
            f"config.{name} = {values!r}{where}: epochs (from 0) in rising order, each once"
        )


def after_training(settings: ConfigDict, steps: int) -> tuple[str, ...]:
    """What of the learning rate's course comes after the last of so many training steps, told.

    It is no error, for `--config.epochs=40` shortens a longer study.
    """
    o, epochs, found = settings.optimizer, settings.epochs, []
    late = [m for m in o.milestones if m >= epochs] if o.schedule == "multistep" else []
    if late:
        found.append(
            f"config.optimizer.milestones: training ends before epoch {', '.join(map(str, late))} "
            f"(config.epochs = {epochs}, from 0); the learning rate does not fall there."
        )
    if o.warmup_steps > steps:
        found.append(
            f"config.optimizer.warmup_steps = {o.warmup_steps}: training ends after step {steps}, "
            f"at {steps / o.warmup_steps:.2g} of the learning rate."
        )
    return tuple(found)


def twins(arms: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that every twin has another arm to replay, with the same events.

    Args: arms: label -> complete settings of the arm, nested.

    Raises ConfigError: no such arm, a twin itself, or one with other data, model, length or events.
    """
    for own, ours in arms.items():
        twin = ours["intervention"]["twin"]
        if not twin:
            continue
        registry.known(f"intervention.twin (variant {own!r})", [twin], arms)
        theirs = arms[twin]
        if twin == own:
            raise ConfigError(f"variant {own!r} is a twin of itself; name another variant")
        if theirs["intervention"]["twin"]:
            raise ConfigError(
                f"variant {own!r} is a twin of {twin!r}, which is itself a twin of "
                f"{theirs['intervention']['twin']!r}; name a variant without a twin"
            )
        for part in ("data", "model", "batch_size", "epochs"):
            if theirs[part] != ours[part]:
                raise ConfigError(
                    f"variant {own!r} is a twin of {twin!r} but differs in {part!r}; "
                    "twins share data, model, batch size and epochs"
                )
        events = (
            *("schedule", "layers", "fraction", "start", "end", "period", "unit", "rounds", "of"),
            *("granularity", "scope", "allocation"),
        )
        for part in events:
            if theirs["prune"][part] != ours["prune"][part]:
                raise ConfigError(
                    f"variant {own!r} is a twin of {twin!r} but differs in prune.{part}; "
                    "twins share all events"
                )
