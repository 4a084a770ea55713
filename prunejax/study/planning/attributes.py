"""What the report needs to know of each arm of a study: `study.json`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunejax.data import Dataset
from prunejax.study.planning.plan import Batch
from prunejax.study.settings import presets
from prunejax.study.settings.config import Variant


def of_arms(arms: Sequence[Variant], batches: Sequence[Batch]) -> dict[str, Any]:
    """What the report needs to know of each variant that its settings alone do not say."""
    found = {}
    members = {m.variant: (m, b.program) for b in batches for m in b.members}
    for arm in arms:
        p, i = arm.settings.prune, arm.settings.intervention
        m, program = members[arm.label]
        counts = np.asarray(m.table.counts)
        used = [layer for layer in range(counts.shape[1]) if counts[:, layer].any()]
        rate = None
        acts = used or p.schedule == "threshold"
        if used:
            # The paper's rates are those of the layer that loses most, its last one.
            last = max(used, key=lambda layer: counts[:, layer].sum())
            number = np.count_nonzero(counts[:, last])
            if program.weights or program.global_scope:  # counts are no filters of one layer
                share = 1 - p.nm[0] / p.nm[1] if p.nm else max(p.fraction)
                rate = float(share / number)
            else:
                rate = float(counts[:, last].sum() / program.groups[last].units / number)
        found[arm.label] = {
            "target": p.target[0].upper() if acts else None,
            "score": p.score if acts else None,
            "method": p.method,
            # What the method sets, as it is for this arm: config.json does not say it.
            "preset": {name: p[name] for name in presets.METHODS.get(p.method, {})},
            "scope": p.scope,
            "iterative_rate": rate,  # mean fraction of the most-pruned layer per event
            # Rows, not layers: what is pruned after one epoch is one event.
            "events": int(np.count_nonzero(counts.sum(axis=1))),
            "kind": i.kind if acts else "none",
            "duration": i.duration if acts else None,
        }
        if m.start.step >= program.steps_per_epoch:  # the epochs before were its parent's
            found[arm.label]["first_epoch"] = m.start.step // program.steps_per_epoch
    return found


def of_classes(batches: Sequence[Batch]) -> dict[str, Any]:
    """Of arms with `data.imbalance`: the classes by rank, the most frequent first, and counts."""
    found: dict[str, Any] = {}
    for batch in batches:
        data = batch.dataset
        if isinstance(data, Dataset) and data.ranked:
            counts = np.bincount(data.train_labels, minlength=data.num_classes)
            row = {"ranked": list(data.ranked), "train_examples": counts.tolist()}
            found |= dict.fromkeys((m.variant for m in batch.members), row)
    return found
