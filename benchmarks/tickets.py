"""Twelve levels of lottery tickets on the digits: a whole study, beside the loop of open_lth.

    PYTHONPATH=. python benchmarks/tickets.py [--seeds=5] [--levels=12] [--torch-seeds=1]

Three arms (tickets, their masks with fresh weights, masks shuffled within layers), twelve levels of
40 %, an MLP 64-128-64-10 on 900 images, 600 steps of SGD with momentum 0.9, batches of 64: 37
trainings a seed. The study runs twice with a compilation cache, so that the second time shows what
it takes after compilation, records, evaluation after every epoch and all; its report is left out.
What the chain itself costs: a study of as many dense trainings, each with a seed of its own, is run
twice in the same manner, all at once and as many at a time as the chain can train (its levels wait
for each other). The loop in PyTorch is that of facebookresearch/open_lth written anew
(train, prune globally by magnitude, rewind, mask multiplied at every step), one training after
another, as it does, without its evaluations and files; of fewer seeds, scaled. CPU seconds of the
process; the compile time is the difference of the chain's two runs.
"""

import argparse
import csv
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
from prunejax.study import host_devices, memory, run

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
    parser.add_argument("--torch-seeds", type=int, default=1, help="0: without that loop")
    parser.add_argument("--save", action="store_true", help="write results/DATE-tickets.json")
    given = parser.parse_args()
    count = given.seeds * (1 + 3 * given.levels)
    chain, single = config(given.seeds, given.levels), dense(count)
    host_devices.use(chain)  # as the command does
    report.build = lambda paths: paths[0] / "report.html"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        last = f"ticket{given.levels}"
        first, second = (ours(chain, folder / f"chain{i}", last) for i in (1, 2))
        _, alone = (ours(single, folder / f"dense{i}", "dense") for i in (1, 2))
        together = 3 * given.seeds  # a level's tickets beside the controls of the level before
        memory.most = lambda people, members: (
            -(-min(together, members) // people.multiple) * (people.multiple)
        )
        _, parts = (ours(single, folder / f"parts{i}", "dense") for i in (1, 2))
    row = {
        "seeds": given.seeds, "levels": given.levels, "trainings": count,
        "cpu_seconds_first": first[0], "cpu_seconds": second[0], "wall_seconds": second[1],
        "accuracy": second[2], "trainings_alone_cpu_seconds": alone[0],
        "chain_over_trainings": second[0] / alone[0],
        "trainings_in_parts_cpu_seconds": parts[0],
        "chain_over_trainings_in_parts": second[0] / parts[0],
    }  # fmt: skip
    if given.torch_seeds:
        cpu, accuracy, done = theirs(given.torch_seeds, given.levels)
        scaled = cpu * given.seeds / given.torch_seeds
        row |= {
            "torch_seeds": given.torch_seeds, "torch_trainings": done,
            "torch_cpu_seconds": cpu, "torch_accuracy": accuracy,
            "torch_cpu_seconds_scaled": scaled, "ratio": scaled / second[0],
        }  # fmt: skip
    row = {k: round(v, 4) for k, v in row.items()}
    print(json.dumps(row, indent=1))
    if given.save:
        print(f"saved: {save('tickets', [row], options=vars(given))}")


if __name__ == "__main__":
    main()
