"""The command `prunejax`, in a clone and from a wheel."""

import importlib
import json
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from prunejax import losses
from prunejax import main as study_command
from prunejax.__main__ import main
from prunejax.configs import shipped

ROOT = Path(__file__).resolve().parent.parent


def test_list_names_every_study_with_its_first_line(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(shipped.studies()) > 15
    assert any(line.startswith("prunejax:digits ") for line in lines)
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)


@pytest.mark.parametrize("words", [["list"], ["--help"], ["show", "DIR"], ["run", "--help"]])
def test_what_was_asked_for_finds_no_room(words, tmp_path, monkeypatch, capsys):
    """Exit code 0 with nothing written: `prunejax list > FILE` on a full disk."""
    (tmp_path / "config.json").write_text("{}")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main([str(tmp_path) if word == "DIR" else word for word in words]) == 1
    assert capsys.readouterr().err == "prunejax: standard output: No space left on device\n"


def test_show_tells_what_is_in_a_directory(tmp_path, capsys):
    settings = {"name": "small", "variants": {"none": {}, "S": {}}, "seeds": 2, "first_seed": 0}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "runs.csv").write_text("run\nnone-0\n")
    assert main(["show", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "small (not finished)" in out
    assert "none, S" in out
    assert "runs.csv: 1 rows" in out


def test_show_tells_of_each_shard(tmp_path, capsys):
    for part in ("2-of-2", "1-of-2"):
        folder = tmp_path / "shards" / part
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"name": "small"}))
    assert main(["show", str(tmp_path)]) == 0
    told = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert told[::4] == ["1-of-2", "2-of-2"]
    assert told[1::4] == ["small", "small"]


@pytest.mark.parametrize("name", ["config.json", "status.json"])
@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b"", b"\xff", b'{"a": [1'])
def test_a_damaged_file_is_named_by_show(name, content, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    assert main(["show", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / name} is no JSON" in line


def test_show_of_other_contents(tmp_path, capsys):
    for variants in (3, [], None, {"S": {}}):
        (tmp_path / "config.json").write_text(json.dumps({"variants": variants}))
        assert main(["show", str(tmp_path)]) == 0
        arms = capsys.readouterr().out.splitlines()[1]
        assert arms.split() == ["arms", "S" if isinstance(variants, dict) else "?"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "~nouser/x"], "~nouser/x: no such user"),
        (["rum"], "unknown command 'rum'; there are: run, list, measure, report, show, export."),
        (["list", "x"], "unexpected argument 'x'"),
        (["show"], "give one run directory"),
        (["show", "/nowhere/at/all"], "/nowhere/at/all is no directory"),
        (["run", "--config=prunejax:digit", "--workdir=x"], "no such study comes with prunejax"),
        (["report"], "DIR"),
        (["report", "x", "--output="], "--output is missing"),
        (["show", "a\0b"], "no NUL"),
        (["export", "--workdir=x", "--run=a-0", "--output=x\0.npz"], "no NUL"),
        (["export", "--workdir=x", "--run=a-0", "--output="], "--output is missing"),
        (["export", "workdir=x", "run=a-0", "output=x.npz"], "prunejax export needs"),
        (["export", "--workdir=x", "--ticket=a-0", "--output=x.npz", "--shrink"], "export needs"),
        (["export", "--workdir=x", "--ticket=a-0", "--output=/"], "--output=/: a directory"),
        (["export", "--workdir=x", "--run=a-0", "--output=/"], "--output=/: a directory"),
        (["export", "--workdir=x", "--ticket=a-0", "--output=/no/x.npz"], "there is no folder /no"),
        (["measure", "--workdir=x", "--nolive_only=3"], "--nolive_only=3 does not take"),
        (["measure", "--flagfile=/dev/zero/x"], "Unable to open flagfile"),
        (["measure", "--workdir="], "--workdir is missing"),
        (["measure", "--workdir", ""], "--workdir is missing"),
        (["report", "x", "--output", ""], "--output is missing"),
        (["report", ""], "an argument is empty"),
    ],
)
def test_bad_requests_are_one_line_and_code_2(words, message, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_what_is_listed_is_a_study():
    found = shipped.studies()
    assert {"digits", "paper/fig2_vgg11"} < set(found)
    for name, path in found.items():
        module = importlib.import_module(f"prunejax.configs.{name.replace('/', '.')}")
        assert isinstance(module.get_config(), ConfigDict), path


def test_shipped_studies_keep_their_argument():
    path = shipped.path_of("prunejax:digits:quick")
    assert path.endswith("digits.py:quick")
    assert shipped.path_of("configs/x.py:a") == "configs/x.py:a"


@pytest.mark.slow
def test_a_wheel_runs_from_any_directory(tmp_path):
    pytest.importorskip("setuptools")
    clone = tmp_path / "clone"  # building leaves files behind
    shutil.copytree(ROOT / "prunejax", clone / "prunejax")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    build = "import sys; from setuptools import build_meta as b; b.build_wheel(sys.argv[1])"
    made = subprocess.run(  # as `pip wheel` does, which starts Python three times
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=clone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("prunejax-*.whl")
    assert wheel.stat().st_size < 6e6
    target = tmp_path / "site"
    install = ["install", "--no-deps", "--no-compile", "-q", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "configs").mkdir(parents=True)
    (elsewhere / "configs" / "__init__.py").write_text("raise ImportError('not ours')\n")
    code = f"import sys; sys.path.insert(0, {str(target)!r}); import prunejax.__main__ as m; "
    code += "assert m.__file__.startswith(sys.path[0]); listed = m.main(['list']); "
    code += "sys.exit(listed or m.main(sys.argv[1:]))"
    few = ["--config.seeds=1", "--config.measures.names=()", "--config.measures.forecast=false"]
    few += ["--config.report.figures=()", f"--workdir={tmp_path / 'digits'}", "--quiet"]
    run = subprocess.run(
        [sys.executable, "-P", "-c", code, "run", "--config=prunejax:digits:quick", *few],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "prunejax:tickets" in run.stdout
    assert (tmp_path / "digits" / "report.html").exists()


STACK = 13  # functions of the package, from the command that trains to what calls the loss
SMALL = """
from prunejax.configs import default

def get_config():
    config = default.get_config()
    config.seeds, config.epochs, config.batch_size, config.eval_batch_size = 1, 1, 32, 40
    config.data.train_examples, config.data.test_examples = 100, 90
    config.model.width, config.report.figures = 0.125, ("table",)
    return config
"""


def test_few_functions_lie_between_the_command_and_the_loss(tmp_path, monkeypatch):
    """For full batches, the last one and the test set; threads that compile ahead begin later."""
    real, stacks = losses.objective, []

    def called(*args, **options):
        own = str(Path(losses.__file__).parent)
        frames = [f.name for f in traceback.extract_stack() if f.filename.startswith(own)]
        stacks.append(frames[frames.index("main") :] if "main" in frames else frames)
        return real(*args, **options)

    monkeypatch.setattr(losses, "objective", called)
    (tmp_path / "small.py").write_text(SMALL)
    words = ["prunejax", f"--config={tmp_path / 'small.py'}", f"--workdir={tmp_path / 'run'}"]
    assert study_command.main([*words, "--quiet"]) == 0
    for name in ("train_steps", "train_last_step", "evaluate"):
        assert any(name in frames for frames in stacks)
    assert any(frames[0] == "main" and "train_steps" in frames for frames in stacks)
    assert max(map(len, stacks)) <= STACK, max(stacks, key=len)
