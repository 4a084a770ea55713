"""Shared set-up: platform, quick compilation, one cache of compiled programs for the session."""

import gc
import os
from mmap import ACCESS_READ, mmap
from pathlib import Path

import jax
import jaxlib
import pytest


def pytest_configure(config):
    """`-m gpu` runs on the backend that JAX finds; all other tests are written for the CPU.

    They simulate devices and compare bits and tolerances, so that a machine's accelerator must not
    take part. Programs that tests start inherit the environment.
    """
    if config.getoption("markexpr") == "gpu" and os.environ.get("PRUNEJAX_GPU_TESTS") != "cpu":
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    # Shapes that match by chance hide faults: the library spells every broadcast out, and works for
    # callers who forbid the promotion of ranks.
    os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # Most of the time goes into compilation: this takes a third of what the defaults take. At
    # level 0 sums are rounded differently in two programs, and in two fusions of one: where bits of
    # two programs must be equal a test asks for level 1; a gradient of jnp.max, which compares the
    # maximum with its operand, needs one that XLA computes once (a product, a convolution).
    flags = ["--xla_backend_optimization_level=0"]
    for flag in (
        "xla_cpu_use_fusion_emitters=false",
        "xla_cpu_parallel_codegen_split_count=1",  # the parts cost more than the whole
    ):
        if knows(flag.partition("=")[0]):
            flags.append(f"--{flag}")
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])
    # Where in Python each operation was written: nobody reads it here, and lowering is faster.
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
    jax.config.update("jax_traceback_in_locations_limit", 0)
    # Tracing makes objects by the million, most of them no garbage; what is there now stays.
    gc.freeze()
    gc.set_threshold(50_000, 10, 20)


def knows(flag):
    """Whether this XLA has a flag; it ends the process at one that it does not have."""
    for path in Path(jaxlib.__file__).parent.glob("*.so"):
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as whole:
            if whole.find(flag.encode()) >= 0:
                return True
    return False


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no worker is left with one when others are done."""
    early = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in early)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks():
    """Nobody cuts the power here: a file that is written can be read, whoever is killed.

    Waiting for the disk leaves a processor idle, half of the time where a study is ended at every
    moment. A descriptor that is closed is told as before; a test may put its own in this place.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session", autouse=True)
def nobody_draws_beside():
    """Commands start no process that draws: most of those called here are refused, or quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunejax.report.beside._worth", lambda: False)
        yield


@pytest.fixture
def quick_report(monkeypatch):
    """Studies end without figures and page, which take longer than they do."""
    from prunejax import report

    monkeypatch.setattr(report, "build", lambda paths: paths[0] / "report.html")


@pytest.fixture(scope="module")
def few_layers():
    """Models "few1" and "few2": as "mlp", BatchNorm and all, with fewer layers to compile."""
    from prunejax import models
    from tests.studies import FEW

    with pytest.MonkeyPatch.context() as patch:
        for name, model in FEW.items():
            patch.setitem(models.MODELS, name, model)
        yield


@pytest.fixture
def promoting(monkeypatch):
    """Code as users write it, `x @ w + b`: ranks are promoted, in its programs as well."""
    monkeypatch.setenv("JAX_NUMPY_RANK_PROMOTION", "allow")
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Many tests compile the same small programs; the cache is empty at the start of a session.

    It is shared with the other workers of pytest-xdist and with the programs that tests start.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    for name, value in {
        "jax_compilation_cache_dir": str(shared / "xla"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
