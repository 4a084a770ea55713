"""Recall distortion: which classes pay for pruning, and does Undecayed Pruning spare them?

    bash launch/local.sh --config=configs/recall.py --workdir=runs/recall

The embedded Fashion-MNIST extract at 14x14 (6,000 training, 10,000 test images), an MLP
196-64-64-10, SGD with momentum and weight decay. Every run of an arm starts from the dense network
of its seed, loses 50, 75, 90, 95 or 98 % of the weights of its hidden layers at once, and is tuned
with the mask for a third of the training: by magnitude (mp), |w g| (gp), |w g - decay w^2| (up,
Good et al. 2022) or at random. The settings are those of a pilot on other seeds; the study runs
seeds 500 to 507. Only the quick form has been run so far.

`:quick` has 2 seeds, 2 ratios, 1,000 images and 3 epochs (mechanics only).
"""

from ml_collections import ConfigDict

from prunejax.configs import default

SCORES = {"mp": "magnitude", "gp": "weight_saliency", "up": "undecayed", "random": "weight_random"}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: "" or "quick"."""
    if arg not in ("", "quick"):
        raise ValueError(f"configs/recall.py:{arg}: the argument is 'quick' or nothing")
    quick = arg == "quick"
    config = default.get_config()
    config.name = "recall"
    config.seeds, config.first_seed = (2, 500) if quick else (8, 500)
    config.epochs, config.batch_size = (3, 64) if quick else (16, 64)
    config.data.name = "fashion14"
    if quick:
        config.data.train_examples, config.data.test_examples = 1000, 1000
    config.model.name = "mlp64_64"
    config.optimizer.name, config.optimizer.momentum = "sgd", 0.9
    config.optimizer.learning_rate, config.optimizer.schedule = 0.05, "cosine"
    config.optimizer.weight_decay, config.optimizer.weight_decay_rule = 5e-4, ".*/kernel"
    config.prune.granularity, config.prune.scope = "weight", "global"
    config.prune.saliency_examples = 128
    ratios = (0.5, 0.98) if quick else (0.5, 0.75, 0.9, 0.95, 0.98)
    arms: dict[str, dict] = {"dense": {}}
    for name, score in SCORES.items():
        for ratio in ratios:
            arms[f"{name}-{round(100 * ratio)}"] = {
                "prune": {"schedule": "scratch", "score": score, "fraction": (ratio,)},
                "start": {"run": "dense"},
                "epochs": 1 if quick else 5,
                "optimizer": {"learning_rate": 0.025},
            }
    config.variants = default.arms(arms)
    config.measures.names = ("predictions",)
    config.report.baseline = "dense"
    config.report.figures = ("recall", "density", "table")
    config.report.mechanics_only = quick
    return config
