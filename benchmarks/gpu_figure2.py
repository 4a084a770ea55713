"""Stage "figure2": a real piece of figure 2: VGG11 on CIFAR-10, arms none, S_13, L_13.

As many epochs as fit into `--figure-minutes` (over all calls) with four seeds an arm, the schedule
in proportion: as many events of each layer as in 325 epochs, learning rate and events at the same
fractions of training. A measured epoch decides once (OUT/figure2/plan.json); every call continues
the same study, bit for bit as far as stage "smoke" finds that a GPU keeps its bits.

The study itself: `python -m prunejax.main --config=benchmarks/gpu_figure2.py:epochs=52,seeds=4`.
"""

import csv
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ARMS = ("none", "S_13", "L_13")
FULL = 325  # epochs
PERIOD, MILESTONES = 40, (150, 300)


def get_config(arg: str = "") -> Any:
    """The study. `arg`: epochs=N,seeds=N and, for a CPU, small or small,cifar10."""
    from prunejax.configs import default
    from prunejax.configs.paper import common, fig2_vgg11

    words = [word.partition("=") for word in arg.split(",") if word]
    numbers = {"epochs": FULL, "seeds": 10} | {k: int(v) for k, _, v in words if v}
    given = [k for k, _, v in words if not v]
    if set(numbers) != {"epochs", "seeds"} or numbers["epochs"] < 10 or numbers["seeds"] < 1:
        raise ValueError(f"{arg!r}: give epochs=N (at least 10), seeds=N, small, cifar10")
    epochs, part = numbers["epochs"], numbers["epochs"] / FULL
    config = fig2_vgg11.get_config("small" if given else "")
    milestones = tuple(round(part * m) for m in MILESTONES)
    if given:
        common.make_small(config, given, epochs=epochs, milestones=milestones, width=0.125)
        config.data.train_examples, config.data.test_examples = 512, 256
    config.name = f"Figure 2, VGG11: {epochs} of {FULL} epochs"
    config.seeds, config.epochs, config.optimizer.milestones = numbers["seeds"], epochs, milestones
    config.population.layout = "sequential" if given else "vectorized"
    config.checkpoint.every_minutes = 2.0
    variants = {label: config.variants[label] for label in ARMS}
    for label in ARMS[1:]:
        prune = variants[label].prune
        prune.start, prune.end, prune.period = schedule(part, common.VGG11)
    config.variants = default.arms(variants)
    config.report.correlate = ARMS[1:]
    return config


def schedule(part: float, full: Any) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Starts, ends and period of this part of the epochs, with as many events of every layer."""
    period = max(1, round(part * PERIOD))
    starts = tuple(round(part * start) for start in full["start"])
    counts = [
        (end - start) // PERIOD + 1 for start, end in zip(full["start"], full["end"], strict=True)
    ]
    return starts, tuple(s + n * period - 1 for s, n in zip(starts, counts, strict=True)), period


def plan(stage: Any) -> dict[str, int]:
    """Epochs and seeds, decided once."""
    from gpu_memory import population

    file = stage.out / "figure2" / "plan.json"
    file.parent.mkdir(exist_ok=True)
    if file.exists():
        return json.loads(file.read_text())
    found = {"epochs": 10, "seeds": 1}
    if not stage.cpu:
        row = population(stage, "vgg11_bn", 12, "float32", "figure2")
        if "failed" in row:
            raise RuntimeError(row["failed"])
        epoch = row["steps an epoch"] * row["ms a step"] / 1e3 + row["s an evaluation"]
        events = 10 * (row["s an event"] + row["s an evaluation"])
        seconds = 60 * stage.options.figure_minutes - events - 2 * row["compile, s"] - 30
        epochs = math.floor(0.9 * seconds / epoch)
        found = {"epochs": min(FULL, max(10, epochs)), "seeds": 4}
        if epochs > FULL:
            found["seeds"] = min(10, 4 * epochs // FULL)
        if epochs < 20:
            found["seeds"] = 2
    file.write_text(json.dumps(found) + "\n")
    return found


def arms(run: Path) -> dict[str, float]:
    """Mean final test accuracy and mean stability of every arm, in percent."""
    with open(run / "runs.csv") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for label in ARMS:
        for column, name in (("final_test_accuracy", "accuracy"), ("mean_stability", "stability")):
            values = [float(r[column]) for r in rows if r["variant"] == label]
            if values:
                found[f"{label} {name}, %"] = 100 * statistics.mean(values)
    return found


def body(stage: Any) -> None:
    """Continues the study for as long as this call lasts."""
    from gpu_stage import Skipped, UnfinishedError, last_line

    data = stage.options.data
    if not data and not stage.cpu:
        raise Skipped("no CIFAR-10: give --data=DIR, a prepared TFDS folder")
    run = stage.out / "figure2" / "run"
    if stage.found(finished=True):
        return
    chosen = plan(stage)
    words = [f"{k}={v}" for k, v in chosen.items()]
    words += ["small"] * stage.cpu + ["cifar10"] * (stage.cpu and bool(data))
    command = [sys.executable, "-m", "prunejax.main", f"--workdir={run}"]
    command += [f"--config={Path(__file__).resolve()}:{','.join(words)}"]
    begin, epochs = time.perf_counter(), run / "epochs.csv"
    row: dict[str, Any] = dict(chosen)
    try:
        cache = str(stage.out / "xla")
        # Not `config.data.data_dir`: where the set lies here says nothing to readers of the page.
        place = {"TFDS_DATA_DIR": data} if data else {}
        code = stage.run(command, "figure2", 60.0, JAX_COMPILATION_CACHE_DIR=cache, **place)
    except UnfinishedError:
        done = epochs.read_bytes().count(b"\n") - 1 if epochs.exists() else 0
        row["epochs of runs done"] = f"{done} of {len(ARMS) * chosen['seeds'] * chosen['epochs']}"
        stage.add(**row, seconds=time.perf_counter() - begin)
        raise
    row["seconds"] = time.perf_counter() - begin
    if code:
        said = last_line(stage.logs / "figure2.log")
        stage.add(**row, failed=f"exit code {code}: {said}")
        return
    stage.add(**row, **arms(run), finished=True)
    keep = (
        "report.html",
        "summary.json",
        "epochs.csv",
        "events.csv",
        "runs.csv",
        "environment.json",
    )
    stage.record["keep"] = [str(Path("figure2/run") / name) for name in keep]
    print(f"  to keep it: cp {run / 'report.html'} docs/fig2_vgg11_gpu.html", flush=True)


if __name__ == "__main__":
    from gpu_stage import Stage

    Stage("figure2", __doc__).main(body)
