"""Reads run directories, merges those of one study, and says what is missing."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunejax.errors import ReportError
from prunejax.measures import emptied
from prunejax.measures.columns import by_variant, is_completed
from prunejax.record import arms, ledger, remote
from prunejax.record.workdir import differences, read_record
from prunejax.report import asked, intact, remeasured, shards
from prunejax.report.attributes import attributes_of
from prunejax.report.results import Row, Study, with_losses
from prunejax.system.files import plain_name

_TABLES = ("epochs", "events", "runs", "layers", "costs", "updates")  # the last not of every one

_FEW = 4  # more runs that stopped than this are told by arm, and as many arms
_NAMES = ("run", "variant", "run_a", "run_b")  # columns that name runs and arms


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no file."""
    if not path.exists():
        return {}
    try:
        return read_record(path)
    except ValueError as error:
        raise ReportError(str(error)) from error


def read_csv(path: Path) -> list[Row]:
    """The whole rows of a table; the study may still be writing the last one."""
    if not path.exists():
        return []
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise ReportError(f"{path} is no text: {error}. Restore the file") from error
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    if any(None in row or None in row.values() for row in rows):
        raise ReportError(f"{path} has rows that do not fit its header")
    intact.cells(path, rows)
    return rows


def load(directories: Sequence[str | Path]) -> Study:
    """Reads and merges run directories.

    Directories with the same config (seeds aside) are parts of one study. Where configs differ
    and labels collide, labels get the directory's name in front and each directory becomes a
    group.

    Raises:
      ReportError: not a run directory, unreadable tables, or a run that appears twice.
    """
    paths = remote.find(directories)
    called = shards.shown(paths)
    configs = {str(path): read_json(path / "config.json") for path in paths}
    tables = {path: {name: read_csv(path / f"{name}.csv") for name in _TABLES} for path in paths}
    stated = {path: read_json(path / "study.json") for path in paths}
    taken: remeasured.Taken = {}
    for path in paths:
        promised = _promised(stated[path]) if read_json(path / "status.json") else ()
        about = stated[path].get("variants")
        intact.rows(path, configs[str(path)], tables[path], promised, about)
        measured = read_csv(path / "measures.csv")
        remeasured.taken(taken, configs[str(path)], tables[path]["runs"], measured, path)
        remeasured.join(tables[path]["runs"], measured, context=False)
    attributes = {
        path: attributes_of(configs[str(path)], stated[path], tables[path]) for path in paths
    }
    kinds = shards.distinct([configs[str(path)] for path in paths])
    notes = [
        reason
        for path in paths
        if (reason := ledger.damage(path, read_json(path / "status.json"), Path(path.name)))
    ]
    unfinished = False
    prefixes = dict.fromkeys(paths, "")
    for kind in dict.fromkeys(kinds):
        same = {path: tables[path] for path, k in zip(paths, kinds, strict=True) if k == kind}
        found = _unfinished(same, called)
        notes += found
        unfinished |= bool(found)
    if max(kinds) > 0:
        notes.append("The directories hold different configs; see Config for the differences.")
        if shards.collide(paths, tables, kinds):
            for path in paths:
                _prefix(path, tables[path], attributes)
                prefixes[path] = f"{path.name}/"
    for table in ("runs", "epochs"):
        _refuse_duplicates(paths, tables, table)
    arrays = {}
    for path in paths:
        arrays.update(_arrays(path, tables[path]["runs"]))
    whole = [str(stated[path].get("runs", path.parent)) for path in paths]
    missing = [
        os.path.relpath(Path(shard).resolve(), shards.top(paths))
        for shard in shards.missing_shards(paths, list(zip(kinds, whole, strict=True)))
    ]
    notes += [
        f"Shard {shard} is missing: its runs are not in any number here." for shard in missing
    ]
    merged = {name: _joined([tables[path][name] for path in paths],
                            [label for path in paths for label in attributes[path]])
              for name in _TABLES}  # fmt: skip
    if not merged["epochs"] and not merged["runs"]:
        raise ReportError(f"{paths[0]} holds no results yet; run the study first")
    with_losses(merged["runs"], merged["epochs"])
    notes += [note for path in paths for note in stated[path].get("notes", [])]
    notes += [
        str(text)
        for config in configs.values()
        for text in (config.get("report") or {}).get("remarks", ())
        if text not in notes
    ]
    labels = {label for path in paths for label in attributes[path]}
    own = asked.of_configs([(configs[str(path)], prefixes[path]) for path in paths], labels)
    notes += own.notes
    kinds_of = {k: str(v["kind"]) for path in paths for k, v in attributes[path].items()}
    notes += emptied.notes(merged["events"], kinds_of)
    notes += remeasured.notes(taken)
    stopped = [row for row in merged["runs"] if not is_completed(row)]
    notes += _stopped(merged["runs"], stopped)
    return Study(
        directories={called[path]: path for path in paths},
        config=configs[str(paths[0])],
        configs={called[path]: configs[str(path)] for path in paths},
        environments={called[path]: read_json(path / "environment.json") for path in paths},
        times={called[path]: read_json(path / "times.json") for path in paths},
        stated={called[path]: stated[path] for path in paths},
        arrays=arrays,
        attributes={k: v for path in paths for k, v in attributes[path].items()},
        test_examples=_shared([stated[path].get("test_examples", 0) for path in paths]),
        notes=notes,
        claims=own.claims,
        tests=own.tests,
        missing_shards=missing,
        prefixes={called[path]: prefixes[path] for path in paths},
        unfinished=unfinished,
        **{name: _same_columns(rows) for name, rows in merged.items()},
    )


def _joined(tables: Sequence[list[Row]], labels: Sequence[str]) -> list[Row]:
    """The rows of one table of all directories, of several by arm and seed as in a whole study.

    Halves and orders of seeds are drawn by their places: a merged study must have the whole one's.
    """
    rows = [row for table in tables for row in table]
    place = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    if len(tables) > 1:
        rows.sort(key=lambda row: (place.get(row["variant"], len(place)), int(row["seed"])))
    return rows


def _stopped(runs: Sequence[Row], stopped: Sequence[Row]) -> list[str]:
    """Which runs stopped; of many one sentence, by arm."""
    if len(stopped) <= _FEW:
        return [f"Run {row['run']} stopped: {row['status']}." for row in stopped]
    arms, of = by_variant(stopped), by_variant(runs)
    told = [f"{len(own)} of {len(of[arm])} runs of {arm} ({own[0]['status']})"
            for arm, own in list(arms.items())[:_FEW]]  # fmt: skip
    rest = len(arms) - _FEW
    more = f" and runs of {rest} more arm{'' if rest == 1 else 's'}" if rest > 0 else ""
    return [
        f"{len(stopped)} of {len(runs)} runs stopped, in brackets what the first of an arm stopped "
        f"at: {', '.join(told)}{more}."
    ]


def rows(study: Study, name: str) -> list[Row]:
    """The rows of NAME.csv of all directories, runs and arms named as on the page."""
    return [
        _renamed(row, study.prefixes.get(called, ""))
        for called, path in study.directories.items()
        for row in read_csv(path / f"{name}.csv")
    ]


def _renamed(row: Row, prefix: str) -> Row:
    named = {k: f"{prefix}{x}" for k, x in row.items() if k in _NAMES}
    if "pair" in row:
        named["pair"] = ":".join(f"{prefix}{label}" for label in row["pair"].split(":"))
    return row | named


def _promised(stated: Mapping[str, Any]) -> Sequence[str]:
    """The runs that a finished study, or a shard of one, has; of an earlier version's shard: ()."""
    known: Sequence[str] = stated.get("here", ())
    return known or (stated.get("runs", ()) if stated.get("shard", "1/1") == "1/1" else ())


def _shared(values: Sequence[int]) -> int:
    """The value that all have, else 0."""
    return values[0] if len(set(values)) == 1 else 0


def _unfinished(
    parts: Mapping[Path, Mapping[str, list[Row]]], called: Mapping[Path, str]
) -> list[str]:
    """Says so if runs that the parts of a study promise in `study.json` have not ended."""
    promised = {run for path in parts for run in read_json(path / "study.json").get("runs", ())}
    ended = {row["run"] for tables in parts.values() for row in tables["runs"]}
    if promised - ended:
        left = len(promised - ended)
        has, be, them = ("has", "is", "it") if left == 1 else ("have", "are", "them")
        return [
            f"{left} of {len(promised)} runs {has} not ended or {be} not here; numbers of runs are "
            f"without {them}."
        ]
    if promised:
        return []
    return [
        f"{called[path]} is not finished: what is shown is what there was so far."
        for path in parts
        if not read_json(path / "status.json").get("finished")
    ]


def _prefix(
    path: Path,
    tables: Mapping[str, list[Row]],
    attributes: dict[Path, dict[str, dict[str, Any]]],
) -> None:
    for rows in tables.values():
        for row in rows:
            row.update(_renamed(row, f"{path.name}/"))
    attributes[path] = {
        f"{path.name}/{label}": _of_arm(values, path.name)
        for label, values in attributes[path].items()
    }


def _of_arm(attributes: Mapping[str, Any], directory: str) -> dict[str, Any]:
    """What is known of an arm, where labels carry the directory's name."""
    found = {**attributes, "group": directory}
    for name in ("overrides", "settings"):
        found[name] = arms.renamed(attributes[name], f"{directory}/")
    if attributes.get("twin"):
        found["twin"] = f"{directory}/{attributes['twin']}"
    return found


def _refuse_duplicates(
    paths: Sequence[Path], tables: Mapping[Path, Mapping[str, list[Row]]], table: str
) -> None:
    owner: dict[str, Path] = {}
    for path in paths:
        for run in dict.fromkeys(row["run"] for row in tables[path][table]):
            if owner.setdefault(run, path) != path:
                raise ReportError(
                    f"run {run} is in {owner[run]} and in {path}: counting it twice would make "
                    "the intervals too narrow. Leave one of the directories out"
                )


def _arrays(path: Path, runs: Sequence[Row]) -> dict[str, Path]:
    """The arrays at the end of each run: `measures/RUN.npz`, or RUN-end.npz with probes alone."""
    found = {}
    for row in runs:
        name = plain_name(row["run"].split("/")[-1])
        for ending in ("-end", ""):
            file = path / "measures" / f"{name}{ending}.npz"
            if file.exists():
                found[row["run"]] = file
    return found


def _same_columns(rows: list[Row]) -> list[Row]:
    """Rows of several files with the union of their columns; absent cells are empty."""
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column, "") for column in columns} for row in rows]


def config_differences(study: Study) -> dict[str, list[str]]:
    """How each further directory's config differs from the first one's."""
    first, *others = study.configs
    return {
        path: differences(study.configs[first], study.configs[path])
        for path in others
        if study.configs[path] != study.configs[first]
    }
