"""Ways of pruning by name for studies: what `prune.method` sets of the other fields of `prune`.

Each is made of the row of `prunejax.methods.METHODS` of that name. Fields that a config or an arm
sets itself stay as they are, so every part of a method can be replaced.
"""

from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from prunejax import methods, registry
from prunejax.errors import ConfigError
from prunejax.methods import Method
from prunejax.methods.evidence import EVIDENCE

_SCHEDULES = {  # of a `Method`, by the name that a study has for it
    **dict.fromkeys(("none", "swaps", "refresh"), "scratch"),
    **{"once": "one_shot", "cubic": "cubic", "cubic_refresh": "cubic", "phases": "phases"},
}
_FORWARD = {"trained": "straight_through", "frozen": "movement"}


def fields(m: Method) -> dict[str, Any]:
    """The fields of `prune` that make a method of the library events of a study.

    Settings that a method leaves to its caller are left to the study, but for intervals, a tenth
    that grows besides, and the examples that scores see.
    """
    threshold = m.score == "threshold"
    own = m.initial if m.initial in EVIDENCE else "learnt" if threshold else m.score
    schedule = "threshold" if threshold else _SCHEDULES[m.schedule]
    entry = EVIDENCE.get(own)  # type: ignore[arg-type]
    found: dict[str, Any] = {"granularity": "weight", "layers": ("kernel:.*",)}
    found |= {"schedule": schedule, "score": "weight_random" if own == "random" else own}
    found |= {"unit": "step"} if schedule in ("cubic", "one_shot") else {}
    if m.nm:
        found |= {"nm": m.nm}
    elif not threshold:  # else what is kept is no count
        found |= {"scope": "global"} if m.allocation == "global" else {"allocation": m.allocation}
    if entry and "loss" in entry.needs.split():
        found |= {"evidence": "balanced"}  # as GraSP's authors draw it
    if entry and entry.rounds > 1:
        found |= {"rounds": entry.rounds}
    if m.growth:
        found |= {"evidence": "batch", "grow": m.growth}
        found |= {"update_every": 100} if m.schedule == "swaps" else {"regrow": 0.1}
    if m.dead != "zero":
        found |= {"forward": _FORWARD[m.dead], "refresh_every": 10}
    return found


# What another module adds may have any fields of `prune`.
METHODS: dict[str, dict[str, Any]] = {
    name: fields(m) for name, m in methods.METHODS.items() if m.schedule in _SCHEDULES
}
SHIPPED = dict(METHODS)


def apply(prune: ConfigDict, defaults: ConfigDict, own: Collection[str]) -> None:
    """Writes the fields of `prune.method` where nothing else was asked for.

    Args:
      prune: of an arm, changed in place.
      defaults: of the package: a field that differs from it was set by the study.
      own: fields that the arm sets itself.

    Raises ConfigError: a method that is not of the package sets a field that there is not.
    """
    for field, value in METHODS.get(prune.method, {}).items():
        if field == "scope" and prune.nm:  # blocks rank their own weights
            continue
        if field not in defaults:
            raise ConfigError(
                f"config.prune.method = {prune.method!r} sets {field!r}, which is no field of "
                f"config.prune." + registry.suggestion(str(field), defaults)
            )
        # A study that sets a field to its default cannot be told from one that does not.
        if field not in own and prune[field] == defaults[field]:
            try:
                prune[field] = value
            except TypeError:
                raise ConfigError(
                    f"config.prune.method = {prune.method!r} sets prune.{field} = {value!r}; "
                    f"it must be a {type(defaults[field]).__name__}, as in {defaults[field]!r}"
                ) from None
