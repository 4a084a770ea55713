"""Where compiled programs are kept between processes, how many, and that none is another."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from prunejax.errors import ConfigError
from prunejax.system import compiled

ROOT = Path(__file__).resolve().parent.parent


def test_the_folder_is_the_users_unless_the_environment_says_otherwise(tmp_path):
    home = {"HOME": "/home/a"}
    here = compiled.folder(home)
    assert here.parent == Path("/home/a/.cache/prunejax/xla")
    assert jax.__version__ in here.name
    assert compiled.folder(home | {"XDG_CACHE_HOME": "/c"}).parent == Path("/c/prunejax/xla")
    assert compiled.folder(home | {"XDG_CACHE_HOME": "c"}) == here  # relative ones do not count
    assert compiled.folder(home | {compiled.VARIABLE: str(tmp_path)}).parent == tmp_path
    for name, value in (
        (compiled.VARIABLE, "off"),
        ("JAX_COMPILATION_CACHE_DIR", "/elsewhere"),
        ("JAX_ENABLE_COMPILATION_CACHE", "false"),
    ):
        assert compiled.folder(home | {name: value}) is None
    assert compiled.folder({}) is None
    with pytest.raises(ConfigError, match=f"{compiled.VARIABLE}: ~nouser/x: no such user"):
        compiled.folder(home | {compiled.VARIABLE: "~nouser/x"})


def test_processors_of_other_kinds_have_folders_of_their_own(tmp_path):
    (tmp_path / "proc").mkdir()
    names = []
    for flags in ("sse avx2", "sse avx512f"):
        (tmp_path / "proc/cpuinfo").write_text(f"processor: 0\nflags: {flags}\n\nprocessor: 1\n")
        names.append(compiled.folder({"HOME": "/h"}, tmp_path).name)
    assert len(set(names)) == 2


def test_the_programs_not_used_for_longest_go_first(tmp_path):
    for i, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 + i, 1000 + i))
    compiled.trim(tmp_path, 250)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "d"]
    compiled.trim(tmp_path, 250)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_used_is_no_failure(tmp_path):
    (tmp_path / "file").write_text("")
    open_to_all = compiled.folder({compiled.VARIABLE: str(tmp_path / "open")})
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    for base in ("file", "open"):
        assert compiled.prepared({compiled.VARIABLE: str(tmp_path / base)}) is None
    assert compiled.use({compiled.VARIABLE: "off", "HOME": str(tmp_path)}) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "open"]
    path = compiled.prepared({compiled.VARIABLE: str(tmp_path / "new")})
    assert path.stat().st_mode & 0o777 == 0o700
    # The session has a folder of its own already.
    before = jax.config.jax_compilation_cache_dir
    assert compiled.use({compiled.VARIABLE: str(tmp_path / "new")}) is None
    assert jax.config.jax_compilation_cache_dir == before


PROGRAM = """
import os, jax, jax.numpy as jnp, numpy as np
from prunejax.errors import ConfigError
from prunejax.system import compiled
assert compiled.use(os.environ)
kept = []
jax.monitoring.register_event_listener(lambda name, **_: kept.append(name))
x = jax.jit(lambda x: jnp.cumsum(jnp.sin(x) @ x))(jnp.linspace(0, 1, 2500).reshape(50, 50))
print(np.asarray(x).tobytes().hex())
print(sum("cache_hits" in name for name in kept), sum("cache_misses" in name for name in kept))
"""


def test_a_second_process_reads_what_the_first_compiled(tmp_path):
    """The same bytes; an entry that was cut off while it was written is compiled anew."""
    unset = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES")
    env = {k: v for k, v in os.environ.items() if k not in unset}
    env |= {compiled.VARIABLE: str(tmp_path), "JAX_PLATFORMS": "cpu"}

    def run():
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM],
            check=True,
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        values, counts = done.stdout.split("\n")[:2]
        return values, *map(int, counts.split())

    values, hits, misses = run()
    assert hits == 0 < misses
    assert run() == (values, misses, 0)
    for file in compiled.folder(env).glob("*-cache"):
        file.write_bytes(file.read_bytes()[:20])
    again, hits, _ = run()
    assert (again, hits) == (values, 0)
