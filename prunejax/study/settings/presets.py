"""Ways of pruning by name for studies: what `prune.method` sets of the other fields of `prune`.

Each is the row of `prunejax.methods.METHODS` of that name, as events of a study. Fields that a
config or an arm sets itself stay as they are, so every part of a method can be replaced.
"""

from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from prunejax import registry
from prunejax.errors import ConfigError

_WEIGHTS = {"granularity": "weight", "layers": ("kernel:.*",)}
_BEFORE = _WEIGHTS | {"schedule": "scratch", "scope": "global"}
_STATIC = _WEIGHTS | {"schedule": "scratch", "score": "weight_random", "allocation": "erk"}
_SWAP = _STATIC | {"evidence": "batch", "update_every": 100}
_GRADUAL = _WEIGHTS | {"schedule": "cubic", "unit": "step", "score": "magnitude", "scope": "global"}
METHODS: dict[str, dict[str, Any]] = {
    # before training
    "random": _STATIC | {"allocation": "uniform"},
    "magnitude": _BEFORE | {"score": "magnitude"},
    "nm": _WEIGHTS | {"schedule": "scratch", "score": "magnitude", "nm": (2, 4)},
    "snip": _BEFORE | {"score": "snip", "evidence": "balanced"},
    "grasp": _BEFORE | {"score": "grasp", "evidence": "balanced"},  # as its authors draw it
    "synflow": _BEFORE | {"score": "synflow", "rounds": 100},
    # sparse throughout
    "static": _STATIC,
    "set": _SWAP | {"grow": "random"},
    "rigl": _SWAP | {"grow": "gradient"},
    # dense to sparse
    "gradual": _GRADUAL,
    "gradual_regrow": _GRADUAL | {"grow": "gradient", "regrow": 0.1, "evidence": "batch"},
    "acdc": _WEIGHTS | {"score": "magnitude", "scope": "global", "schedule": "phases"},
    "ste": _BEFORE | {"score": "magnitude", "forward": "straight_through", "refresh_every": 10},
    "movement": _GRADUAL | {"score": "learnt", "forward": "movement", "refresh_every": 10},
    "movement_soft": _WEIGHTS
    | {"schedule": "threshold", "score": "learnt", "forward": "movement", "refresh_every": 10},
}
SHIPPED = dict(METHODS)


def apply(prune: ConfigDict, defaults: ConfigDict, own: Collection[str]) -> None:
    """Writes the fields of `prune.method` where nothing else was asked for.

    Args:
      prune: of an arm, changed in place.
      defaults: of the package: a field that differs from it was set by the study.
      own: fields that the arm sets itself.

    Raises:
      ConfigError: a method that is not of the package sets a field that there is not.
    """
    for field, value in METHODS.get(prune.method, {}).items():
        if field == "scope" and prune.nm:  # blocks rank their own weights
            continue
        if field not in defaults:
            raise ConfigError(
                f"config.prune.method = {prune.method!r} sets {field!r}, which is no field of "
                f"config.prune." + registry.suggestion(field, defaults)
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
