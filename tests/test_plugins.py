import json
import shutil
from pathlib import Path

import pytest

from prunejax import data, losses, models, report, scores
from prunejax.errors import ConfigError
from prunejax.main import main
from prunejax.measure import measure
from prunejax.study import plugins
from prunejax.system import config_file

TEMPLATE = Path(__file__).resolve().parent.parent / "docs" / "plugin_config.py"
TABLES = (
    (models.MODELS, "two_layers"),
    (data.DATASETS, "blobs"),
    (scores.SCORES, "spread"),
    (losses.LOSSES, "brier"),
)


@pytest.fixture
def forget():
    def clear():
        for table, name in TABLES:
            table.pop(name, None)
        config_file._loaded.clear()

    clear()
    yield clear
    clear()


@pytest.mark.usefixtures("promoting")
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_a_file_brings_model_data_score_and_loss(tmp_path, forget):
    file, workdir = tmp_path / "mine.py", tmp_path / "run"
    shutil.copy(TEMPLATE, file)
    assert plugins.registered() == []
    assert main(["main", f"--config={file}", f"--workdir={workdir}", "--quiet"]) == 0
    assert sorted(plugins.registered()) == sorted(name for _, name in TABLES)
    kept = json.loads((workdir / "study.json").read_text())["config_file"]
    assert kept["path"] == str(file)

    forget()  # as in another process
    assert measure(workdir, changes={"names": ("tic",), "examples": 20}) == 0
    assert "brier" in losses.LOSSES
    forget()
    report.build([workdir])
    assert "brier" in losses.LOSSES

    forget()
    file.write_text(file.read_text() + "# changed\n")
    with pytest.raises(ConfigError, match="it was changed since") as error:
        report.build([workdir])
    assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(ConfigError, match="it is not there; restore it"):
        measure(workdir, changes={"names": ("tic",)})
