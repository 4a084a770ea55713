"""Figure 5: noise instead of pruning: zeroing and Gaussian noise for a while (VGG11, CIFAR-10).

Claim: pruning helps as noise does. Zeroing the largest filters, or adding Gaussian noise to them,
for 1105 training steps after each event matches the gain of pruning them for good; 1 step does
not. All weights of a noised network are there at the end.

    python -m prunejax.main --config=configs/paper/fig5.py --workdir=runs/fig5
    python -m prunejax.main --config=configs/paper/fig5.py:released --workdir=runs/fig5_released
    python -m prunejax.main --config=configs/paper/fig5.py:small --workdir=runs/fig5_small
    python -m prunejax.main --config=configs/paper/fig5.py:small,twins --workdir=runs/fig5_twins

Arms: the events of L_13 of figure 2, and for each kind of noise windows of 1, 50 and 1105 training
steps on the filters of the newest event. Only convolutions are affected: BatchNorm of a target
keeps its scale and bias, in L_13 as well (as released).
`released`: windows as the released code counts them: 0, 129 and 1500 forward passes and one more,
test batches of 128 included, noise added in test passes too. By its authors' formula, which leaves
out the one more, 129 and 1500 come to 50 and 1105 training steps; 0 ends in the test pass after the
event, so that training starts from what it left.
`twins`: noise arms replay the targets of the L_13 run with the same seed instead of ranking their
own weights, so that nothing but the kind of intervention differs.

Cost (estimate): 80 runs x 1.5e16 floating-point operations = 1.2e18; about 11 hours on one
H200-class GPU at an assumed 30 TFLOP/s.
Run here: the small form only (83 CPU seconds with compilation): windows of 1, 2 and 45 steps (an
epoch has 16), scores by E[BN].
Deviations: with windows in training steps (the default) noise is never added while testing, which
the released code does; `released` does as well. The last epoch of the released code multiplies all
targeted weights by zero, for noise too, and its plots leave that epoch out; here nothing happens
in the last epoch. The unpruned baseline, which its plot takes from figure 2's runs, is an arm.
"""

from ml_collections import ConfigDict

from prunejax.configs import default
from prunejax.configs.paper import common

# Training steps of the windows (what the arms are called), and the same as the released code
# counts: forward passes less one. The small forms keep the proportion to an epoch.
STEPS = {"full": (1, 50, 1105), "digits": (1, 2, 45), "images": (1, 8, 180)}
PASSES = {"full": (0, 129, 1500), "digits": (0, 5, 60), "images": (0, 24, 260)}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: see `configs/paper/common.py` and above."""
    given = common.arguments(
        arg,
        "configs/paper/fig5.py",
        released="windows count forward passes, test batches included",
        twins="noise arms replay the targets of L_13",
    )
    small, released = "small" in given, "released" in given
    config = common.adam("Figure 5: noise", "vgg11_bn")
    config.eval_batch_size = 128  # figure 5 alone; it decides what `released` counts
    config.intervention.as_released = released
    # as released: a zeroed filter still emits its norm's bias
    config.intervention.mask_norm = False
    size = common.size(given)
    base = common.vgg11_arm(small, "largest", 40)
    config.variants = default.arms(
        {"none": {}, "L_13": base}
        | {
            f"{label}_{steps}": base
            | {
                "intervention": {
                    "kind": kind,
                    "duration": passes if released else steps,
                    "scope": "newest",  # the filters of this event alone, as released
                    "twin": "L_13" if "twins" in given else "",
                }
            }
            for label, kind in (("zero", "zero"), ("gauss", "gaussian"))
            for steps, passes in zip(STEPS[size], PASSES[size], strict=True)
        }
    )
    config.report.figures = ("noise", "dynamics", "table")
    short, long = STEPS[size][0], STEPS[size][-1]
    config.report.claims = (
        "L_13 > none in final_test_accuracy",
        f"zero_{long} > zero_{short} in final_test_accuracy",
        f"gauss_{long} > gauss_{short} in final_test_accuracy",
    )
    if small:
        common.make_small(config, given)
    return config
