"""Figures E1 to E5: eigenvalues, epsilon-flatness and the TIC proxy (VGG11, CIFAR-10).

Claim: less stable pruning leaves smaller leading eigenvalues of the Hessian (E1, E2) and a larger
epsilon-flatness (E3: the smallest step along one of the ten leading eigenvectors that raises the
test loss by 0.1; E4 shows the loss along them); larger epsilon and smaller TIC proxy
Tr(C) / Tr(H) (E5) go with higher test accuracy.

    python -m prunejax.main --config=configs/paper/figE.py --workdir=runs/figE
    python -m prunejax.main --config=configs/paper/figE.py:small --workdir=runs/figE_small

The runs of figure 2 and figure 6 (E6 is the scatter of fig2_vgg11.py over all arms). Steps along
eigenvectors of unit norm over the whole parameter vector, -0.40 to 0.40 in steps of 0.01.

Cost (estimate): training as fig6.py, 9e17 floating-point operations; E3 and E4 add 810 passes over
the test set a run, 2.5e15. About 11 hours on one H200-class GPU at an assumed 30 TFLOP/s.
Run here: the small form only (10 eigenpairs, 256 examples; 182 CPU seconds with compilation).
Deviations: as in fig6.py.
"""

from ml_collections import ConfigDict

from prunejax.configs.paper import common, fig2_vgg11, fig6

MEASURES = ("top_eigenvalues", "epsilon_flatness", "gradient_second_moment", "tic_leading")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: see `configs/paper/common.py`."""
    given = common.arguments(arg, "configs/paper/figE.py")
    config = fig2_vgg11.get_config(arg)
    config.name = config.name.replace("Figure 2: VGG11", "Figures E: eigenvalues and flatness")
    fig6.measure(config, MEASURES, "small" in given)
    config.report.figures = ("eigenvalues", "epsilon", "perturbation", "tic", "scatter", "table")
    config.report.correlate = ()
    return config
