"""The commit that is recorded is the package's own, with a mark for local changes."""

import subprocess

import pytest

from prunejax.record import environment


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package inside a repository that does not track it yet."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    found = tmp_path / "project" / "env" / "prunejax"
    found.mkdir(parents=True)
    (found / "__init__.py").write_text("")
    (found / "step.py").write_text("x = 1\n")
    project = tmp_path / "project"
    (project / "README").write_text("foreign\n")
    git(project, "init", "-q")
    git(project, "add", "README")
    git(project, "commit", "-q", "-m", "foreign")
    return found


def test_a_repository_that_only_encloses_the_package(package):
    assert environment.git_state(package) == (None, None)


def test_no_repository_and_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(environment, "_git", lambda *_: None)
    assert environment.git_state(tmp_path) == (None, None)


@pytest.mark.parametrize(
    ("name", "dirty"), [("step.py", True), ("new.py", True), ("../../README", False)]
)
def test_local_changes_of_the_package_are_marked(package, monkeypatch, name, dirty):
    git(package, "add", ".")
    git(package, "commit", "-q", "-m", "ours")
    monkeypatch.setenv("GIT_DIR", str(package / "nowhere"))  # as inside a hook
    commit, changed = environment.git_state(package)
    assert commit is not None
    assert len(commit) == 40
    assert changed is False
    (package / name).write_text("x = 2\n")
    assert environment.git_state(package) == (commit, dirty)


def test_the_environment_says_both():
    found = environment.environment()
    assert set(found) >= {"git_commit", "git_dirty"}
    assert (found["git_commit"] is None) == (found["git_dirty"] is None)
