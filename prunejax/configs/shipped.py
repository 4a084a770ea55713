"""The studies that come with the package: `--config=prunejax:NAME` names them anywhere."""

import ast
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PREFIX = "prunejax:"


def studies() -> dict[str, Path]:
    """Name -> file, e.g. "digits", "paper/fig2_vgg11"."""
    found = {}
    for path in sorted(FOLDER.rglob("*.py")):
        names = {getattr(node, "name", "") for node in ast.parse(path.read_text()).body}
        if "get_config" in names and path.name != "default.py":
            found[path.relative_to(FOLDER).with_suffix("").as_posix()] = path
    return found


def title(path: Path) -> str:
    """The first line of a study's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def path_of(text: str) -> str:
    """A config argument with `prunejax:NAME[:arg]` replaced by the file of that study.
    Raises ValueError: there is no such study.
    """
    if not text.startswith(PREFIX):
        return text
    name, colon, arg = text.removeprefix(PREFIX).partition(":")
    known = studies()
    if name not in known:
        raise ValueError(
            f"--config={text}: no such study comes with prunejax; there are: {', '.join(known)}"
        )
    return f"{known[name]}{colon}{arg}"
