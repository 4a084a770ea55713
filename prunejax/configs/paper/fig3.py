"""Figures 3, C1, C2: accuracy, stability and their correlation against the iterative rate (VGG11).

Claim: at fixed total sparsity, larger iterative rates lower stability (a trend for each target)
and can lift the accuracy of targets that are otherwise stable (S, R); L stops gaining at high
rates. The correlation of accuracy and stability over the targets is negative at each rate.

    python -m prunejax.main --config=configs/paper/fig3.py --workdir=runs/fig3
    python -m prunejax.main --config=configs/paper/fig3.py:small --workdir=runs/fig3_small

Arms: target and retrain period in epochs; periods 4, 20, 40, 60, 100, 200, 300 give 68, 14, 7, 5,
3, 2, 1 events of 1.3, 6.4, 12.9, 18, 30, 45, 90 % of the last layer. Five seeds, as released.

Cost (estimate): 110 runs x 1.5e16 floating-point operations = 1.6e18; about 15 hours on one
H200-class GPU at an assumed 30 TFLOP/s.
Run here: the small form only (100 CPU seconds with compilation).
Deviations: the released plot takes its unpruned baseline from figure 2's runs; here it is an arm.
The small form has the periods of 4, 40, 100 and 300 epochs (1, 5, 12 and 37 of its 40 epochs: 32,
7, 3 and 1 events) and scores by E[BN] (see fig2_vgg11.py).
"""

from ml_collections import ConfigDict

from prunejax.configs import default
from prunejax.configs.paper import common

PERIODS = (4, 20, 40, 60, 100, 200, 300)
TARGETS = {"S": "smallest", "R": "random", "L": "largest"}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: see `configs/paper/common.py`."""
    given = common.arguments(arg, "configs/paper/fig3.py")
    small = "small" in given
    config = common.adam("Figure 3: iterative rate", "vgg11_bn")
    config.seeds = 5
    config.variants = default.arms(
        {"none": {}}
        | {
            f"{letter}_{period}": common.vgg11_arm(small, target, period)
            for letter, target in TARGETS.items()
            for period in ((4, 40, 100, 300) if small else PERIODS)
        }
    )
    config.report.figures = ("rate", "scatter", "table")
    if small:
        common.make_small(config, given)
    return config
