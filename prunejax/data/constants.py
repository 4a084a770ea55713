"""Constants of a data set in its name: "signal_noise:dimension=500,noise=0.3"."""

import dataclasses
from typing import Any, TypeVar

T = TypeVar("T")


def read(kind: type[T], name: str) -> T:
    """The dataclass `kind` with the values that the name sets, each of its default's type.
    Raises ValueError: a constant that does not exist, no number, or what the dataclass refuses.
    """
    kinds: dict[str, Any] = {
        f.name: type(f.default)
        for f in dataclasses.fields(kind)  # type: ignore[arg-type]
    }
    given: dict[str, Any] = {}
    for part in [p for p in name.partition(":")[2].split(",") if p]:
        key, _, value = part.partition("=")
        try:
            given[key] = kinds[key](value)
        except (KeyError, ValueError):
            raise ValueError(
                f"data set {name!r}: {part!r} is none of "
                + ", ".join(f"{k}={t.__name__}" for k, t in kinds.items())
            ) from None
    return kind(**given)
