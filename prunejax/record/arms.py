"""The settings of an arm, as a recorded config gives them: the one place that tells them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

# Fields of the whole study, which no arm sets.
OF_STUDY = (
    *("seeds", "first_seed", "variants", "name", "report", "population", "checkpoint"),
    *("measures", "probes", "connect", "evaluate_every", "evaluate_train", "trackers"),
)
# Fields that name another arm, by group.
NAMING = (("intervention", "twin"), ("start", "run"), ("start", "rewind_run"))


def settings(
    config: Mapping[str, Any], label: str, stated: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All settings of an arm, nested: what its method sets, what it does, what the study does.

    Args:
      config: a resolved config, with `variants` as changes of the fields beside them.
      label: of the arm; one that the config does not have sets nothing itself.
      stated: what study.json says of each arm: what `prune.method` sets of other fields
        (`preset`, `scope`) is not in a config.
    """
    whole = {name: value for name, value in config.items() if name not in OF_STUDY}
    own = _over(whole, (config.get("variants") or {}).get(label) or {})
    about = (stated or {}).get(label)
    if not isinstance(about, Mapping):
        return own
    scope = {"scope": about["scope"]} if "scope" in about else {}
    return _over(own, {"prune": {**(about.get("preset") or {}), **scope}})


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(below)
    for name, value in above.items():
        under = found.get(name)
        both = isinstance(value, Mapping) and isinstance(under, Mapping)
        found[name] = _over(under, value) if both else value  # type: ignore[arg-type]
    return found


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inside = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inside else {prefix + key: value}
    return found


def beside(label: str, one: str, labels: Sequence[str]) -> str:
    """Of `labels` the first; for a swept arm "A-period=4", where they are, "ONE-period=4".

    Args:
      label: of an arm; one of `labels` itself is as any other.
      one: an arm, or what was one before the sweep.
      labels: to choose from, at least one.
    """
    if one != labels[0] and label not in labels:
        for other in labels:
            if other.startswith(f"{one}-") and label.endswith(other.removeprefix(one)):
                return other
    return labels[0]


def is_at(label: str, one: str) -> bool:
    """Whether a label is the arm `one`, or that arm at a value of a sweep: "ONE-period=4"."""
    return re.fullmatch(rf"{re.escape(one)}(-\w+=.*)?", label) is not None


def renamed(fields: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Settings, or some of them, with `prefix` before the arms that they name."""
    found = dict(fields)
    for group, field in NAMING:
        inside = found.get(group)
        if isinstance(inside, Mapping) and inside.get(field):
            found[group] = {**inside, field: f"{prefix}{inside[field]}"}
    return found
