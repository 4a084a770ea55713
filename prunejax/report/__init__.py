"""Run directories -> figures, summary.json and one self-contained HTML page. Imports no JAX.

python -m prunejax.report DIR [DIR ...] [--output=DIR]
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from prunejax import registry
from prunejax.errors import ConfigError
from prunejax.measures import claims
from prunejax.record import arms, remote
from prunejax.report import beside
from prunejax.system import config_file, optional
from prunejax.system.files import expand


def check(options: Any, labels: Sequence[str]) -> None:
    """Refuses a `config.report` that could not be drawn, before anything is trained.

    Args:
      options: `config.report`: `baseline`, `figures`, `correlate`, `tests`, `claims`, `guides`.
      labels: of the study's variants.

    Raises:
      ValueError: names the field, the value, and what there is; or the report's packages cannot
        be imported.
    """
    if not beside.ready(options.figures):  # else it has done the same
        try:
            load()
        except ConfigError:
            raise
        except Exception as error:  # of a broken installation: before training, not after it
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"the report could not be drawn: {type(error).__name__}: {reason}. Mend the "
                "installation of matplotlib, Pillow and Jinja2 first"
            ) from error
        importlib.import_module("prunejax.report.gallery").check(options.figures)
    # "none" is the default; a study may have no such variant
    if options.baseline != "none" and not any(arms.is_at(a, options.baseline) for a in labels):
        registry.known("report.baseline", [options.baseline], labels)
    registry.known("report.correlate", options.correlate, labels)
    for pair in options.tests:
        if pair.count(":") != 1:
            raise ConfigError(f"config.report.tests: {pair!r} is no pair like 'a:b'")
        registry.known("report.tests", pair.split(":"), labels)
    for share in options.guides:
        if not 0 < share <= 1:
            raise ConfigError(f"config.report.guides: {share!r} is no share above 0, up to 1")
    for text in options.claims:
        try:
            claim = claims.parse(text)
        except ValueError as error:
            raise ConfigError(f"config.report.claims: {error}") from None
        registry.known("report.claims", claim.arms, labels)
        if claim.a == claim.b:
            raise ConfigError(
                f"config.report.claims: {text!r} compares {claim.a!r} with itself; name two"
            )


def load() -> None:
    """Loads all that a report needs; raises what a broken installation raises."""
    _page()
    importlib.import_module("jinja2")


def _page() -> ModuleType:
    """The module that writes pages: loads matplotlib, whatever backend the environment names.

    A notebook leaves `MPLBACKEND=module://matplotlib_inline.backend_inline` behind, which raises
    where that package is not installed. Figures are drawn without any backend.
    """
    optional.check("a study's report", "matplotlib", "PIL", "jinja2", "tensorboard")
    given = os.environ.get("MPLBACKEND")
    if given is None or "matplotlib" in sys.modules:
        return importlib.import_module("prunejax.report.page")
    os.environ["MPLBACKEND"] = "agg"
    try:
        page = importlib.import_module("prunejax.report.page")
        matplotlib = sys.modules["matplotlib"]
    finally:
        os.environ["MPLBACKEND"] = given
    with contextlib.suppress(ValueError):  # there is no such backend
        matplotlib.rcParams["backend"] = given  # for others in this process
    return page


def build(directories: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes `report.html`, `summary.json` and `figures/`; returns the page.

    Args:
      directories: run directories, or directories that hold `shards/i-of-n`; parts of one study
        are merged.
      output: where to write; the first directory by default.

    Raises:
      ReportError (a ValueError): no run directory, unreadable tables, a run that appears twice.
      FigureError (a ValueError): the page is written, but for figures that failed.
    """
    page = _page()  # before what a config file registers: that may be figures
    found = [remote.fetched(directory) for directory in directories]
    for path in remote.find(found):
        config_file.restore(path)
    written = page.write(found, output and expand(output))
    if not output:
        remote.publish(directories[0])
    return written
