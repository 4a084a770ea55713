"""Figure B2: scoring filters by E[BN]: much less stable pruning, the same tradeoff (CIFAR-10).

Claim: E[BN], the expected activation after ReLU under BatchNorm's normal assumption, tells
important channels better than norms do: removing the largest is far less stable than in figure 2.
The correlation of stability and accuracy stays negative in both networks.

    python -m prunejax.main --config=configs/paper/figB2.py --workdir=runs/figB2
    python -m prunejax.main --config=configs/paper/figB2.py:small --workdir=runs/figB2_small
    python -m prunejax.main --config=configs/paper/figB2.py:vgg11 --workdir=runs/figB2_vgg11

Arms: those of figure 2 for each network. ResNet18 uses the variant `ebn_signed` (the signed scale
instead of its absolute value), as released, and starts at epochs 3 to 6.

Cost (estimate): VGG11 40 x 1.5e16, ResNet18 40 x 5.4e16 floating-point operations = 2.8e18; about
26 hours on one H200-class GPU at an assumed 30 TFLOP/s.
Run here: the small form only (141 CPU seconds with compilation).
Deviations: ResNet18's S arms end in the released code where the mean score of what an event prunes
is negative (an assertion there); here they go on. The released code masks BatchNorm's scale and
bias only and leaves the convolution's weights; here the filter is masked with them. The network's
function and training are the same, parameter counts are not. Unpruned baselines, taken from figure
2's runs there, are arms here.
"""

from ml_collections import ConfigDict

from prunejax.configs import default
from prunejax.configs.paper import common, fig2_resnet18

MODELS = {"vgg11": "vgg11_bn", "resnet18": "resnet18"}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: see `configs/paper/common.py`; names of networks choose them."""
    given = common.arguments(
        arg, "configs/paper/figB2.py", **{name: "this network only" for name in MODELS}
    )
    small = "small" in given
    config = common.adam("Figure B2: E[BN]", "vgg11_bn")
    networks = {"vgg11": _vgg11(small), "resnet18": _resnet18(small)}
    chosen = [name for name in MODELS if name in given] or [*MODELS]
    config.variants = default.arms(
        {
            f"{network}-{label}": {"model": {"name": MODELS[network]}} | changes
            for network in chosen
            for label, changes in networks[network].items()
        }
    )
    config.report.figures = ("dynamics", "scatter", "group_scatter", "table")
    config.report.baseline = f"{chosen[0]}-none"
    if small:
        common.make_small(config, given)
    return config


def _vgg11(small: bool) -> dict:
    return {
        "none": {},
        "S_1": common.vgg11_arm(small, "smallest", 4, "ebn"),
        "S_13": common.vgg11_arm(small, "smallest", 40, "ebn"),
        "L_13": common.vgg11_arm(small, "largest", 40, "ebn"),
    }


def _resnet18(small: bool) -> dict:
    start = (0, 1, 2, 3) if small else (3, 4, 5, 6)  # earlier than in figure 2, as released
    arms = fig2_resnet18.resnet18_arms(small, score="ebn_signed", start=start)
    return {"none": {}} | arms
