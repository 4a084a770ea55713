import tomllib

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
