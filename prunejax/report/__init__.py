"""Run directories -> figures, summary.json and one self-contained HTML page. Imports no JAX.

python -m prunejax.report DIR [DIR ...] [--output=DIR]
"""

from collections.abc import Sequence
from pathlib import Path


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

    return write(directories, output)
