"""What the levels of a ticket study come to, arm by arm: `tickets.csv` and the page's table.

Read from the arrays of the measure `ticket` (masks) and the tables. Shares are of the weights of
the prunable layers.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import numpy as np

from prunejax.measures import statistics, tickets
from prunejax.measures.columns import grouped, number, pairs, value
from prunejax.report.panels import Table
from prunejax.report.results import Row, Study, once
from prunejax.report.words import DASH, percent
from prunejax.system import files

MARGIN = 0.01  # of accuracy: a ticket within a point of dense has lost nothing
_OF_RUNS = ("effective_sparsity", "sparsity", "distance_to_init", "cosine_to_init")
Masks = dict[str, np.ndarray]


@dataclass(frozen=True)
class Level:
    """An arm of a ticket study.

    Attributes:
      variant: its label.
      rows: of its completed runs.
      masks: seed -> layer -> bool.
      sizes: layer -> weights.
      stops: run -> (epoch, step, test accuracy) of the lowest validation loss; none without one.
    """

    variant: str
    rows: Sequence[Row]
    masks: Mapping[str, Masks]
    sizes: Mapping[str, int]
    stops: Mapping[str, tuple[int, int, float]]

    @property
    def live(self) -> list[int]:
        """Live weights of each run, exact."""
        return [sum(int(m.sum()) for m in masks.values()) for masks in self.masks.values()]

    @property
    def keep(self) -> float:
        """Mean share of weights that is live."""
        return float(np.mean(self.live)) / sum(self.sizes.values())

    def densities(self) -> dict[str, float]:
        """Layer -> mean share that is live."""
        return {
            layer: float(np.mean([m[layer].mean() for m in self.masks.values()]))
            for layer in self.sizes
        }

    def values(self, column: str) -> list[float]:
        """A column of the runs."""
        return [value(row, column) for row in self.rows]

    def mean(self, column: str) -> float:
        """Mean of a column over the runs that have a number."""
        return statistics.center(self.values(column))

    def overlap(self) -> tuple[float, float]:
        """(Jaccard index of masks, its value by chance), means over pairs of seeds."""
        pairs = itertools.combinations(self.masks.values(), 2)
        found = [overlap(a, b, self.sizes) for a, b in pairs]
        index, chance = zip(*(found or [(nan, nan)]), strict=True)
        return float(np.mean(index)), float(np.mean(chance))


def overlap(a: Masks, b: Masks, sizes: Mapping[str, int]) -> tuple[float, float]:
    """(Jaccard index of two masks, its value by chance, with the same counts by layer).

    `sizes`: layer -> weights. The densities of layers alone make masks overlap.
    """
    own, other = ({k: int(m[k].sum()) for k in m} for m in (a, b))
    return tickets.jaccard(a, b), tickets.chance_jaccard(own, other, sizes)


def _masks(study: Study, run: str) -> Masks | None:
    path = study.arrays.get(run)
    if path is None:
        return None
    with files.arrays(path) as file:
        layers = [name.removeprefix("mask:") for name in file.files if name.startswith("mask:")]
        found: Masks = {}
        for layer in layers:
            shape = tuple(file[f"shape:{layer}"])
            bits = np.unpackbits(file[f"mask:{layer}"], count=int(np.prod(shape)))
            found[layer] = bits.astype(bool).reshape(shape)
    return found or None


def _stop(epochs: Sequence[Row]) -> tuple[int, int, float] | None:
    losses = [number(row.get("validation_loss")) for row in epochs]
    if not any(map(isfinite, losses)):
        return None
    row = epochs[tickets.early_stop(losses)]
    return int(number(row["epoch"])), int(number(row["step"])), number(row["test_accuracy"])


@once
def of(study: Study) -> dict[str, Level]:
    """Arm -> its level, of the arms whose masks were measured; empty for other studies."""
    epochs = grouped(study.epochs, "run")
    found = {}
    for variant, rows in study.good_of.items():
        masks = {row["seed"]: m for row in rows if (m := _masks(study, row["run"])) is not None}
        if not masks:
            continue
        sizes = {layer: m.size for layer, m in next(iter(masks.values())).items()}
        stops = {row["run"]: s for row in rows if (s := _stop(epochs.get(row["run"], [])))}
        found[variant] = Level(variant, rows, masks, sizes, stops)
    return found


def match(study: Study, level: Level, margin: float = MARGIN) -> tickets.Matching | None:
    """Whether an arm is as good as the baseline, by final accuracy.

    None without pairs, for the baseline, and for arms on other data.
    """
    own, theirs = (study.settings(v, "data") for v in (level.variant, study.baseline))
    if level.variant == study.baseline or own != theirs:
        return None
    base = [row for row in study.good if row["variant"] == study.baseline]
    values, dense = pairs(level.rows, base, "final_test_accuracy")
    return tickets.matching(values, dense, margin) if values else None


def records(study: Study) -> list[Mapping[str, Any]]:
    """The rows of `tickets.csv`: one an arm, means over seeds."""
    rows: list[Mapping[str, Any]] = []
    for variant, level in of(study).items():
        found, chance = level.overlap()
        test = match(study, level)
        stops = list(level.stops.values())
        row: dict[str, Any] = {"variant": variant, "runs": len(level.rows)}
        row |= {"live_weights": min(level.live), "live_weights_most": max(level.live)}
        row |= {"prunable_weights": sum(level.sizes.values()), "keep": level.keep}
        for column in ("final_test_accuracy", "best_test_accuracy"):
            mean = statistics.mean(level.values(column))  # a seed is the replication
            row |= {column: mean.mean, f"{column}_low": mean.low, f"{column}_high": mean.high}
        row |= {
            "early_stop_step": statistics.center([s[1] for s in stops]) if stops else None,
            "early_stop_test_accuracy": statistics.center([s[2] for s in stops]) if stops else None,
            **{column: level.mean(column) for column in _OF_RUNS},
            "overlap": found,
            "overlap_chance": chance,
            "within_dense_std": None if test is None else test.within_std,
            "margin": None if test is None else test.margin,
            "not_inferior_p": None if test is None else test.p,
        }
        row |= {f"density:{layer}": share for layer, share in level.densities().items()}
        rows.append(row)
    return rows


def table(study: Study) -> Table | None:
    """The levels on the page."""
    rows, layers = [], [*next(iter(of(study).values())).sizes] if of(study) else []
    for variant, level in of(study).items():
        found, chance = level.overlap()
        live = level.live
        stopped = [*map(statistics.center, zip(*level.stops.values(), strict=True))]
        rows.append({
            "arm": variant,
            "live weights": f"{min(live):,}" + f" to {max(live):,}" * (len(set(live)) > 1),
            "kept": percent(level.keep),
            "final": percent(level.mean("final_test_accuracy")),
            "best": percent(level.mean("best_test_accuracy")),
            "at early stop": percent(stopped[2]) if stopped else DASH,
            "early-stop step": f"{stopped[1]:.0f}" if stopped else DASH,
            "density of layers": " ".join(map(percent, level.densities().values())),
            "effective sparsity": percent(level.mean("effective_sparsity")),
            "overlap (chance)": f"{found:.3f} ({chance:.3f})" if isfinite(found) else DASH,
            "distance to init": f"{level.mean('distance_to_init'):.2f}",
            f"matches {study.baseline}": _verdict(match(study, level)),
        })  # fmt: skip
    return Table.of(
        rows,
        "Levels",
        f"Live weights and the kept share are of the prunable layers ({', '.join(layers)}); "
        "effective sparsity is of all parameters and counts those on no path. Early stop: lowest "
        "validation loss. Overlap: Jaccard index of the masks of two seeds, in brackets that of "
        "random masks with the same counts by layer. Matches: one-sided non-inferiority at a "
        f"margin of {100 * MARGIN:g} point of final accuracy, p in brackets; * within one standard "
        "deviation of the baseline's seeds. tickets.csv has every number.",
    )


def _verdict(test: tickets.Matching | None) -> str:
    if test is None:
        return DASH
    star = "*" if test.within_std else ""
    if not isfinite(test.p):
        return f"too few seeds{star}"
    return f"{'yes' if test.not_inferior else 'not shown'} ({test.p:.2g}){star}"
