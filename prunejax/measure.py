"""Measures a finished study again: `python -m prunejax.measure --workdir=DIR`.

Reads the final states of the runs (`checkpoints/final-*`) and the config, computes the measures of
`config.measures.names` or those given, and writes `measures/RUN.npz` (`settings:MEASURE` has the
settings of each as JSON) and `measures.csv`, which the report takes before the columns of
`runs.csv`; then builds the report anew, in the run directory or in `--output=DIR`. The other
`measures.*` settings are flags, too, also those that a config file declared; `--run=REGEX` chooses
runs.

Exit codes: 0 done, 2 bad request, 1 failure, 75 interrupted: what was measured is kept.
"""

from prunejax.system import signals

if __name__ == "__main__":  # what follows takes seconds to load
    signals.listening("give the same command again").__enter__()

import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from prunejax import registry, report
from prunejax.configs import default
from prunejax.configs.fields import defaults, whole
from prunejax.errors import ConfigError, ReportError
from prunejax.measures.columns import CONTEXT
from prunejax.measures.suite import MEASURES
from prunejax.record import ledger, remote
from prunejax.report import tables
from prunejax.study import final
from prunejax.study.final import states as final_states
from prunejax.study.loop import measure_check, measuring
from prunejax.study.planning import plan
from prunejax.study.planning.plan import Batch, Member
from prunejax.system import command, config_file, files, limits

__all__ = ["MEASURES", "main", "measure"]
TABLE = "measures.csv"
READ = ("config.json", "runs.csv")  # of a finished study; changed ones are refused
OF_STUDIES = ("epochs", "forecast")  # fields of `measures` that only training runs look at


def read_study(path: Path, changes: Mapping[str, Any]) -> tuple[list[Batch], ConfigDict]:
    """Programs and settings of a finished study, with changes to `config.measures`. Raises
    ConfigError: not finished, files changed since, no measure is named, or settings that cannot be.
    """
    status = tables.read_json(path / "status.json")
    if not status.get("finished"):
        raise ConfigError(
            f"{path} is not finished; give the command that started it again, then measure"
        )
    changed = ledger.damage(path, status, only=READ)
    if changed:
        raise ConfigError(changed)
    arms = final.arms(path, changes)
    settings = arms[0].settings
    if not settings.measures.names:
        raise ConfigError(
            f"the study in {path} names no measures in config.measures.names; name some with "
            f"--names=A,B; there are: {', '.join(MEASURES)}"
        )
    batches = plan.build(arms)
    measure_check.check(settings, batches)
    return batches, settings


class Results:
    """`measures/RUN.npz` and `measures.csv` of a run directory."""

    def __init__(self, path: Path) -> None:
        """Reads nothing yet."""
        self.path = path
        self._read: Any = ()  # of what file `_rows` are
        self._rows: dict[str, dict[str, Any]] = {}
        self._names: list[str] = []

    def _refresh(self) -> None:
        """Reads what was measured before, unless the table is as it was left here."""
        if self._state() == self._read:
            return
        file = self.path / TABLE
        if file.exists():  # without the start of a row that never became whole
            os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
        rows = tables.read_csv(file)
        self._rows = {row["run"]: dict(row) for row in rows}
        self._names = list(rows[0]) if rows else []
        self._read = self._state()

    def _state(self) -> tuple[int, ...] | None:
        try:
            found = (self.path / TABLE).stat()
        except FileNotFoundError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ino

    def add(self, member: Member, values: Mapping[str, float], arrays: dict[str, Any]) -> bool:
        """Writes a run's numbers beside those it has, in their place if those are of other data.

        Returns: Whether there were numbers of other data.
        """
        self._refresh()
        file = self.path / "measures" / f"{files.plain_name(member.run)}.npz"
        old: dict[str, Any] = {}
        if file.exists():
            with files.arrays(file) as saved:
                old = dict(saved)
        other = any(k in old and not np.array_equal(old[k], arrays[k]) for k in CONTEXT)
        merged = arrays if other else old | arrays
        # before the table, which never names what is not there
        files.replace(file, lambda f: np.savez_compressed(f, **merged))
        new = member.run not in self._rows
        row = {} if other else self._rows.get(member.run, {})
        labels = {"run": member.run, "variant": member.variant, "seed": member.seed}
        context = {k: arrays[k] for k in CONTEXT}
        self._rows[member.run] = row | {
            k: files.cell(v) for k, v in (labels | context | dict(values)).items()
        }
        row = self._rows[member.run]
        if new and self._names and row.keys() <= set(self._names):
            files.append(self.path / TABLE, self._text([row]))
        else:
            self._names = list(dict.fromkeys(k for row in self._rows.values() for k in row))
            head = (",".join(self._names) + "\n").encode()
            content = head + self._text(self._rows.values())
            files.replace(self.path / TABLE, lambda f: f.write(content))
        self._read = self._state()
        return other

    def _text(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self._names, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue().encode()


def _say(text: str) -> None:
    signals.tell(text, sys.stdout)


def measure(
    workdir: str | Path,
    run: str = ".*",
    changes: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = _say,
    output: str | Path | None = None,
) -> int:
    """Measures runs of a finished study and builds its report anew.

    Args:
      workdir: a run directory, or one with shards.
      run: regular expression for whole run names, e.g. "L.*-0".
      changes: fields of `config.measures` and their values.
      tell: is told each result.
      output: where the report goes, the run directory by default; the measures always go there.

    Returns: How many measures failed.

    Raises:
      ConfigError, ReportError: the request cannot be carried out; nothing was written.
      RecordError: something cannot be read or written.
    """
    try:
        wanted = re.compile(run)
    except re.error as error:
        raise ConfigError(f"--run={run!r} is no regular expression: {error}") from None
    jobs = []
    for path in remote.find([workdir]):
        batches, settings = read_study(path, changes or {})
        jobs += [(path, settings, *entry) for entry in final_states(path, batches, wanted)]
    if not jobs:
        raise ConfigError(f"no run of {workdir} trained to its end: there is none to measure")
    chosen = [job for job in jobs if wanted.fullmatch(job[3].run)]
    if not chosen:
        names = [job[3].run for job in jobs]
        raise ConfigError(
            f"--run={run!r} matches no run of {workdir}; there are: {', '.join(names)}."
            + registry.suggestion(run, names)
        )
    if output:
        files.folder(Path(files.expand(output)))  # what cannot be is told before the work
    failures = 0
    measurers: dict[int, measuring.Measurer] = {}
    results = {path: Results(path) for path, *_ in chosen}
    for path, settings, batch, member, state in chosen:
        with files.locked(path):
            if id(batch) not in measurers:  # it reads the examples
                measurers[id(batch)] = measuring.Measurer(batch, settings, tell)
            values, arrays, failed = measurers[id(batch)].measure(state())
            arrays |= _settings(settings, failed)
            replaced = results[path].add(member, values, arrays)
        tell(f"{member.run}: {_text(values)}")
        if replaced:
            tell(f"{member.run}: earlier measures were of other examples and are replaced")
        for name, reason in failed.items():
            tell(f"{member.run}: no {name}: {reason}")
        failures += len(failed)
    report.build([workdir], output)
    remote.publish(workdir)
    return failures


def _settings(settings: ConfigDict, failed: Collection[str]) -> dict[str, Any]:
    """`settings:MEASURE`: JSON of those it was taken with; the next call may have others."""
    used = {k: v for k, v in settings.measures.to_dict().items() if k not in (*OF_STUDIES, "names")}
    text = np.array(json.dumps(used))
    return {f"settings:{name}": text for name in settings.measures.names if name not in failed}


def _text(values: Mapping[str, float]) -> str:
    """`hessian_trace 31.2 ± 1.4, tic 1.22 ± 0.2`."""
    parts = []
    for name, value in values.items():
        if not name.endswith("_stderr"):
            error = values.get(f"{name}_stderr")
            parts.append(f"{name} {value:.5g}" + ("" if error is None else f" ± {error:.2g}"))
    return ", ".join(parts)


def fields() -> dict[str, Any]:
    """Settings of measures and their defaults, those that a config file declared as well."""
    declared = defaults(whole(default.FIELDS)["measures"])
    return {k: v for k, v in declared.items() if k not in OF_STUDIES}


def _restore(argv: Sequence[str]) -> None:
    """Runs the config file of the study again where it declared settings, which are flags, too."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Run directory.", flag_values=values)
    command.parsed(values, argv, known_only=True)  # others are known afterwards
    with suppress(ReportError):  # no run directory: `measure` tells it
        for path in remote.find([values.workdir] if values.workdir else []):
            config_file.restore(path)


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", None, "Run directory of a finished study.", flag_values=values)
    flags.DEFINE_string("output", None, "Where the report goes.", flag_values=values)
    flags.DEFINE_string("run", ".*", "Which runs (regular expression).", flag_values=values)
    define: dict[type, Callable[..., Any]] = {
        tuple: flags.DEFINE_list,
        bool: flags.DEFINE_boolean,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for name, usual in fields().items():
        define[type(usual)](name, None, f"As config.measures.{name}.", flag_values=values)


@signals.listening("what was measured is kept")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    values = flags.FlagValues()
    argv = list(sys.argv if argv is None else argv)
    if {"--help", "-h"} & set(argv):
        define_flags(values)
        return command.say(f"{__doc__}\n{values.get_help()}")
    try:
        limits.check_addresses()
        argv = command.arguments(argv)
        _restore(argv)
        define_flags(values)
        rest = command.parsed(values, argv)
        if rest or values.workdir is None:
            what = f"unexpected argument {rest[0]!r}" if rest else "--workdir is missing"
            raise ValueError(f"{what}; e.g. --workdir=runs/digits --run='none-.*' --names=tic")
        given: dict[str, Any] = {
            k: values[k].value for k in fields() if values[k].value is not None
        }
        if "names" in given:
            given["names"] = tuple(values.names)
        command.collect_less()
        failures = measure(values.workdir, values.run, given, output=values.output)
        return command.FAILURE if failures else 0
    except Exception as error:
        return command.end(error)


if __name__ == "__main__":
    sys.exit(main())
