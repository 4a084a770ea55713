"""The end of a study: its views and its page, which follow from the tables."""

from pathlib import Path

import jax

from prunejax import report
from prunejax.errors import FigureError, ReportError, WorkdirError
from prunejax.record import ledger
from prunejax.record.run_directory import RunDirectory
from prunejax.report import beside
from prunejax.study.settings import entries


def build(directory: RunDirectory, empty: bool) -> Path | None:
    """Everything that follows from the tables; the last file says that the study is finished.

    Args: empty: there are no runs to report on.
    """
    if empty:
        directory.finish()
        return None
    if entries.registered():  # of which another process may not know
        beside.end()
    elsewhere = beside.draw(directory.path)
    directory.tensorboard()
    if elsewhere:  # of a command, which ends with this study: its programs go in the meantime
        jax.clear_caches()
    try:
        page = beside.drawn() or report.build([directory.path])
    except ReportError as error:  # the tables were changed while the study ran
        raise WorkdirError(str(error)) from error
    except FigureError as error:
        directory.finish(report=error.page.name)
        raise
    directory.finish(report=page.name)
    return page


def mend(directory: RunDirectory, empty: bool) -> bool:
    """Builds the lost report of a finished study anew. Returns whether there was need to."""
    lost = not empty and bool(ledger.lost_views(directory.path, directory.status))
    if lost:
        build(directory, empty)
    return lost
