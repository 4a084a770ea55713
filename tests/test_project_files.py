import os
import subprocess
import tomllib

import pytest
import yaml

from tests.launching import ROOT


def test_citation_names_the_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    names = [author["family-names"] for author in citation["preferred-citation"]["authors"]]
    assert names == ["Bartoldson", "Morcos", "Barbu", "Erlebacher"]
    for required in ("cff-version", "message", "title", "authors"):
        assert citation[required]


def test_workflow_calls_the_test_command():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["test"]["steps"][-1] == {"run": "bash .ci/run"}


def test_the_release_writes_nothing_but_where_nothing_else_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    jobs = workflow["jobs"]
    assert workflow["permissions"] == {"contents": "read"}
    assert [name for name, job in jobs.items() if "permissions" in job] == ["release"]
    assert [step.get("uses", "").partition("@")[0] for step in jobs["release"]["steps"]] == [
        "actions/download-artifact",
        "",
    ]
    assert jobs["release"]["needs"] == "build"
    assert jobs["build"]["steps"][0]["with"] == {"persist-credentials": False}


@pytest.mark.parametrize(
    ("headings", "tag", "notes"),
    [
        ("## Unreleased\n- new\n## 0.2.0\n- this\n\n## 0.1.0\n- old", "v0.2.0", "- this\n\n"),
        ("## 0.2.0 (2026-12-01)\n- this\n## 0.2.0rc1\n- old", "v0.2.0", "- this\n"),
        ("## Unreleased\n- new\n## 0.1.0\n- old", "v0.2.0", None),
    ],
)
def test_release_notes_are_those_of_the_tag(tmp_path, headings, tag, notes):
    """The workflow's own step, run by a shell."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    (step,) = (s for s in workflow["jobs"]["build"]["steps"] if "changelog" in s.get("name", ""))
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{headings}\n")
    run = subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        cwd=tmp_path,
        env={**os.environ, "GITHUB_REF_NAME": tag},
        check=False,
    )
    assert run.returncode == (1 if notes is None else 0)
    assert (tmp_path / "notes.md").read_text() == (notes or "")
