"""Figure 4: the tradeoff under a standard recipe: ResNet18, 20 and 56 with SGD on CIFAR-10.

Claim: with momentum, weight decay, crops and flips the tradeoff holds: over the runs of each
network accuracy correlates negatively, and generalization gap positively, with mean stability.

    python -m prunejax.main --config=configs/paper/fig4.py --workdir=runs/fig4
    python -m prunejax.main --config=configs/paper/fig4.py:small --workdir=runs/fig4_small
    python -m prunejax.main --config=configs/paper/fig4.py:resnet20 --workdir=runs/fig4_resnet20

Arms: 10 % of the filters of every block convolution, smallest L1 norms, in three events (S_3: 3.3 %
each, epochs 40, 70, 100) or two (S_5: 5 % each, epochs 40 and 100), all layers at once. In a layer
of 16 filters the rounding leaves the single filter to the last event. There is no unpruned arm.

Cost (estimate): ResNet18 20 x 2.7e16, ResNet20 20 x 2.0e15, ResNet56 20 x 6.2e15 floating-point
operations = 7.1e17; about 7 hours on one H200-class GPU at an assumed 30 TFLOP/s (the narrow
networks reach less).
Run here: the small form only (141 CPU seconds with compilation), and of it ResNet20 and ResNet18
(ResNet56 takes most of its time to compile: `small,resnet56`). Two seeds on shifted and mirrored
digits do not tell the stabilities of S_3 and S_5 apart.
Deviations: none known.
"""

from ml_collections import ConfigDict

from prunejax.configs import default
from prunejax.configs.paper import common

MODELS = ("resnet18", "resnet20", "resnet56")
EVENTS = {
    "schedule": "linear",
    "layers": (".*",),
    "fraction": (0.1,),
    "start": (40,),
    "end": (100,),
}
PERIODS = {"S_3": 30, "S_5": 60}
SMALL_EVENTS = EVENTS | {"start": (8,), "end": (20,)}
SMALL_PERIODS = {"S_3": 6, "S_5": 12}
SMALL_WIDTHS = {"resnet18": 0.125, "resnet20": 0.5, "resnet56": 0.5}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: see `configs/paper/common.py`; names of networks choose them."""
    given = common.arguments(
        arg, "configs/paper/fig4.py", **{name: "this network only" for name in MODELS}
    )
    small = "small" in given
    chosen = [name for name in MODELS if name in given] or (MODELS[:2] if small else MODELS)
    config = common.sgd("Figure 4: ResNets with SGD", chosen[0])
    config.variants = default.arms(
        {
            f"{name}-{label}": common.arm(
                SMALL_EVENTS if small else EVENTS,
                "smallest",
                period,
                "l1",
                model={"name": name, "width": SMALL_WIDTHS[name] if small else 1.0},
            )
            for name in chosen
            for label, period in (SMALL_PERIODS if small else PERIODS).items()
        }
    )
    config.report.figures = ("scatter", "group_scatter", "gap", "table")
    if small:
        common.make_small(config, given, epochs=33, milestones=(17, 25), width=0.125)
    return config
