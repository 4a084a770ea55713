"""Twelve levels of lottery tickets on the digits: a whole study, beside the loop of open_lth.

    PYTHONPATH=. python benchmarks/tickets.py [--seeds=5] [--levels=12] [--rounds=3]

Three arms (tickets, their masks with fresh weights, masks shuffled within layers), twelve levels of
40 %, an MLP 64-128-64-10 on 900 images, 600 steps of SGD with momentum 0.9, batches of 64: 37
trainings a seed. All studies run with records, evaluation after every epoch and all; their reports
are left out. What the chain itself costs: as many trainings of networks pruned before training,
each with a seed of its own, in as many waves as the chain has (its levels wait for each other); and
as many of dense networks all at once. Each study runs once for the compilation cache; after that
they run in turn, and the fastest of each counts.
The loop in PyTorch is that of facebookresearch/open_lth written anew (train, prune globally by
magnitude, rewind, mask multiplied at every step), one training after another, as it does, without
its evaluations and files; of fewer seeds, scaled. CPU seconds of the process; the compile time is
the difference of the chain's first run.
"""

import argparse
import contextlib
import csv
import importlib.util
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from common import save

from prunejax import report
from prunejax.configs import default, recipes
from prunejax.data import load
from prunejax.study import run
from prunejax.study.devices import host_devices, memory

LEVELS, FRACTION, STEPS, BATCH = 12, 0.4, 600, 64


def dense(seeds):
    """As many trainings of one arm as there are seeds."""
    c = default.get_config()
    c.seeds, c.epochs, c.batch_size = seeds, 40, BATCH
    c.data.name, c.data.train_examples = "digits_mixed", 900
    c.model.name = "mlp128_64"
    c.optimizer.name, c.optimizer.learning_rate, c.optimizer.schedule = "sgd", 0.05, "cosine"
    c.variants = default.arms({"dense": {}})
    return c


def pruned(seeds):
    """As many trainings of one arm, each without the smallest of its first weights."""
    c = dense(seeds)
    c.prune.granularity, c.prune.scope = "weight", "global"
    own = {"schedule": "scratch", "score": "magnitude", "fraction": (FRACTION,), "layers": (".*",)}
    c.variants = default.arms({"pruned": {"prune": own}})
    return c


def config(seeds, levels=LEVELS):
    """The chain, and its two controls of every level."""
    c = dense(seeds)
    at = tuple(range(1, levels + 1))
    arms = recipes.lottery(
        c, levels=levels, fraction=FRACTION, controls={"fresh": at, "layer_shuffle": at}
    )
    c.variants = default.arms(arms)
    return c


def ours(config, folder, arm):
    """(CPU seconds, wall seconds, mean accuracy of an arm) of a study."""
    begin, wall = time.process_time(), time.perf_counter()
    run.run(config, folder, default.get_config(), quiet=True)
    took = time.process_time() - begin, time.perf_counter() - wall
    with (folder / "runs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["variant"] == arm]
    return *took, float(np.mean([float(row["final_test_accuracy"]) for row in rows]))


@contextlib.contextmanager
def at_once(members):
    """Stacks of at most so many members; None: of as many as ever."""
    before = memory.most
    if members:
        memory.most = lambda people, count: before(people, min(members, count))
    try:
        yield
    finally:
        memory.most = before


def theirs(seeds, levels):
    """(CPU seconds, accuracy at the last level, trainings) of the loop in PyTorch."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    data = load("digits_mixed", train_examples=900)
    x, xt = (torch.tensor(i.reshape(len(i), -1) / 240.0).float() for i in
             (data.train_images, data.test_images))  # fmt: skip
    y, yt = (torch.tensor(i).long() for i in (data.train_labels, data.test_labels))
    mean, std = x.mean(), x.std()
    x, xt = (x - mean) / std, (xt - mean) / std

    def network():
        return nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def train(state, masks, seed):
        net = network()
        net.load_state_dict(state)
        kernels = [net[0].weight, net[2].weight]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        order = torch.Generator().manual_seed(seed)
        done = 0
        while done < STEPS:
            for batch in torch.randperm(len(x), generator=order).split(BATCH):
                with torch.no_grad():
                    for w, m in zip(kernels, masks, strict=True):
                        w.mul_(m)
                optimizer.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
                optimizer.step()
                schedule.step()
                done += 1
                if done == STEPS:
                    break
        with torch.no_grad():
            for w, m in zip(kernels, masks, strict=True):
                w.mul_(m)
            right = (net(xt).argmax(1) == yt).float().mean().item()
        return [w.detach().clone() for w in kernels], right

    begin, last, trainings = time.process_time(), [], 0
    for seed in range(seeds):
        torch.manual_seed(seed)
        start = network().state_dict()
        masks = [torch.ones(128, 64), torch.ones(64, 128)]
        for level in range(levels + 1):
            ends, right = train(start, masks, seed)
            trainings += 1
            if level:  # controls
                train(network().state_dict(), masks, seed)
                mixed = [m.flatten()[torch.randperm(m.numel())].view_as(m) for m in masks]
                train(start, mixed, seed)
                trainings += 2
            size = torch.cat([w.abs()[m > 0] for w, m in zip(ends, masks, strict=True)])
            gone = int(np.ceil(FRACTION * size.numel()))
            threshold = size.sort().values[gone]
            if level < levels:
                masks = [m * (w.abs() >= threshold) for w, m in zip(ends, masks, strict=True)]
        last.append(right)
    return time.process_time() - begin, float(np.mean(last)), trainings


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--levels", type=int, default=LEVELS)
    parser.add_argument("--rounds", type=int, default=3, help="after the first run of each")
    parser.add_argument("--torch-seeds", type=int, default=1, help="0: without that loop")
    parser.add_argument("--save", action="store_true", help="write results/DATE-tickets.json")
    given = parser.parse_args()
    if given.torch_seeds and importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed; --torch-seeds=0 leaves its loop out")
    count = given.seeds * (1 + 3 * given.levels)
    # A chain trains in waves: the dense networks, each level's tickets beside the controls of the
    # level before, the last controls.
    waves = given.levels + 2
    contenders = {
        "chain": (config(given.seeds, given.levels), f"ticket{given.levels}", None),
        "trainings": (pruned(count), "pruned", -(-count // waves)),
        "dense_at_once": (dense(count), "dense", None),
    }
    host_devices.use(contenders["chain"][0])  # as the command does
    report.build = lambda paths: paths[0] / "report.html"
    row = {"seeds": given.seeds, "levels": given.levels, "trainings": count}
    row["rounds"] = given.rounds
    found = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        for turn in range(1 + given.rounds):
            for name, (study, arm, together) in contenders.items():
                with at_once(together):
                    found[name].append(ours(study, folder / f"{name}{turn}", arm))
    row["cpu_seconds_first"] = found["chain"][0][0]
    best = {name: min(runs[1:]) for name, runs in found.items()}
    for name, (cpu, wall, accuracy) in best.items():
        row |= {f"{name}_cpu_seconds": cpu, f"{name}_wall_seconds": wall}
        row[f"{name}_accuracy"] = accuracy
        row[f"{name}_all_cpu_seconds"] = [round(run[0], 1) for run in found[name][1:]]
    cpu = best["chain"][0]
    row["chain_over_trainings"] = cpu / best["trainings"][0]
    row["chain_over_dense_at_once"] = cpu / best["dense_at_once"][0]
    if given.torch_seeds:
        theirs_cpu, accuracy, done = theirs(given.torch_seeds, given.levels)
        scaled = theirs_cpu * given.seeds / given.torch_seeds
        row |= {
            "torch_seeds": given.torch_seeds, "torch_trainings": done,
            "torch_cpu_seconds": theirs_cpu, "torch_accuracy": accuracy,
            "torch_cpu_seconds_scaled": scaled, "ratio": scaled / cpu,
        }  # fmt: skip
    row = {k: v if isinstance(v, list) else round(v, 4) for k, v in row.items()}
    print(json.dumps(row, indent=1))
    if given.save:
        print(f"saved: {save('tickets', [row], options=vars(given))}")


if __name__ == "__main__":
    main()
