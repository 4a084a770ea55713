"""Figure B1: are the inputs of BatchNorm's affine part normal? (The assumption behind E[BN].)

Claim: E[BN] takes the output of a BatchNorm channel for N(bias, scale^2). Histograms of the
normalized activations (before scale and bias, pooled over channels) of an untrained and a trained
network look roughly like N(0, 1).

    python -m prunejax.main --config=configs/paper/figB1.py --workdir=runs/figB1
    python -m prunejax.main --config=configs/paper/figB1.py:small --workdir=runs/figB1_small

Measured on the first 128 training images with the batch's own statistics (the released script
leaves the network in training mode), per layer: histogram, mean, standard deviation, skewness,
excess kurtosis, and the Kolmogorov-Smirnov distance to N(0, 1). The measure is
`prunejax.measures.normality` and works on any trained BatchNorm network.

Cost (estimate): 1 run x 3.1e16 floating-point operations; 20 minutes on one H200-class GPU at an
assumed 30 TFLOP/s.
Run here: the small form only (45 CPU seconds with compilation).
Deviations: the released script looks at 8 of the layers of a VGG19 trained on ImageNet, which
there are no weights of here; this study trains a VGG16 on CIFAR-10 with the recipe of figure 2 and
shows all its layers.
"""

from ml_collections import ConfigDict

from prunejax.configs.paper import common


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: see `configs/paper/common.py`."""
    given = common.arguments(arg, "configs/paper/figB1.py")
    config = common.adam("Figure B1: normality before BatchNorm's affine part", "vgg16_bn")
    config.seeds = 1  # as the released script: one network
    config.variants = {"none": {}}
    config.measures.names = ("normality",)
    config.measures.split = "train"
    config.measures.examples = 128
    config.report.figures = ("normality", "dynamics", "table")
    if "small" in given:
        common.make_small(config, given, epochs=15, milestones=(7, 14), width=0.25, seeds=1)
    return config
