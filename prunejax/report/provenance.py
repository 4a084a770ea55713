"""Where the numbers come from: facts, config and environment."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from prunejax.record.arms import flat
from prunejax.report import shards
from prunejax.report.panels import Table
from prunejax.report.results import Study
from prunejax.report.tables import config_differences
from prunejax.report.words import count

_CSV = ("runs.csv", "epochs.csv", "events.csv", "measures.csv", "config.json", "environment.json")


def without_places(text: str) -> str:
    """The text with absolute paths cut down to their last part: a page goes to others."""
    return re.sub(r"(?<![\w.)\]/*:~<])(?:~?/)(?:[^/\s'\",;<>]+/)*([^/\s'\",;<>]+)/?", r"…/\1", text)


def code(item: object) -> Markup:
    """A JSON value in a fixed-width font; places of the machine are cut down to names."""
    text = without_places(json.dumps(item, ensure_ascii=False))
    return Markup("<code>{}</code>").format(text)


def facts(study: Study, target: Path) -> Table:
    """When, how long, on what, how to go on, and the files. `target`: where the page lies."""
    rows: list[list[str]] = []
    many = len(study.directories) > 1
    if many:
        rows.append(["directories", ", ".join(study.directories)])
    times = [t for t in study.times.values() if t.get("ended")]
    if times:
        begun, ended = min(t["begun"] for t in times), max(t["ended"] for t in times)
        rows.append(["begun", _date(begun)])
        rows.append(["stands at" if study.unfinished else "ended", _date(ended)])
        wall = sum(float(t["wall_seconds"]) for t in times)
        held = sum(float(t["device_seconds"]) for t in times)
        most = max(int(t["devices"]) for t in times)
        summed = " (directories added up)" if len(times) > 1 else ""
        rows.append(["wall time", f"{_span(wall)} of training and measuring{summed}"])
        rows.append(["device time", f"{_span(held)}: wall time of {count(most, 'device')} held"])
    else:
        rows.append(["date, wall and device time", "not recorded in these directories"])
    commands = _commands(study)
    rows += commands
    if not commands:
        rows.append(["to continue or repeat", "the command that started it, with its --workdir"])
    again = f"python -m prunejax.report {' '.join(_given(study))}"
    rows.append(["to draw this page again", Markup("<code>{}</code>").format(again)])
    for name, path in study.directories.items():
        links = [_link(path / file, target) for file in _CSV if (path / file).exists()]
        rows.append([f"files of {name}" if many else "files", Markup(", ").join(links)])
    rows += [["run on", text] for text in dict.fromkeys(map(_in_short, study.environments.values()))
             if text]  # fmt: skip
    return Table(["", ""], rows, "Facts", kind="text facts")


def _commands(study: Study) -> list[list[str]]:
    """The commands that started the studies, one a study (a shard's stands for all of them)."""
    kinds = shards.distinct(list(study.configs.values()))
    rows: dict[int, list[str]] = {}
    for kind, (name, path) in zip(kinds, study.directories.items(), strict=True):
        command = str(study.stated.get(name, {}).get("command") or "")
        if command and kind not in rows:
            what = "to continue" if study.unfinished else "to repeat"
            what += f" {name}" if len({*kinds}) > 1 else ""
            where = path.resolve().name if not command.count("--shard=") else "DIR"
            text = f"{without_places(command)} --workdir={where}"
            rows[kind] = [what, Markup("<code>{}</code>").format(text)]
    return list(rows.values())


def _given(study: Study) -> list[str]:
    """The directories as a command names them: all shards of a study by the folder around them."""
    around = {path.resolve().parent for path in study.directories.values()}
    shards = len(around) == 1 and next(iter(around)).name == "shards"
    if shards and not study.missing_shards:
        return [around.pop().parent.name]
    return list(study.directories)


def _link(path: Path, target: Path) -> Markup:
    """A link that holds wherever both are moved together; a name where they lie far apart."""
    way = os.path.relpath(path.resolve(), target.resolve())
    if way.count("..") > 1:
        return Markup("{}").format(path.name)
    return Markup('<a href="{}">{}</a>').format(Path(way).as_posix(), path.name)


def _date(text: str) -> str:
    return text.replace("T", " ").replace("Z", " UTC")


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def settings(study: Study) -> Table | None:
    """The fields each arm sets; what all arms that set anything agree on is said once."""
    variants = {label: about for label, about in study.overrides.items() if label in study.variants}
    changes = {label: flat(fields or {}) for label, fields in variants.items()}
    setting = [fields for fields in changes.values() if fields]
    common = {
        key: item
        for key, item in (setting[0] if len(setting) > 1 else {}).items()
        if all(key in fields and fields[key] == item for fields in setting)
    }
    idle = [label for label, fields in changes.items() if not fields]

    def cell(fields: Mapping[str, Any]) -> Markup:
        lines = [Markup("{} = {}").format(key, code(item)) for key, item in fields.items()]
        return Markup("<br>").join(lines)

    rows: list[list[str]] = []
    if common:
        rows.append(["all arms" + (f" but {', '.join(idle)}" if idle else ""), cell(common)])
    for label, fields in changes.items():
        own = {key: item for key, item in fields.items() if key not in common}
        rows.append([label, cell(own) or "nothing" + (" else" if fields else "")])
    return Table(["arm", "sets"], rows, kind="text") if setting else None


def fields(study: Study) -> Table:
    """Every other field of the config."""
    shared = {k: v for k, v in study.config.items() if k != "variants"}
    rows = [[key, code(item)] for key, item in flat(shared).items()]
    return Table(["field", "value"], rows, kind="text")


def between_directories(study: Study) -> dict[str, list[str]]:
    """How the configs of further directories differ from the first one's."""
    return {
        name: [without_places(line) for line in lines]
        for name, lines in config_differences(study).items()
    }


def _in_short(content: Mapping[str, Any]) -> str:
    """Python, packages, devices and commit in a sentence, where they are known."""
    packages = content.get("packages") or {}
    parts = [f"Python {content['python']}"] if content.get("python") else []
    parts += [f"{package} {version}" for package, version in packages.items()]
    devices = [str(device) for device in content.get("devices") or []]
    parts += [f"{devices.count(d)} x {d}" for d in dict.fromkeys(devices)]
    if content.get("git_commit"):
        changed = " with local changes" if content.get("git_dirty") else ""
        parts.append(f"commit {content['git_commit'][:12]}{changed}")
    return ", ".join(parts)


def environments(study: Study) -> dict[str, str]:
    """The directories with this environment -> its JSON."""
    found: dict[str, list[str]] = {}
    for name, content in study.environments.items():
        text = without_places(json.dumps(content, indent=2, ensure_ascii=False))
        found.setdefault(text, []).append(name)
    return {", ".join(names): text for text, names in found.items()}
