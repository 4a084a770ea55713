"""Figure 6: instability, flatness and generalization (VGG11, CIFAR-10).

Claim: less stable training ends flatter, and flatter ends generalize better. Over the 60 runs of
all six arms of figure 2, Tr(H) (curvature) and Tr(C) (gradient noise) correlate positively with
mean stability and negatively with best test accuracy.

    python -m prunejax.main --config=configs/paper/fig6.py --workdir=runs/fig6
    python -m prunejax.main --config=configs/paper/fig6.py:small --workdir=runs/fig6_small

Measured after epoch 314 and at the end, in evaluation mode, on the first 512 test images, over the
live parameters: the 100 largest-magnitude eigenvalues of the Hessian, whose sum stands for Tr(H)
in the paper (column `hessian_trace_top`); Tr(H) itself (Hutchinson); Tr(C), the mean squared norm
of per-example gradients (the uncentered second moment, as released); and the TIC proxy, over the
sum (`tic_leading`, the paper's) and over the trace (`tic`). figE.py has the same runs with the
appendix's figures; nothing but the measures differs.

Cost (estimate): training 60 runs x 1.5e16 floating-point operations = 9e17, as fig2_vgg11.py; the
100 eigenpairs of a run about 300 Hessian products on 512 examples = 6e14, little beside it. About 9
hours on one H200-class GPU at an assumed 30 TFLOP/s.
Run here: the small form only (10 eigenpairs, 256 examples; 167 CPU seconds with compilation).
Deviations: the paper finds eigenpairs by at most 20 power iterations with deflation each, which
leaves some unconverged; here they come from Lanczos with their residuals. A scratch
run is measured after as many trained epochs as the others, the released one after one less.
"""

from ml_collections import ConfigDict

from prunejax.configs.paper import common, fig2_vgg11

MEASURES = ("top_eigenvalues", "hessian_trace", "gradient_second_moment", "tic_leading", "tic")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: see `configs/paper/common.py`."""
    given = common.arguments(arg, "configs/paper/fig6.py")
    config = fig2_vgg11.get_config(arg)
    config.name = config.name.replace("Figure 2: VGG11", "Figure 6: flatness")
    measure(config, MEASURES, "small" in given)
    config.report.figures = ("flatness", "tic", "scatter", "dynamics", "table")
    config.report.correlate = ()  # all six arms
    return config


def measure(config: ConfigDict, names: tuple[str, ...], small: bool) -> None:
    """Sets what is measured, when, and on what."""
    config.measures.names = names
    # counted from 0, as released: after 315 epochs, when all pruning is over
    config.measures.epochs = () if small else (314,)
    config.measures.split = "test"  # as released: the flatness of the test loss
    config.measures.batch_norm = "eval"
    config.measures.examples = 256 if small else 512
    config.measures.eigenpairs = 10 if small else 100
    config.measures.probes = 16 if small else 64
