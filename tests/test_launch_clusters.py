import shlex

import pytest

from tests.launching import ROOT, Clone

STUDY = ("--config=configs/digits.py", "--workdir=/runs/digits")
SLURM = ("launch/slurm/submit.sh", "--shards=4", *STUDY)
TPU = ("--name=pod", "--zone=us-z1-a", *STUDY)
POD = ("launch/tpu/pod_slice.sh", *TPU)
QUEUE = ("launch/tpu/queued_resource.sh", "--type=v5litepod-16", "--runtime=base", *TPU)
K8S = ("launch/k8s/submit.sh", "gpu", "--image=r/prunejax:1", *STUDY)
K8S_TPU = (K8S[0], "tpu", *K8S[2:])


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines()]


@pytest.mark.parametrize("launcher", [SLURM, POD, QUEUE, K8S], ids=lambda launcher: launcher[0])
class TestEveryClusterLauncher:
    def test_dry_run_touches_nothing(self, clone, launcher):
        for program in ("sbatch", "gcloud", "kubectl", "git", "mkdir"):
            clone.program(program, '#!/bin/sh\necho "$0" >>"$LOG"\n')
        result = clone.run(*launcher, "--dry-run", "--config.epochs=3", "--", "--quiet")
        assert result.returncode == 0, result.stderr
        assert clone.logged() == []
        for flag in ("configs/digits.py", "/runs/digits", "--config.epochs=3", "--quiet"):
            assert flag in result.stdout
        assert sorted(path.name for path in clone.root.iterdir()) == [
            ".ci",
            "configs",
            "launch",
            "pyproject.toml",
        ]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--nonsense=1"], "unknown option --nonsense=1 (see --help; flags of prunejax.main"),
            (["stray"], "unknown option stray"),
            (["--config"], "write --config=VALUE"),
        ],
    )
    def test_wrong_options(self, clone, launcher, arguments, message):
        result = clone.run(*launcher, *arguments)
        assert result.returncode == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1

    def test_what_must_be_given(self, clone, launcher):
        for missing in ("--config=", "--workdir="):
            rest = [argument for argument in launcher if not argument.startswith(missing)]
            result = clone.run(*rest)
            assert result.returncode == 2
            assert f"{missing[:-1]}=" in result.stderr
            assert "is missing\n" in result.stderr

    def test_help(self, clone, launcher):
        result = clone.run(launcher[0], "--help")
        assert result.returncode == 0
        assert f"bash {launcher[0]} " in result.stdout
        assert "--dry-run" in result.stdout


@pytest.mark.parametrize(
    ("launcher", "arguments", "message"),
    [
        (SLURM, ["--nodes=2"], "--shards and --nodes exclude each other"),
        (SLURM, ["--shards=0"], "--shards=0: give a whole number"),
        (SLURM, ["--tasks-per-node=2"], "--tasks-per-node=2 needs --nodes=N"),
        (SLURM, ["--sbatch=time"], "unknown option --sbatch=time"),
        (("launch/slurm/submit.sh", *STUDY), [], "give --shards=N (an array of jobs) or --nodes=N"),
        (("launch/slurm/submit.sh", *STUDY), ["--nodes=2", "--array=1"], "needs --shards=N"),
        (SLURM, ["--array=1,3-4"], "--array=1,3-4: give tasks from 0 to 3"),
        (SLURM, ["--array=1,x"], "--array=1,x: give tasks from 0 to 3"),
        (SLURM, ["--workdir=gs://b/x"], "--workdir=gs://b/x is no path"),
        (SLURM, ["--config=gone.py:a"], "--config=gone.py:a: no such file"),
        (POD, ["--config=/dev/null.py"], "--config=/dev/null.py: no such file"),
        (POD, [f"--config={__file__}"], "is outside the repository"),
        (POD, ["--workdir=runs"], "--workdir=runs: write the path on the workers"),
        (QUEUE, ["--workdir=runs"], "--workdir=runs: write the path on the workers"),
        (POD[:2] + POD[3:], [], "--zone=ZONE is missing"),
        (QUEUE, ["--poll=0"], "--poll=0: give a whole number"),
        ((QUEUE[0], *QUEUE[2:]), [], "--type=TYPE is missing"),
        (K8S, ["--workdir=/data/x"], "is not under /runs"),
        (K8S, ["--name=A_b"], "--name=A_b: a lower-case letter"),
        (K8S, ["--name=8b"], "--name=8b: a lower-case letter"),
        (SLURM, ["--shards=99999999999999999999"], "--shards=99999999999999999999: at most"),
        (SLURM, ["--shards=-1"], "--shards=-1: give a whole number"),
        (SLURM, ["--shards=007"], "--shards=007: give a whole number"),
        (SLURM, ["--array=99999999999999999999"], "give tasks from 0 to 3"),
        (SLURM, ["--workdir=~nouser/x"], "write the home directory of another user out"),
        (K8S, ["--pods=99999999999999999999"], "at most 65536"),
        (K8S, ["--workdir=/runs/../etc"], "write the path without . and .."),
        (K8S, ["--workdir=/runs/a\nb"], "--workdir=/runs/a...: a line break"),
        (K8S, ["--image=i\n  x: y"], "--image=i...: a line break"),
        (SLURM, ["--config.name=a\tb"], "--config.name=a...: a line break"),
        (K8S, ["--workdir=/runs/a/.."], "write the path without . and .."),
        (K8S, ["--workdir=/runs/"], "is not under /runs"),
        (K8S, [f"--name={'a' * 64}"], "64 characters, 45 at most"),
        (K8S, ["--claim=a b"], "--claim=a b: lower-case letters"),
        (POD, ["--name=../x"], "--name=../x: a lower-case letter"),
        (QUEUE, ["--name=a b"], "--name=a b: a lower-case letter"),
        (POD, ["--workdir=/runs/../etc"], "write the path without . and .."),
        (K8S, [f"--config={__file__}"], "is not under configs/"),
        (K8S_TPU, ["--topology=4x8"], "--topology=4x8 has 32 chips, --pods=4 of --chips=4 have 16"),
        (K8S_TPU, ["--topology=4by4"], "--topology=4by4: write it like 4x4"),
        (K8S, ["--topology=4x4"], "unknown option --topology=4x4"),
        (("launch/k8s/submit.sh", "cpu"), [], "say gpu or tpu first"),
    ],
)
def test_requests_that_make_no_sense(clone, launcher, arguments, message):
    result = clone.run(*launcher, *arguments, "--dry-run")
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_slurm_array(clone):
    options = ["--account=a b", "-pbig", "--gpus-per-node=1"]
    asked = (f"--sbatch={option}" for option in options)
    result = clone.run(*SLURM, "--dry-run", *asked, "--config.a=b c")
    *_, logs, array, report = commands(result.stdout)
    root, slurm = str(clone.root), f"{clone.root}/launch/slurm"
    environment = ["env", f"PRUNEJAX_ROOT={root}", f"PRUNEJAX_VENV={root}/.venv"]
    config = f"--config={root}/configs/digits.py"
    assert logs == ["mkdir", "-p", "/runs/digits/logs"]
    assert array == [
        *environment,
        "PRUNEJAX_SHARDS=4",
        *["sbatch", "--parsable", *options, "--array=0-3"],
        "--output=/runs/digits/logs/slurm-%A_%a.log",
        *[f"{slurm}/study_array.sbatch", config, "--workdir=/runs/digits", "--config.a=b c"],
    ]
    assert report == [
        *environment,
        *["sbatch", "--parsable", *options[:2]],  # where and for whom, but no accelerator
        *["--dependency=afterok:JOB", "--kill-on-invalid-dep=yes"],
        "--output=/runs/digits/logs/slurm-report-%j.log",
        *[f"{slurm}/report.sbatch", "/runs/digits"],
    ]


def test_slurm_puts_no_numbers_into_the_name_of_a_directory(clone):
    """In the name of a log "%j" is the job's number; "%%" is one of these signs."""
    for which in ("--shards=4", "--nodes=2"):
        rest = (STUDY[0], "--workdir=/runs/50%j it's", "--dry-run")
        printed = commands(clone.run(SLURM[0], which, *rest).stdout)
        assert ["mkdir", "-p", "/runs/50%j it's/logs"] in printed
        jobs = [words for words in printed if "sbatch" in words]
        assert len(jobs) == (2 if which == "--shards=4" else 1)
        for job in jobs:
            (output,) = [word for word in job if word.startswith("--output=")]
            assert output.startswith("--output=/runs/50%%j it's/logs/slurm-")
            assert job[-1].endswith("/runs/50%j it's")


@pytest.mark.parametrize(
    ("array", "fits"),
    [("3", 1), ("0,2-3", 1), ("0-3:2%1", 1), (",", 0), ("1-", 0), ("%2", 0), ("0-1-2", 0),
     ("1%0", 0), ("a", 0), ("0-4", 0), ("0;id", 0)],
)  # fmt: skip
def test_slurm_tasks_of_an_array(clone, array, fits):
    result = clone.run(*SLURM, f"--array={array}", "--dry-run")
    assert result.returncode == (0 if fits else 2)
    told = f"submit.sh: --array={array}: give tasks from 0 to 3, for example 0,2-3\n"
    assert fits or result.stderr == told
    assert not fits or f"--array={array} " in result.stdout


def test_slurm_report_that_is_not_taken(clone):
    clone.program(
        "sbatch", '#!/bin/sh\ncase "$*" in *report.sbatch*) exit 1 ;; *) echo 7 ;; esac\n'
    )
    result = clone.run(*SLURM, "--workdir=runs", PRUNEJAX_COMMAND="x")
    assert result.returncode == 1
    first, last = result.stderr.splitlines()
    assert first.startswith("array 7: 4 shards")
    assert f"python' -m prunejax.report {clone.here}/runs" in last


def test_slurm_nodes(clone):
    arguments = ("--nodes=3", "--tasks-per-node=8", *STUDY, "--dry-run")
    result = clone.run("launch/slurm/submit.sh", *arguments)
    last = commands(result.stdout)[-1]
    assert last[3:7] == ["sbatch", "--parsable", "--nodes=3", "--ntasks-per-node=8"]
    assert last[-3].endswith("launch/slurm/study_nodes.sbatch")


@pytest.mark.parametrize("script", ["study_array.sbatch", "study_nodes.sbatch"])
def test_slurm_jobs_can_be_requeued_and_are_warned(script):
    text = (ROOT / "launch" / "slurm" / script).read_text()
    for option in ("--requeue", "--signal=TERM@120", "--open-mode=append"):
        assert f"#SBATCH {option}\n" in text


def test_pod_slice_runs_one_program_on_all_workers(clone):
    result = clone.run(*POD, "--project=p", "--dry-run", "--config.a=it's", "--setup=mount x")
    archive, copy, setup, study = commands(result.stdout)
    assert archive[:4] == ["git", "-C", str(clone.root), "archive"]
    where = ["--worker=all", "--zone=us-z1-a", "--project=p"]
    vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    assert copy == [*vm, "scp", "ARCHIVE", "pod:prunejax.tar.gz", *where]
    assert setup[:9] == [*vm, "ssh", "pod", *where]
    assert setup[10].startswith("{ mount x; } && ")
    assert study[:9] == [*vm, "ssh", "pod", *where]
    remote = shlex.split(study[10])
    assert remote[:3] == ["cd", "prunejax", "&&"]
    assert remote[3:] == [
        *["env", "PRUNEJAX_EXTRA=tpu", "bash", "launch/local.sh", "--config=configs/digits.py"],
        *["--workdir=/runs/digits", "--config.a=it's", "--coordinator=auto"],
    ]


# States that "describe" reports, one a line in the file STATES; the study's exit codes likewise.
GCLOUD = """#!/usr/bin/env bash
next() { line=$(head -n 1 "$1"); sed -i 1d "$1"; }
case "$*" in
  *" describe "*) next "$STATES"; [ -n "$line" ] || exit 1; echo "$line" ;;
  *" ssh "*launch/local.sh*) next "$CODES"; echo "study $line" >>"$LOG"; exit "$line" ;;
  *" ssh "*|*" scp "*) ;;
  *) echo "$4" >>"$LOG" ;;
esac
"""


@pytest.mark.parametrize(
    ("states", "codes", "expected", "exit_code"),
    [
        (["", "WAITING_FOR_RESOURCES", "ACTIVE"], [0], ["create", "study 0", "delete"], 0),
        (  # taken away during the study, and once more while it waits
            ["", "ACTIVE", "SUSPENDED", "SUSPENDED", "", "FAILED", "", "ACTIVE"],
            [255, 0],
            ["create", "study 255", "delete", "create", "delete", "create", "study 0", "delete"],
            0,
        ),
        (["ACTIVE"], [2], ["study 2", "delete"], 2),
        (["ACTIVE", "ACTIVE"], [75, 0], ["study 75", "study 0", "delete"], 0),
        (["ACTIVE"] * 6, [1, 1, 1], ["study 1", "study 1", "study 1", "delete"], 1),
        (["", "", ""], [], ["create", "create"], 1),
    ],
    ids=["plain", "preempted", "bad-request", "asked-to-stop", "fails", "never-created"],
)
def test_queued_resource_sees_a_study_through(clone, states, codes, expected, exit_code):
    (clone.here / "states").write_text("".join(f"{state}\n" for state in states))
    (clone.here / "codes").write_text("".join(f"{code}\n" for code in codes))
    clone.program("gcloud", GCLOUD)
    clone.program("git", "#!/bin/sh\n")
    clone.program("sleep", "#!/bin/sh\n")
    environment = {"STATES": str(clone.here / "states"), "CODES": str(clone.here / "codes")}
    result = clone.run(*QUEUE, "--tries=3" if "FAILED" in states else "--tries=2", **environment)
    assert result.returncode == exit_code, result.stderr
    assert clone.logged() == expected
