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


def config(study: Study) -> str:
    """What the arms change, and every other field."""
    shared = {k: v for k, v in study.config.items() if k != "variants"}
    arms_ = study.config.get("variants") or {}
    rows = [
        [
            escape(label),
            "<br>".join(f"{escape(k)} = {code(v)}" for k, v in _flat(changes or {}).items())
            or "nothing",
        ]
        for label, changes in arms_.items()
    ]
    parts = [table(["arm", "changes"], rows, "text")] if rows else []
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


def environment(study: Study) -> str:
    """Versions, devices and commit of each directory."""
    found: dict[str, list[str]] = {}
    for path, content in study.environments.items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        found.setdefault(text, []).append(path)
    return "".join(
        f"<details><summary>{escape(', '.join(paths))}</summary><pre>{escape(text)}</pre></details>"
        for text, paths in found.items()
    )
