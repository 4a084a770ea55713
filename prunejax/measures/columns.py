"""The columns of `runs.csv`: which there are, and what a cell or a pair of arms says."""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, nan
from typing import TypeVar

Row = Mapping[str, object]
R = TypeVar("R", bound=Row)

LOSS = "final_test_loss"  # of a regression, on its page: `report.results.with_losses`
OUTCOMES = (
    "final_test_accuracy",
    "best_test_accuracy",
    "selected_test_accuracy",
    "generalization_gap",
    LOSS,
)
STUDY = (
    *(*OUTCOMES, "best_epoch", "selected_epoch", "mean_stability", "events", "sparsity"),
    *("final_train_loss", "final_train_accuracy", "training_loss_sum", "stopped_step"),
    *("training_flops", "inference_flops", "prunable_sparsity"),
)
CONTEXT = ("split", "batch_norm", "examples", "live_dim")  # what measures were taken on
LABELS = ("run", "variant", "seed", "status")
COMPLETED = ("", "done", "completed", "finished", "ok")  # else: stopped, its numbers do not count
_QUALITY = ("_stderr", "_residual")  # columns about an estimate, not estimates


def number(value: object) -> float:
    """A cell as float; NaN where it is empty or a word."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return nan


def is_completed(row: Row) -> bool:
    """False for a run that stopped, e.g. with status "non-finite"."""
    return str(row.get("status") or "") in COMPLETED


def value(row: Row, column: str) -> float:
    """A run's number; a run without events has stability 1 (spec 1.2), if it has accuracies."""
    found = number(row.get(column))
    if column == "mean_stability" and not isfinite(found) and number(row.get("events")) == 0:
        return nan if row.get("final_test_accuracy") == "" else 1.0
    return found


_SINGLE = 1e-6  # what passes through single precision is not told apart below this


def resolutions(columns: Iterable[str], test_examples: int = 0) -> dict[str, float]:
    """The smallest difference that two values of a column can have, where there is one.

    Accuracies differ by one test example at least; stabilities and gaps are quotients and
    differences of accuracies in single precision.
    """
    found = {}
    for column in columns:
        if column.endswith("_test_accuracy"):
            found[column] = 1 / test_examples if test_examples else 2 * _SINGLE
        elif column in ("mean_stability", "generalization_gap", "sparsity"):
            found[column] = 2 * _SINGLE  # of which `is_rounding` takes half
    return found


def numeric_columns(rows: Sequence[Row]) -> list[str]:
    """The columns that hold at least one finite number, labels left out, in file order."""
    columns = [c for c in (rows[0] if rows else {}) if c not in LABELS]
    return [c for c in columns if any(isfinite(value(row, c)) for row in rows)]


def measure_columns(rows: Sequence[Row]) -> list[str]:
    """The numeric columns that came from `config.measures`, without their standard errors."""
    return [c for c in numeric_columns(rows) if c not in STUDY and not c.endswith(_QUALITY)]


def grouped(rows: Iterable[R], column: str) -> dict[str, list[R]]:
    """Rows by what they have in a column, in order of first appearance."""
    found: dict[str, list[R]] = {}
    for row in rows:
        found.setdefault(str(row[column]), []).append(row)
    return found


def by_variant(rows: Iterable[R]) -> dict[str, list[R]]:
    """Rows by arm, in order of first appearance."""
    return grouped(rows, "variant")


def pairs(a: Sequence[Row], b: Sequence[Row], column: str) -> tuple[list[float], list[float]]:
    """The values of two arms for the seeds that both have."""
    theirs = {row["seed"]: value(row, column) for row in b}
    both = [row for row in a if row["seed"] in theirs]
    return [value(row, column) for row in both], [theirs[row["seed"]] for row in both]
