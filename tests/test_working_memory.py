"""Working memory that a process keeps: what malloc does then, and when all is left as it was."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from prunejax.system import working_memory

ROOT = Path(__file__).resolve().parent.parent

# Pages that the system hands out for a block of 64 MiB, and for a call that works in 64.
PROGRAM = """
import ctypes, resource, jax, jax.numpy as jnp
from prunejax.system import working_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def block():
    place = libc.malloc(64 << 20)
    ctypes.memset(place, 1, 64 << 20)
    libc.free(place)

@jax.jit
def work(x):
    return (x @ x.T) @ x

def faults(call):
    for _ in range(3):
        call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4

def both():
    x = jnp.ones((4096, 4))
    return faults(block), faults(lambda: jax.block_until_ready(work(x)))

if BEGUN:
    print(*both())
else:
    print(faults(block))
print(working_memory.keep())
print(*both())
"""
FEW = 16  # fewer than of large pages (2 MiB) in a block or in that memory, let alone of 4 KiB


def told(begun):
    """What the program prints, where the user has set nothing."""
    env = {k: v for k, v in os.environ.items() if not working_memory.of_user({k: v})}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("BEGUN", str(begun))],
        env=env, cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [line.split() for line in done.stdout.splitlines()]


on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")


@on_glibc
def test_programs_and_blocks_use_the_pages_they_had():
    [before], [kept], [block, program] = told(begun=False)
    assert kept == "True"
    assert int(before) > FEW > max(int(block), int(program))


@on_glibc
def test_once_jax_has_begun_all_is_as_it_was():
    before, [kept], after = told(begun=True)
    assert kept == "False"
    assert min(map(int, before + after)) > FEW


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
