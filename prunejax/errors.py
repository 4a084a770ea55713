"""The errors that this package raises on purpose: `command.outcome` maps each to an exit code."""

from pathlib import Path


class ConfigError(ValueError):
    """A request that cannot be carried out; the message names the field and what is allowed."""


class WorkdirError(ValueError):
    """The directory cannot be used for this study; the text says why and what to do."""


class ReportError(ValueError):
    """The directories cannot be reported on; the text says why and what to do."""


class FigureError(ValueError):
    """Figures that could not be drawn; the page is there without them and says so."""

    def __init__(self, failed: list[str], page: Path) -> None:
        super().__init__(f"{' '.join(failed)} The page is there without: {page}")
        self.page = page


class UnreadableError(ValueError):
    """An example of a prepared set cannot be used; the text names it."""


class RecordError(OSError):
    """A record could not be written (disk full, directory gone); what was there is intact."""


class Interrupted(Exception):
    """A signal asked to stop; everything is saved and the same command continues."""
