"""prunejax beside the paper's mechanics in PyTorch: the same weights, batches and noise.

    python benchmarks/released.py --torch-python=/path/to/venv/bin/python
    python benchmarks/released.py --models=vgg11_bn --arms=gauss --torch-python=...

`released_torch.py` trains narrow VGG11 and ResNet18 networks with masks, windows and noise acting
inside forward passes, from the description of the released code. Here the same arms run through
prunejax's own events, steps and evaluations. Both start from the same weights and see the same
batches; Gaussian noise (in standard deviations) and random targets are drawn here and given there.
A row of the table per arm:

    events        (event, layer) pairs; counts and target sets are equal, or the arm fails
    scores        largest difference of live filters' scores, relative to the layer's largest
    train loss    largest relative difference over all steps; test loss: over all tests
    correct       tests in which the number of correct answers differs (of all tests)
    parameters    largest difference after any step, relative to the tensor's largest entry (what
                  is masked counts as zero on both sides)
    statistics    the same for running means and variances of live filters

Networks train in float64 on both sides (test losses are float32 here): training amplifies rounding,
and what has no gradient, such as the bias of a convolution before BatchNorm, does under Adam what
rounding says. `--float32` runs prunejax as studies do, without limits on the differences.
The release keeps PyTorch's unbiased running variance, prunejax the biased one. They are compared
with the biased one there; `--unbiased` shows what the other choice changes.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from prunejax import arrangement, evaluation, interventions, plan, prune, step, trees
from prunejax import config as config_lib
from prunejax import data as data_lib
from prunejax.data.dataset import make

HERE = Path(__file__).parent
EPOCHS, BATCH, TEST_BATCH, TRAIN, TEST, WIDTH = 6, 16, 20, 88, 50, 0.125
MILESTONES = (5,)
VGG = {
    "schedule": "linear",
    "layers": ("conv5", "conv6", "conv7", "conv8"),
    "fraction": (0.3, 0.3, 0.3, 0.9),
    "start": (1, 1, 2, 2),
    "end": (3, 3, 4, 4),
    "period": 2,
}
RESNET = VGG | {
    "layers": tuple(f"stage4_block{b}_conv{c}" for b in (1, 2) for c in (1, 2)),
    "fraction": (0.25, 0.4, 0.25, 0.95),
}
ALL = RESNET | {"layers": (".*",), "fraction": (0.1,), "start": (2,), "end": (4,)}
S, R, L = "smallest", "random", "largest"
LIMITS = {"scores": 1e-5, "train loss": 1e-5, "test loss": 1e-5, "parameters": 1e-5,
          "statistics": 1e-5}  # fmt: skip


def window(kind: str, length: int, **more: Any) -> dict[str, Any]:
    """A noise arm's intervention; BatchNorm is left alone unless it is restored."""
    return {"kind": kind, "duration": length, "mask_norm": "restore" in more, **more}


PUT_BACK = {"scope": "cumulative", "restore": "weights+norm"}
REFERENCE = {"kind": "prune", "mask_norm": False}
# model -> optimizer -> as released? -> arm -> (events, target, score, intervention)
ARMS: dict[tuple[str, str, bool], dict[str, tuple[dict, str, str, dict]]] = {
    ("vgg11_bn", "adam", False): {
        "S_l2": (VGG, S, "l2", {}),
        "R_l2": (VGG, R, "l2", {}),
        "L_l2": (VGG, L, "l2", {}),
        "S_l1": (VGG, S, "l1", {}),
        "S_ebn": (VGG, S, "ebn", {}),
        "L_ebn": (VGG, L, "ebn", {}),
        "scratch": (VGG | {"schedule": "scratch"}, S, "l2", {}),
        "reference": (VGG, L, "l2", REFERENCE),
        "zero_1": (VGG, L, "l2", window("zero", 1)),
        "zero_4": (VGG, L, "l2", window("zero", 4)),
        "zero_15": (VGG, L, "l2", window("zero", 15)),  # events are 12 steps apart
        "zero_cumulative_5": (VGG, L, "l2", window("zero", 5, scope="cumulative")),
        "gauss_1": (VGG, L, "l2", window("gaussian", 1)),
        "gauss_4": (VGG, L, "l2", window("gaussian", 4)),
        "gauss_15": (VGG, S, "l2", window("gaussian", 15)),
        "restore_7": (VGG, L, "l2", window("zero", 7, **PUT_BACK)),
        "restore_14": (VGG, L, "l2", window("zero", 14, **PUT_BACK)),
    },
    ("vgg11_bn", "adam", True): {  # an epoch has 6 training and 2 x 3 test passes
        "zero_0_passes": (VGG, L, "l2", window("zero", 0)),
        "zero_8_passes": (VGG, L, "l2", window("zero", 8)),
        "zero_30_passes": (VGG, L, "l2", window("zero", 30)),
        "gauss_0_passes": (VGG, L, "l2", window("gaussian", 0)),
        "gauss_8_passes": (VGG, L, "l2", window("gaussian", 8)),
        "gauss_30_passes": (VGG, L, "l2", window("gaussian", 30)),
        "restore_5_passes": (VGG, L, "l2", window("zero", 5, **PUT_BACK)),
        "restore_16_passes": (VGG, L, "l2", window("zero", 16, **PUT_BACK)),
        "restore_30_passes": (VGG, L, "l2", window("zero", 30, **PUT_BACK)),
    },
    ("vgg11_bn", "sgd", False): {
        "S_l1": (VGG, S, "l1", {}),
        "zero_4": (VGG, L, "l2", window("zero", 4)),
    },
    ("resnet18", "adam", False): {
        "S_activations": (RESNET, S, "activations", {}),
        "L_activations": (RESNET, L, "activations", {}),
        "S_ebn_signed": (RESNET, S, "ebn_signed", {}),
        "L_ebn_signed": (RESNET, L, "ebn_signed", {}),
    },
    ("resnet18", "sgd", False): {"S_l1": (ALL, S, "l1", {})},
}  # fmt: skip
OPTIMIZERS = {
    "adam": {"name": "adam", "learning_rate": 1e-3, "weight_decay": 0.0},
    "sgd": {"name": "sgd", "learning_rate": 0.02, "momentum": 0.9, "weight_decay": 1e-3},
}


def images() -> None:
    """Registers learnable images of CIFAR's shape: a pattern per class under noise."""
    r = np.random.default_rng(0)
    patterns = r.uniform(60, 200, (10, 8, 8, 3)).repeat(4, 1).repeat(4, 2)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = (np.arange(count) % 10).astype(np.int32)
        noisy = patterns[labels] + r.normal(0, 40, (count, 32, 32, 3))
        return np.clip(noisy, 0, 255).astype(np.uint8), labels

    dataset = make("patterns", split(TRAIN), split(TEST), 10)
    data_lib.DATASETS["patterns"] = lambda data_dir: dataset


def build(model: str, optimizer: str, released: bool, arms: dict) -> plan.Batch:
    """Program and members of arms that share one."""
    config = default.get_config()
    config.epochs, config.batch_size, config.eval_batch_size = EPOCHS, BATCH, TEST_BATCH
    config.data.name, config.model.name, config.model.width = "patterns", model, WIDTH
    config.optimizer.update(OPTIMIZERS[optimizer] | {"milestones": MILESTONES})
    config.intervention.as_released = released
    config.variants = {
        label: {
            "prune": events | {"target": target, "score": score},
            "intervention": intervention,
        }
        for label, (events, target, score, intervention) in arms.items()
    }
    (built,) = plan.build(config_lib.variants(config, default.get_config()))
    return built


def _spread(params: Any) -> Any:
    """BatchNorm scales and shifts as after training: Adam moves equal ones alike, into ties."""
    r = np.random.default_rng(7)

    def value(path: str, leaf: jax.Array) -> jax.Array:
        if path.endswith("/scale"):
            return jnp.asarray(r.normal(0.8, 0.4, leaf.shape), leaf.dtype)
        if "/bn" in f"/{path}" or "_bn" in path:
            return jnp.asarray(r.normal(0.0, 0.3, leaf.shape), leaf.dtype)
        return leaf

    return trees.map_with_path(value, params)


class Wide:
    """A module in float64 whose outputs in evaluations are float32, as sums over a split are."""

    def __init__(self, module: Any) -> None:
        self.module, self.init = module, module.init

    def apply(self, *args: Any, **options: Any) -> Any:
        """The module's `apply`."""
        found = self.module.apply(*args, **options)
        return found if options["train"] else found.astype(jnp.float32)


def _as(dtype: Any, tree: Any) -> Any:
    """Floating-point leaves in this dtype."""
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, tree)


class Ours:
    """The compiled pieces of one program, and a run of one of its members."""

    def __init__(self, batch: plan.Batch, dtype: Any) -> None:
        module = Wide(batch.program.module.clone(dtype=dtype))
        p = self.program = dataclasses.replace(batch.program, module=module)
        self.dtype = dtype
        self.data = data = jax.device_put(arrangement.device_data(batch.dataset))
        test = (data.test_images, data.test_labels)
        quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
        start = lambda seed, table, hyper: step.initial_state(p, seed, table, hyper)  # noqa: E731
        self._initial = jax.jit(start, compiler_options=quick)
        self._steps = jax.jit(lambda s: step.train_steps(p, s, data, jnp.int32(1)))
        self._last = jax.jit(lambda s: step.train_last_step(p, s, data))
        self._evaluate = jax.jit(lambda s: evaluation.evaluate(p, s, *test))
        self._released = jax.jit(lambda s, after: evaluation.released_evaluate(p, s, *test, after))
        self._scores = jax.jit(lambda s, row: prune.unit_scores(p, s, data, row))
        none = lambda s: {n: jnp.zeros_like(t) for n, t in s.windows.targeted.items()}  # noqa: E731
        self._event = jax.jit(lambda s, row: prune.apply_event(p, s, data, row, none(s)))
        self._acted = jax.jit(self._act, static_argnames="opening")
        self._passed = jax.jit(self._one_pass)
        self._view = jax.jit(lambda s: self._masked(s))

    def _act(self, s: step.TrainState, windows: Any, counter: Any, *, opening: bool) -> Any:
        p = self.program
        return interventions.act(
            p.groups, s.params, windows, s.table, p.features,
            seed=s.seed, counter=counter, opening=opening,
        )  # fmt: skip

    def _one_pass(self, s: step.TrainState, counter: Any) -> step.TrainState:
        p = self.program
        params = self._act(s, s.windows, counter, opening=False)
        found = interventions.advance(
            p.groups, params, s.batch_stats, s.windows, s.table, p.features
        )
        return s._replace(params=found[0], batch_stats=found[1], windows=found[2])

    def _masked(self, s: step.TrainState) -> dict[str, Any]:
        found = step.variables(self.program, s)
        both = {"params": found["params"], "batch_stats": s.batch_stats}
        return dict(trees.leaves_with_paths(both))

    def _noise(self, before: step.TrainState, after: Any) -> None:
        """Notes what was added to the kernels, in standard deviations, filter by filter."""
        for g in self.program.groups:
            old, new = (
                np.asarray(trees.get(t, g.kernel), np.float64) for t in (before.params, after)
            )
            targeted = np.asarray(self.targeted[g.name])
            sigma = old[..., np.flatnonzero(~targeted)[0]].std(ddof=1)
            for i in np.flatnonzero((old != new).any((0, 1, 2))):
                draw = (new[..., i] - old[..., i]) / sigma
                self.noise.setdefault(g.name, []).append(draw.transpose(2, 0, 1))

    def run(self, member: plan.Member, gaussian: bool) -> None:
        """Trains the member in the order of the study's loop, and keeps what happened."""
        p = self.program
        table, hyper = (jax.tree.map(jnp.asarray, x) for x in (member.table, member.hyper))
        s = self._initial(jnp.uint32(member.seed), table, hyper)
        wide = ("params", "batch_stats", "opt_state", "activations", "windows", "totals")
        s = s._replace(params=_spread(s.params))
        s = s._replace(**{name: _as(self.dtype, getattr(s, name)) for name in wide})
        self.start = dict(
            trees.leaves_with_paths({"params": s.params, "batch_stats": s.batch_stats})
        )
        self.losses, self.tests, self.steps = [], [], []
        self.scores, self.targets = {}, {}
        self.order, self.noise = [], {}

        def test(s: step.TrainState, after: int) -> step.TrainState:
            self.targeted = s.windows.targeted
            if not p.features.released:
                metrics = self._evaluate(s)
            else:
                batches, noised = -(-TEST // TEST_BATCH), s
                for number in range(batches if gaussian else 0):
                    counter = -1 - ((2 * s.step + after) * batches + number)
                    acted = self._acted(noised, noised.windows, counter, opening=False)
                    self._noise(noised, acted)
                    noised = self._passed(noised, counter)
                s, metrics = self._released(s, jnp.int32(after))
            self.tests.append([float(metrics.loss), round(TEST * float(metrics.accuracy))])
            return s

        def event(s: step.TrainState, row: int) -> step.TrainState:
            if row not in member.events:
                return s
            scores = jax.tree.map(np.asarray, self._scores(s, jnp.int32(row)))
            before = s
            s, found = self._event(s, jnp.int32(row))
            for name, chosen in found.selected.items():
                if np.any(chosen):
                    self.targets[f"{row - 1}/{name}"] = np.flatnonzero(chosen).tolist()
                    self.scores[f"{row - 1}/{name}"] = scores[name]
            if gaussian and not p.features.released:
                self.targeted = s.windows.targeted
                self._noise(before, s.params)
            return s

        if 0 in member.events:
            s = test(event(test(s, 0), 0), 1)
        for epoch in range(EPOCHS):
            self.order.append(np.asarray(step._order(p, s)))
            for i in range(p.steps_per_epoch):
                if gaussian:
                    self.targeted = s.windows.targeted
                    self._noise(s, self._acted(s, s.windows, s.step, opening=False))
                last = i == p.steps_per_epoch - 1
                size = p.last_batch if last else BATCH
                before = 0.0 if i == 0 else float(s.totals.loss)
                s = (self._last if last else self._steps)(s)
                self.losses.append((float(s.totals.loss) - before) / size)
                self.steps.append(jax.tree.map(np.asarray, self._view(s)))
            s = test(event(test(s, 0), epoch + 1), 1)


def settings(key: tuple, arm: tuple, ours: Ours, unbiased: bool) -> dict[str, Any]:
    """What the other side has to know of an arm."""
    model, optimizer, released = key
    events, target, score, intervention = arm
    i = {"kind": "prune", "mask_norm": True, "restore": "no", "scope": "newest"} | intervention
    names = [g.name for g in ours.program.groups]
    rules = [n for n in names if n in events["layers"]] or names
    pick = lambda values, j: values[j % len(values)]  # noqa: E731
    o = OPTIMIZERS[optimizer]
    return {
        "model": model,
        "width": WIDTH,
        "batch": BATCH,
        "test_batch": TEST_BATCH,
        "unbiased": unbiased,
        "optimizer": {
            "name": o["name"],
            "rate": float(np.float32(o["learning_rate"])),  # as the run's arrays have it
            "decay": float(np.float32(o["weight_decay"])),
            "milestones": MILESTONES,
        },
        "random": ours.targets if target == R else {},
        "arm": {
            "kind": i["kind"],
            "counting": "passes" if released else "steps",
            "passes": i.get("duration", -1),
            "newest": i["scope"] == "newest",
            "restore": i["restore"] != "no",
            "mask_norm": i["mask_norm"],
            "score": score,
            "target": target,
            "scratch": events["schedule"] == "scratch",
            "layers": {
                name: {
                    "fraction": pick(events["fraction"], j),
                    "start": pick(events["start"], j),
                    "end": pick(events["end"], j),
                    "period": events["period"],
                }
                for j, name in enumerate(rules)
            },
        },
    }


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference relative to the largest entry."""
    return float(np.max(np.abs(ours - theirs)) / max(np.max(np.abs(theirs)), 1e-12))


def compare(label: str, ours: Ours, out: dict[str, np.ndarray], told: dict) -> dict[str, Any]:
    """A row of the table.

    Raises:
      SystemExit: other events, counts or targets.
    """
    facts = json.loads(str(out["facts"]))
    if facts["events"] != ours.targets:
        raise SystemExit(f"{label}: other targets there: {facts['events']}, here: {ours.targets}")
    if facts["noise left"]:
        raise SystemExit(f"{label}: {facts['noise left']} draws of noise were not used there")
    scores, gone = [], {}
    for event, chosen in ours.targets.items():
        name = event.split("/")[1]
        live = np.setdiff1d(np.arange(len(ours.scores[event])), gone.get(name, []))
        scores.append(relative(ours.scores[event][live], out[f"scores/{event}"][live]))
        gone[name] = gone.get(name, []) + chosen
    kernels = {"params": 0.0, "batch_stats": 0.0}
    for number, tree in enumerate(ours.steps):
        facts_then = (told, ours.targets, number, ours.program.steps_per_epoch)
        mine = _masked(tree, *facts_then)
        theirs = _masked({path: out[f"step/{number}/{path}"] for path in tree}, *facts_then)
        for path, leaf in mine.items():
            if path.startswith("params/conv") and path.endswith("/bias"):
                continue  # no gradient but rounding's: see the running means
            kind = path.split("/")[0]
            kernels[kind] = max(kernels[kind], relative(leaf, theirs[path]))
    mine, there = np.array(ours.tests), np.array(facts["tests"])
    losses = np.array(ours.losses) / np.array(facts["losses"]) - 1
    return {
        "arm": label,
        "events": len(ours.targets),
        "scores": max(scores),
        "train loss": float(np.abs(losses).max()),
        "test loss": float(np.abs(mine[:, 0] / there[:, 0] - 1).max()),
        "correct": f"{int((mine[:, 1] != there[:, 1]).sum())} of {len(mine)}",
        "parameters": kernels["params"],
        "statistics": kernels["batch_stats"],
    }


def _masked(tree: dict, told: dict, targets: dict, number: int, per_epoch: int) -> dict:
    """The tree after step `number` with what is masked, and its statistics, set to zero."""
    arm, tree = told["arm"], {path: np.array(leaf) for path, leaf in tree.items()}
    for event, chosen in targets.items() if arm["kind"] == "prune" else ():
        epoch, name = event.split("/")
        if number >= (int(epoch) + 1) * per_epoch:
            norm = name.replace("conv", "bn")
            paths = [f"params/{name}/kernel", f"batch_stats/{norm}/mean", f"batch_stats/{norm}/var"]
            if arm["mask_norm"]:
                paths += [f"params/{norm}/scale", f"params/{norm}/bias"]
            for path in paths:
                tree[path][..., chosen] = 0
    return tree


class Torch:
    """The PyTorch process."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, str(HERE / "released_torch.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the PyTorch process ended; --torch-python needs torch and numpy")
        return json.loads(line)

    def run(self, path: str, told: dict, ours: Ours) -> dict[str, np.ndarray]:
        """What the arm comes to there."""
        assert self.process.stdin
        data = ours.data
        images = {"train": data.train_images, "test": data.test_images}
        np.savez(
            path,
            settings=json.dumps(told),
            order=np.stack(ours.order),
            **{f"images/{name}": self._normalized(ours, x) for name, x in images.items()},
            **{"labels/train": data.train_labels, "labels/test": data.test_labels},
            **ours.start,
            **{f"noise/{name}": np.stack(draws) for name, draws in ours.noise.items()},
        )
        print(path, file=self.process.stdin, flush=True)
        with np.load(self._read()["written"]) as file:
            return dict(file)

    @staticmethod
    def _normalized(ours: Ours, images: jax.Array) -> np.ndarray:
        """What networks see, float32, with the rounding of a compiled step: the same bits there."""
        p = ours.program
        found = np.asarray(jax.jit(lambda x: data_lib.normalize(x, p.mean, p.std))(images))
        np.testing.assert_allclose(found, (np.asarray(images) / 255 - p.mean) / p.std, atol=1e-5)
        return found

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="vgg11_bn,resnet18")
    parser.add_argument("--arms", default="", help="only arms whose label begins so")
    parser.add_argument("--unbiased", action="store_true", help="PyTorch's running variance there")
    parser.add_argument("--float32", action="store_true", help="prunejax as studies run it")
    parser.add_argument("--torch-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")
    options = parser.parse_args()
    dtype = jnp.float32 if options.float32 else jnp.float64
    jax.config.update("jax_enable_x64", not options.float32)
    images()
    torch, rows = Torch(options.torch_python), []
    for key, arms in ARMS.items():
        chosen = {k: v for k, v in arms.items() if k.startswith(options.arms)}
        if key[0] not in options.models.split(",") or not chosen:
            continue
        batch = build(*key, chosen)
        ours = Ours(batch, dtype)
        for member in batch.members:
            arm = chosen[member.variant]
            ours.run(member, arm[3].get("kind") == "gaussian")
            told = settings(key, arm, ours, options.unbiased)
            with tempfile.TemporaryDirectory() as folder:
                out = torch.run(os.path.join(folder, "arm.npz"), told, ours)
            label = f"{key[0]} {key[1]} {member.variant}"
            rows.append(compare(label, ours, out, told))
            print(common.table(rows[-1:]).splitlines()[len(rows) > 1 :][0], flush=True)
    torch.close()
    print(common.table(rows))
    if options.save:
        print(f"written to {common.save('released', rows, torch=torch.about)}")
    wrong = [f"{row['arm']}: {name}" for row in rows for name, most in LIMITS.items()
             if not row[name] <= most]  # fmt: skip
    if wrong and not (options.unbiased or options.float32):
        raise SystemExit(f"differences beyond {LIMITS}: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
