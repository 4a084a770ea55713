"""The process beside a study that draws its report: the same bytes, and nothing left of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from prunejax import main, report
from prunejax.report import beside
from prunejax.study.loop import page
from tests.test_report import write

SAYS = f"import json, sys; print(json.dumps([{beside.__file__!r}, 'gap']), flush=True); "
REQUEST = "folder, place = json.loads(sys.stdin.readline()); "


@pytest.fixture
def program(monkeypatch):
    """Makes it of use here, where matplotlib is loaded, and another program of it."""

    def use(text):
        monkeypatch.setattr(beside, "_worth", lambda: True)
        monkeypatch.setattr(beside, "_PROGRAM", text)

    return use


def files(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def ends(group):
    """Whether a group of processes is gone within seconds."""
    for _ in range(500):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_it_draws_the_same_bytes(tmp_path, program, monkeypatch):
    program(beside._PROGRAM)
    path = write(tmp_path / "run", report={"figures": ["stability"]})
    report.build([path])
    alone = files(path)
    (path / "report.html").unlink()
    (path / "figures" / "stability.svg").write_text("other")
    with beside.begun():
        monkeypatch.chdir(tmp_path)
        group = beside._process.pid
        assert os.getsid(group) == group != os.getsid(0)  # no Ctrl-C of a terminal
        assert beside.ready(["stability", "table"])
        beside.draw(Path("run"))
        assert beside.drawn() == Path("run/report.html")
        assert ends(group)
    assert files(path) == alone


def directory():
    """As much of a run directory as the end of a study asks for."""
    done = []
    held = SimpleNamespace(path=Path("run"), tensorboard=lambda: done.append("tb"))
    held.finish = lambda report: done.append(report)
    return held, done


@pytest.mark.parametrize(
    ("text", "able", "page_of"),
    [
        (SAYS + REQUEST + "print(json.dumps(place + '/page.html'))", True, "page.html"),
        (SAYS + REQUEST + "print('a warning')", True, "own.html"),
        (SAYS + REQUEST, True, "own.html"),
        (SAYS, True, "own.html"),
        (SAYS.replace(beside.__file__, "elsewhere.py") + REQUEST, False, "own.html"),
        (SAYS.replace("gap", "rate") + REQUEST, False, "own.html"),
        ("import matplotlib_that_is_broken", False, "own.html"),
    ],
)
def test_what_it_does_not_draw_the_study_draws(program, monkeypatch, text, able, page_of):
    program(text)
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(beside._process.pid))
    monkeypatch.setattr(report, "build", lambda paths: paths[0] / "own.html")
    with beside.begun():
        group, (held, done) = beside._process.pid, directory()
        assert beside.ready(["gap"]) == able
        assert page.build(held, empty=False) == Path("run") / page_of
        assert done == ["tb", page_of]
        # a study that draws alone goes on with what it compiled; SAYS alone may be gone before
        assert cleared == [group] * able or text == SAYS
        assert beside._process is None
        assert ends(group)


def test_what_cannot_be_asked_for_is_not_waited_for(program, monkeypatch):
    program(SAYS + REQUEST + "print(json.dumps('theirs.html'))")

    def gone():
        raise FileNotFoundError

    with beside.begun():
        assert beside.ready(["gap"])
        monkeypatch.setattr(os, "getcwd", gone)  # as in a directory that was removed
        beside.draw(Path("/run"))
        assert beside._process is None  # else it waits for what is to be drawn, and `drawn` for it
        assert beside.drawn() is None


def test_it_imports_from_where_the_study_does(tmp_path, program, monkeypatch):
    program(beside._PROGRAM)
    (tmp_path / "json.py").write_text("raise ImportError('a file of the current directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    with beside.begun():
        assert beside.ready(["gap"])


def test_what_a_config_file_adds_is_drawn_where_it_is_known(program, monkeypatch):
    program(SAYS + REQUEST + "print(json.dumps('theirs.html'))")
    monkeypatch.setattr(report, "build", lambda paths: paths[0] / "own.html")
    monkeypatch.setitem(sys.modules["prunejax.report.gallery"].FIGURES, "mine", lambda *_: None)
    with beside.begun():
        assert beside.ready(["gap"])
        assert page.build(directory()[0], empty=False) == Path("run/own.html")


@pytest.mark.parametrize("way", ["returns", "raises"])
def test_a_command_leaves_none(program, monkeypatch, tmp_path, way):
    program("import time; time.sleep(60)")
    seen = []

    def run(*_):
        seen.append(beside._process.pid)
        if way == "raises":
            raise KeyboardInterrupt
        return 3

    monkeypatch.setattr(main, "_run", run)
    words = ["prunejax", "--config=configs/digits.py", f"--workdir={tmp_path / 'run'}"]
    if way == "returns":
        assert main.main(words) == 3
    else:
        with pytest.raises(KeyboardInterrupt):
            main.main(words)
    assert beside._process is None
    assert ends(seen[0])
    with pytest.raises(ChildProcessError):  # no zombie
        os.waitpid(seen[0], 0)


def test_it_ends_with_the_study_and_takes_what_it_forked_along():
    text = (
        "import os, threading, time; from prunejax.report.beside import _watch; os.fork() or "
        "time.sleep(60); threading.Thread(target=_watch).start(); print(flush=True); time.sleep(60)"
    )
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        [sys.executable, "-c", text], stdin=pipe, stdout=pipe, start_new_session=True
    )
    with child:
        child.stdout.readline()
        child.stdin.close()  # as where the process that holds it is killed
        assert child.stdout.read() == b""  # nobody is left that could write
        assert child.wait(10) == -signal.SIGKILL
