"""Flatness of any loss on any parameter pytree: products, traces, spectra, with error bars."""

from prunejax.curvature.operator import Operator, from_matvec
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

__all__ = [
    "EmpiricalFisher",
    "Fisher",
    "GaussNewton",
    "Hessian",
    "Operator",
    "fisher_product",
    "from_matvec",
    "ggn_product",
    "hvp",
    "quadratic_form",
]
