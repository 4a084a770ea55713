"""Stage "projection": hours that figure 2 (VGG11: 60 runs x 325 epochs) takes on this device."""

from typing import Any

from gpu_memory import population
from gpu_stage import Stage

RUNS, EPOCHS = 60, 325
TARGET = 2.0  # hours


def hours(row: dict[str, Any], at_once: int) -> float:
    """Training, one evaluation an epoch, events with one more, compilation once."""
    epoch = row["steps an epoch"] * row["ms a step"] / 1e3 + row["s an evaluation"]
    events = row["epochs with events"] * (row["s an event"] + row["s an evaluation"])
    chunks = -(-RUNS // at_once)
    return (chunks * (EPOCHS * epoch + events) + row["compile, s"]) / 3600


def body(stage: Stage) -> None:
    """Every number of members that train at once, and the best of them."""
    for members in (2,) if stage.cpu else (20, 60, 30, 1):
        if stage.found(members=members):
            continue
        row = population(stage, "vgg11_bn", members, "float32", "projection")
        if "failed" in row:
            # The members do not fit, say: no failure of the stage while others do.
            if not any("hours" in r for r in stage.rows):
                stage.add(members=members, failed=row["failed"])
            continue
        keep = ("ms a step", "images/s", "s an evaluation", "s an event", "compile, s")
        stage.add(members=members, **{k: row[k] for k in keep}, hours=hours(row, members))
    best = min((r for r in stage.rows if "hours" in r), key=lambda r: r["hours"], default=None)
    if best and not stage.cpu:
        stage.failures.clear()
        text = f"{best['hours']:.2f} hours with {best['members']} runs at once; target {TARGET:g}"
        stage.record["projection"] = f"figure 2, VGG11, {RUNS} runs x {EPOCHS} epochs: {text}"
        print("  " + stage.record["projection"], flush=True)
    elif best:
        stage.record["projection"] = "none: a narrow network on a CPU says nothing about it"


if __name__ == "__main__":
    Stage("projection", __doc__).main(body)
