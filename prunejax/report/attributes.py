"""What is known of each arm of a study."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from prunejax.measures.columns import by_variant, grouped, number
from prunejax.record.arms import settings as settings_of
from prunejax.report.results import Row


def attributes_of(
    config: Mapping[str, Any], study: Mapping[str, Any], tables: Mapping[str, list[Row]]
) -> dict[str, dict[str, Any]]:
    """What is known of each arm: from its settings, its events, and `study.json` if present."""
    stated = study.get("variants", {})
    labels = dict.fromkeys([*(config.get("variants") or {}), *stated])
    labels.update(dict.fromkeys(row["variant"] for row in tables["epochs"]))
    events = by_variant(tables["events"])
    found: dict[str, dict[str, Any]] = {}
    for label in labels:
        settings = settings_of(config, label, stated)

        def setting(name: str, settings: Mapping[str, Any] = settings) -> Any:
            part, _, leaf = name.partition(".")
            return (settings.get(part) or {}).get(leaf)

        found[label] = {
            "target": {"smallest": "S", "random": "R", "largest": "L"}.get(setting("prune.target")),
            "kind": setting("intervention.kind"),
            "duration": setting("intervention.duration"),
            "restore": setting("intervention.restore"),
            "schedule": setting("prune.schedule"),
            "period": setting("prune.period"),
            "score": setting("prune.score"),
            "granularity": setting("prune.granularity"),
            "twin": setting("intervention.twin"),
            "overrides": (config.get("variants") or {}).get(label) or {},
            "settings": settings,
            "data": setting("data.name"),
            "model": setting("model.name"),
            "optimizer": setting("optimizer.name"),
            "weight_decay": setting("optimizer.weight_decay"),
            "dropout": setting("model.dropout"),
            "augment": setting("data.augment"),
            "iterative_rate": iterative_rate(events.get(label, [])),
            **stated.get(label, {}),
        }
        if setting("prune.schedule") == "none" and setting("prune.method") in (None, "none"):
            found[label]["target"] = None
    return found


def iterative_rate(events: Sequence[Mapping[str, Any]]) -> float | None:
    """Fraction of a layer removed per event in the layer that loses most (spec 1.6), or None."""
    run = [row for row in events if row["run"] == events[0]["run"]]  # schedules know no seed
    rates = []
    for rows in grouped(run, "layer").values():
        targeted = [number(row["targeted"]) for row in rows]
        units = number(rows[0]["live"]) + targeted[0]  # before the first event
        if isfinite(units) and units > 0:
            rates.append((sum(targeted) / units, sum(targeted) / units / len(rows)))
    return max(rates)[1] if rates else None
