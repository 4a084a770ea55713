"""Are pruned networks harder to turn, or only easier to certify?

    python -m prunejax.main --config=configs/robust.py --workdir=runs/robust
    python -m prunejax.main --config=configs/robust.py:adversarial --workdir=runs/robust2

Li et al. (TMLR 2023) report that pruning raises the certified L-infinity accuracy of ReLU networks.
An MLP on scikit-learn's digits, dense and pruned after half of the training to rates of 20 to
90 % of the weights of its hidden layers by magnitude, SNIP and at random, and of whole neurons by
instability of their bounds ("stability") and at random ("units"), up to 70 %. Measured on the test
set: accuracy under projected gradient descent (20 steps, 2 restarts) in boxes of half width 0.05
(pixels of 0..1), the share certified by intervals and by CROWN, the share of ReLUs that are not
settled, and accuracy of the randomly smoothed classifier (sigma 0.25).

`:adversarial` trains on the worst inputs that 3 steps find in those boxes; `:noise` on inputs with
normal noise of 0.25; `:quick` is mechanics only. Run here: nothing but tests of the measures; the
claims are open.
"""

from ml_collections import ConfigDict

from prunejax.configs import default, recipes

RATES = (0.2, 0.5, 0.7, 0.9)
FORMS = {
    "adversarial": "train on the worst inputs of a box",
    "noise": "train on noisy inputs",
    **recipes.QUICK,
}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: "" or one of FORMS."""
    quick = recipes.form(arg, "configs/robust.py", FORMS) == "quick"
    config = default.get_config()
    config.name = "Robustness of pruned networks" + {
        "adversarial": ", adversarial training", "noise": ", training with noise"
    }.get(arg, "")  # fmt: skip
    config.seeds, config.first_seed = (1, 0) if quick else (6, 880)
    config.epochs, config.batch_size, config.evaluate_every = (4 if quick else 40), 64, 2
    config.model.name = "mlp64_64"
    config.optimizer.name, config.optimizer.momentum = "sgd", 0.9
    config.optimizer.learning_rate, config.optimizer.schedule = 0.05, "cosine"
    config.prune.granularity, config.prune.scope = "weight", "global"
    config.harden.radius = 0.05 if arg == "adversarial" else 0.0
    config.harden.noise = 0.25 if arg == "noise" else 0.0
    config.measures.names = ("robustness", "smoothing")
    config.measures.examples = 64 if quick else 256
    config.measures.attack_radius, config.measures.smoothing_sigma = 0.05, 0.25
    arms: dict[str, dict] = {"dense": {"prune": {"score": "magnitude"}}}
    for score in ("magnitude", "snip", "random"):
        for rate in RATES[-1:] if quick else RATES:
            how = {"score": "magnitude", "target": "random"} if score == "random" else {}
            arms[f"{score}-{round(100 * rate)}"] = {
                "prune": {
                    "schedule": "one_shot",
                    "start": (1 if quick else 19,),
                    "fraction": (rate,),
                    "score": score,
                }
                | how
            }
    for name, how in (
        ("stability", {"score": "stability"}),
        ("units", {"score": "l2", "target": "random"}),
    ):
        for rate in RATES[1:2] if quick else RATES[:3]:
            arms[f"{name}-{round(100 * rate)}"] = {
                "prune": {
                    "schedule": "one_shot",
                    "start": (1 if quick else 19,),
                    "fraction": (rate,),
                    "granularity": "filter",
                    "scope": "layer",
                }
                | how
            }
    config.prune.saliency_examples = 128
    config.variants = default.arms(arms)
    config.report.baseline = "dense"
    config.report.figures = ("density", "measures", "table")
    rate = 90 if quick else 70
    config.report.claims = (
        f"magnitude-{rate} > dense in crown_certified",
        f"magnitude-{rate} > dense in pgd_accuracy",
        f"magnitude-{rate} < dense in unstable_relus",
        f"magnitude-{rate} > random-{rate} in crown_certified",
        "stability-50 > units-50 in crown_certified",
    )
    config.report.mechanics_only = quick
    return config
