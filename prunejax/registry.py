"""Named tables (scores, models, data sets, ...) and the one way to look something up in them."""

import difflib
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard, TypeVar

from prunejax.errors import ConfigError

T = TypeVar("T")


def suggestion(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """`table[name]`, or a ValueError that names the kind, the value, and what there is."""
    if name not in table:
        raise ValueError(
            f"unknown {kind} {name!r}; there are: {', '.join(sorted(table))}."
            + suggestion(str(name), table)
        )
    return table[name]


def one_of(value: str, known: Iterable[str], told: str) -> None:
    """Refuses a value that is none of `known`.
    Raises ConfigError: `told`, the names there are, and the nearest one.
    """
    names = list(known)
    if value not in names:
        raise ConfigError(f"{told}: {', '.join(names)}." + suggestion(str(value), names))


def demand(holds: bool, message: str) -> None:
    """ConfigError with the message unless something holds."""
    if not holds:
        raise ConfigError(message)


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value is an integer of Python or NumPy, and no truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def whole(least: int, **counts: Any) -> None:
    """ValueError, with the name, for one of `counts` that is no whole number from `least` on."""
    for name, count in counts.items():
        if not is_whole(count) or count < least:
            raise ValueError(f"{name} is {count!r}; it is a whole number, {least} or more")


def is_shipped(code: Any) -> bool:
    """Whether a function or class is of this package: tests hold what it gives, checks need not."""
    return str(getattr(code, "__module__", "")).startswith("prunejax.")


def known(name: str, values: Iterable[str], labels: Iterable[str]) -> None:
    """ConfigError unless each of `values`, of the config field `name`, is a variant's label."""
    labels = list(labels)
    for value in values:
        one_of(value, labels, f"config.{name}: {value!r} is no variant; there are")
