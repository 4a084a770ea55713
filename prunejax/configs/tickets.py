"""Lottery tickets on the digits: twelve levels of iterative magnitude pruning, and their controls.

    bash launch/local.sh --config=configs/tickets.py --workdir=runs/tickets

Scikit-learn's 8x8 digits, an MLP 64-128-64-10 whose output layer is kept, SGD with momentum, 40 %
of the live weights go at every level, survivors are put back to their initial values. Beside the
tickets, at levels 2, 5, 8, 10 and 12: the same masks with fresh initial weights, masks shuffled
within layers, and the dense network trained as long as all levels together. Settings are those of
a pilot on other seeds; the study runs seeds 400 to 404. Only the quick form has been run
so far: its claims are open.

`:quick` has 3 levels, 2 seeds and 4 epochs (mechanics only).
"""

from ml_collections import ConfigDict

from prunejax.configs import default, recipes


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: "" or "quick"."""
    if arg not in ("", "quick"):
        raise ValueError(f"configs/tickets.py:{arg}: the argument is 'quick' or nothing")
    quick = arg == "quick"
    config = default.get_config()
    config.name = "tickets"
    config.seeds, config.first_seed = (2, 400) if quick else (5, 400)
    config.epochs, config.batch_size = (4, 64) if quick else (40, 64)
    config.data.name = "digits"
    config.model.name = "mlp128_64"
    config.optimizer.name, config.optimizer.momentum = "sgd", 0.9
    config.optimizer.learning_rate, config.optimizer.schedule = 0.05, "cosine"
    levels = 3 if quick else 12
    at = (2, 3) if quick else (2, 5, 8, 10, 12)
    config.variants = default.arms(
        recipes.lottery(
            config,
            levels=levels,
            fraction=0.4,
            controls={"fresh": at, "layer_shuffle": at, "extended": (at[-1],)},
        )
    )
    config.report.baseline = "dense"
    config.report.figures = ("density", "table")
    config.report.claims = (
        *(f"ticket{n} > fresh{n} in final_test_accuracy" for n in at[1:]),
        *(f"ticket{n} > layer_shuffle{n} in final_test_accuracy" for n in at[1:]),
    )
    config.report.mechanics_only = quick
    return config
