"""A study that ends at a chosen moment: in this process by an exception, in a child by SIGKILL."""

import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from prunejax import main, report
from prunejax.configs import default
from prunejax.record import checkpoint
from prunejax.record import run_directory as record
from prunejax.report import beside
from prunejax.study import run as study
from prunejax.study.devices import layout
from prunejax.study.devices.population import Population
from tests.studies import PRUNE, PickledCheckpointer, tiny

TABLES = ("epochs", "events", "runs")


def config():
    """Two runs, then their two twins; windows of noise and zeros stay open across epochs."""
    open_for = {"duration": 15, "mask_norm": False}
    c = tiny(
        S={"prune": PRUNE},
        R={"prune": PRUNE | {"target": "random"}},
        noise={"prune": PRUNE, "intervention": open_for | {"kind": "gaussian", "twin": "S"}},
        zero={
            "prune": PRUNE | {"target": "random"},
            "intervention": open_for | {"kind": "zero", "twin": "R", "restore": "weights"},
        },
    )
    c.seeds, c.batch_size = 1, 8  # 13 steps in an epoch: the first call takes 8 of them
    c.population.layout = "vectorized"
    c.checkpoint.every_minutes = 1e-9
    return c


def run(path):
    return study.run(config(), path, default.get_config(), quiet=True)


def content(path):
    """The tables' bytes and the targets of every run."""
    files = {t: (path / f"{t}.csv").read_bytes() for t in TABLES}
    for file in sorted((path / "targets").glob("*.npz")):
        with np.load(file) as saved:
            files[file.name] = {name: saved[name].tolist() for name in saved.files}
    return files


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the product catches it."""


class Moments:
    """Counts the moments at which a study can end, and ends it at one of them."""

    def __init__(self, patch):
        self.count, self.at, self.end = 0, -1, Killed
        self.names = []
        for owner, name in (
            (os, "write"),
            (os, "fsync"),
            (os, "replace"),
            (os, "truncate"),
            (Path, "rename"),
            (shutil, "rmtree"),
            (Population, "initial"),
            (Population, "evaluate"),
            (Population, "event"),
            (PickledCheckpointer, "save"),
            (PickledCheckpointer, "restore"),
            (report, "build"),
        ):
            patch.setattr(owner, name, self._counted(name, getattr(owner, name)))

    def _counted(self, name, function):
        def counted(*args, **options):
            self.count += 1
            self.names.append(name)
            if self.count == self.at:
                if name == "write":  # half a row is on disk
                    function(args[0], args[1][: len(args[1]) // 2])
                raise self.end() if self.end is Killed else self.end(28, "No space left on device")
            return function(*args, **options)

        return counted


def make_quick(patch):
    """No report, no TensorBoard, plain checkpoints, one compilation for all studies of `config`."""
    made = {}

    def population(program, data, name, *args, **options):
        if name not in made:
            made[name] = Population(program, data, name, *args, **options)
        return made[name]

    patch.setattr(layout, "Population", population)
    patch.setattr(report, "build", lambda paths: Path(paths[0]) / "report.html")
    patch.setattr(record.RunDirectory, "tensorboard", lambda self: None)
    patch.setattr(checkpoint.load(), "StandardCheckpointer", PickledCheckpointer)


def child(path, moment, nth, code):
    """Runs the study in a process of its own, which kills itself before the nth call of `moment`.

    Args:
      path: run directory.
      moment: "Class.method" of one of the modules below, or "" to run to the end.
      nth: 1 for the first call.
      code: file that gets the exit code of the command line.
    """
    if moment != "report.build":
        setattr(report, "build", lambda paths: Path(paths[0]) / "report.html")  # noqa: B010
    setattr(beside, "_worth", lambda: False)  # noqa: B010 (else another process draws)
    left = [nth]

    def deadly(function):
        def before(*args, **options):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return before

    if moment:
        owner, name = moment.split(".")
        holder = {
            "report": report,
            "Population": Population,
            "Checkpoints": checkpoint.Checkpoints,
            "RunDirectory": record.RunDirectory,
        }[owner]
        setattr(holder, name, deadly(getattr(holder, name)))
    configuration = f"--config={Path(__file__).with_name('fault_config.py')}"
    exit_code = main.main(["prunejax", configuration, f"--workdir={path}", "--quiet"])
    Path(code).write_text(str(exit_code))
    sys.exit(exit_code)
