"""The library's face says its shapes one way: axes in brackets (CONTRIBUTING.md, Rules).

Of all docstrings: they hold no lines of code that slipped in, and what they call is there.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import prunejax

PACKAGE = Path(prunejax.__file__).parent
ROOMS = sorted({*prunejax.__all__} - {"data", "errors", "models"})

ARRAY = re.compile(r"\b(Array|ArrayLike|ndarray)\b")
# `[n, classes]` with a named axis or `...`, of at most four words each; no index `x[i]`, which
# follows a word, and no interval `[0, 1]`, which names nothing.
AXIS = r"[\w*+/()' -]+?|\.\.\."
BRACKETS = rf"(?<![\w)\]`])\[(?=[^\]]*[A-Za-z.])(?:{AXIS})(?:, ?(?:{AXIS}))*\]"
WORDS = r"\bscalars?\b|\bshapes?\b|\b(?:tree|array)s? like `"
SHAPE = re.compile(rf"{BRACKETS}|{WORDS}", re.IGNORECASE)
MAX_WORDS = 4
INHERITED = re.compile(r"\b(?:[Aa]s in|those of) `(?:\w+\.)*(\w+)`")

Functions = Mapping[str, ast.FunctionDef]


def public(text: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Public functions of a module, and methods of its public classes, by their own name."""
    for node in ast.parse(text).body:
        inside = node.body if isinstance(node, ast.ClassDef) and node.name[0] != "_" else [node]
        for item in inside:
            if isinstance(item, ast.FunctionDef) and item.name[0] != "_":
                yield item.name, item


def arrays(function: ast.FunctionDef) -> list[str]:
    """What of a signature is an array: names of arguments but PRNG keys, and "return"."""
    a = function.args
    given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    faces = [(x.arg, x.annotation) for x in given if x.arg != "key"]
    faces.append(("return", function.returns))
    return [name for name, kind in faces if kind is not None and ARRAY.search(ast.unparse(kind))]


def shapes(text: str, start: int = 0) -> list[re.Match]:
    found = SHAPE.finditer(text, start)
    return [m for m in found if all(len(axis.split()) <= MAX_WORDS for axis in m[0].split(","))]


def unsaid(function: ast.FunctionDef, known: Functions, seen: tuple[str, ...] = ()) -> list[str]:
    """Arrays of a signature whose shape the docstring neither says nor leaves to another one.

    An argument is named, and a shape follows before the next sentence or the next entry of
    Args; a function whose arguments have one says another one for what it returns.
    """
    text = ast.get_docstring(function) or ""
    wanted, missing = arrays(function), []
    parts = re.split(r"(?<=[.;])\s|\n\s*\n|\n(?=\s*[\w, ]+: )", text)
    others = [known[f] for f in INHERITED.findall(text) if f in known and f not in seen]
    left_to = {
        name
        for other in others
        for name in set(arrays(other)) - set(unsaid(other, known, (*seen, function.name)))
    }
    for name in wanted:
        if name == "return":
            enough = len(shapes(text)) >= 1 + (len(wanted) > 1 and not left_to & {*wanted[:-1]})
        else:
            named = [(part, re.search(rf"\b{name}\b", part)) for part in parts]
            enough = any(at and shapes(part, at.end()) for part, at in named)
        if not enough and name not in left_to:
            missing.append(name)
    return missing


def sources(room: str) -> list[Path]:
    folder = PACKAGE / room
    return sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


FACES = {
    room: [pair for path in sources(room) for pair in public(path.read_text())] for room in ROOMS
}


@pytest.mark.parametrize("room", ROOMS)
def test_shapes_are_said(room):
    own = dict(FACES[room])
    known = {name: f for pairs in FACES.values() for name, f in pairs} | own
    found = {f"{name}, line {f.lineno}": unsaid(f, known) for name, f in FACES[room]}
    assert {name: missing for name, missing in found.items() if missing} == {}


def test_there_is_something_to_say():
    count = sum(bool(arrays(f)) for pairs in FACES.values() for _, f in pairs)
    assert count > 150


KNOWN = "def known(x: Array, y: Array) -> Array:\n  '''Sum [n] of `x` [n] and `y`.'''\n"


@pytest.mark.parametrize(
    ("signature", "docstring", "missing"),
    [
        ("x: Array", "Its sum.", ["x"]),
        ("x: Array", "The sum of `x`.", ["x"]),
        ("x: Array", "The sum of `x` in [0, 1].", ["x"]),
        ("x: Array", "The sum of x[i] over `i`.", ["x"]),
        ("x: Array", "Of `x`: a list [what is first of all, the rest].", ["x"]),
        ("x: Array", "Of `x`. The grid is [n].", ["x"]),
        ("x: Array", "The sum of `x` [n].", []),
        ("x: Array", "The sum of `x` [..., 2].", []),
        ("x: Array", "The sum.\n\nArgs:\n  x: values [n].", []),
        ("x: Array, y: Array", "The sum.\n\nArgs:\n  x: values.\n  y: others [n].", ["x"]),
        ("x: Array, y: Array", "The sum of `x` and `y` [n].", []),
        ("x: Tree, key: Array", "A draw.", []),
        ("x: Array, y: Array", "Arguments as in `known`.", ["y"]),
        ("x: Array, y: Array", "Arguments as in `nothing`.", ["x", "y"]),
        ("x: Array) -> (Array", "The largest of `x` [n].", ["return"]),
        ("x: Array) -> (Array", "The largest of `x` [n], a scalar.", []),
        ("x: Tree) -> (dict[str, Array]", "Per layer.", ["return"]),
    ],
)
def test_what_is_not_said_is_found(signature, docstring, missing):
    known = dict(public(KNOWN))
    ((_, function),) = public(f"def f({signature}):\n  '''{docstring}'''\n")
    assert unsaid(function, known) == missing


# -- all docstrings of the package ---------------------------------------------------------------

HOLDERS = (ast.Module, ast.ClassDef, ast.FunctionDef)
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def docstrings(tree: ast.Module) -> Iterator[str]:
    return (ast.get_docstring(n) or "" for n in ast.walk(tree) if isinstance(n, HOLDERS))


def names(tree: ast.Module) -> set[str]:
    """What a module defines or imports, at any depth."""
    nodes = [*ast.walk(tree)]
    found = {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    return found | {n.asname or n.name for n in nodes if isinstance(n, ast.alias)}


def by_module() -> dict[str, set[str]]:
    """Module or folder, by its last name -> names in it."""
    found: dict[str, set[str]] = {"prunejax": {n for n in ("load", "run") if hasattr(prunejax, n)}}
    for path, tree in TREES.items():
        own = path.parent if path.stem == "__init__" else path
        found[own.stem] = found.get(own.stem, set()) | names(tree)
    return found


def slipped(text: str) -> list[str]:
    """Lines of a docstring that are import statements, those of examples, indented, left out."""
    found = []
    for line in text.splitlines():
        if re.match(r"(import|from) \S", line):
            try:
                ast.parse(line)
            except SyntaxError:
                continue  # a sentence
            found.append(line)
    return found


def unknown_calls(text: str, known: Mapping[str, set[str]]) -> list[str]:
    """Calls in backticks, of a name with keywords or of a module's name, that nothing answers."""
    everything = set().union(*known.values())
    found = []
    for code in re.findall(r"`([^`]+)`", text):
        try:
            nodes = [*ast.walk(ast.parse(code.strip(), mode="eval"))]
        except SyntaxError:
            continue  # a formula
        for node in (n for n in nodes if isinstance(n, ast.Call)):
            of = node.func
            if isinstance(of, ast.Name):  # without keywords it may be mathematics
                missing = bool(node.keywords) and of.id not in everything
            else:
                owner = of.value if isinstance(of, ast.Attribute) else None
                module = known.get(owner.id) if isinstance(owner, ast.Name) else None
                missing = module is not None and of.attr not in module
            if missing:
                found.append(ast.unparse(of))
    return found


def test_docstrings_hold_no_imports_and_call_what_is_there():
    known = by_module()
    found = {
        str(path.relative_to(PACKAGE)): [
            x for text in docstrings(tree) for x in (*slipped(text), *unknown_calls(text, known))
        ]
        for path, tree in TREES.items()
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_slips_are_seen_and_sentences_are_none():
    text = "Of a study,\nfrom numpy import pi\nfrom step 3 on.\n\n    import os\nimport sys"
    assert slipped(text) == ["from numpy import pi", "import sys"]
    known = {"trees": {"get", "paths"}, "masks": {"prune"}}
    text = "`get(x, key=1)`, `got(x, key=1)`, `ceil(n)`, `trees.get(x)`, `masks.prone(s)`, `a | b(`"
    assert unknown_calls(text, known) == ["got", "masks.prone"]
