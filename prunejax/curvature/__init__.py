"""Flatness of any loss on any parameter pytree: products, traces, spectra, with error bars."""

from prunejax.curvature.average_sharpness import AverageSharpness, average_sharpness
from prunejax.curvature.directions import Directions, filter_normalize, random_directions
from prunejax.curvature.epsilon import EpsilonFlatness, epsilon_flatness
from prunejax.curvature.forecast import Forecast, forecast, removal
from prunejax.curvature.gradients import (
    GradientMoment,
    NoiseScale,
    gradient_noise_scale,
    gradient_second_moment,
)
from prunejax.curvature.operator import Operator, from_matvec
from prunejax.curvature.perturb import (
    PAPER_GRID,
    Line,
    Surface,
    eigenvector_perturbation,
    line,
    slice_1d,
    slice_2d,
)
from prunejax.curvature.products import (
    EmpiricalFisher,
    Fisher,
    GaussNewton,
    Hessian,
    fisher_product,
    ggn_product,
    hvp,
    quadratic_form,
)
from prunejax.curvature.sharpness import Sharpness, keskar_sharpness, sharpness
from prunejax.curvature.tic import Tic, tic

__all__ = [
    "PAPER_GRID",
    "AverageSharpness",
    "Directions",
    "EmpiricalFisher",
    "EpsilonFlatness",
    "Fisher",
    "Forecast",
    "GaussNewton",
    "GradientMoment",
    "Hessian",
    "Line",
    "NoiseScale",
    "Operator",
    "Sharpness",
    "Surface",
    "Tic",
    "average_sharpness",
    "eigenvector_perturbation",
    "epsilon_flatness",
    "filter_normalize",
    "fisher_product",
    "forecast",
    "from_matvec",
    "ggn_product",
    "gradient_noise_scale",
    "gradient_second_moment",
    "hvp",
    "keskar_sharpness",
    "line",
    "quadratic_form",
    "random_directions",
    "removal",
    "sharpness",
    "slice_1d",
    "slice_2d",
    "tic",
]
