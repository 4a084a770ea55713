"""What runs come to over epochs: their accuracies, of a regression their test losses."""

from typing import NamedTuple

import numpy as np

from prunejax.measures import statistics
from prunejax.measures.columns import number
from prunejax.report.results import Row, Study, once


class Shown(NamedTuple):
    """What is drawn over epochs: `test_NAME`, and at events `pre_NAME` and `post_NAME`."""

    name: str
    factor: int  # on the numbers of the tables
    axis: str
    unit: str  # behind a number
    difference: str  # unit of a difference, in words
    digits: int  # of a number


ACCURACY = Shown("accuracy", 100, "test accuracy (%)", "%", "points", 1)
LOSS = Shown("loss", 1, "test loss (nats)", "", "nats", 3)


def shown(study: Study) -> Shown:
    """Accuracy where any run has one, else the loss."""
    return ACCURACY if study.has_accuracy else LOSS


@once
def _endings(study: Study) -> tuple[set[str], set[str]]:
    """Runs that ended early and whole (by `stop_loss`), and those that broke off beside others.

    The first stay as they are from there on, so that a mean is over the same runs at all epochs;
    the second are in no mean, as in the tables (but where an arm has no others).
    """
    early = {row["run"] for row in study.good if row.get("stopped_step")}
    broken = {row["run"] for row in study.runs if row["variant"] in study.good_of}
    return early, broken - {row["run"] for row in study.good}


def _rows(study: Study, variant: str) -> list[Row]:
    """The rows of `epochs` that the arm's curves are about."""
    broken = _endings(study)[1]
    return [row for row in study.epochs_of.get(variant, []) if row["run"] not in broken]


def accuracy_curves(study: Study, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs [points], accuracies [runs, points]) with the drop of each event as two points.

    At an event's epoch the curve goes from the accuracy before to the one after pruning. Losses
    where there are no accuracies: see `shown`.
    """
    what = shown(study).name
    rows = _rows(study, variant)
    runs = dict.fromkeys(row["run"] for row in rows)
    points: dict[str, dict[tuple[int, int], float]] = {run: {} for run in runs}
    ends = {}
    for row in rows:
        points[row["run"]][int(row["epoch"]), 1] = number(row[f"test_{what}"])
        ends[row["run"], row["epoch"]] = row.get("step")  # none of earlier versions
    for row in study.events_of.get(variant, []):
        # Amid an epoch: its curve has no point there.
        step = row.get("step")
        amid = step and row["epoch"] != "-1" and step != ends.get((row["run"], row["epoch"]))
        if row["run"] in points and row[f"pre_{what}"] and not amid:
            # Of several on one step the first has what was before them, the last what is after.
            points[row["run"]].setdefault((int(row["epoch"]), 0), number(row[f"pre_{what}"]))
            points[row["run"]][int(row["epoch"]), 1] = number(row[f"post_{what}"])
    keys = sorted({key for run in points.values() for key in run})
    early, curves = _endings(study)[0], []
    for label, run in points.items():
        after = run[max(run)] if label in early else np.nan
        # A run without an event where others have one is flat there.
        curves.append([run.get(key, run.get((key[0], 1), after if key > max(run) else np.nan))
                       for key in keys])  # fmt: skip
    return np.array([key[0] for key in keys]), np.array(curves).reshape(len(runs), len(keys))


class Curve(dict[int, float]):
    """Epoch -> number of a run; of one that ended early the last one from there on."""

    def __init__(self, early: bool) -> None:
        """Empty."""
        self.early = early

    def at(self, epoch: int) -> float:
        """The number at an epoch; NaN where there is none."""
        if epoch in self or not self.early:
            return self.get(epoch, np.nan)
        last = max(self)
        return self[last] if epoch > last else np.nan


def by_seed(study: Study, variant: str) -> dict[str, Curve]:
    """Seed -> epoch -> test accuracy at its end (after an event); see `shown`."""
    column, early = f"test_{shown(study).name}", _endings(study)[0]
    found: dict[str, Curve] = {}
    for row in _rows(study, variant):
        own = found.setdefault(row["seed"], Curve(row["run"] in early))
        own[int(row["epoch"])] = number(row[column])
    return found


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Running mean over `width` points around each, fewer at the ends; NaN is left out."""
    half = width // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(values.size))
    return np.array([w[np.isfinite(w)].mean() if np.isfinite(w).any() else np.nan for w in windows])


def advantage(study: Study, variant: str, baseline: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, mean over seeds of the accuracy minus the baseline's of the same seed).

    At the epochs that both have: an arm may train for longer. Where a run that ended early counts
    as it was, all seeds have to be there, or the mean would be over others than before.
    """
    own = by_seed(study, variant)
    other = by_seed(study, baseline) if baseline else {}
    # without a partner a seed would shift the difference
    seeds = [seed for seed in own if not baseline or seed in other]
    epochs = sorted({epoch for seed in seeds for epoch in own[seed]})
    curves = np.array([
        [own[s].at(e) - (other[s].at(e) if baseline else 0) for e in epochs]
        for s in seeds
    ])  # fmt: skip
    if not curves.size:
        return np.zeros(0), np.zeros(0)
    mean, here = statistics.bands(curves)[0], np.isfinite(curves)
    ended = np.array([[e not in own[s] or (baseline and e not in other[s]) for e in epochs]
                      for s in seeds], bool)  # fmt: skip
    shown = np.isfinite(mean) & (here.all(0) | ~(here & ended).any(0))
    return np.array(epochs)[shown], mean[shown]
