"""What a library user need not install: what imports without it, and the line that names it."""

import re
import subprocess
import sys
import tomllib

import pytest

import prunejax
from prunejax import main
from prunejax.errors import ConfigError
from prunejax.system import optional
from tests.launching import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    extra: {re.split(r"[>\[;=]", entry)[0] for entry in entries}
    for extra, entries in PROJECT["optional-dependencies"].items()
}
# pandas, scipy's or another's, may be there: what matters is that nothing of ours asks for it.
BLOCKED = [*optional.PACKAGES, "chex", "clu", "torch", "equinox", "haiku", "tensorflow"]


def test_every_optional_package_is_in_the_extra_that_its_line_names():
    base = {re.split(r"[>\[;=]", entry)[0] for entry in PROJECT["dependencies"]}
    for package, extra in optional.PACKAGES.values():
        assert package in EXTRAS[extra]
        assert package not in base
    assert {"study", "tfds", "stream", "cuda12", "cuda13", "tpu", "all"} <= set(EXTRAS)


def test_the_library_and_the_studies_import_without_any_extra():
    """One process: optional packages are refused, then everything that is public is imported."""
    rooms = [f"prunejax.{name}" for name in prunejax.__all__]
    rooms += ["prunejax.study.run", "prunejax.study.export", "prunejax.record.sinks"]
    rooms += ["prunejax.configs.digits", "prunejax.main", "prunejax.measures.suite"]
    code = f"""
import sys
before = set(sys.modules)
import prunejax
assert set(sys.modules) - before == {{"prunejax"}}, set(sys.modules) - before
import importlib
class Refuse:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse)
for name in {rooms!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["matplotlib", "jinja2", "tensorboard"])
def test_a_study_without_its_packages_is_refused_in_a_line(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("prunejax.cluster.distributed.leave", lambda code: None)
    words = ["prunejax", "--config=prunejax:digits", f"--workdir={tmp_path / 'run'}"]
    assert main.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"prunejax: a study's report needs {module}, which is not installed: ")
    assert "pip install 'prunejax[study]'" in line
    assert not (tmp_path / "run").exists()


def test_need_imports_and_a_broken_package_is_not_called_missing(tmp_path, monkeypatch):
    assert optional.need("this", "PIL.Image").__name__ == "PIL.Image"
    (tmp_path / "wandb.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        optional.need("this", "wandb")
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ConfigError, match=r"this needs grain, .*pip install 'prunejax\[stream\]'"):
        optional.need("this", "grain")
