"""The default study: pruning destabilizes a small network, on real data, in a minute or two.

    bash launch/local.sh --config=configs/digits.py --workdir=runs/digits

Scikit-learn's 8x8 digits (real data that comes with a dependency), a BatchNorm MLP, the E[BN]
score. Five arms of 8 seeds: no pruning; the smallest scores at a small and a large iterative rate;
random and largest scores at the large rate. Learning rate, weight decay, fractions and periods were
chosen on seeds 100 to 107 for a clear order of stabilities; the study runs seeds 0 to 7.
"""

from ml_collections import ConfigDict

from prunejax.configs import default, recipes


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: "" or "quick" (2 seeds, 6 epochs: a smoke test)."""
    config = default.get_config()
    config.name = "digits"
    config.seeds = 8
    config.epochs = 60
    config.batch_size = 64
    config.optimizer.learning_rate = 1e-2
    config.optimizer.weight_decay = 1e-3  # spreads the BatchNorm scales, and so the scores
    config.optimizer.milestones = (42, 55)

    config.population.layout = "sharded"  # not measured: the same bytes on every machine of a kind

    config.measures.names = ("hessian_trace", "gradient_second_moment", "tic", "top_eigenvalues")
    config.measures.examples = 0  # all 382 of the test set
    config.measures.forecast = True

    prune = {
        "schedule": "linear",
        "layers": ("dense2", "dense3"),
        "fraction": (0.5, 0.8),
        "start": (2, 3),
        "end": (27, 39),
        "score": "ebn",
    }
    config.variants = default.arms(
        {
            "none": {},
            "S_small": {"prune": prune | {"target": "smallest", "period": 1}},
            "S_large": {"prune": prune | {"target": "smallest", "period": 18}},
            "R_large": {"prune": prune | {"target": "random", "period": 18}},
            "L_large": {"prune": prune | {"target": "largest", "period": 18}},
        }
    )
    # Which way of pruning is the less stable; on accuracy this study makes no claim.
    config.report.claims = (
        "L_large < R_large in mean_stability",
        "R_large < S_large in mean_stability",
        "S_large < S_small in mean_stability",
    )
    if recipes.form(arg, "configs/digits.py") == "quick":
        config.report.mechanics_only = True
        config.seeds, config.epochs = 2, 6
        config.optimizer.milestones = (3, 5)
        for label, variant in config.variants.items():
            if label != "none":
                variant.prune.start, variant.prune.end = (0, 1), (4, 4)
                variant.prune.period = 1 if label == "S_small" else 2
    return config
