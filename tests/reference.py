"""The reference page of all fields of a study, made from where each is declared.

    python -m tests.reference > docs/config.md

All of it stands in `configs/default.py`, the meaning in the comment beside or above a field. That
is what a study is checked with, so that page, checks and messages agree.
"""

import ast
import inspect
import io
import re
import sys
import tokenize
from typing import Any, NamedTuple

from prunejax.configs import default
from prunejax.configs.fields import flat
from prunejax.study.settings import ranges

HEAD = """# Every field of a study

Made by `python -m tests.reference > docs/config.md`; a test compares. In a config file
`config.prune.period = 4`, on the command line `--config.prune.period=4`, in an arm
`{"prune": {"period": 4}}`. Sparsities and fractions are fractions removed; epochs count from 0.
"""


class Field(NamedTuple):
    """One field: what is declared of it."""

    name: str  # "prune.period"
    default: Any
    meaning: str
    allowed: (
        str  # names, bounds and unit, or kind of entries; "" where any value of the type may be
    )


def fields() -> list[Field]:
    """All fields, in the order of `configs/default.py`.

    Raises:
      ValueError: a field without a meaning.
    """
    values = dict(flat(default.get_config())) | {"variants": {}}
    said = _meanings()
    mute = [name for name in values if not said.get(name)]
    if mute:
        raise ValueError(
            f"config.{mute[0]} has no meaning; write a comment beside it in configs/default.py"
        )
    return [Field(n, values[n], text, _allowed(n, values[n])) for n, text in said.items()]


def page() -> str:
    """The page as Markdown: a table for each group of fields."""
    lines, section = [HEAD], None
    for field in fields():
        group = field.name.rpartition(".")[0]
        if group != section:
            section = group
            title = f"## {group}" if group else "## The study"
            lines += [
                "",
                title,
                "",
                "| field | default | allowed | meaning |",
                "| --- | --- | --- | --- |",
            ]
        cells = (f"`{field.name}`", f"`{field.default!r}`", field.allowed, field.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _allowed(name: str, value: Any) -> str:
    field = ranges.declared().get(name)
    if field is None:
        return {bool: "True, False", str: "text"}.get(type(value), "")
    if field.names:
        return ", ".join(ranges.choices()[name])
    if field.unit:
        low, high, unit = field.low, field.high, field.unit
        least, most = (
            None if x is None else f"{x:,g}" if abs(x) < 1e7 else f"{x:.4g}" for x in (low, high)
        )
        span = f"{least} to {most}" if most is not None else f"at least {least}"
        return f"{span} ({unit})"
    return f"a tuple of {field.entries}" if field.entries else ""


def _meanings() -> dict[str, str]:
    """Field -> the comment beside its value, or above it."""
    source = inspect.getsource(default)
    beside: dict[int, str] = {}
    alone: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            beside[token.start[0]] = token.string.lstrip("# ").strip()
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    found: dict[str, str] = {}

    def visit(node: ast.Dict, prefix: str) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if not isinstance(key, ast.Constant):
                continue
            name, above, line = f"{prefix}{key.value!s}", list[str](), key.lineno - 1
            while line in alone:
                above.insert(0, beside[line])
                line -= 1
            if isinstance(value, ast.Dict) and name != "variants":
                visit(value, f"{name}.")
                continue
            last = value.end_lineno or key.lineno
            own = [beside[n] for n in range(key.lineno, last + 2) if n in beside and n not in alone
                   and (n <= last or _closes(source, n))]  # fmt: skip
            text = " ".join((*above, *own))
            found[name] = re.sub(r"\s+", " ", text)

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict):
            visit(node.value, "")
    return found


def _closes(source: str, line: int) -> bool:
    """Whether a line only closes a bracket: a comment there is of the value before."""
    return source.splitlines()[line - 1].lstrip().startswith((")", "]", "}"))


if __name__ == "__main__":
    sys.stdout.write(page())
