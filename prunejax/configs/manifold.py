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
subspaces. The study runs seeds 910 to 913, which chose nothing.

Pixels are read as they are, in 0..1. Centred ones give the background of all images a value and the
Hessian twice as many eigenvalues above 0.001 (487 of 1,210, 224 as they are), and what shares least
with the fast modes can learn: slow weights at 10 % reach 35.0 % with centred pixels (seeds 0 to 3),
38.7 with 30 steps of warm-up as well, and 9.6, chance, with pixels as they are (seeds 0 to 2). The
loss at W* is 1.25, 2.01 and 2.07 in this order. Before, the study centred them: slow weights at
10 % had 31.2 (seeds 900 to 903), undecided against random ones.

Result, mean final test accuracy in percent over 4 seeds; dense 96.4:

    kept, %          20     10     5      3
    obd              93.0   83.4   58.4   34.2
    snip             93.1   81.8   55.4   40.7
    fast             91.3   79.0   24.5    8.8
    diagonal         91.7   56.5   30.7   10.6
    slow              8.8    8.8    8.8    8.8
    init-snip        90.9   77.7   54.8   37.8
    init-magnitude   63.6    8.8    8.8    8.8
    random           79.6   43.3   23.3   11.9

Confirmed (Holm), in points: obd above random at every share, by 13.4 [9.0, 17.7], 40.1 [22.8,
57.4], 35.1 [10.5, 59.6] and 22.3 [16.8, 27.8]; above the largest initial weights at 10 %, of which
none is in the classifier, by 74.6 [71.8, 77.4]; slow modes below random ones at 10 %, by 34.5
[17.6, 51.4]. Weights on fast modes are worth keeping, as second-order scores say; nothing here
speaks for pruning without loss. Cost (measured): 213 seconds of processor time.

The benchmark's spectra of seeds 910 to 912: the largest gap is at rank 1, 2 and 1, the five largest
at ranks 1 to 9 but for one each of two seeds, among negative eigenvalues; W* is no minimum (loss
2.09, 2.17, 2.14, accuracy 0.31, 0.29, 0.30, gradient norm 0.30, 0.24, 0.29, smallest eigenvalues
-0.27, -0.28, -0.29). Accuracy of training inside 5, 20, 80 and 160 dimensions (dense 0.964): fast
0.11, 0.10, 0.16, 0.26; random 0.12, 0.27, 0.67, 0.87; slow 0.16, 0.66, 0.93, 0.94, where slow is
the smallest signed eigenvalues, that is the directions of negative curvature first.

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
AT_START = {"init-snip": "snip", "init-magnitude": "magnitude", "random": "weight_random"}
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
    config.seeds, config.first_seed = (2, 910) if quick else (4, 910)
    config.epochs, config.batch_size = (3, 64) if quick else (40, 64)
    config.data.name, config.data.train_examples = "digits_mixed", 900
    config.data.standardize = False
    config.model.name, config.model.batch_norm, config.model.hidden = "mlp", False, (16,)
    config.optimizer.name, config.optimizer.momentum = "sgd", 0.9
    config.optimizer.learning_rate, config.optimizer.schedule = 0.1, "cosine"
    config.prune.granularity, config.prune.scope = "weight", "global"
    config.prune.saliency_examples = 900  # all of them: scores without sampling noise
    start = {  # scores look at W*, training begins at the initial weights
        "run": "dense", "at": "step:10", "take": ("weights",),
        "rewind_run": "dense", "rewind_at": "start", "rewind": ("weights",),
    }  # fmt: skip
    common = {"schedule": "scratch", "layers": ("kernel:.*",)}
    shares = (0.2, 0.05) if quick else (0.2, 0.1, 0.05, 0.03)
    arms: dict[str, dict[str, Any]] = {"dense": {}}
    for share in shares:
        rest = {"fraction": (round(1 - share, 6),)} | common  # counts read the decimal as written
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
