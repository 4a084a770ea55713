"""Figure D2: filters zeroed for a while and then put back as they were (VGG11, CIFAR-10).

Claim: holding the largest filters at zero for long enough and then restoring weights and BatchNorm
as before the event approaches the gain of pruning them for good: no weight has to go.

    python -m prunejax.main --config=configs/paper/figD2.py --workdir=runs/figD2
    python -m prunejax.main --config=configs/paper/figD2.py:released --workdir=runs/figD2_released
    python -m prunejax.main --config=configs/paper/figD2.py:small --workdir=runs/figD2_small

Arms: the events of L_13 of figure 2; after each event all filters targeted so far (cumulative),
with BatchNorm scale and bias, are zero for 89, 630, 1220 or 2480 training steps; then weights,
scale, bias, running mean and variance get their values from before the event.
`released`: 129, 750, 1500 and 3000 forward passes, test batches of 256 included: the same windows.
`twins`: the arms replay the targets of the L_13 run with the same seed.

Cost (estimate): 60 runs x 1.5e16 floating-point operations = 9e17; about 8 hours on one H200-class
GPU at an assumed 30 TFLOP/s.
Run here: the small form only (72 CPU seconds with compilation): windows of 4, 26, 50 and 78 steps
(an epoch has 16, events are 80 apart), scores by E[BN].
Deviations: as in fig5.py. The L_13 reference leaves BatchNorm alone, as the released plot's does
(it is the run of figure 5).
"""

from ml_collections import ConfigDict

from prunejax.configs import default
from prunejax.configs.paper import common

# As in fig5.py. A restoring window ends after as many passes as its name in the release says.
STEPS = {"full": (89, 630, 1220, 2480), "digits": (4, 26, 50, 78), "images": (16, 104, 200, 312)}
PASSES = {"full": (129, 750, 1500, 3000), "digits": (6, 32, 64, 96), "images": (24, 128, 256, 384)}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: see `configs/paper/common.py` and above."""
    given = common.arguments(
        arg,
        "configs/paper/figD2.py",
        released="windows count forward passes, test batches included",
        twins="arms replay the targets of L_13",
    )
    small, released, size = "small" in given, "released" in given, common.size(given)
    config = common.adam("Figure D2: zeroed, then restored", "vgg11_bn")
    config.intervention.as_released = released
    base = common.vgg11_arm(small, "largest", 40)
    config.variants = default.arms(
        {"none": {}, "L_13": base | {"intervention": {"mask_norm": False}}}
        | {
            f"restore_{steps}": base
            | {
                "intervention": {
                    "kind": "zero",
                    "duration": passes if released else steps,
                    "scope": "cumulative",  # all targets so far, as released
                    "restore": "weights+norm",  # running statistics come back as well
                    "mask_norm": True,
                    "twin": "L_13" if "twins" in given else "",
                }
            }
            for steps, passes in zip(STEPS[size], PASSES[size], strict=True)
        }
    )
    config.report.figures = ("noise", "dynamics", "table")
    if small:
        common.make_small(config, given)
    return config
