"""Working memory that a process keeps: what malloc does then, and when all is left as it was."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from prunejax.system import working_memory

ROOT = Path(__file__).resolve().parent.parent

# Whether a block of 64 MiB is mapped by itself; then the pages that the system hands out for a call
# that works in 64 MiB: the least of some, as the first ones may each find another place.
PROGRAM = """
import ctypes, resource, jax, jax.numpy as jnp
from prunejax.system import working_memory

class Info(ctypes.Structure):
    _fields_ = [(f"field{i}", ctypes.c_size_t) for i in range(10)]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.mallinfo2.restype = Info

def mapped():
    before = libc.mallinfo2().field3
    place = libc.malloc(64 << 20)
    after = libc.mallinfo2().field3
    libc.free(place)
    return after - before

@jax.jit
def work(x):
    return (x @ x.T) @ x

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(work(x))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if BEGUN:
    jnp.ones(1).block_until_ready()
print(mapped())
print(working_memory.keep())
x = jnp.ones((4096, 4))
print(mapped(), min(pages() for _ in range(9)))
print(working_memory.keep())
"""
FEW = 16  # fewer than of large pages (2 MiB) in that memory, let alone of 4 KiB


def told(begun):
    """What the program prints, where the user has set nothing."""
    env = {k: v for k, v in os.environ.items() if not working_memory.of_user({k: v})}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("BEGUN", str(begun))],
        env=env, cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [line.split() for line in done.stdout.splitlines()]


on_glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="settings of glibc, of 2.33 or later"
)


@on_glibc
def test_programs_and_blocks_use_the_pages_they_had():
    [before], [kept], [after, pages], [still] = told(begun=False)
    assert (before, kept, after, still) == ("1", "True", "0", "True")
    assert int(pages) < FEW


@on_glibc
def test_once_jax_has_begun_all_is_as_it_was():
    [before], [kept], [after, pages], [still] = told(begun=True)
    assert (before, kept, after, still) == ("1", "False", "1", "False")
    assert int(pages) >= FEW


@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_ARENA_MAX": "2"},
        {"GLIBC_TUNABLES": "glibc.rtld.nns=4:glibc.malloc.hugetlb=1"},
        {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "true"},
    ],
)
def test_settings_of_the_user_go_first(environment, monkeypatch):
    monkeypatch.setattr(working_memory, "_begun", lambda: False)
    monkeypatch.setattr(working_memory, "_glibc", lambda: pytest.fail("went on"))
    assert not working_memory.keep(environment)


def test_without_glibc_nothing_is_done(monkeypatch):
    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr(working_memory, "_begun", lambda: False)
    monkeypatch.setattr(working_memory.ctypes, "CDLL", lambda name: pytest.fail("went on"))
    for found in (lambda name: None, unknown):
        monkeypatch.setattr(os, "confstr", found)
        assert not working_memory.keep({})
    monkeypatch.delattr(os, "confstr")  # Windows
    assert not working_memory.keep({})


def test_another_malloc_is_no_failure(monkeypatch):
    """A library without `mallopt`, and one that refuses."""
    monkeypatch.setattr(working_memory, "_begun", lambda: False)
    monkeypatch.setattr(working_memory, "_glibc", lambda: True)
    monkeypatch.setattr("jax.config.update", lambda name, value: pytest.fail("went on"))
    for library in (SimpleNamespace(), SimpleNamespace(mallopt=lambda parameter, value: 0)):
        monkeypatch.setattr(working_memory.ctypes, "CDLL", lambda name, found=library: found)
        assert not working_memory.keep({})
