"""One run's row in `runs.csv`, computed from its rows in `epochs.csv` and `events.csv`.

Definitions: Bartoldson et al. 2020 and the released code. The stability of an event epoch is the
test accuracy right after the event over that right before it; a run's mean stability is the plain
mean over its event epochs, 1 for runs without events during training (no pruning, scratch). The
best accuracy is taken over epochs from the last event on, so that the network has its final
sparsity. Of a regression, which has no accuracy, the best epoch is that of the lowest test loss,
and columns of accuracy, stability and gap are empty.
"""

import math
from collections.abc import Mapping, Sequence

Row = Mapping[str, str]


def _number(text: str) -> float:
    return float(text) if text else math.nan


class Apart:
    """Tells events apart, a row of events.csv after the other: a row is one layer of an event.

    Several events may fall on one step: rounds before training, an update beside a scheduled one.
    """

    def __init__(self) -> None:
        """No row yet."""
        self._last: list[str | None] = []
        self._seen: set[str] = set()

    def begins(self, row: Row) -> bool:
        """Whether the next row is of another event than the one before."""
        of = [row.get(name) for name in ("run", "epoch", "step", "pre_loss", "post_loss")]
        layer = row.get("layer", "")
        if other := of != self._last or layer in self._seen - {""}:
            self._last, self._seen = of, set()
        self._seen.add(layer)
        return other


def by_event(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of events.csv, in their order, as one list for each event: its layers."""
    found: list[list[Row]] = []
    apart = Apart()
    for row in rows:
        if apart.begins(row):
            found.append([])
        found[-1].append(row)
    return found


def mean_stability(events: Sequence[Row]) -> tuple[float, int]:
    """Mean stability over the event epochs of a run (fraction), and their number."""
    # Layers pruned at one event share its accuracies: it counts once.
    once = [layers[-1] for layers in by_event(events)]
    # Not those before training: the paper gives scratch pruning a stability of 1.
    values = [1 - _number(e["instability"]) for e in once if int(e["epoch"]) >= 0]
    values = [v for v in values if not math.isnan(v)]
    return (sum(values) / len(values) if values else 1.0), len(values)


def _best(epochs: Sequence[Row], split: str) -> Row:
    """The epoch of the highest accuracy, or where there is none of the lowest loss; the first."""
    accuracies = any(e[f"{split}_accuracy"] for e in epochs)

    def worth(epoch: Row) -> float:
        found = _number(epoch[f"{split}_{'accuracy' if accuracies else 'loss'}"])
        # A NaN that comes first would stay the largest: nothing compares with it.
        return -math.inf if math.isnan(found) else found if accuracies else -found

    return max(epochs, key=worth)


def summarize(epochs: Sequence[Row], events: Sequence[Row], status: str) -> dict[str, object]:
    """The columns of `runs.csv` that follow from the other tables.

    Args: epochs, events: the run's rows, in order. status: "done", or why the run stopped.
    """
    stability, count = mean_stability(events)
    # Also of those that were not tested.
    last_event = max((int(e["epoch"]) for e in events), default=-1)
    row: dict[str, object] = {
        "status": status,
        "final_test_accuracy": None,
        "best_test_accuracy": None,
        "best_epoch": None,
        "mean_stability": stability,
        "events": count,
        "generalization_gap": None,
        "sparsity": None,
    }
    if epochs and not any(e["test_accuracy"] for e in epochs):  # of a regression
        row["mean_stability"] = None
    if status != "done" or not epochs:
        return row
    # With that epoch itself: its accuracy is of the network after the event.
    pruned = [e for e in epochs if int(e["epoch"]) >= last_event]
    best = _best(pruned, "test")
    row |= {
        "final_test_accuracy": _number(epochs[-1]["test_accuracy"]),
        "best_test_accuracy": _number(best["test_accuracy"]),
        "best_epoch": int(best["epoch"]),
        # The training accuracy is the running one, in train mode, as in the paper's code.
        "generalization_gap": _number(best["train_accuracy"]) - _number(best["test_accuracy"]),
        "sparsity": _number(epochs[-1]["sparsity"]),
    }
    if "validation_accuracy" in epochs[-1]:
        # Chosen by validation, told by test: no maximum over test accuracies.
        chosen = _best(pruned, "validation")
        row["selected_epoch"] = int(chosen["epoch"])
        row["selected_test_accuracy"] = _number(chosen["test_accuracy"])
    return row
