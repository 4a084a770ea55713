"""Which figures there are, and which of them a study shows."""

from prunejax import registry
from prunejax.report import (
    figures,
    figures_arrays,
    figures_dynamics,
    figures_flatness,
    figures_paper,
)
from prunejax.report.figures import Draw, Drawing
from prunejax.report.results import Study
from prunejax.report.style import Look

# Name in `config.report.figures` -> function, in the order of the page.
FIGURES: dict[str, Draw] = {
    "dynamics": figures_dynamics.dynamics,
    "stability": figures.stability,
    "scatter": figures.scatter,
    "gap": figures.gap,
    "rate": figures_paper.rate,
    "rate_scatter": figures_paper.rate_scatter,
    "noise": figures_dynamics.noise,
    "corners": figures_paper.corners,
    "group_scatter": figures_paper.group_scatter,
    "flatness": figures_flatness.flatness,
    "tic": figures_flatness.tic,
    "epsilon": figures_flatness.epsilon,
    "eigenvalues": figures_arrays.eigenvalues,
    "spectrum": figures_arrays.spectrum,
    "perturbation": figures_arrays.perturbation,
    "measures": figures_flatness.measures,
    "forecast": figures_arrays.forecast,
    "normality": figures_arrays.normality,
}
# Shown only if asked for; the others whenever the study has what they show.
_ON_REQUEST = {"rate": ("rate", "rate_scatter")}
_TABLES = ("table",)  # names that stand for tables, which every page has


def draw(study: Study, look: Look) -> dict[str, Drawing]:
    """The study's figures by name.

    Raises:
      ValueError: `config.report.figures` names one that does not exist.
    """
    wanted = [name for name in study.report_option("figures", ()) if name not in _TABLES]
    for name in wanted:
        registry.lookup(FIGURES, name, "figure in config.report.figures")
    left_out = {
        name for key, names in _ON_REQUEST.items() if key not in wanted for name in names
    }.difference(wanted)
    drawn = {name: f(study, look) for name, f in FIGURES.items() if name not in left_out}
    return {name: drawing for name, drawing in drawn.items() if drawing is not None}
