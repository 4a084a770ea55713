"""prunejax beside the released code of the paper: the same weights, batches and noise.

    git clone https://github.com/bbartoldson/GeneralizationStabilityTradeoff DIR
    python benchmarks/released.py --released=DIR [--torch-python=PYTHON] [--arms=REGEX]
        [--rows=FILE] [--save]
    python benchmarks/released.py --windows=steps      # beside our own PyTorch, see below

With `--released=DIR` the other side is the released code itself: its functions, from the
experiment's main loop down, run from that checkout (`released_driver.py` lists the shims around
them). Without it, it is `mechanics_torch.py`, *our* reimplementation from the description, which
knows VGG11 and ResNet18 and, with `--windows=steps`, windows in training steps, which the release
does not have. The first line printed says which of the two it is.

Arms are those of configs/paper on a short clock (`released_arms.py`), windows that reach over
several events included. Both sides start from the same weights and see the same batches; Gaussian
noise (in standard deviations) and random targets are drawn here and given there. With
`--rows=FILE` rows are kept there as they come, and the same command continues. A row per arm:

    events        (event, layer) pairs; counts and target sets are equal, or the arm fails
    scores        largest difference of live filters' scores, relative to the layer's largest
    train loss    largest relative difference over all steps; test loss: over all tests
    correct       tests in which the number of correct answers differs (of all tests; but the last
                  one of noise arms, before which the release sets all targets to zero for good)
    parameters    largest difference after any step, relative to the tensor's largest entry (what
                  is masked counts as zero on both sides)
    statistics    the same for running means and variances of live filters
    steps         training steps compared
    note          where targets part: training amplifies rounding, and a deep network's scores then
                  differ by more than their gaps. It counts as rounding only if our own run, its
                  weights changed in the last digit, parts from itself as early; what is compared
                  then ends before that event and has no limits.
                  Where the release stops by an assertion of its own. It does so in `prune` where
                  the mean score of what it removes is negative, as signed E[BN] can be: such an
                  arm is compared up to there, and again whole with assertions off (`python -O`)

Networks train in float64 on both sides (test losses are float32 here, small ones 1e-5 off):
training amplifies rounding, and what has no gradient, such as the bias of a convolution before
BatchNorm, does under Adam what rounding says. `--float32` runs prunejax as studies do, without
limits on the differences.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
import released_arms
from released_arms import BATCH, TEST_BATCH, Arm
from released_compare import LIMITS, Differs, Parted, compare, parting
from released_ours import Ours

from prunejax import data as data_lib

HERE = Path(__file__).parent
NUDGE = 1e-15  # of every weight, where it is asked whether training amplifies rounding
PARTED = "targets part"


def settings(arm: Arm, ours: Ours) -> dict[str, Any]:
    """What the other side has to know of an arm."""
    s = arm.settings
    i, p, o = s.intervention, s.prune, s.optimizer
    names = [g.name for g in ours.program.groups]
    rules = {name: [n for n in names if re.fullmatch(name, n)] for name in p.layers}
    pick = lambda values, j: values[j % len(values)]  # noqa: E731
    return {
        "width": s.model.width,
        "batch": BATCH,
        "test_batch": TEST_BATCH,
        "random": ours.targets if p.target == "random" else {},
        # for the released code
        "entry": arm.theirs,
        "arch": s.model.name,
        "scratch": arm.scratch,
        "epochs": s.epochs + arm.scratch,  # its first one prunes only
        "rate": o.learning_rate,
        "adam": o.name == "adam",
        "clock": arm.clock,
        "passes": arm.passes,
        # for our reimplementation
        "model": s.model.name,
        "optimizer": {
            "name": o.name,
            "rate": float(np.float32(o.learning_rate)),  # as the run's arrays have it
            "decay": float(np.float32(o.weight_decay)),
            "milestones": tuple(o.milestones),
        },
        "arm": {
            "kind": i.kind,
            "counting": "passes" if i.as_released else "steps",
            "passes": i.duration,
            "newest": i.scope == "newest",
            "restore": i.restore != "no",
            "mask_norm": i.mask_norm,
            "score": p.score,
            "target": p.target,
            "scratch": arm.scratch,
            "layers": {
                name: {
                    "fraction": pick(p.fraction, j),
                    "start": pick(p.start, j),
                    "end": pick(p.end, j),
                    "period": p.period,
                }
                for j, rule in enumerate(p.layers)
                for name in (rules[rule] if p.schedule != "none" else ())
            },
        },
    }


class Other:
    """The process of the other side: the released code, or our reimplementation."""

    def __init__(self, python: str, script: str, *arguments: str, asserts: bool = True) -> None:
        self.python = [python] if asserts else [python, "-O"]
        self.process = subprocess.Popen(
            [*self.python, str(HERE / script), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the PyTorch process ended; --torch-python needs torch, numpy, scipy")
        return json.loads(line)

    def run(self, told: dict, ours: Ours) -> dict[str, np.ndarray]:
        """What the arm comes to there."""
        assert self.process.stdin
        data = ours.data
        images = {"train": data.train_images, "test": data.test_images}
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "arm.npz")
            np.savez(
                path,
                settings=json.dumps(told),
                order=np.stack(ours.order),
                **{f"images/{name}": _normalized(ours, x) for name, x in images.items()},
                **{"labels/train": data.train_labels, "labels/test": data.test_labels},
                **ours.start,
                **{f"noise/{name}": np.stack(draws) for name, draws in ours.noise.items()},
            )
            print(path, file=self.process.stdin, flush=True)
            with np.load(self._read()["written"]) as file:
                return dict(file)

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def _normalized(ours: Ours, images: jax.Array) -> np.ndarray:
    """What networks see, float32, with the rounding of a compiled step: the same bits there."""
    p = ours.program
    found = np.asarray(jax.jit(lambda x: data_lib.normalize(x, p.mean, p.std))(images))
    np.testing.assert_allclose(found, (np.asarray(images) / 255 - p.mean) / p.std, atol=1e-5)
    return found


def checkout(folder: str) -> str:
    """The absolute path of a checkout of the released code; SystemExit(2) where it is none."""
    wanted = ("experiments.py", "models.py", "utils.py", "config.py", "architectures_and_layers")
    lacks = [name for name in wanted if not (Path(folder).expanduser() / name).exists()]
    if lacks:
        print(
            f"--released={folder}: no checkout of the released code, {lacks[0]} is not there; "
            "clone github.com/bbartoldson/GeneralizationStabilityTradeoff",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return str(Path(folder).expanduser().resolve())


def kept(path: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of the arms that an earlier call finished; none without a file."""
    lines = Path(path).read_text().splitlines() if path and Path(path).exists() else []
    found = [json.loads(line) for line in lines]
    return {rows[0]["arm"]: rows for rows in found}


def rows_of(
    arm: Arm, member: Any, ours: Ours, others: dict[str, Other], start: Any
) -> list[dict[str, Any]]:
    """The arm's rows: one, or two where the release stops."""
    told = settings(arm, ours)
    out = others["plain"].run(told, ours)
    try:
        found = [compare(arm.label, ours, out, told)]
    except Parted as error:
        # Does training amplify rounding so much that it parts from itself as early?
        event = parting(ours.targets, json.loads(str(out["facts"]))["events"])
        row = compare(arm.label, ours, out, told, until=event)
        targets = ours.targets
        ours.run(member, arm.settings.intervention.kind == "gaussian", nudge=NUDGE)
        own = parting(targets, ours.targets)
        if not own or int(own.split("/")[0]) > int(event.split("/")[0]):
            raise
        note = f"{PARTED} at {event}; ours from weights {NUDGE:.0e} away at {own}"
        print(error, flush=True)
        return [row | {"note": note}]
    if found[0]["note"]:
        if "bare" not in others:
            others["bare"] = start(asserts=False)
        again = compare(arm.label, ours, others["bare"].run(told, ours), told)
        found.append(again | {"note": "assertions off"})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--released", metavar="DIR", help="a checkout of the released code")
    parser.add_argument("--windows", choices=("passes", "steps"), default="passes")
    parser.add_argument("--models", default="", help="only these, separated by commas")
    parser.add_argument("--arms", default="", help="only arms in whose label this is found")
    parser.add_argument("--float32", action="store_true", help="prunejax as studies run it")
    parser.add_argument("--torch-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--rows", default="", metavar="FILE", help="keep rows here and continue")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")
    options = parser.parse_args()
    folder = None if options.released is None else checkout(options.released)
    if folder and options.windows == "steps":
        parser.error("--windows=steps: the released code counts passes; leave out --released")
    beside = "the released code" if folder else "our reimplementation (mechanics_torch.py)"
    print(f"beside {beside}", flush=True)
    jax.config.update("jax_enable_x64", not options.float32)
    released_arms.images()
    chosen = [a for a in released_arms.arms(options.windows == "steps")
              if re.search(options.arms, a.label)
              and a.settings.model.name in (options.models or a.settings.model.name).split(",")
              and (folder or a.settings.model.name in ("vgg11_bn", "resnet18"))]  # fmt: skip
    if not chosen:
        parser.error(f"--arms={options.arms} --models={options.models}: no arm")
    script = ("released_driver.py", folder) if folder else ("mechanics_torch.py",)

    def start(asserts: bool = True) -> Other:
        return Other(options.torch_python, *script, asserts=asserts)

    others, by_label = {"plain": start()}, {a.label: a for a in chosen}
    done, wrong = kept(options.rows), []
    for batch in released_arms.build([a for a in chosen if a.label not in done]):
        ours = Ours(batch, jnp.float32 if options.float32 else jnp.float64)
        for member in batch.members:
            arm = by_label[member.variant]
            ours.run(member, arm.settings.intervention.kind == "gaussian")
            try:
                done[arm.label] = rows_of(arm, member, ours, others, start)
            except Differs as error:
                wrong.append(str(error))
                print(error, flush=True)
                continue
            print(*common.table(done[arm.label]).splitlines()[1:], sep="\n", flush=True)
            if options.rows:
                with open(options.rows, "a") as file:
                    print(json.dumps(done[arm.label]), file=file)
    rows = [row for arm in chosen for row in done.get(arm.label, ())]
    for other in others.values():
        other.close()
    print(common.table(rows))
    if options.save:
        name = "released" if folder else "released-mechanics"
        print(f"written to {common.save(name, rows, beside=beside, torch=others['plain'].about)}")
    wrong += [f"{row['arm']}: {name}" for row in rows for name, most in LIMITS.items()
             if not row[name] <= most and not row["note"].startswith(PARTED)]  # fmt: skip
    if wrong and not options.float32:
        raise SystemExit(f"differences beyond {LIMITS}: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
