"""Trackers that a study's runs are sent to as they end: Weights & Biases, MLflow, your own.

A tracker is a function of one run that has ended; `config.record.sinks` names those that a study
uses, and a config file adds its own to `SINKS`:

    sinks.SINKS["printed"] = lambda run: print(run.run, run.summary["final_test_accuracy"])

The CSV tables stay the record. `sinks.json` in the run directory holds what was sent, so that a
study that is continued sends no run twice. A tracker that fails ends no study: the line says which
run was not sent, and `send` sends it later.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunejax.errors import ConfigError
from prunejax.record import remote, scalars
from prunejax.system import files, optional

FILE = "sinks.json"  # tracker -> runs that it has


STEP = "training_step"  # what Weights & Biases draw numbers over


@dataclasses.dataclass(frozen=True)
class EndedRun:
    """What a tracker gets of a run.

    Attributes:
      study: the study's name.
      workdir: its run directory.
      run, variant, seed: which run; `run` is "<variant>-<seed>".
      settings: of the variant, by dotted name: the fields that any variant changes, and the seed.
      scalars: (step, numbers by tag), tags as in TensorBoard; steps never fall, and come again
        where several events fall on one.
      summary: the numbers of its row of `runs.csv`.
    """

    study: str
    workdir: Path
    run: str
    variant: str
    seed: int
    settings: Mapping[str, Any]
    scalars: Sequence[tuple[int, Mapping[str, float]]]
    summary: Mapping[str, float]


def wandb(run: EndedRun) -> None:
    """A run of Weights & Biases in the project of the study's name, in `WORKDIR/wandb`.

    `WANDB_MODE=offline` writes it there and sends nothing; `wandb sync` does later.
    """
    module = optional.need("the tracker wandb", "wandb")
    tracked = module.init(
        project=run.study, name=run.run, group=run.variant, dir=str(run.workdir),
        config=dict(run.settings), reinit="create_new",
        settings=module.Settings(silent=True, console="off"),
    )  # fmt: skip
    # Of rows with one `step` of its own it keeps the last numbers: events are told by this one.
    tracked.define_metric(STEP)
    tracked.define_metric("*", step_metric=STEP)
    for step, values in run.scalars:
        tracked.log({**values, STEP: step})
    tracked.summary.update(dict(run.summary))
    tracked.finish()


def mlflow(run: EndedRun) -> None:
    """A run of MLflow in the experiment of the study's name.

    Where `MLFLOW_TRACKING_URI` says, else in `WORKDIR/mlruns`.
    """
    module = optional.need("the tracker mlflow", "mlflow")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or (run.workdir.resolve() / "mlruns").as_uri()
    client = module.MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(run.study)
    experiment = found.experiment_id if found else client.create_experiment(run.study)
    tags = {"variant": run.variant, "seed": str(run.seed)}
    made = client.create_run(experiment, run_name=run.run, tags=tags).info.run_id
    for name, value in run.settings.items():
        client.log_param(made, name, value)
    for step, values in [*run.scalars, (0, run.summary)]:
        for tag, value in values.items():
            client.log_metric(made, tag, value, step=step)
    client.set_terminated(made)


SINKS: dict[str, Callable[[EndedRun], None]] = {"wandb": wandb, "mlflow": mlflow}
SHIPPED = dict(SINKS)


def check(names: Sequence[str]) -> None:
    """Refuses trackers that there are not, before anything is trained.

    Raises:
      ValueError: an unknown name, or its package is not installed.
    """
    for name in names:
        if name not in SINKS:
            raise ConfigError(
                f"config.record.sinks: unknown tracker {name!r}; there are: {', '.join(SINKS)}"
            )
        if name in optional.PACKAGES:
            optional.check(f"the tracker {name}", name)


def _by_step(rows: Sequence[tuple[int, Mapping[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    """Rows of one step as one, in order of steps; each of several events there begins another."""
    found: dict[int, list[dict[str, float]]] = {}
    for step, values in rows:
        of = found.setdefault(step, [{}])
        if values.keys() & of[-1].keys():
            of.append({})
        of[-1].update(values)
    return [(step, values) for step, of in sorted(found.items()) for values in of]


class Tracking:
    """Sends the runs of a run directory, each once to each tracker."""

    def __init__(self, path: Path, names: Sequence[str], tell: Callable[[str], None]) -> None:
        """Args: path: the run directory; names: of `SINKS`; tell: gets a line on a failure."""
        self._path, self._names, self._tell = path, tuple(names), tell
        self._scalars = scalars.Scalars()
        self._rows: dict[str, list[tuple[int, Mapping[str, float]]]] = {}
        self._failed: set[tuple[str, str]] = set()  # not tried again by this process
        # Read once: what grows with the runs must not be read again for each of them.
        self._sent: dict[str, list[str]] | None = None
        self._had: set[tuple[str, str]] = set()  # the same as pairs
        self._about: tuple[str, Mapping[str, Mapping[str, Any]]] | None = None

    def send(self) -> None:
        """Sends what has ended and was not sent yet."""
        if not self._names:
            return
        # Epochs first: tables of ends have no step, and are shown at the last one.
        found = sorted(self._path.glob("*.csv"), key=lambda p: (p.stem != "epochs", p.stem))
        tables = {p.stem: p for p in found if _is_of_runs(p)}
        for run, step, values in self._scalars.new(tables):
            self._rows.setdefault(run, []).append((step, values))
        if self._sent is None:
            self._sent = _sent(self._path)
            self._had = {(name, run) for name, runs in self._sent.items() for run in runs}
        for row in self._scalars.new_rows("runs", self._path / "runs.csv"):
            # A setting, not a result.
            numbers = {k: x for k, x in scalars.numbers(row).items() if k != "seed"}
            self._send(row, numbers, self._sent)

    def _send(
        self, row: Mapping[str, str], summary: Mapping[str, float], sent: dict[str, list[str]]
    ) -> None:
        run = row["run"]
        for name in self._names:
            if (name, run) in self._had or (name, run) in self._failed:
                continue
            try:
                SINKS[name](self._ended(row, summary))
            except Exception as error:  # of a package, or a network, that no study depends on
                self._failed.add((name, run))
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                self._tell(
                    f"tracker {name}: run {run} was not sent ({reason}); later: "
                    f"prunejax.record.sinks.send({str(self._path)!r}, [{name!r}])"
                )
                continue
            sent.setdefault(name, []).append(run)
            self._had.add((name, run))
            # After it: an end in between sends a run twice, not never.
            files.save_json(self._path / FILE, sent)
        self._rows.pop(run, None)

    def _ended(self, row: Mapping[str, str], summary: Mapping[str, float]) -> EndedRun:
        if self._about is None:
            config = files.read_object(self._path / "config.json")
            study = self._path / "study.json"
            stated = files.read_object(study).get("variants") if study.exists() else None
            name = str(config.get("name") or "prunejax")
            self._about = name, scalars.hyperparameters(config, stated)
        name, settings = self._about
        return EndedRun(
            study=name, workdir=self._path, run=row["run"], variant=row["variant"],
            seed=int(row["seed"]),
            settings={**settings.get(row["variant"], {}), "seed": int(row["seed"])},
            scalars=_by_step(self._rows.get(row["run"], [])), summary=summary,
        )  # fmt: skip


def send(workdir: str | os.PathLike[str], names: Sequence[str]) -> None:
    """Sends the runs of a study to trackers that do not have them yet.

    Args:
      workdir: its run directory, or one with shards.
      names: of `SINKS`.

    Raises:
      ValueError: an unknown name, its package is not installed, it is no run directory, or a study
        goes on there.
    """
    check(names)
    for path in remote.find([workdir]):
        with files.locked(path):  # a study that goes on sends its runs itself
            Tracking(path, names, print).send()
    remote.publish(workdir)


def _sent(path: Path) -> dict[str, list[str]]:
    file = path / FILE
    found = files.read_object(file) if file.exists() else {}
    for name, runs in found.items():
        if not isinstance(runs, list):
            raise ConfigError(f"{file}: {name!r} is {runs!r:.40}, not a list; restore the file")
    return found


def _is_of_runs(file: Path) -> bool:
    """Whether rows belong to runs; `runs.csv` is the summary, what trackers write their own."""
    with file.open("rb") as rows:
        return rows.read(17) == b"run,variant,seed," and file.stem != "runs"
