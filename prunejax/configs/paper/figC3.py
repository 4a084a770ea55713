"""Figure C3: very gradual pruning of the smallest filters (ResNet18, SGD recipe, CIFAR-10).

Claim: none about a sign that could be verified. The study probes the stable end: at most one filter
per layer and epoch, mean stability near 100 %, little or no benefit expected.

    python -m prunejax.main --config=configs/paper/figC3.py --workdir=runs/figC3
    python -m prunejax.main --config=configs/paper/figC3.py:small --workdir=runs/figC3_small

Arms: 10 or 6 % of the filters of every block convolution, smallest L1 norms, period of one epoch
from epoch 24 to 100 (77 candidate epochs); and no pruning. Recipe of figure 4.

Cost (estimate): 30 runs x 2.7e16 floating-point operations = 8e17; about 8 hours on one H200-class
GPU at an assumed 30 TFLOP/s.
Run here: the small form only (16 candidate epochs; 99 CPU seconds with compilation).
Deviations: none known.
"""

from ml_collections import ConfigDict

from prunejax.configs import default
from prunejax.configs.paper import common

EVENTS = {
    "schedule": "linear",
    "layers": (".*",),
    "fraction": (0.1,),
    "start": (24,),
    "end": (100,),
}
SMALL_EVENTS = EVENTS | {"start": (5,), "end": (20,)}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: see `configs/paper/common.py`."""
    given = common.arguments(arg, "configs/paper/figC3.py")
    config = common.sgd("Figure C3: very gradual pruning", "resnet18")
    events = SMALL_EVENTS if "small" in given else EVENTS
    config.variants = default.arms(
        {
            "none": {},
            "S_total10": common.arm(events, "smallest", 1, "l1"),
            "S_total6": common.arm(events | {"fraction": (0.06,)}, "smallest", 1, "l1"),
        }
    )
    config.report.figures = ("scatter", "gap", "dynamics", "table")
    if "small" in given:
        common.make_small(config, given, epochs=33, milestones=(17, 25), width=0.125)
    return config
