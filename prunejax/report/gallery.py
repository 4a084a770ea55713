"""Which figures there are, and which of them a study shows."""

from dataclasses import dataclass

from prunejax import registry
from prunejax.report import (
    figures,
    figures_arrays,
    figures_barriers,
    figures_before,
    figures_classes,
    figures_density,
    figures_dynamics,
    figures_flatness,
    figures_methods,
    figures_paper,
    figures_predictors,
    figures_recall,
    figures_tickets,
    ranking,
    units,
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
    "density": figures_density.density,
    "flops": figures_methods.flops,
    "sanity": figures_methods.sanity,
    "layers": figures_methods.layers,
    "updates": figures_methods.updates,
    "recall": figures_recall.recall_distortion,
    "balance": figures_classes.balance,
    "classes": figures_classes.classes,
    "tickets": figures_tickets.accuracy,
    "early_stop": figures_tickets.early_stop,
    "overlap": figures_tickets.overlap,
    "barriers": figures_barriers.instability,
    "paths": figures_barriers.paths,
    "matrix": figures_barriers.matrix,
    "predictors": figures_predictors.predictors,
    "double_descent": figures_predictors.double_descent,
    "before_training": figures_before.before_training,
    "trackers": figures_before.trackers,
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
_ON_REQUEST = {
    "rate": ("rate", "rate_scatter"),
    "predictors": ("predictors",),
    "double_descent": ("double_descent",),
}
_NEEDS = {
    "predictors": f"at least {ranking.LEAST} networks that have ended, fields in which they "
    "differ, evaluate_train=True",
    "double_descent": "at least 4 widths, evaluate_train=True",
}
_TABLES = ("table",)  # names that stand for tables, which every page has


@dataclass
class Gallery:
    """The figures of a study by name."""

    asked: dict[str, Drawing]  # of `config.report.figures`, in its order
    more: dict[str, Drawing]
    empty: list[str]  # asked for, but the study has nothing that they show; what that would be
    failed: list[str]  # what went wrong where one could not be drawn


def draw(study: Study, look: Look) -> Gallery:
    """Draws what the study asks for, and everything else that it has (but for grids).

    Raises:
      ValueError: `config.report.figures` names one that does not exist.
    """
    names = dict.fromkeys(study.report_option("figures", ()))
    known = dict.fromkeys([*FIGURES, *_TABLES])
    for name in names:
        registry.lookup(known, name, "figure in config.report.figures")
    wanted = [name for name in names if name not in _TABLES]
    with_them = [m for name in wanted for m in _ON_REQUEST.get(name, ()) if m != name]
    asked = list(dict.fromkeys(w for name in wanted for w in (name, *_ON_REQUEST.get(name, ()))))
    left_out = {name for names in _ON_REQUEST.values() for name in names}
    if "predictors" in names:  # a grid: each network an arm, of which no other figure says much
        left_out |= {name for name in FIGURES if name not in asked}
    drawn: dict[str, Drawing | None] = {}
    failed = []
    for name, function in FIGURES.items():
        if name in asked or name not in left_out:
            try:
                drawn[name] = function(study, look)
            except Exception as error:  # one figure, maybe somebody's own, must not cost the page
                why = " ".join(str(error).split())
                failed.append(f"Figure {name!r} could not be drawn: {type(error).__name__}: {why}.")
    found = {name: drawing for name, drawing in drawn.items() if drawing is not None}
    if not study.in_nats:
        found = {name: units.drawing(made) for name, made in found.items()}
    return Gallery(
        {name: found[name] for name in asked if name in found},
        {name: drawing for name, drawing in found.items() if name not in asked},
        [
            f"{name} (it needs {_NEEDS[name]})" if name in _NEEDS else name
            for name in wanted
            if name in drawn and not drawn[name] and name not in with_them
        ],
        failed,
    )
