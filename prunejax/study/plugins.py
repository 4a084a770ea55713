"""What others have put into the registries: a study that uses it has to find it again."""

import importlib
from collections.abc import Mapping
from typing import Any

from prunejax import data, losses, models, schedules, scores
from prunejax.configs import fields
from prunejax.measures import suite
from prunejax.record import sinks
from prunejax.study import presets
from prunejax.study.entries import check as check
from prunejax.train import probes


def registered() -> list[str]:
    """Names in the registries (models, data, ..., figures) and fields that are not of here."""
    # Late: it loads matplotlib, which `report.check` does with care for MPLBACKEND.
    gallery = importlib.import_module("prunejax.report.gallery")
    tables: tuple[Mapping[str, Any], ...] = (
        *(models.MODELS, data.DATASETS, scores.SCORES, schedules.SCHEDULES),
        *(losses.LOSSES, suite.MEASURES, probes.PROBES, gallery.FIGURES, sinks.SINKS),
    )
    found = [name for table in tables for name, value in table.items() if not _ours(value)]
    return [*found, *(name for name in presets.METHODS if name not in presets.SHIPPED), *fields.OWN]


def _ours(value: Any) -> bool:
    """Whether what an entry holds (a function, a class, or a tuple with one) is of this package."""
    parts = value if isinstance(value, tuple) else (value,)
    code = [getattr(part, "func", part) for part in parts if callable(part)]
    return all(str(getattr(part, "__module__", "")).startswith("prunejax.") for part in code)
