import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from prunejax import main, models
from prunejax.cluster import distributed, wire
from prunejax.cluster import place as place_lib
from tests import oracle
from tests.children import Child
from tests.studies import FEW
from tests.test_rendezvous import free_port


def peer(port, index, count, failing):
    """One process of `run`."""
    jax.config.update("jax_platforms", "cpu")  # one device each
    distributed.initialize(f"127.0.0.1:{port}", index, count, timeout_seconds=60)
    assert jax.process_count() == count
    assert distributed.is_main() == (index == 0)
    mesh = Mesh(jax.devices(), "data")
    local = jnp.full((1,), index + 1.0)
    whole = multihost_utils.host_local_array_to_global_array(local, mesh, P("data"))
    total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))(whole)
    flags = [distributed.any_process(False), distributed.any_process(index == 1)]
    for n in (0, 7, 64):
        assert distributed.on_main(lambda n=n: [index] * n) == [0] * n
    values = [None, True, 1.5, "é", (1, [2]), {1: (3,)}, Path("/x"), np.arange(3)]
    values += [{"a": np.float64(2)}]
    told = distributed.on_main(lambda: values)
    assert repr(told) == repr(values), told
    with pytest.raises(FileNotFoundError):
        distributed.on_main(lambda: Path("/nowhere/x").read_text())
    with pytest.raises(TypeError, match="cannot be told"):
        distributed.on_main(lambda: object())
    assert distributed.same("a")
    assert not distributed.same(index)
    distributed.sync("end")
    print("sum", float(total), "flags", *flags, flush=True)
    if index < failing:
        time.sleep(index)  # the others are a little later than process 0
        distributed.leave(7)


def run(count, failing=0):
    port = free_port()
    return [Child(peer, port, i, count, failing) for i in range(count)]


def test_two_processes_reduce_agree_and_end():
    processes = run(2)
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert output == "sum 3.0 flags False True\n"  # and nothing of gloo's


class Named(NamedTuple):
    a: int


def test_a_named_tuple_is_not_told_without_its_names():
    assert wire.decode(wire.encode((1, (2,)))) == (1, (2,))
    with pytest.raises(TypeError, match="Named cannot be told to other processes"):
        wire.encode({"x": Named(1)})


def study(argv):
    models.MODELS.update(FEW)
    sys.exit(main.main(argv))


@pytest.mark.slow
def test_a_study_of_two_processes_has_the_tables_of_one(tmp_path, monkeypatch):
    # With twins, whose targets process 0 reads for both, events, and measures. Both processes are
    # killed when the first two runs have ended (12 rows) and the others are saved.
    # Level 1: equal bits of programs that differ.
    quick = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1"
    monkeypatch.setenv("XLA_FLAGS", quick)
    monkeypatch.setattr(oracle, "start", lambda *args: Child(study, oracle.arguments(*args)))
    flags = [
        "--config.measures.names=('gradient_second_moment', 'hessian_trace')",
        "--config.checkpoint.every_epochs=2",
        "--config.data.train_examples=96",  # whole batches: one program less to compile, five times
        "--config.model.name=few2",
        *(f"--config.variants.{arm}.prune.layers=('dense1','dense2')" for arm in ("S", "twin")),
    ]
    two, killed = tmp_path / "two", oracle.pair("processes", tmp_path / "two", *flags)
    oracle.reached(killed[0], two, rows=17)
    for process in killed:
        process.kill()
        process.communicate()
    assert [process.returncode for process in killed] == [-signal.SIGKILL] * 2
    assert not (two / "report.html").exists()
    oracle.run("processes", two, *flags)
    oracle.finish("processes", oracle.start("processes", tmp_path / "one", *flags))
    assert oracle.compare(tmp_path / "one", two) == []
    for table in ("runs", "epochs", "events", "layers"):
        assert (two / f"{table}.csv").read_bytes().count(b"\n") > 4


def test_failed_processes_end_with_their_code_and_do_not_wait_for_peers():
    processes = run(3, failing=2)
    try:
        # JAX's own shutdown would wait for process 2, which runs on, for minutes, and abort
        # process 1 because process 0 has gone.
        for process in processes[:2]:
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 7, output
            assert output.count("\n") == 1
    finally:
        processes[2].kill()
        processes[2].communicate()


def test_a_lost_peer_is_told_from_other_failures(monkeypatch):
    gone = ValueError("UNKNOWN: Gloo AllGather failed: Read error: Connection reset by peer")
    assert not distributed.lost_peer(gone)  # a process on its own has no peers
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert distributed.lost_peer(gone)
    assert not distributed.lost_peer(ValueError("shapes do not match"))


def test_unreachable_coordinator_is_an_error_not_an_abort():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match=f"{address} not reachable within 0.3 s"):
        distributed.initialize(address, 1, 2, timeout_seconds=0.3)


def test_one_process_needs_nothing(monkeypatch):
    for name in ("SLURM_STEP_NODELIST", "JAX_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    distributed.initialize()
    distributed.initialize("127.0.0.1:1", 0, 1)
    assert not jax.distributed.is_initialized()
    assert distributed.is_main()
    assert distributed.any_process(True) is True
    assert distributed.any_process(False) is False
    distributed.sync("nothing")
    distributed.leave(3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("h:1", None, None), "--coordinator without --process_id, --process_count"),
        ((None, 0, None), "--process_id without --coordinator, --process_count"),
        (("h:1", 0, None), "without --process_count"),
        (("h:1", 2, 2), "--process_id=2 of --process_count=2"),
        (("h:1", -1, 2), "--process_id=-1"),
        (("h:1", 0, 0), "--process_count=0"),
        (("h", 0, 2), "write HOST:PORT"),
        (("auto", 0, None), "finds the rest by itself: drop --process_id"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(ValueError, match=message):
        distributed.initialize(*flags)


SLURM = {
    "SLURM_JOB_ID": "4099",
    "SLURM_STEP_NODELIST": "gpu[003-004,9],big",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
POD = {"JAX_COORDINATOR_ADDRESS": "study-0:55527", "JOB_COMPLETION_INDEX": "1"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        (SLURM, ("gpu003:61443", 2, 4, [1])),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, ("gpu003:61443", 2, 4, None)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "1"}, ("gpu003:61443", 2, 4, None)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"}, ("gpu003:61443", 2, 4, [1])),
        (SLURM | {"JAX_LOCAL_DEVICE_IDS": "0"}, ("gpu003:61443", 2, 4, None)),
        (SLURM | {"SLURM_STEP_NODELIST": "a1,b2"}, ("a1:61443", 2, 4, [1])),
        (SLURM | {"SLURM_STEP_NODELIST": "a[7-9]-x"}, ("a7:61443", 2, 4, [1])),
        (SLURM | {"JAX_COORDINATOR_PORT": "999"}, ("gpu003:999", 2, 4, [1])),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, None),  # batch shell
        (POD | {"JAX_PROCESS_COUNT": "3"}, ("study-0:55527", 1, 3, None)),
        ({"JOB_COMPLETION_INDEX": "1"}, None),  # independent pods, for example one per shard
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, (None, 0, 0, None)),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, (None, 0, 0, None)),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, (None, 0, 0, None)),
    ],
)
def test_environments(environment, place):
    assert place_lib.from_environment(environment) == place


def test_slurm_address_is_the_one_jax_finds(monkeypatch):
    slurm_cluster = pytest.importorskip("jax._src.clusters.slurm_cluster", reason="private in JAX")
    for nodes in ("a1", "a1,b2", "gpu[003-004,9],big", "n[7,9]"):
        environment = SLURM | {"SLURM_STEP_NODELIST": nodes}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        expected = slurm_cluster.SlurmCluster.get_coordinator_address(None, None)
        place = place_lib.from_environment(environment)
        assert place is not None
        assert place.coordinator == expected


def test_environments_that_say_no_place(monkeypatch):
    with pytest.raises(ValueError, match="JAX_PROCESS_COUNT is not: set it"):
        place_lib.from_environment(POD)
    with pytest.raises(ValueError, match="JAX_PROCESS_COUNT='two' in the environment: not a whole"):
        place_lib.from_environment(POD | {"JAX_PROCESS_COUNT": "two"})

    def initialize(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(distributed, "_mute_libraries", lambda: None)
    with pytest.raises(ValueError, match=r"finds no processes in this environment .*: give"):
        distributed.initialize("auto")
