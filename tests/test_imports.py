"""The shape of the house: who may import whom, what may not be imported, how long a file may be."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prunejax

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "prunejax"

# Floors, the ground first: a room (a folder, or a flat module) imports from floors below, and flat
# modules of one floor from each other where that makes no circle. Flat = what others import.
FLOORS = (
    ("configs", "errors", "registry", "rng", "trees"),
    ("ops", "system"),
    (
        *("cluster", "allocate", "groups", "interventions", "losses", "masks"),
        *("schedules", "scores", "shrink", "sparsity", "wiring"),
    ),
    ("curvature", "data", "methods", "models", "record"),
    ("measures", "sparsify", "train"),
    ("report",),
    ("study",),
    ("doors",),
)
STUDY = (
    "settings",
    "planning",
    "devices",
    "loop",
    "",
)  # floors of `study/`, its files on top
DOORS = ("main", "measure", "__main__")  # one room: the command lines
LEVELS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MAX_ARROWS = 110  # between rooms
FORBIDDEN = {"tensorflow", "clu", "chex", "torch", "haiku", "equinox", "matfree"}
HEAVY = {"flax", "optax", "orbax", "matplotlib", "scipy", "sklearn", "tensorflow_datasets"}
MAX_LINES = 300
LONGER = {"prunejax.curvature.operators": 400}  # a base class and those that need it
READING = 2700  # lines from settings to a row of runs.csv


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_names(module: str) -> Iterator[tuple[str, int]]:
    """`(full name, line)` of everything that a module imports, anywhere in its text."""
    path = FILES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def resolve(name: str) -> str | None:
    """The module of this package that a full name lies in, None for other packages."""
    while name:
        if name in FILES:
            return name
        name = name.rpartition(".")[0]
    return None


def edges() -> dict[str, dict[str, int]]:
    """module -> {module it imports: line}."""
    graph: dict[str, dict[str, int]] = {}
    for module in FILES:
        found = ((resolve(name), line) for name, line in imported_names(module))
        graph[module] = {target: line for target, line in found if target and target != module}
    return graph


GRAPH = edges()


def unit(module: str) -> str:
    """ "prunejax.curvature.trace" belongs to "curvature"; the package itself to ""."""
    room = module.split(".")[1] if "." in module else ""
    return "doors" if room in DOORS else room


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of one circle, empty if there is none."""
    finished: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in finished:
            return []
        for target in sorted(graph.get(node, ())):
            if found := visit(target, [*trail, node]):
                return found
        finished.add(node)
        return []

    for start in sorted(graph):
        if found := visit(start, []):
            return found
    return []


def test_every_module_has_a_level():
    units = {unit(module) for module in FILES} - {""}
    assert sorted(units - set(LEVELS)) == [], "give the new module a level in this table"
    assert sorted(set(LEVELS) - units) == [], "no such module"


def test_no_import_goes_up():
    wrong = [
        f"{FILES[module].relative_to(ROOT)}:{line} (level {LEVELS[unit(module)]}) imports {target} "
        f"(level {LEVELS[unit(target)]})"
        for module, targets in GRAPH.items()
        for target, line in targets.items()
        if {unit(module), unit(target)} <= set(LEVELS) and not _goes_down(module, target)
    ]
    assert wrong == []


def _goes_down(module: str, target: str) -> bool:
    above, below = LEVELS[unit(module)], LEVELS[unit(target)]
    flat = all(name.count(".") == 1 and not _is_folder(name) for name in (module, target))
    return above > below or unit(module) == unit(target) or (above == below and flat)


def test_no_import_within_a_study_goes_up():
    floor = {room: i for i, room in enumerate(STUDY)}
    own = {m: _within(m) for m in FILES if m.startswith("prunejax.study.")}
    assert set(own.values()) == set(STUDY)
    wrong = [(m, t) for m in own for t in GRAPH[m] if t in own and floor[own[t]] > floor[own[m]]]
    assert wrong == []


def _within(module: str) -> str:
    """The folder of `study/` that a module lies in, "" for its own files."""
    rest = module.split(".")[2:]
    return rest[0] if len(rest) > 1 or _is_folder(module) else ""


def _is_folder(module: str) -> bool:
    return FILES[module].name == "__init__.py"


def test_few_floors_and_arrows():
    arrows = {
        (unit(module), unit(target))
        for module, targets in GRAPH.items()
        for target in targets
        if unit(target) not in ("", unit(module)) and unit(module)
    }
    assert len(FLOORS) <= 8
    assert len(arrows) <= MAX_ARROWS


def test_no_import_goes_in_a_circle():
    between_files = {
        module: {target for target in targets if not target.startswith(module + ".")}
        for module, targets in GRAPH.items()
    }
    assert circle(between_files) == []
    between_units: dict[str, set[str]] = {}
    for module, targets in GRAPH.items():
        others = {unit(target) for target in targets} - {unit(module)}
        between_units.setdefault(unit(module), set()).update(others)
    assert circle(between_units) == []


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


@pytest.mark.parametrize("module", FILES)
def test_forbidden_packages(module):
    imported = {name.partition(".")[0] for name, _ in imported_names(module)}
    assert imported & FORBIDDEN == set()


def test_primitives_are_made_in_one_file():
    """As `ops/conv.py` says of JAX's semi-public interfaces."""
    inner = re.compile(r"jax\.interpreters|jax\.extend\.core import .*\bPrimitive\b")
    found = [p for p in PACKAGE.rglob("*.py") if inner.search(p.read_text())]
    assert found == [PACKAGE / "ops" / "conv.py"]


def test_report_needs_no_jax():
    """Neither the report nor anything that it imports, packages on the way included."""
    reached: set[str] = set()
    queue = [module for module in FILES if unit(module) == "report"]
    assert queue
    while queue:
        module = queue.pop()
        reached.add(module)
        parents = [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]
        queue += [name for name in {*GRAPH[module], *parents} if name not in reached]
    for module in sorted(reached):
        heavy = {name.partition(".")[0] for name, _ in imported_names(module)}
        assert heavy & {"jax", "jaxlib", "flax", "optax", "orbax"} == set(), module


def test_masks_load_neither_models_nor_flax():
    code = "import sys, prunejax; prunejax.masks.prune; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    loaded = {name for name in run.stdout.split() if name.partition(".")[0] in HEAVY}
    loaded |= {name for name in run.stdout.split() if name.startswith("prunejax.models")}
    assert loaded == set()


def test_the_face():
    assert set(prunejax.__all__) <= set(dir(prunejax))
    for name in prunejax.__all__:
        assert getattr(prunejax, name).__name__ == f"prunejax.{name}"
    with pytest.raises(AttributeError, match="no attribute 'mask'; there are: allocate"):
        _ = prunejax.mask


def test_report_loads_without_jax():
    code = "import sys, prunejax.report; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("module", FILES)
def test_length(module):
    limit = LONGER.get(module, MAX_LINES)
    assert FILES[module].read_text().count("\n") <= limit, "split it"


def test_the_ten_files_that_a_newcomer_reads_are_short():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    passage = text[text.index("To read one run") :].partition("\n\n")[0]
    files = [PACKAGE / name for name in re.findall(r"`(\S+\.py)`", passage)]
    assert len(files) == 10
    assert sum(file.read_text().count("\n") for file in files) <= READING


def config_fields() -> list[str]:
    """Dotted names of all fields of configs/default.py."""
    from prunejax.configs import default

    def leaves(config: object, prefix: str) -> Iterator[str]:
        for name, value in config.items():  # type: ignore[attr-defined]
            if hasattr(value, "items") and len(value) > 0:
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    return list(leaves(default.get_config(), ""))


@pytest.fixture(scope="module")
def names_read():
    """Attributes and whole strings of the code, without the modules that only check fields."""
    names = set()
    for module, path in FILES.items():
        if (
            module in ("prunejax.study.settings.config", "prunejax.study.settings.section_check")
            or unit(module) == "configs"
        ):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return names


@pytest.mark.parametrize("field", config_fields())
def test_every_config_field_is_read(field, names_read):
    is_read = field.rpartition(".")[2] in names_read
    assert is_read, "a field that nothing reads: wire it or drop it"
