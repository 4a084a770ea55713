"""Flatness of any loss on any parameter pytree: products, traces, spectra, with error bars.

A loss is `loss(params, batch)`, the mean over the batch; per-example functions take
`per_example_loss(params, batch) -> [examples]`. Nearly all accept `masks=` (live subspace only).

| function | what | cost |
| --- | --- | --- |
| `hvp`, `ggn_product`, `fisher_product` | one product with H, Gauss-Newton, Fisher | 2 gradients |
| `quadratic_form` | v'Hv, forward only | about 1 gradient |
| `hessian_trace`, `hessian_diagonal` | Tr(H); diag(H) | a form; a product, per probe |
| `top_eigenpairs` | leading eigenpairs with residuals (Lanczos) | a few products a pair |
| `deflated_power_iteration` | the same as the paper's code does it | up to 20 products a pair |
| `spectral_density` | all of the spectrum, with an error band | steps * starts products |
| `gradient_second_moment` | Tr(C), uncentered or centered | one pass of per-example gradients |
| `gradient_noise_scale` | Tr(C)/|g|^2, unbiased, with an interval | the same and one forward pass |
| `tic` | Tr(C)/Tr(H) with an interval | both of the above |
| `sharpness`, `keskar_sharpness` | largest rise in a ball | steps * restarts gradients |
| `average_sharpness` | mean rise under Gaussian noise | 2 evaluations a sample |
| `eigenvector_perturbation`, `line`, `slice_1d`, `slice_2d` | loss on a grid | one each point |
| `epsilon_flatness` | distance at which the loss has risen by 0.1 | none, reads a line |
| `forecast` | change of the loss that an event should cause | one form |

`Hessian`, `GaussNewton`, `Fisher`, `EmpiricalFisher` and `from_matvec` make operators; the
`estimate_*` functions and `eigenpairs` take any of them.
"""

from prunejax.curvature.density import Density, estimate_density, spectral_density
from prunejax.curvature.directions import (
    Directions,
    Forecast,
    filter_normalize,
    forecast,
    random_directions,
    removal,
)
from prunejax.curvature.eigenpairs import (
    Eigenpairs,
    deflated_power_iteration,
    eigenpairs,
    power_iteration,
    top_eigenpairs,
)
from prunejax.curvature.gradients import GradientMoment, gradient_second_moment
from prunejax.curvature.operators import (
    EmpiricalFisher,
    Fisher,
    GaussNewton,
    Hessian,
    Operator,
    fisher_product,
    from_matvec,
    ggn_product,
    hvp,
    quadratic_form,
)
from prunejax.curvature.perturb import (
    PAPER_GRID,
    EpsilonFlatness,
    Line,
    Surface,
    eigenvector_perturbation,
    epsilon_flatness,
    line,
    slice_1d,
    slice_2d,
)
from prunejax.curvature.ratios import NoiseScale, Tic, gradient_noise_scale, tic
from prunejax.curvature.sharpness import (
    AverageSharpness,
    Sharpness,
    average_sharpness,
    keskar_sharpness,
    sharpness,
)
from prunejax.curvature.trace import (
    Diagonal,
    Trace,
    estimate_diagonal,
    estimate_trace,
    hessian_diagonal,
    hessian_trace,
)

__all__ = [
    "PAPER_GRID", "AverageSharpness", "Density", "Diagonal", "Directions", "Eigenpairs",
    "EmpiricalFisher", "EpsilonFlatness", "Fisher", "Forecast", "GaussNewton", "GradientMoment",
    "Hessian", "Line", "NoiseScale", "Operator", "Sharpness", "Surface", "Tic", "Trace",
    "average_sharpness", "deflated_power_iteration", "eigenpairs", "eigenvector_perturbation",
    "epsilon_flatness", "estimate_density", "estimate_diagonal", "estimate_trace",
    "filter_normalize", "fisher_product", "forecast", "from_matvec", "ggn_product",
    "gradient_noise_scale", "gradient_second_moment", "hessian_diagonal", "hessian_trace", "hvp",
    "keskar_sharpness", "line", "power_iteration", "quadratic_form", "random_directions", "removal",
    "sharpness", "slice_1d", "slice_2d", "spectral_density", "tic", "top_eigenpairs",
]  # fmt: skip
