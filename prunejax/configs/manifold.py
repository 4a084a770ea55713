"""Inertial-manifold pruning: a reconstruction, experimental (Zhang et al., NeurIPS 2021).

    bash launch/local.sh --config=configs/manifold.py --workdir=runs/manifold

The paper's idea: ten SGD steps give a reference point W*, a gap in a spectrum there says which k of
d dimensions are dropped, once, and what is left is trained. Which operator's spectrum, which side
of the gap, how eigen-directions become single weights, and all settings are not known to us (the
page lists it), so that this is a reconstruction and says nothing of the paper's results. Here: the
exact Hessian of the training loss at W*, weights kept by what they share with its 20 fastest modes
(fast), by the least of it (slow), by H_jj w^2 (obd), H_jj (diagonal) and |w dL/dw| (snip), beside
three scores at step 0 (init-snip, init-magnitude, random). Scikit-learn's digits (900 training
images, writers mixed), an MLP 64-16-10, all kernels, 20, 10, 5 and 3 % kept; then 600 steps from
the initial weights. `benchmarks/manifold.py` has the spectrum, its gaps, and training inside
subspaces. Settings are those of a pilot on other seeds; the study runs seeds 900 to 903.

Result, mean final test accuracy in percent over 4 seeds; dense 96.3:

    kept, %          20     10     5      3
    obd              91.3   82.6   55.3   34.8
    snip             90.4   80.6   60.8   45.0
    fast             89.0   70.0   22.7   14.5
    diagonal         88.6   48.4   17.3   13.6
    slow             59.4   31.2   18.5   22.9
    init-snip        87.8   73.7   48.3   37.4
    init-magnitude   70.2    9.2    9.2    9.2
    random           79.0   47.4   33.2   16.9

Confirmed (Holm), in points: obd above random at every share, by 12.3 [5.3, 19.2], 35.3 [24.6,
45.9], 22.1 [8.4, 35.8] and 17.9 [8.7, 27.1]; above the largest initial weights at 10 % by 73.4
[66.2, 80.6].
That slow modes are worse than random ones at 10 %: 16.2 [-6.0, 38.4], undecided. Weights on fast
modes are worth keeping, as second-order scores say; nothing here speaks for pruning without loss.
Cost (measured): 549 seconds of processor time.

The benchmark's spectra of seeds 900 to 902: the largest gap is
at rank 1, 1 and 4, the five largest lie at ranks 1 to 9; W* is no minimum (loss 1.25, 1.09, 1.29,
gradient norm 0.76, 0.74, 0.66, smallest eigenvalues -0.56, -0.60, -0.41). Accuracy of training
inside 5, 20, 80 and 160 dimensions (dense 0.964): fast 0.12, 0.17, 0.64, 0.83; random 0.14, 0.30,
0.76, 0.89; slow 0.26, 0.60, 0.93, 0.94, where slow is the smallest signed eigenvalues, that is the
directions of negative curvature first.

`:quick` has 2 seeds, 2 shares and 3 epochs (mechanics only).
"""

from typing import Any

from ml_collections import ConfigDict

from prunejax.configs import default, recipes

AT_REFERENCE = {
    "fast": ("mode_leverage", "smallest"),
    "slow": ("mode_leverage", "largest"),
    "obd": ("curvature_saliency", "smallest"),
    "diagonal": ("curvature", "smallest"),
    "snip": ("snip", "smallest"),
}
AT_START = {
    "init-snip": "snip",
    "init-magnitude": "magnitude",
    "random": "weight_random",
}
UNKNOWN = (
    "Experimental: a reconstruction of Zhang et al. (NeurIPS 2021), of which no code is public. "
    "Not known to us: which operator's spectrum is cut; which side of the gap is kept; how "
    "eigen-directions become single weights; the steps after the reference point; every setting "
    "and every number of the paper. Nothing here confirms or contradicts it."
)


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: "" or "quick"."""
    quick = recipes.form(arg, "configs/manifold.py") == "quick"
    config = default.get_config()
    config.name = "inertial manifolds (a reconstruction)"
    config.seeds, config.first_seed = (2, 900) if quick else (4, 900)
    config.epochs, config.batch_size = (3, 64) if quick else (40, 64)
    config.data.name, config.data.train_examples = "digits_mixed", 900
    config.model.name, config.model.batch_norm, config.model.hidden = "mlp", False, (16,)
    config.optimizer.name, config.optimizer.momentum = "sgd", 0.9
    config.optimizer.learning_rate, config.optimizer.schedule = 0.1, "cosine"
    config.prune.granularity, config.prune.scope = "weight", "global"
    config.prune.saliency_examples = 900
    start = {
        "run": "dense", "at": "step:10", "take": ("weights",),
        "rewind_run": "dense", "rewind_at": "start", "rewind": ("weights",),
    }  # fmt: skip
    common = {"schedule": "scratch", "layers": ("kernel:.*",)}
    shares = (0.2, 0.05) if quick else (0.2, 0.1, 0.05, 0.03)
    arms: dict[str, dict[str, Any]] = {"dense": {}}
    for share in shares:
        rest = {"fraction": (round(1 - share, 6),)} | common
        ending = f"-{round(100 * share)}"
        for name, (score, target) in AT_REFERENCE.items():
            prune = {"score": score, "target": target} | rest
            arms[name + ending] = {"prune": prune, "start": start}
        for name, score in AT_START.items():
            arms[name + ending] = {"prune": {"score": score} | rest}
    config.variants = default.arms(arms)
    config.report.baseline = "dense"
    config.report.figures = ("density", "table")
    config.report.remarks = (UNKNOWN,)
    if not quick:
        config.report.claims = (
            *("obd-10 > init-magnitude-10 in final_test_accuracy", "slow-10 < random-10"),
            *(f"obd-{round(100 * t)} > random-{round(100 * t)}" for t in shares),
        )
    config.report.mechanics_only = quick
    return config
