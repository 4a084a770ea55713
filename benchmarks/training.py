"""Training steps of the studies' networks against PyTorch: same weights, same batches.

    python benchmarks/training.py --torch-python=/path/to/venv/bin/python
    python benchmarks/training.py --models=vgg11_bn --members=1,4,16 --dtype=bfloat16,float32
    python benchmarks/training.py --models="mlp,conv4 8x8,conv4 28x28" --members=1,16 --released

A step is forward, backward and an SGD update with momentum and weight decay, as a study runs it:
`Population.train`, which gathers and normalizes its batch on the device. PyTorch gets finished
batches on the device and runs eager and compiled, NCHW and channels_last (on a GPU also as CUDA
graphs); the fastest of them counts. `released` is a PyTorch loop with a loader that handles one
example at a time; the last table gives the throughput of whole studies over it. With several
members and `--populations` PyTorch trains as many at once by `torch.func`: `vmap` of `grad` over
stacked variables, eager and compiled. `first call` is a step of each way that has not run before,
with its compilation.

Before a clock is read, the first step's loss, parameters and BatchNorm statistics must agree
(float32). Contenders take turns; the fastest round of each counts. With several members every
layout trains all of them; images are counted over members; a single member is also trained by all
devices together (on a CPU: one per core), each with its part of the batch. `of peak` is the
operations of the network's direct convolutions (three forward passes) per second over the measured
rate of a large matrix product in the same framework and dtype; a fast convolution algorithm can
exceed it.
"""

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np

from prunejax import data as data_lib
from prunejax import trees
from prunejax.study.devices.layout import Way
from prunejax.study.devices.population import Population
from prunejax.study.planning.plan import Batch, Member

# name -> (model, width, image shape)
NETWORKS = {
    "vgg11_bn": ("vgg11_bn", 1.0, (32, 32, 3)),
    "resnet20": ("resnet20", 1.0, (32, 32, 3)),
    "resnet18": ("resnet18", 1.0, (32, 32, 3)),
    "mlp": ("mlp", 1.0, (8, 8, 1)),
    "conv4 8x8": ("conv4", 0.5, (8, 8, 1)),
    "conv4 28x28": ("conv4", 0.5, (28, 28, 1)),
    "lenet5": ("lenet5", 1.0, (28, 28, 1)),
}
WAYS = ("eager nchw", "eager nhwc", "compiled nchw", "compiled nhwc")
POPULATIONS = ("population eager", "population compiled")
SGD = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4}


def built(name: str, batch: int, dtype: str, members: int, batches: int = 8) -> Batch:
    """The program and members of one network; so many batches are in its made data set."""
    model, width, shape = NETWORKS[name]
    return common.study(
        {
            "seeds": members,
            "epochs": 1000,
            "batch_size": batch,
            "data.name": common.synthetic(shape, batches * batch),
            "model.name": model,
            "model.width": width,
            "model.dtype": dtype,
            "optimizer.name": "sgd",
            **{f"optimizer.{key}": value for key, value in SGD.items()},
        }
    )


def leaves(state: Any) -> dict[str, np.ndarray]:
    """Parameters and BatchNorm statistics of one state by path."""
    trees_ = (state.params, state.batch_stats)
    return {p: np.asarray(x) for t in trees_ for p, x in trees.leaves_with_paths(t)}


def write(path: str, name: str, study: Batch, start: dict[str, np.ndarray], batch: int) -> None:
    """What the PyTorch side needs; batches in the order of the first member's first epoch."""
    data, program = study.dataset, study.program
    batches = len(data.train_labels) // batch
    order = np.asarray(data_lib.epoch_permutation(study.members[0].seed, 0, batches * batch))
    images = data_lib.normalize(jnp.asarray(data.train_images[order]), data.mean, data.std)
    sgd = np.array([SGD["learning_rate"], SGD["momentum"], SGD["weight_decay"]])
    np.savez(
        path,
        x=np.asarray(images).reshape(batches, batch, *program.image_shape),
        y=data.train_labels[order].reshape(batches, batch),
        images=data.train_images[order],
        mean=np.float32(data.mean),
        std=np.float32(data.std),
        width=NETWORKS[name][1],
        sgd=sgd,
        **start,
    )


class Ours:
    """One layout of a population that goes on training."""

    def __init__(self, study: Batch, way: Way, part: int = 0) -> None:
        data = jax.tree.map(jnp.asarray, common.splits(study.dataset))
        program = dataclasses.replace(study.program, data_parallel=way.share, microbatch=part)
        self.members: Sequence[Member] = study.members
        self.population = Population(program, data, way.layout, jax.devices(), study.members[0])
        self.states = self.population.initial(study.members)

    def train(self, steps: int, calls: int = 1) -> None:
        """`steps` in each of so many calls; waits for the end of the last."""
        population = self.population
        for _ in range(calls):
            self.states = population.train(self.states, population.data, np.int32(steps))
        jax.block_until_ready(self.states)

    def round(self, steps: int, calls: int = 1) -> tuple[float, float]:
        """Wall and CPU seconds of a step of all members."""
        start = time.perf_counter(), time.process_time()
        self.train(steps, calls)
        took = time.perf_counter() - start[0], time.process_time() - start[1]
        return took[0] / (steps * calls), took[1] / (steps * calls)


def ours_of(study: Batch, members: int, batch: int, part: int) -> dict[str, Ours]:
    """The layouts that members are trained in; without BatchNorm the last one in parts as well."""
    devices = jax.device_count()
    if members == 1:
        together = [Way("sharded", devices)] if devices > 1 and batch % devices == 0 else []
        ways = [Way("sequential"), *together]
    else:
        other = devices > 1 or jax.default_backend() == "cpu"  # else the same as "vectorized"
        ways = [Way("vectorized")] + [Way("sharded")] * (other and members % devices == 0)
    found = {str(way): Ours(study, way) for way in ways}
    if part and not found[str(ways[0])].states.batch_stats:
        found[f"{ways[-1]}, parts of {part}"] = Ours(study, ways[-1], part)
    return found


def _calls(seconds: float, least: float) -> int:
    """Calls that together last at least so long."""
    return max(1, round(least / seconds)) if least else 1


def measure(name: str, members: int, dtype: str, options: argparse.Namespace) -> list[dict]:
    """Rows of one network: our layouts and PyTorch's ways."""
    batch, steps = options.batch, options.steps
    study = built(name, batch, dtype, members, options.batches)
    contenders = ours_of(study, members, batch, options.microbatch)
    worker: Any = None
    seconds: dict[str, tuple[float, float]] = {}
    begun: dict[str, float] = {}  # seconds of the first call
    wrong: dict[str, str] = {}
    first = next(iter(contenders.values()))
    start = leaves(first.population.member(first.states, 0))
    moved, loss = start, 0.0  # after the first contender's first step
    for label, ours in contenders.items():
        begin = time.perf_counter()
        ours.train(1)
        begun[label] = time.perf_counter() - begin
        if dtype == "float32":
            state = ours.population.member(ours.states, 0)
            mine, found = float(state.totals.loss) / batch, leaves(state)
            if ours is first:
                loss, moved = mine, found
            else:
                wrong[label] = common.first_step(start, moved, found, (loss, mine), label)
        if steps > 1:
            ours.train(steps - 1)
    ways: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        if options.torch_python and (members == 1 or options.populations):
            file, answer_file = (os.path.join(folder, f) for f in ("in.npz", "out.npz"))
            write(file, name, study, start, batch)
            worker = common.Worker(
                options.torch_python,
                "training_torch.py",
                *(NETWORKS[name][0], file, dtype, str(options.threads)),
            )
            graphs = ["graphs nhwc"] * (jax.default_backend() == "gpu")
            alone = (*WAYS, *graphs, *["released"] * options.released)
            for way in alone if members == 1 else POPULATIONS:
                answer = worker(way=way, steps=1, state=answer_file, members=members)
                if "failed" in answer:
                    print(f"{way}: left out: {answer['failed']}", flush=True)
                    continue
                if way != "released" and dtype == "float32":
                    pair = (loss, answer["losses"][0])
                    wrong[way] = common.first_step(
                        start, moved, dict(np.load(answer_file)), pair, way
                    )
                begun[way] = answer["wall"]
                worker(way=way, steps=1)
                ways.append(way)
        calls = {}  # per clock read
        for label, ours in contenders.items():
            calls[label] = _calls(ours.round(steps)[0] * steps, options.seconds)
        for way in ways:
            calls[way] = _calls(worker(way=way, steps=steps)["wall"] * steps, options.seconds)
        for _ in range(options.rounds):
            for label, ours in contenders.items():
                took = ours.round(steps, calls[label])
                seconds[label] = tuple(map(min, seconds.get(label, took), took))  # type: ignore[assignment]
            for way in ways:
                answer = worker(way=way, steps=steps * calls[way])
                took = answer["wall"], answer["cpu"]
                seconds[way] = tuple(map(min, seconds.get(way, took), took))  # type: ignore[assignment]
        rates = {"ours": common.peak(dtype, options.peak_size)} if options.peak else {}
        if worker:
            if options.peak:
                rates["torch"] = worker(way="peak", size=options.peak_size)["peak"]
            worker.close()
    flops = common.operations(*NETWORKS[name], batch) if rates else 0.0
    best = {c: min((seconds[w][c] for w in ways if w != "released"), default=None) for c in (0, 1)}
    rows = []
    for label, (wall, cpu) in seconds.items():
        row = {
            "network": name,
            "dtype": dtype,
            "members": members,
            "contender": label if label in ways else f"ours, {label}",
            "ms a step": 1e3 * wall,
            "CPU ms": 1e3 * cpu,
            "images/s": members * batch / wall,
            "torch / this, wall": best[0] / wall if best[0] else None,
            "torch / this, CPU": best[1] / cpu if best[1] else None,
            "steps a clock read": steps * calls[label],
            "first call, s": begun[label],
        }
        if rates:
            rate = rates.get("torch" if label in ways else "ours")
            row["of peak"] = members * flops / wall / rate if rate else None
        if any(wrong.values()):
            row["first step"] = wrong.get(label, "")
        rows.append(row)
    return rows


def throughput(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Images per second of every contender over those of our loop after the release, which
    trains one run after the other, so that its rate is that of a study of any size.
    """
    loops = {(r["network"], r["dtype"]): r for r in rows if r["contender"] == "released"}
    found = []
    for row in rows:
        loop = loops.get((row["network"], row["dtype"]))
        rate = row["images/s"] / loop["images/s"] if loop else None
        row["x released"] = rate
        names = ("network", "dtype", "members", "contender", "images/s", "x released")
        found.append({k: row[k] for k in names})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="vgg11_bn,resnet20,mlp,conv4 8x8,conv4 28x28")
    parser.add_argument("--members", default="1", help="comma-separated")
    parser.add_argument("--dtype", default="float32", help="float32,bfloat16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--microbatch", type=int, default=0, help="also in parts of this size")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batches", type=int, default=8, help="in the made data set")
    parser.add_argument("--steps", type=int, default=2, help="per call, a divisor of --batches")
    parser.add_argument("--seconds", type=float, default=0.0, help="at least, of a clock read")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0: its default")
    parser.add_argument("--peak", action="store_true", help="also the fraction of the matmul peak")
    parser.add_argument("--peak-size", type=int, default=2048, help="rows of that product")
    parser.add_argument("--released", action="store_true", help="our loop after the release's, too")
    parser.add_argument("--populations", action="store_true", help="members by torch.func, too")
    parser.add_argument("--torch-python", default="", help="an interpreter that has torch")
    parser.add_argument("--save", default="", metavar="NAME", help="write results/DATE-NAME.json")
    parser.add_argument("--folder", default=str(common.RESULTS), help="where to write it")
    options = parser.parse_args()
    if not 0 < options.steps <= options.batches or options.batches % options.steps:
        parser.error(f"--steps: {options.steps} does not divide --batches={options.batches}")
    options.torch_python = common.with_torch(options.torch_python)
    members = [int(m) for m in options.members.split(",")]
    if jax.config.jax_platforms in (None, "cpu"):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    rows: list[dict[str, Any]] = []
    for name in options.models.split(","):
        if name not in NETWORKS:
            parser.error(f"--models: {name!r} is not one of: {', '.join(NETWORKS)}")
        for dtype in options.dtype.split(","):
            for count in members:
                found = measure(name, count, dtype, options)
                print(common.table(found), flush=True)
                rows += found
    if options.released:
        print(common.table(throughput(rows)))
    if options.save:
        file = common.save(options.save, rows, options.folder, options=vars(options))
        print(f"saved: {file}")


if __name__ == "__main__":
    main()
