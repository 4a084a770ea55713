"""Ways of pruning side by side on the digits: before, while and after a small network trains.

    bash launch/local.sh --config=configs/methods/digits.py --workdir=runs/methods

Scikit-learn's 8x8 digits, an MLP 64-128-64-10 of which every kernel is pruned, SGD with momentum,
cosine schedule, equal steps for all. Densities 20, 10, 5 and 2 % of the kernels' weights. Equal
steps are not equal cost: gradual pruning and AC/DC train dense for a part of them. Settings are
those of pilots on other seeds; the study runs seeds 600 to 607. It has not been run
so far: its claims are open.

`:quick` has 2 seeds, 2 densities and 6 epochs (mechanics only).
"""

from typing import Any

from ml_collections import ConfigDict

from prunejax.configs import default

BEFORE = ("random", "magnitude", "snip", "grasp", "synflow", "static")
WHILE = ("set", "rigl", "gradual", "acdc")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: "" or "quick"."""
    if arg not in ("", "quick"):
        raise ValueError(f"configs/methods/digits.py:{arg}: the argument is 'quick' or nothing")
    quick = arg == "quick"
    config = default.get_config()
    config.name = "methods on digits"
    config.seeds, config.first_seed = (2, 600) if quick else (8, 600)
    config.epochs, config.batch_size = (6, 64) if quick else (27, 64)
    config.model.name = "mlp128_64"
    config.optimizer.name, config.optimizer.momentum = "sgd", 0.9
    config.optimizer.learning_rate, config.optimizer.schedule = 0.1, "cosine"
    config.optimizer.weight_decay, config.optimizer.weight_decay_rule = 1e-4, ".*/kernel"
    total = config.epochs * 23  # training steps: 1,415 examples in batches of 64
    settings: dict[str, dict[str, Any]] = {
        "synflow": {"rounds": 10 if quick else 100},
        "set": {"update_every": 20},
        "rigl": {"update_every": 20},
        "gradual": {"start": (total // 10,), "end": (3 * total // 4,), "period": 20},
        "acdc": {"phases": tuple(total * k // 20 for k in (2, 4, 6, 8, 10, 12, 14))},
    }
    densities = (20, 5) if quick else (20, 10, 5, 2)
    arms: dict[str, dict[str, Any]] = {"dense": {}}
    for method in (*BEFORE, *WHILE):
        for density in densities:
            prune = {"method": method, "fraction": (round(1 - density / 100, 2),)}
            arms[f"{method}-{density:02d}"] = {"prune": prune | settings.get(method, {})}
    config.variants = default.arms(arms)
    config.report.baseline = "dense"
    config.report.figures = ("density", "table")
    low = "05"
    config.report.claims = (
        f"rigl-{low} > set-{low} in final_test_accuracy",
        f"set-{low} > static-{low} in final_test_accuracy",
        f"gradual-{low} > rigl-{low} in final_test_accuracy",
        f"snip-{low} > static-{low} in final_test_accuracy",
        f"synflow-{low} > random-{low} in final_test_accuracy",
    )
    config.report.mechanics_only = quick
    return config
