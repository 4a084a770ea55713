"""Figure 2 (bottom): ResNet18 on CIFAR-10: less stable pruning, better generalization.

Claim: as in the top row (fig2_vgg11.py): the correlation of mean stability and best test accuracy
over S_1, S_14 and L_14 is negative, and L_14 ends highest.

    python -m prunejax.main --config=configs/paper/fig2_resnet18.py --workdir=runs/fig2_resnet18
    python -m prunejax.main --config=configs/paper/fig2_resnet18.py:small --workdir=runs/fig2_rn18

The score is the running mean of the summed absolute pre-ReLU activations of a channel (after the
shortcut's addition for a block's second convolution), updated every tenth training batch.
A channel that is pruned there loses its shortcut too.

Cost (estimate): 40 runs x 5.4e16 floating-point operations = 2.2e18; about 20 hours on one
H200-class GPU at an assumed 30 TFLOP/s.
Run here: the small form only (111 CPU seconds with compilation).
Deviations: the small form's last layer loses 80 % (see common.py). Do not read its accuracies.
"""

from typing import Any

from ml_collections import ConfigDict

from prunejax.configs import default
from prunejax.configs.paper import common


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: see `configs/paper/common.py`."""
    given = common.arguments(arg, "configs/paper/fig2_resnet18.py")
    config = common.adam("Figure 2: ResNet18", "resnet18")
    config.variants = default.arms({"none": {}} | resnet18_arms("small" in given))
    config.report.figures = ("dynamics", "scatter", "gap", "table")
    config.report.claims = (
        "L_14 < S_14 in mean_stability",
        "L_14 > S_14 in best_test_accuracy",
        "L_14 > none in best_test_accuracy",
    )
    if "small" in given:
        common.make_small(config, given)
    return config


def resnet18_arms(small: bool, *, score: str = "activations", **changes: Any) -> dict[str, Any]:
    """S at small and large rate and L at large rate; `changes` to the events (fraction, start)."""
    events = (common.RESNET18_SMALL if small else common.RESNET18) | changes
    few, many = (common.SMALL_PERIODS[p] if small else p for p in (40, 4))
    return {
        "S_1": common.arm(events, "smallest", many, score),
        "S_14": common.arm(events, "smallest", few, score),
        "L_14": common.arm(events, "largest", few, score),
    }
