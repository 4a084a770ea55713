"""Stores what ten small studies write, or compares it: a change that must move no number shows it.

    python -m tests.oracle record DIR                  # before the change
    python -m tests.oracle compare DIR [--only=NAME]   # after it

Compared are the bytes of every table, and the arrays in `targets/` and `measures/`, name by name.
Only the command line and files are used, so that modules may move. Bytes hold for one machine and
one set of packages. Exit codes: 0 the same, 1 something differs or a study failed.
"""

import argparse
import csv
import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests.oracle_config import STUDIES

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600  # a study that takes longer hangs


def digest(file):
    """sha256 of a table's bytes, or of an archive's arrays (an archive itself holds times)."""
    if file.suffix != ".npz":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    whole = hashlib.sha256()
    with np.load(file) as arrays:
        for name in sorted(arrays.files):
            value = np.asarray(arrays[name])
            whole.update(f"{name} {value.dtype} {value.shape} ".encode() + value.tobytes())
    return whole.hexdigest()


def digests(workdir):
    """Path inside the run directory -> digest, of everything that is compared."""
    files = [*workdir.glob("*.csv"), *workdir.glob("targets/*"), *workdir.glob("measures/*")]
    return {str(f.relative_to(workdir)): digest(f) for f in sorted(files) if f.is_file()}


def first_difference(before, after):
    """Where two files of one name differ first, in words."""
    if before.suffix == ".npz":
        with np.load(before) as old, np.load(after) as new:
            if set(old.files) != set(new.files):
                return f"arrays {sorted(old.files)} became {sorted(new.files)}"
            for name in sorted(old.files):
                a, b = np.asarray(old[name]), np.asarray(new[name])
                if (a.dtype, a.shape) != (b.dtype, b.shape):
                    return f"{name}: {a.dtype} {a.shape} became {b.dtype} {b.shape}"
                if a.tobytes() != b.tobytes():
                    places = np.argwhere(~((a == b) | ((a != a) & (b != b))))
                    at = tuple(map(int, places[0])) if len(places) else ()
                    return f"{name}{list(at)}: {a[at]} became {b[at]} ({len(places)} of {a.size})"
        return "the same arrays"
    if before.suffix != ".csv":
        return "other bytes"
    rows, others = (list(csv.reader(f.read_text().splitlines())) for f in (before, after))
    if not rows or not others or rows[0] != others[0]:
        return f"columns {rows[:1]} became {others[:1]}"
    for number, (one, other) in enumerate(itertools.zip_longest(rows[1:], others[1:]), 1):
        if one is None or other is None:
            return f"{len(rows) - 1} rows became {len(others) - 1}"
        for column, x, y in itertools.zip_longest(rows[0], one, other):
            if x != y:
                return f"row {number} ({one[0]}), column {column}: {x} became {y}"
    return "other line ends"


def compare(before, after):
    """What differs between two run directories' files, a line each."""
    old, new = digests(before), digests(after)
    lines = [f"{name}: missing" for name in old if name not in new]
    lines += [f"{name}: new" for name in new if name not in old]
    for name in old:
        if name in new and old[name] != new[name]:
            lines.append(f"{name}: {first_difference(before / name, after / name)}")
    return lines


# -- running the studies --------------------------------------------------------------------------


def arguments(name, workdir, *flags):
    """Words of the command that runs a study."""
    config = f"--config={ROOT / 'tests' / 'oracle_config.py'}:{name}"
    return ["prunejax.main", config, f"--workdir={workdir}", "--quiet", *flags]


def start(name, workdir, *flags):
    workdir.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", *arguments(name, workdir, *flags)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
        | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(name, process):
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    if process.returncode:
        raise RuntimeError(f"study {name!r} ended with {process.returncode}:\n{output[-3000:]}")


def pair(name, workdir, *flags):
    """Starts one study as two processes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    flags += ("--process_count=2", f"--coordinator=127.0.0.1:{port}")
    return [start(name, workdir, *flags, f"--process_id={i}") for i in range(2)]


def run(name, workdir, *flags):
    """Runs one study to its end; `flags` are of the study in two processes."""
    if name == "processes":
        both = pair(name, workdir, *flags)
        try:
            for process in both:
                finish(name, process)
        finally:
            for process in both:
                process.kill()
        return
    flags = ()
    if name == "streamed":
        data = workdir.parent / "streamed data"
        write = "import sys; from tests import streamed_case; streamed_case.write(sys.argv[1])"
        command = [sys.executable, "-c", write, str(data)]  # apart: it prints a lot
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        flags = (f"--config.data.data_dir={data}",)
    process = start(name, workdir, *flags)
    if name == "killed":
        kill_amid(process, workdir)
        process = start(name, workdir, *flags)
    finish(name, process)


def reached(process, workdir, rows):
    """Waits until epochs.csv has so many rows, or the process has ended."""
    table, deadline = workdir / "epochs.csv", time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if table.exists() and table.read_bytes().count(b"\n") > rows:
            return
        time.sleep(0.02)


def kill_amid(process, workdir):
    """Kills the study when some epochs are recorded: after a checkpoint, before the end."""
    reached(process, workdir, 30)
    process.kill()
    output, _ = process.communicate()
    if process.returncode != -signal.SIGKILL or (workdir / "report.html").exists():
        raise RuntimeError(f"the study to be killed ended by itself:\n{output[-3000:]}")


def keep(workdir, directory):
    """Copies what is compared; the digests stand beside it."""
    shutil.rmtree(directory, ignore_errors=True)
    found = digests(workdir)
    if not {"epochs.csv", "events.csv", "runs.csv"} <= set(found):
        raise RuntimeError(f"{workdir} has no tables")
    for name in found:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(workdir / name, directory / name)
    (directory / "digests.json").write_text(json.dumps(found, indent=1) + "\n")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", action="append", choices=tuple(STUDIES), metavar="NAME")
    options = parser.parse_args(argv)
    names = [name for name in STUDIES if name in (options.only or STUDIES)]
    if options.action == "compare" and not options.directory.is_dir():
        parser.error(f"{options.directory} is not there; record it first, before the change")

    def one(name):
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as temporary:
            workdir = Path(temporary) / name
            run(name, workdir)
            if options.action == "record":
                keep(workdir, options.directory / name)
                lines = []
            else:
                lines = compare(options.directory / name, workdir)
            count = len(digests(workdir))
        state = "recorded" if options.action == "record" else "the same"
        state = f"{len(lines)} files differ" if lines else state
        print(f"{name}: {state} ({count} files, {time.monotonic() - begin:.0f} s)", flush=True)
        for line in lines:
            print(f"  {line}", flush=True)
        return bool(lines)

    with ThreadPoolExecutor(2) as pool:  # most of the time is compilation, on one core each
        jobs = [pool.submit(one, name) for name in names]
    failed = 0
    for name, job in zip(names, jobs, strict=True):
        if error := job.exception():
            print(f"{name}: failed: {error}", file=sys.stderr)
            failed += 1
    return int(failed > 0 or any(job.result() for job in jobs if not job.exception()))


if __name__ == "__main__":
    sys.exit(main())
