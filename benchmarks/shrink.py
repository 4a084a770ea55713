"""Networks with half of their filters gone: dense, masked and shrunk, beside Torch-Pruning.

    python benchmarks/shrink.py --torch-python=/path/to/venv/bin/python --save
    python benchmarks/shrink.py --sparse --save
    python benchmarks/shrink.py --study --save

A training step is forward, backward and an SGD update with momentum; inference is the forward pass
in evaluation mode. "masked" multiplies the weights by their masks, as studies do; "shrunk" is
`prunejax.shrink`. Before a clock is read, outputs of the shrunken network must be those of the
masked one (1e-5 of the largest). PyTorch (eager, threads as given) trains the same network with the
same weights; Torch-Pruning removes half of the filters of each layer, whole residual streams at
once, and its outputs are compared with those of the network whose filters were zeroed. Both remove
filters at random: speed does not depend on which. Contenders take turns; the fastest of the rounds
counts, in wall and CPU seconds (of all threads). Memory: parameters, statistics and momentum; what
XLA allocates besides for a step.

`--sparse`: a product with a matrix of single weights at several sparsities, dense, as BCOO (JAX)
and as CSR (SciPy).

`--study`: training steps of a study (batch 64, SGD) after half of all filters, or neurons, went by
their L2 norm: on the masked network, and as `prune.shrink_every` has them, on the smaller one.
States after the first steps are compared before.
"""

import argparse
import functools
import os
import tempfile
import time
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax

from prunejax import masks as masks_lib
from prunejax import models, rng, shrink, sparsity, trees
from prunejax.configs import default
from prunejax.study.devices import arrangement
from prunejax.study.devices.population import Population
from prunejax.study.planning import plan
from prunejax.study.settings import config as study

SHAPE = (32, 32, 3)


def halved(module: Any, variables: Any) -> tuple[Any, dict[str, Any]]:
    """Masks and gates that take half of each layer's filters at random."""
    r = np.random.default_rng(0)
    found = models.groups(module, variables)
    units = {g.name: jnp.asarray(r.permutation(g.units) < g.units // 2) for g in found}
    live = masks_lib.from_units(units, found, variables["params"])
    return live, {g.gate: units[g.name] for g in found if g.gate is not None}


class Contender:
    """A network, compiled for training and inference, that goes on training."""

    def __init__(self, module: Any, variables: Any, masks: Any, x: Any, y: Any) -> None:
        tx = optax.sgd(0.01, momentum=0.9)
        fixed = {k: v for k, v in variables.items() if k not in ("params", "batch_stats")}
        self.state = (variables["params"], variables["batch_stats"], tx.init(variables["params"]))
        live = (lambda p: p) if masks is None else (lambda p: masks_lib.apply(masks, p))

        def loss(params: Any, stats: Any, x: Any, y: Any) -> Any:
            found = {"params": live(params), "batch_stats": stats, **fixed}
            logits, new = module.apply(found, x, train=True, mutable=["batch_stats"])
            each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return each.mean(), new["batch_stats"]

        def step(state: Any, x: Any, y: Any) -> Any:
            params, stats, momentum = state
            grads, stats = jax.grad(loss, has_aux=True)(params, stats, x, y)
            updates, momentum = tx.update(grads, momentum)
            return optax.apply_updates(params, updates), stats, momentum

        def infer(state: Any, x: Any) -> Any:
            found = {"params": live(state[0]), "batch_stats": state[1], **fixed}
            return module.apply(found, x, train=False)

        self.x, self.y = x, y
        self.step = jax.jit(step).lower(self.state, x, y).compile()
        self.infer = jax.jit(infer).lower(self.state, x).compile()

    def outputs(self) -> np.ndarray:
        """Logits of the batch."""
        return np.asarray(self.infer(self.state, self.x))

    def bytes(self) -> dict[str, float]:
        """MiB of what is kept, and of what a step and inference need besides."""
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        found = {"kept": kept / 2**20}
        for name, program in (("step", self.step), ("inference", self.infer)):
            analysis = program.memory_analysis()
            found[name] = getattr(analysis, "temp_size_in_bytes", float("nan")) / 2**20
        return found

    def round(self, what: str) -> tuple[float, float]:
        """Wall and CPU seconds of one step, or of one batch inferred."""
        wall, cpu = time.perf_counter(), time.process_time()
        if what == "train":
            self.state = jax.block_until_ready(self.step(self.state, self.x, self.y))
        else:
            jax.block_until_ready(self.infer(self.state, self.x))
        return time.perf_counter() - wall, time.process_time() - cpu


def contenders(name: str, batch: int) -> tuple[dict[str, Contender], Any, Any]:
    """Ours, checked; the module's variables, and the batch."""
    module, r = models.create(name, num_classes=10), np.random.default_rng(1)
    variables = models.init(module, rng.at(0, "init"), SHAPE)
    x = jnp.asarray(r.normal(size=(batch, *SHAPE)).astype(np.float32))
    y = jnp.asarray(r.integers(0, 10, batch))
    live, gates = halved(module, variables)
    # In residual networks shut gates are what removes a channel that a shortcut carries.
    cut = variables | {"gates": gates} if gates else variables
    small, found = shrink.shrink(module, cut, live)
    ours = {
        "dense": Contender(module, variables, None, x, y),
        "masked": Contender(module, cut, live, x, y),
        "shrunk": Contender(small, found, None, x, y),
    }
    expected, got = ours["masked"].outputs(), ours["shrunk"].outputs()
    apart = np.abs(got - expected).max() / np.abs(expected).max()
    if not apart <= 1e-5:
        raise SystemExit(f"{name}: the shrunken outputs are {apart:.2g} of the largest away")
    return ours, variables, (np.asarray(x), np.asarray(y), apart)


def measure(name: str, options: Any) -> list[dict[str, Any]]:
    """Rows of one network: each contender, training and inference."""
    start = time.perf_counter()
    ours, variables, (x, y, apart) = contenders(name, options.batch)
    print(f"{name}: compiled, outputs checked, {time.perf_counter() - start:.0f} s", flush=True)
    best: dict[tuple[str, str], list[float]] = {}

    def note(who: str, what: str, seconds: tuple[float, float]) -> None:
        old = best.setdefault((who, what), [float("inf")] * 2)
        best[who, what] = [min(a, b) for a, b in zip(old, seconds, strict=True)]

    theirs, about = None, {}
    with tempfile.TemporaryDirectory() as folder:
        if options.torch_python:
            file = os.path.join(folder, "variables.npz")
            leaves = {
                p: np.asarray(v) for t in variables.values() for p, v in trees.leaves_with_paths(t)
            }
            np.savez(file, x=x, y=y, **leaves)
            arguments = (name, file, str(options.threads))
            theirs = common.Worker(options.torch_python, "shrink_torch.py", *arguments)
            about = theirs.about
        for done in range(options.rounds + 1):  # the first one warms up
            if done > 1 and options.seconds and time.perf_counter() - start > options.seconds:
                break
            for what in ("train", "infer"):
                for who, contender in ours.items():
                    note(who, what, contender.round(what))
                for who in ("dense", "pruned") if theirs else ():
                    took = theirs(which=who, what=what)
                    note(f"torch {who}", what, (took["wall"], took["cpu"]))
        if theirs:
            theirs.close()
    memory = {who: contender.bytes() for who, contender in ours.items()}
    rows = []
    for (who, what), (wall, cpu) in best.items():
        base = best["torch dense" if who.startswith("torch") else "dense", what]
        kept = memory.get(who, about.get("memory", {}).get(who.removeprefix("torch "), {}))
        rows.append(
            {
                "network": name,
                "who": who,
                "what": what,
                "wall ms": 1e3 * wall,
                "cpu ms": 1e3 * cpu,
                "speed, wall": base[0] / wall,
                "speed, cpu": base[1] / cpu,
                "kept MiB": kept.get("kept", float("nan")),
                "temporary MiB": kept.get("step" if what == "train" else "inference", float("nan")),
                "outputs": about.get("apart", float("nan")) if "torch" in who else float(apart),
            }
        )
    return rows


def products(options: Any) -> list[dict[str, Any]]:
    """A batch times a sparse matrix, milliseconds of the fastest round."""
    r, rows = np.random.default_rng(0), []
    size, batch = options.size, options.batch
    x = r.normal(size=(batch, size)).astype(np.float32)
    dense = jax.jit(lambda x, w: x @ w)
    product = jax.jit(lambda x, w: x @ w)
    for removed in (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999):
        params = {"kernel": r.normal(size=(size, size)).astype(np.float32)}
        live = {"kernel": r.random((size, size)) >= removed}
        masked = jnp.asarray(masks_lib.apply(live, params)["kernel"])
        bcoo, csr = (form(params, live)["kernel"] for form in (sparsity.bcoo, sparsity.csr))
        ours = {
            "dense": lambda w=masked: dense(x, w),
            "BCOO": lambda w=bcoo: product(x, w),
            "CSR": lambda w=csr: x @ w,
        }
        expected = np.asarray(ours["dense"]())
        row: dict[str, Any] = {"sparsity": removed}
        for who, fn in ours.items():
            got = np.asarray(fn())
            assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max(), who
            row[f"{who} ms"] = 1e3 * common.timed(fn, options.rounds).wall
        row["dense MiB"] = masked.nbytes / 2**20
        row["CSR MiB"] = (csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes) / 2**20
        rows.append(row)
    return rows


def in_study(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Twelve steps of training in a study, masked over smaller."""
    rows = []
    for model, data in (("vgg4_bn", "fashion"), ("mlp128_64", "digits")):
        config = default.get_config()
        config.seeds, config.epochs, config.batch_size = 1, 2, 64
        config.model.name, config.data.name = model, data
        config.optimizer.name, config.optimizer.weight_decay = "sgd", 0.0
        prune = {"schedule": "scratch", "layers": (".*",), "fraction": (0.5,), "score": "l2"}
        config.variants = default.arms({"half": {"prune": prune | {"shrink_every": 1}}})
        (batch,) = plan.build(study.variants(config, default.get_config()))
        people = Population(
            batch.program,
            arrangement.device_data(batch.dataset),
            "sequential",
            jax.devices()[:1],
            batch.members[0],
        )
        pruned = people.event(people.initial(batch.members[:1]), 0)[0]
        fresh = lambda start=pruned: jax.tree.map(jnp.copy, start)  # noqa: E731
        ways = {"smaller": people.training(0)[0], "masked": people.train}
        ends = [way(fresh(), people.data, np.int32(2)) for way in ways.values()]
        losses = [np.asarray(end.totals.loss) for end in ends]
        np.testing.assert_allclose(*losses, rtol=1e-4)
        seconds = dict.fromkeys(ways, common.Seconds(np.inf, np.inf))
        for _ in range(options.rounds):
            for name, way in ways.items():
                state = fresh()
                run = functools.partial(way, state, people.data, np.int32(12))
                seconds[name] = min(seconds[name], common.timed(run, 1))
        masked, smaller = seconds["masked"], seconds["smaller"]
        rows.append(
            {
                "study": f"{model}, {data}",
                "wall, ratio": masked.wall / smaller.wall,
                "CPU, ratio": masked.cpu / smaller.cpu,
                "masked, ms a step": 1e3 * masked.wall / 12,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="vgg11_bn,resnet18")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0, help="begin no round after so many")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0: as it chooses")
    parser.add_argument("--torch-python", default="", help="with torch and torch-pruning")
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--study", action="store_true")
    parser.add_argument("--size", type=int, default=1024, help="of the matrix of --sparse")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    options.torch_python = common.with_torch(options.torch_python)
    rows: list[dict[str, Any]] = []
    if options.sparse or options.study:
        rows = products(options) if options.sparse else in_study(options)
        print(common.table(rows))
    else:
        for name in options.models.split(","):
            found = measure(name, options)
            print(common.table(found), flush=True)
            rows += found
    if options.save:
        name = "sparse" if options.sparse else "shrink-study" if options.study else "shrink"
        print(common.save(name, rows, options=vars(options)))


if __name__ == "__main__":
    main()
