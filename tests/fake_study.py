"""A run directory as a real study leaves it, with numbers made up but plausible, in no time."""

from typing import Any

import numpy as np

from prunejax.record.columns import EPOCHS, EVENTS, RUNS
from prunejax.record.run_directory import RunDirectory
from prunejax.record.summary import summarize
from prunejax.system import files

LAYERS = {"conv7": (128, 0.3, 3, 28), "conv8": (128, 0.8, 4, 46)}  # units, fraction, start, end
# arm -> target, period, mean drop of accuracy at an event per fraction of the layer removed
ARMS = {
    "none": (None, 0, 0.0),
    "Prune_S 1%": ("smallest", 2, 0.02),
    "Prune_S 13%": ("smallest", 10, 0.10),
    "Prune_R 13%": ("random", 10, 0.35),
    "Prune_L 13%": ("largest", 10, 0.70),
}
FORCES = {"smallest": 0.10, "random": 0.35, "largest": 0.70}
# A sweep of the period, as in the paper's figure 3.
RATE_ARMS = {"none": (None, 0, 0.0)} | {
    f"{target[0].upper()}, every {period}": (target, period, force)
    for target, force in FORCES.items()
    for period in (1, 4, 8, 16, 30, 60)
}
# Noise arms, as in figures 5 and D2: the changes of `intervention` that each makes.
NOISE = {
    "none": None,
    "Prune_L": {"kind": "prune"},
    **{f"zeroing {n}": {"kind": "zero", "duration": n} for n in (1, 50, 1105)},
    **{f"Gaussian {n}": {"kind": "gaussian", "duration": n} for n in (1, 50, 1105)},
    **{f"restore {n}": {"kind": "zero", "duration": n, "restore": "weights"} for n in (89, 630)},
}
NOISE_ARMS = {
    label: ("largest", 10, 0.7) if changes else (None, 0, 0.0) for label, changes in NOISE.items()
}
# Two corners of optimizer and weight decay, three arms each.
CORNERS = [("adam", 0.0), ("sgd", 0.0), ("sgd", 5e-4)]
CORNER_ARMS = {
    f"{optimizer} {decay:g} {label}": arm
    for optimizer, decay in CORNERS
    for label, arm in {
        "none": (None, 0, 0.0),
        "S": ("smallest", 10, 0.1),
        "L": ("largest", 10, 0.7),
    }.items()
}
MEASURES = (
    *("hessian_trace", "hessian_trace_stderr"),
    *("gradient_second_moment", "gradient_second_moment_stderr"),
    *("tic", "tic_stderr", "epsilon_flatness", "top_eigenvalue"),
)
FORECAST = ("predicted_first", "predicted_second")


def noise_variants():
    """The `variants` of a config of noise arms."""
    found: dict[str, dict[str, Any]] = {}
    for label, changes in NOISE.items():
        schedule = "linear" if changes else "none"
        found[label] = {"prune": {"schedule": schedule, "target": "largest"}}
        found[label]["intervention"] = changes or {"kind": "none"}
    return found


def corner_variants():
    """The `variants` of a config of corners."""
    found = config_of(CORNER_ARMS)["variants"]
    for optimizer, decay in CORNERS:
        for label in ("none", "S", "L"):
            arm = found[f"{optimizer} {decay:g} {label}"]
            arm["optimizer"] = {"name": optimizer, "weight_decay": decay}
    return found


def config_of(arms, **changes):
    variants = {
        label: {"prune": {"schedule": "linear", "target": target, "period": period}}
        if target
        else {"prune": {"schedule": "none"}}
        for label, (target, period, _) in arms.items()
    }
    return {
        "name": "made-up study",
        "seeds": 5,
        "epochs": 60,
        "batch_size": 128,
        "data": {"name": "fashion_mnist", "train_examples": 4000},
        "model": {"name": "vgg11_bn", "width": 0.5},
        "prune": {"schedule": "linear", "score": "ebn", "layers": [".*"]},
        "report": {"baseline": "none", "figures": ["dynamics", "scatter", "gap", "table"]},
        "variants": variants,
        **changes,
    }


def write(path, arms=ARMS, seeds=range(5), epochs=60, measures=True, forecast=True, **changes):
    """Writes the directory; `changes` go into the config. Returns the path."""
    tables = {
        "epochs": EPOCHS,
        "events": (*EVENTS, *(FORECAST if forecast else ())),
        "runs": (*RUNS, *(MEASURES if measures else ())),
    }
    environment = {"python": "3.11.9", "packages": {"jax": "0.10.2"}, "devices": ["cpu: cpu"]}
    config = config_of(arms, epochs=epochs, **changes)
    with RunDirectory.open(path, config, environment, tables) as directory:
        for arm in arms:
            for seed in seeds:
                _run(directory, arms, arm, seed, epochs, measures, forecast)
        directory.finish()
    return path


def as_text(row):
    return {column: files.cell(value) for column, value in row.items()}


def schedule(period, layer, epochs):
    units, fraction, start, end = LAYERS[layer]
    if not period:
        return {}
    when = list(range(start, min(end, epochs - 1) + 1, period))
    left = np.ceil(np.linspace(units, units * (1 - fraction), len(when) + 1)).astype(int)
    return dict(zip(when, -np.diff(left), strict=True))


def _run(directory, arms, arm, seed, epochs, measures, forecast):
    _, period, force = arms[arm]
    rng = np.random.default_rng([seed, list(arms).index(arm)])
    base = {"run": f"{arm}-{seed}", "variant": arm, "seed": seed}
    plans = {layer: schedule(period, layer, epochs) for layer in LAYERS}
    live = {layer: LAYERS[layer][0] for layer in LAYERS}
    gain, drop, stabilities = 0.0, 0.0, []
    recorded: tuple[list[Any], list[Any]] = ([], [])  # epochs, events
    for epoch in range(epochs):
        smooth = 0.86 - 0.5 * np.exp(-epoch / 4) - 0.02 * (epoch < 27) * np.exp(-epoch / 90)
        drop *= 0.35
        pre = float(np.clip(smooth + gain - drop + rng.normal(0, 0.003), 0.05, 0.99))
        due = {layer: int(plan[epoch]) for layer, plan in plans.items() if epoch in plan}
        share = sum(k / LAYERS[layer][0] for layer, k in due.items())
        post = pre
        if due:
            post = pre * (1 - float(np.clip(force * share * rng.lognormal(0, 0.3), 0, 0.9)))
            drop, gain = pre - post, gain + 0.35 * (1 - post / pre) * 0.06
            stabilities.append(post / pre)
        losses = (-np.log(pre), -np.log(post))
        for layer, k in due.items():
            live[layer] -= k
            row = base | {"epoch": epoch, "step": 32 * (epoch + 1), "layer": layer}
            row |= {"targeted": k, "live": live[layer], "pre_accuracy": pre, "post_accuracy": post}
            row |= {"pre_loss": losses[0], "post_loss": losses[1], "instability": 1 - post / pre}
            change = losses[1] - losses[0]
            if forecast:
                row["predicted_first"] = 0.2 * change + rng.normal(0, 0.002)
                row["predicted_second"] = 0.8 * change + rng.normal(0, 0.002)
            recorded[1].append(row)
        train = min(1.0, post + 0.004 * epoch * (1 - 0.5 * drop) ** 2 * (1 - 6 * gain))
        removed = 1 - sum(live.values()) / sum(units for units, *_ in LAYERS.values())
        row = base | {"epoch": epoch, "step": 32 * (epoch + 1), "train_loss": -np.log(train)}
        row |= {"train_accuracy": train, "test_loss": losses[1], "test_accuracy": post}
        recorded[0].append(row | {"learning_rate": 1e-3, "sparsity": removed})
    for table, rows in zip(("epochs", "events"), recorded, strict=True):
        directory.append(table, rows)
    stability = float(np.mean(stabilities)) if stabilities else 1.0
    epochs_csv, events_csv = ([as_text(r) for r in rows] for rows in recorded)
    row = base | summarize(epochs_csv, events_csv, "done")
    if measures:
        trace = 300 * (1 - 2 * (1 - stability)) + rng.normal(0, 12)
        noise = 3000 * (1 - 2.5 * (1 - stability)) + rng.normal(0, 150)
        eigenvalues = trace / 6 * np.exp(-np.arange(100) / 7) * rng.uniform(0.9, 1.1, 100)
        row |= {"hessian_trace": trace, "hessian_trace_stderr": 8.0}
        row |= {"gradient_second_moment": noise, "gradient_second_moment_stderr": 90.0}
        row |= {"tic": noise / trace, "tic_stderr": 0.4, "top_eigenvalue": eigenvalues.max()}
        row |= {"epsilon_flatness": 0.12 + 0.3 * (1 - stability) + rng.normal(0, 0.004)}
        epsilons = np.linspace(-0.13, 0.13, 27)
        directory.save_arrays(
            base["run"],
            eigenvalues=np.sort(eigenvalues)[::-1],
            epsilons=epsilons,
            loss_increase=eigenvalues[:9, None] * epsilons**2 / 2,
        )
    directory.append("runs", [row])
