"""Memory limits, read from made-up file trees."""

import resource
import subprocess
import sys

import pytest

from prunejax.errors import ConfigError
from prunejax.system import limits

GIB = 2**30
NONE: dict[str, int] = {}
V1_MOUNT = "35 31 0:32 {within} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V2_MOUNT = "41 31 0:38 {within} {at} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
UNLIMITED_V1 = 9223372036854771712


def write(root, files):
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(content))


def tree(root, groups, mounts, **files):
    write(
        root,
        {
            "proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {16 * GIB // 1024} kB\n",
            "proc/self/cgroup": groups,
            "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts,
            "proc/self/status": "Name:\tpython\nVmSize:\t 3145728 kB\nVmData: 1048576 kB\n"
            "VmRSS: 409600 kB\n",
        },
    )
    write(root, files)


def v1(group, limit, used, stat="cache 5\n"):
    base = f"sys/fs/cgroup/memory/{group}".rstrip("/")
    return {
        f"{base}/memory.limit_in_bytes": limit,
        f"{base}/memory.usage_in_bytes": used,
        f"{base}/memory.stat": stat,
    }


def v2(group, limit, used, stat="anon 1\n", at="sys/fs/cgroup"):
    base = f"{at}/{group}".rstrip("/")
    return {
        f"{base}/memory.max": limit,
        f"{base}/memory.current": used,
        f"{base}/memory.stat": stat,
    }


def free(root, rlimits=NONE):
    return limits.free_host_memory(root, rlimits) / GIB


@pytest.mark.parametrize("level", ["", "slurm", "slurm/job_7", "slurm/job_7/step_0"])
def test_v1_each_ancestor_counts(tmp_path, level):
    tree(tmp_path, "5:cpu,cpuacct:/\n4:memory:/slurm/job_7/step_0\n", V1_MOUNT.format(within="/"))
    for group in ("", "slurm", "slurm/job_7", "slurm/job_7/step_0"):
        write(tmp_path, v1(group, 2 * GIB if group == level else UNLIMITED_V1, GIB // 2))
    assert free(tmp_path) == 1.5


@pytest.mark.parametrize("level", ["user.slice", "user.slice/run-1.scope"])
def test_v2_each_ancestor_counts(tmp_path, level):
    mount = V2_MOUNT.format(within="/", at="/sys/fs/cgroup")
    tree(tmp_path, "0::/user.slice/run-1.scope\n", mount)
    for group in ("user.slice", "user.slice/run-1.scope"):  # the root group has no such files
        write(tmp_path, v2(group, 3 * GIB if group == level else "max", GIB))
    assert free(tmp_path) == 2.0


def test_hybrid_the_hierarchy_with_the_memory_controller_decides(tmp_path):
    mounts = V1_MOUNT.format(within="/") + V2_MOUNT.format(within="/", at="/sys/fs/cgroup/unified")
    tree(tmp_path, "4:memory:/job\n1:name=systemd:/job\n0::/job\n", mounts)
    write(tmp_path, v1("job", 2 * GIB, 0))
    write(tmp_path, {"sys/fs/cgroup/unified/job/cgroup.procs": "1\n"})
    assert free(tmp_path) == 2.0
    write(tmp_path, v2("job", GIB, 0, at="sys/fs/cgroup/unified"))
    assert free(tmp_path) == 1.0


@pytest.mark.parametrize(
    ("within", "group"),
    [("/docker/abc", "/docker/abc"), ("/", "/"), ("/docker/abc", "/"), ("/", "/../../other")],
)
def test_inside_a_container_the_mount_is_the_group(tmp_path, within, group):
    tree(tmp_path, f"4:memory:{group}\n", V1_MOUNT.format(within=within))
    write(tmp_path, v1("", 2 * GIB, GIB))
    assert free(tmp_path) == 1.0


def test_below_a_mounted_group(tmp_path):
    tree(tmp_path, "4:memory:/pod/abc/job\n", V1_MOUNT.format(within="/pod/abc"))
    write(tmp_path, v1("", UNLIMITED_V1, 0) | v1("job", GIB, 0))
    assert free(tmp_path) == 1.0


def test_cache_that_can_go_is_free_and_a_soft_limit_is_one(tmp_path):
    tree(tmp_path, "0::/a\n", V2_MOUNT.format(within="/", at="/cg\\040roups"))
    write(tmp_path, v2("a", 4 * GIB, 3 * GIB, f"inactive_file {2 * GIB}\n", at="cg roups"))
    assert free(tmp_path) == 3.0
    write(tmp_path, {"cg roups/a/memory.high": 2 * GIB})
    assert free(tmp_path) == 1.0


def test_without_limits_the_system_decides(tmp_path):
    tree(tmp_path, "0::/a\n", V2_MOUNT.format(within="/", at="/sys/fs/cgroup"))
    assert free(tmp_path) == 16.0  # no files at all
    write(tmp_path, v2("a", "max", GIB))
    assert free(tmp_path) == 16.0
    write(tmp_path, {"sys/fs/cgroup/a/memory.current": ""})
    assert free(tmp_path) == 16.0


def test_nothing_is_mounted_or_told(tmp_path):
    assert free(tmp_path) > 0  # the physical memory
    assert limits.resident(tmp_path) == 0.0


def test_ulimits_count_what_is_taken(tmp_path):
    tree(tmp_path, "", "")
    assert free(tmp_path, {"AS": 5 * GIB, "DATA": -1}) == 2.0
    assert free(tmp_path, {"AS": -1, "DATA": 3 * GIB}) == 2.0
    assert free(tmp_path, {"AS": GIB}) == 0.0  # beyond it already
    assert limits.resident(tmp_path) == 400 * 2**20


def test_mappings_are_a_share_of_those_there_may_be(tmp_path):
    assert limits.mapped(tmp_path) == 0.0
    write(tmp_path, {"proc/sys/vm/max_map_count": "200", "proc/self/maps": "a b\n" * 50})
    assert limits.mapped(tmp_path) == 0.25


def test_this_machine():
    assert 0 <= limits.mapped() < 1
    assert 0 < limits.resident() < limits.free_host_memory() + 2**45


@pytest.mark.parametrize("limit", [0, 900_000 * 1024, int(limits.LEAST_ADDRESSES) - 1])
def test_jax_cannot_start_with_fewer_addresses(limit):
    with pytest.raises(ConfigError, match=f"ulimit -v {limit // 1024}: JAX needs 1,464,844 kB"):
        limits.check_addresses(limit)


@pytest.mark.parametrize("limit", [-1, int(limits.LEAST_ADDRESSES), None])
def test_enough_addresses(limit):
    limits.check_addresses(limit)


def test_a_study_under_a_real_ulimit_is_refused_in_one_line(tmp_path):
    limit = 900_000 * 1024
    done = subprocess.run(
        [sys.executable, "-m", "prunejax.main", "--config=prunejax/configs/digits.py",
         f"--workdir={tmp_path / 'run'}"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("prunejax: ulimit -v 900000: JAX needs")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
