"""Run directories -> figures, summary.json and one self-contained HTML page. Imports no JAX.

python -m prunejax.report DIR [DIR ...] [--output=DIR]
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunejax import checks, registry
from prunejax.files import expand

# The names that `config.report.figures` may hold: those of `gallery.FIGURES`, and the tables, which
# every page has. Stated here, because the gallery imports matplotlib.
FIGURES = (
    *("dynamics", "stability", "scatter", "gap", "rate", "rate_scatter", "noise", "corners"),
    *("group_scatter", "flatness", "tic", "epsilon", "eigenvalues", "spectrum", "perturbation"),
    *("measures", "forecast", "normality", "table"),
)


def check(options: Any, labels: Sequence[str]) -> None:
    """Refuses a `config.report` that could not be drawn, before anything is trained.

    Args:
      options: `config.report`: `baseline`, `figures`, `correlate`, `tests`.
      labels: of the study's variants.

    Raises:
      ValueError: names the field, the value, and what there is.
    """
    for name in options.figures:
        registry.lookup(dict.fromkeys(FIGURES), name, "figure in config.report.figures")
    if options.baseline != "none":  # the default; a study may have no such variant
        checks.known("report.baseline", [options.baseline], labels)
    checks.known("report.correlate", options.correlate, labels)
    for pair in options.tests:
        if pair.count(":") != 1:
            raise checks.ConfigError(f"config.report.tests: {pair!r} is no pair like 'a:b'")
        checks.known("report.tests", pair.split(":"), labels)


def build(directories: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes `report.html`, `summary.json` and `figures/`; returns the page.

    Args:
      directories: run directories, or directories that hold `shards/i-of-n`; parts of one study
        are merged.
      output: where to write; the first directory by default.

    Raises:
      ReportError (a ValueError): no run directory, unreadable tables, a run that appears twice.
    """
    # Imported here, so that a training process loads matplotlib only at its end.
    from prunejax.report.page import write

    return write([Path(expand(d)) for d in directories], output and expand(output))
