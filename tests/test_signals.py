"""Signals end a study at once where nothing is lost, and are kept where something would be."""

import io
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from prunejax.system import signals

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"]
# A call of compiled code that does not come back to Python, and lets other threads run.
COMPILED = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"


def program(body, number, before=""):
    """Runs a program that prints "ready"; then it gets the signal. Exit code and output."""
    start = "import hashlib, os, signal, sys, time\n"
    if not before:  # a suite in the background or under nohup passes on what it ignores
        start += "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        start += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    start += "from prunejax.system import signals\n"
    text = start + textwrap.dedent(body).replace("COMPILED", COMPILED)
    command = [sys.executable, "-u", "-c", text]
    process = subprocess.Popen(
        command if not before else ["sh", "-c", f'{before}; exec "$@"', "sh", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, number))
    output = process.communicate(timeout=50)[0]
    return process.returncode, output


@pytest.mark.parametrize("number", NUMBERS)
def test_compiled_code_is_left_at_once(number):
    code, output = program("with signals.listening():\n    print('ready')\n    COMPILED", number)
    assert code == signals.INTERRUPTED
    assert output == "prunejax: interrupted; the same command continues from what is saved\n"


@pytest.mark.parametrize("number", NUMBERS)
def test_deferred_until_something_is_saved(number):
    code, output = program(
        """
        with signals.listening(), signals.deferred():
            print("ready")
            while not signals.requested():
                time.sleep(0.01)
            with signals.deferred():
                print("saved")
            with signals.at_once():
                print("never")
        """,
        number,
    )
    assert (code, output.splitlines()[0]) == (signals.INTERRUPTED, "saved")
    assert "never" not in output


def test_at_once_inside_deferred():
    code, _ = program(
        """
        with signals.listening(), signals.deferred(), signals.at_once():
            print("ready")
            COMPILED
        """,
        "SIGUSR1",
    )
    assert code == signals.INTERRUPTED


def test_hangup_is_ignored_under_nohup_and_the_others_are_not():
    body = """
        with signals.listening():
            print("ready")
            time.sleep(0.5)
        print("went on")
        """
    assert program(body, "SIGHUP", before="trap '' HUP") == (0, "went on\n")
    assert program(body, "SIGTERM", before="trap '' HUP")[0] == signals.INTERRUPTED


def test_the_line_has_no_reader():
    """A full pipe, and none at all: the process ends all the same."""
    code, _ = program(
        """
        read, write = os.pipe()
        os.dup2(write, 2)
        with signals.listening():
            os.set_blocking(2, False)
            try:
                while True:
                    os.write(2, b"x" * 4096)
            except BlockingIOError:
                os.set_blocking(2, True)
            print("ready")
            COMPILED
        """,
        "SIGTERM",
    )
    assert code == signals.INTERRUPTED


def test_a_child_keeps_its_signals_to_itself():
    body = """
        with signals.listening():
            child = os.fork()
            if not child:
                signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
                os.write(1, b"ready\\n")
                time.sleep(60)
            time.sleep(0.5)
            os.kill(child, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
            time.sleep(0.2)
        print("went on")
        """
    assert program(body, "SIGURG") == (0, "went on\n")  # a signal that nobody heeds


def test_a_child_ends_where_that_is_asked():
    """As a pool of processes asks it of its others where one was killed."""
    body = """
        with signals.listening():
            child = os.fork()
            if not child:
                os.write(1, b"ready\\n")
                time.sleep(60)
            time.sleep(0.5)
            os.kill(child, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        print("went on")
        """
    assert program(body, "SIGURG") == (0, "went on\n")


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    ("door", "works", "argument", "said"),
    [
        ("prunejax.report.__main__", "build", "DIR", "the same command builds the page anew"),
        ("prunejax.measure", "measure", "--workdir=DIR", "what was measured is kept"),
        ("prunejax.__main__", "_show", "show", "give the same command again"),
    ],
)
def test_every_command_ends_at_once_with_a_line(door, works, argument, said, number):
    body = f"""
        import importlib
        door = importlib.import_module({door!r})
        def waits(*_, **__):
            print("ready")
            COMPILED
        door.{works} = waits
        if hasattr(door, "COMMANDS"):
            door.COMMANDS["show"] = waits
        sys.exit(door.main(["prunejax"] * ({works!r} == "measure") + [{argument!r}]))
        """
    assert program(body, number) == (signals.INTERRUPTED, f"prunejax: interrupted; {said}\n")


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(("late", "seconds"), [("threading._register_", 20), ("atexit.", 0.3)])
def test_what_has_ended_keeps_its_exit_code(number, late, seconds):
    """While the interpreter ended SIGINT was a trace, and SIGTERM killed a finished study."""
    register = f"{late}atexit" if late.endswith("_") else f"{late}register"
    body = f"""
        import atexit, threading
        @signals.listening()
        def main(argv=None):
            return 3
        {register}(lambda: (print("ready"), time.sleep({seconds})))  # as threads that end late
        assert main([]) == 3 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        sys.exit(main())
        """
    assert program(body, number) == (3, "")


def test_a_command_after_one_that_ended_is_interrupted_as_any():
    """Called again, in a notebook say, it ended with the exit code of the one before."""
    body = """
        @signals.listening("it is kept")
        def main(argv=None):
            if argv:
                print("ready")
                time.sleep(20)
            return 0
        main()
        sys.exit(main(["again"]))
        """
    assert program(body, "SIGTERM") == (signals.INTERRUPTED, "prunejax: interrupted; it is kept\n")


def test_a_line_that_its_stream_has_no_characters_for_is_told():
    for encoding, shown in (("ascii", "runs/\\xe9\\u2603\\udcff\n"), ("utf-8", "runs/é☃\\udcff\n")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        signals.tell("runs/é☃\udcff", stream)
        assert stream.buffer.getvalue().decode(encoding) == shown


def test_what_was_there_before_comes_back():
    before = {number: signal.getsignal(number) for number in signals._ASKING}
    with signals.listening():
        assert signal.getsignal(signal.SIGUSR1) is not before[signal.SIGUSR1]
    assert {number: signal.getsignal(number) for number in signals._ASKING} == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_line_that_cannot_be_written_changes_no_exit_code():
    text = "from prunejax.system import signals; import sys; signals.tell('a', sys.stdout)"
    with subprocess.Popen(
        [sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.wait(timeout=50) == 0


def interrupted_in(module, words, tmp_path):
    """A command that meets Ctrl-C in its import of a module, which then takes long."""
    lines = ("import os, signal, time", "os.kill(os.getpid(), signal.SIGINT)", "time.sleep(60)")
    (tmp_path / f"{module}.py").write_text("\n".join(lines))  # takes its place
    return subprocess.run(
        [sys.executable, "-m", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=30,
        # a suite in the background ignores it, and so would the command
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("door", ["prunejax", "prunejax.main", "prunejax.report"])
def test_control_c_is_told_before_anything_listens(door, tmp_path):
    """In the first tenth of a second it was a trace: here at the first of the imports."""
    done = interrupted_in("difflib", [door, "list"], tmp_path)
    assert done.returncode == signals.INTERRUPTED
    assert done.stderr == "prunejax: interrupted; nothing was begun\n"


def test_a_signal_is_heard_while_measure_is_loaded(tmp_path):
    done = interrupted_in("numpy", ["prunejax.measure"], tmp_path)
    assert done.returncode == signals.INTERRUPTED
    assert done.stderr == "prunejax: interrupted; give the same command again\n"
