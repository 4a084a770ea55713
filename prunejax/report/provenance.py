"""Where the numbers come from: config and environment, as HTML."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from prunejax.report.markup import code, table
from prunejax.report.results import Study
from prunejax.report.tables import config_differences


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in tree.items():
        if isinstance(item, Mapping) and item:
            found.update(_flat(item, f"{prefix}{key}."))
        else:
            found[prefix + str(key)] = item
    return found


def _arms(variants: Mapping[str, Any]) -> str:
    """The fields each arm sets; what all arms that set anything agree on is said once."""
    changes = {label: _flat(fields or {}) for label, fields in variants.items()}
    setting = [fields for fields in changes.values() if fields]
    common = {
        key: item
        for key, item in (setting[0] if len(setting) > 1 else {}).items()
        if all(key in fields and fields[key] == item for fields in setting)
    }
    idle = [label for label, fields in changes.items() if not fields]

    def cell(fields: Mapping[str, Any]) -> str:
        return "<br>".join(f"{escape(key)} = {code(item)}" for key, item in fields.items())

    rows = [["all arms" + (f" but {escape(', '.join(idle))}" if idle else ""), cell(common)]]
    rows = rows if common else []
    for label, fields in changes.items():
        own = {key: item for key, item in fields.items() if key not in common}
        rows.append([escape(label), cell(own) or "nothing" + (" else" if fields else "")])
    return table(["arm", "sets"], rows, "text")


def config(study: Study) -> str:
    """What the arms change, and every other field."""
    shared = {k: v for k, v in study.config.items() if k != "variants"}
    arms_ = study.config.get("variants") or {}
    parts = [_arms(arms_)] if arms_ else []
    for path, lines in config_differences(study).items():
        items = "".join(f"<li><code>{escape(line)}</code></li>" for line in lines)
        parts.append(f"<p>In <code>{escape(path)}</code>:</p><ul>{items}</ul>")
    fields = [[escape(k), code(v)] for k, v in _flat(shared).items()]
    parts.append(
        "<details><summary>All fields</summary>"
        + table(["field", "value"], fields, "text")
        + "</details>"
    )
    return "".join(parts)


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


def environment(study: Study) -> str:
    """Versions, devices and commit of each directory."""
    found: dict[str, list[str]] = {}
    for path, content in study.environments.items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        found.setdefault(text, []).append(path)
    return "".join(
        f"<p>{escape(_in_short(json.loads(text)))}</p>"
        f"<details><summary>{escape(', '.join(paths))}</summary><pre>{escape(text)}</pre></details>"
        for text, paths in found.items()
    )
