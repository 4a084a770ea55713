"""What benchmarks share: a clock, a table, the environment, a dated file of results."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results"
# Benchmarks measure the clone that they lie in.
sys.path.insert(0, str(HERE.parent))

from prunejax import data as data_lib  # noqa: E402
from prunejax import models, rng  # noqa: E402
from prunejax.configs import default  # noqa: E402
from prunejax.data.dataset import make  # noqa: E402
from prunejax.study.planning import plan  # noqa: E402
from prunejax.study.settings import config as config_lib  # noqa: E402
from prunejax.train import step  # noqa: E402

# How far the first step may be from PyTorch's, loss and parameters: in single precision, and where
# both sides multiply in TF32.
TOLERANCES = {"cpu": (1e-4, 1e-2), "gpu": (5e-3, 0.3)}


class Seconds(NamedTuple):
    """Fastest of several calls; `cpu` counts all threads of the process."""

    wall: float
    cpu: float


def timed(fn: Callable[[], Any], repeats: int) -> Seconds:
    """Wall and CPU seconds of the fastest of `repeats` calls (compile before you call this)."""
    best = Seconds(float("inf"), float("inf"))
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(fn())
        took = Seconds(time.perf_counter() - wall, time.process_time() - cpu)
        best = Seconds(min(best.wall, took.wall), min(best.cpu, took.cpu))
    return best


def peak(dtype: str, size: int) -> float:
    """Operations per second of the fastest of ten matrix products."""
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(a, a))
    return 2 * size**3 / timed(lambda: multiply(a, a), 10).wall


def operations(model: str, width: float, shape: tuple[int, int, int], batch: int) -> float:
    """Operations of a training step: three times those of the forward pass, convolved directly."""
    module = models.create(model, num_classes=10, width=width, conv_method="lax")
    x = jnp.zeros((batch, *shape))
    variables = models.init(module, rng.at(0, "init"), shape)
    found = jax.jit(module.apply).lower(variables, x).cost_analysis() or {}
    return 3 * float(found.get("flops", float("nan")))


def synthetic(shape: tuple[int, ...], examples: int, test: int = 64) -> str:
    """Registers random images of this shape as a data set and returns its name."""
    r = np.random.default_rng(0)
    images = r.integers(0, 256, (examples + test, *shape), dtype=np.uint8)
    labels = (np.arange(examples + test) % 10).astype(np.int32)
    split = (images[:examples], labels[:examples]), (images[examples:], labels[examples:])
    name = f"synthetic {shape} {examples} {test}"
    dataset = make(name, *split, 10)
    data_lib.DATASETS[name] = lambda data_dir: dataset
    return name


def study(overrides: Mapping[str, Any], variants: Mapping[str, Any] | None = None) -> plan.Batch:
    """The program and members of a study: the default one with overrides by dotted name."""
    config = default.get_config()
    config.update_from_flattened_dict(overrides)
    config.variants = dict(variants or {})
    (built,) = plan.build(config_lib.variants(config, default.get_config()))
    return built


def image_shape(model: str) -> tuple[int, int, int]:
    """Height, width, channels of the images that a network is measured on."""
    return {"mlp": (8, 8, 1), "lenet5": (28, 28, 1)}.get(model, (32, 32, 3))


def network(name: str, examples: int) -> tuple[Any, Any, Any, tuple[np.ndarray, np.ndarray]]:
    """A model, parameters, BatchNorm statistics of the data (or {}), the data (x, y).

    Statistics that do not fit the data would let activations grow from layer to layer.
    """
    module, shape = models.create(name, num_classes=10), image_shape(name)
    variables = models.init(module, rng.at(0, "init"), shape)
    params, statistics = variables["params"], variables.get("batch_stats", {})
    generator = np.random.default_rng(1)
    x = generator.normal(size=(examples, *shape)).astype(np.float32)

    @jax.jit
    def settle(params: Any, statistics: Any, x: Any) -> Any:
        inputs = {"params": params, "batch_stats": statistics}
        return module.apply(inputs, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    for _ in range(50 if statistics else 0):
        statistics = settle(params, statistics, x[:64])
    return module, params, statistics, (x, generator.integers(0, 10, examples))


def splits(dataset: data_lib.Dataset) -> step.Data:
    """The splits as a program takes them."""
    return step.Data(
        *(dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels),
        *(dataset.validation_images, dataset.validation_labels),
    )


def first_step(start: dict, ours: dict, theirs: dict, losses: tuple[float, float], way: str) -> str:
    """What is not the same after one step, or "": an error on a CPU, a note in the row elsewhere,
    where the machine may be gone before anybody has looked.
    """
    on_cpu = jax.default_backend() == "cpu"
    of_loss, of_parameters = TOLERANCES["cpu" if on_cpu else "gpu"]
    wrong = ""
    if not abs(losses[0] - losses[1]) < of_loss * abs(losses[0]):
        wrong = f"{way}: first loss {losses[1]!r}, ours {losses[0]!r}"
    for path, value in ours.items():
        moved = np.linalg.norm(value - start[path])
        apart = np.linalg.norm(value - theirs[path])
        # A bias before BatchNorm has no gradient: only rounding moves it.
        if not wrong and not apart < of_parameters * moved + 1e-6 * np.sqrt(value.size):
            wrong = f"{way}: {path} moved by {moved:.2e} and is {apart:.2e} from ours"
    if wrong and on_cpu:
        raise SystemExit(wrong)
    return wrong


def with_torch(python: str) -> str:
    """This interpreter if it has PyTorch; else, after a line that says so, none ("")."""
    if not python:
        return ""
    try:
        tried = subprocess.run([python, "-c", "import torch"], capture_output=True)
        if tried.returncode == 0:
            return python
    except OSError:
        pass
    print(f"--torch-python={python} has no torch: left out", flush=True)
    return ""


class Worker:
    """A script in another interpreter that answers lines of JSON; idle between commands."""

    def __init__(self, python: str, script: str, *arguments: str) -> None:
        self.script = script
        self.process = subprocess.Popen(
            [python, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.script} ended with code {self.process.wait()}")
        return json.loads(line)

    def __call__(self, **command: Any) -> dict[str, Any]:
        """Sends a command and returns the answer."""
        assert self.process.stdin is not None
        print(json.dumps(command), file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """Lets the interpreter end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as aligned text; floats with three significant digits."""
    text = [[str(key) for key in rows[0]]]
    text += [[f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in text]
    return "\n".join(lines)


def told(rows: Iterable[Mapping[str, Any]], name: str) -> None:
    """Prints each row when it is there, then all as a table; saves them where `name` is one."""
    found = []
    for row in rows:
        found.append(row)
        print(row, flush=True)
    print(table(found))
    if name:
        print(f"saved: {save(name, found)}")


def environment() -> dict[str, Any]:
    """Versions, device, processor and load: what a number needs beside it."""
    versions = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "optax", "numpy"):
        versions[name] = importlib.metadata.version(name)
    precision = jax.config.jax_default_matmul_precision or "default"
    model = platform.processor() or platform.machine()
    facts: dict[str, str] = {}  # of the last core
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            facts = {k.strip(): v.strip() for k, _, v in (x.partition(":") for x in lines)}
    model = facts.get("model name", model)
    # Processors of one name differ in it, and the two sides of a table use it differently.
    vectors = [v for v in ("avx512f", "avx2", "avx") if v in facts.get("flags", "").split()]
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": model,
        "vectors": (vectors or [None])[0],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load": os.getloadavg()[0],
        "matmul_precision": precision,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "malloc": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
        "versions": versions,
    }


def save(
    name: str, rows: Sequence[Mapping[str, Any]], folder: str | Path = RESULTS, **more: Any
) -> Path:
    """Writes FOLDER/DATE-name.json: date, environment, `more`, rows."""
    today = datetime.date.today().isoformat()
    if "options" in more:  # where an interpreter lies says nothing to others
        more["options"] = {
            k: v for k, v in more["options"].items() if k not in ("torch_python", "folder")
        }
    record = {"date": today, **environment(), **more, "results": list(rows)}
    Path(folder).mkdir(parents=True, exist_ok=True)
    target = Path(folder) / f"{today}-{name}.json"
    target.write_text(json.dumps(record, indent=2) + "\n")
    return target
