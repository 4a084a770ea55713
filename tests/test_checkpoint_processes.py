"""A checkpoint of two processes: each hashes what it wrote, and both learn of any damage."""

import subprocess
import sys

from tests.test_rendezvous import free_port

PROGRAM = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from prunejax.cluster import distributed
from prunejax.record import checkpoint

jax.config.update("jax_platforms", "cpu")  # one device each
port, index, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
distributed.initialize(f"127.0.0.1:{port}", index, 2, timeout_seconds=60)
assert distributed.on_all(lambda: [index] * (1 + 99 * index)) == [[0], [1] * 100]
try:
    distributed.on_all(lambda: Path("/nowhere/x").read_text() if index else "fine")
    raise SystemExit("no error")
except OSError as error:
    assert error.errno == 2

split = NamedSharding(Mesh(jax.devices(), "data"), P("data"))
numbers = np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)
make = lambda x: jax.make_array_from_callback(x.shape, split, lambda i: x[i])
hashed, real = [], hashlib.file_digest

def digest(file, kind):
    hashed.append(Path(file.name))
    return real(file, kind)

hashlib.file_digest = digest
checkpoints = checkpoint.Checkpoints(directory / "chunk-0", keep=2)
for value in (1, 2):
    checkpoints.save({"kernel": make(value * numbers)}, {"epoch": value})
newest = directory / "chunk-0" / "2"
found = [p for p in newest.rglob("*") if p.is_file() and p.name != checkpoint.MANIFEST]
written = json.loads((newest / checkpoint.MANIFEST).read_text())
assert sorted(written) == sorted(str(p.relative_to(newest)) for p in found)
for path in found:
    with path.open("rb") as file:
        right = [path.stat().st_size, real(file, "sha256").hexdigest()]
    assert written[str(path.relative_to(newest))] == right, path

def check(what, foreign):
    assert hashed and not [p for p in hashed if f"process_{foreign}" in str(p)], hashed
    size = sum(p.stat().st_size for p in hashed if p.exists())
    print(what, index, size > numbers.nbytes // 4, flush=True)  # noise hardly compresses
    hashed.clear()

like = {"kernel": jax.ShapeDtypeStruct(numbers.shape, numbers.dtype, sharding=split)}
check_saved = [p for p in hashed if "tmp-2" in str(p)]
hashed[:] = [newest / str(p).split("tmp-2/")[1] for p in check_saved]
check("saved", 1 - index)
restored = checkpoints.restore(like)
assert restored.facts == {"epoch": 2} and not restored.damaged
for shard in restored.states["kernel"].addressable_shards:
    np.testing.assert_array_equal(shard.data, 2 * numbers[shard.index])
check("read", 1 - index)
distributed.sync("read")
if index == 0:  # what the other wrote is damaged: only the other can see that
    path = max(newest.rglob("ocdbt.process_1/d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
distributed.sync("damaged")
restored = checkpoints.restore(like)
assert restored.facts == {"epoch": 1}, restored.facts
assert len(restored.damaged) == 1 and restored.damaged[0].endswith("was changed"), restored.damaged
assert [p.name for p in sorted((directory / "chunk-0").iterdir())] == ["1", "damaged-2"]
for shard in restored.states["kernel"].addressable_shards:
    np.testing.assert_array_equal(shard.data, numbers[shard.index])
distributed.sync("end")
"""


def test_each_process_hashes_what_it_wrote(tmp_path):
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port), str(i), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        for i, process in enumerate(processes):
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
            assert output == f"saved {i} True\nread {i} True\n"
    finally:
        for process in processes:
            process.kill()
            process.communicate()
