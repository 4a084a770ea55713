"""Which figures there are, and which of them a study shows."""

from collections.abc import Iterable, Mapping
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
SHIPPED = dict(FIGURES)
# Shown only if asked for; the others whenever the study has what they show.
_ON_REQUEST = {
    "rate": ("rate", "rate_scatter"),
    "predictors": ("predictors",),
    "double_descent": ("double_descent",),
}
# What they draw is an accuracy, which a regression has not.
_OF_ACCURACY = (
    *("stability", "scatter", "gap", "rate", "rate_scatter", "corners", "density", "flops"),
    *("sanity", "recall", "balance", "classes", "tickets", "before_training", "group_scatter"),
    *("barriers", "paths", "matrix"),
)
_NEEDS = {
    "predictors": f"at least {ranking.LEAST} networks that have ended, fields in which they "
    "differ, evaluate_train=True",
    "double_descent": "at least 4 widths, evaluate_train=True",
}
_TABLES = ("table",)  # names that stand for tables, which every page has


@dataclass
class Choice:
    """Which figures a study shows, should it have what they are of."""

    wanted: list[str]  # figures of `config.report.figures`, in its order
    asked: list[str]  # and those that come with them
    names: list[str]  # all that are tried, in the order of the page

    def empty(self, drawn: Mapping[str, object]) -> list[str]:
        """What was asked for, but the study has nothing that it shows; what that would be."""
        with_them = [m for name in self.wanted for m in _ON_REQUEST.get(name, ()) if m != name]
        return [
            f"{name} (it needs {_NEEDS[name]})" if name in _NEEDS else name
            for name in self.wanted
            if name in drawn and not drawn[name] and name not in with_them
        ]


def known() -> list[str]:
    """What `config.report.figures` may name."""
    return [*FIGURES, *_TABLES]


def check(names: Iterable[str]) -> None:
    """Refuses names of `config.report.figures` that are neither figures nor tables.

    Raises:
      ValueError: says which, and what there is.
    """
    for name in names:
        registry.lookup(dict.fromkeys(known()), name, "figure in config.report.figures")


def choose(study: Study) -> Choice:
    """What the study asks for, and everything else that it may have (but for grids).

    Raises:
      ValueError: as `check`.
    """
    names = dict.fromkeys(study.report_option("figures", ()))
    check(names)
    wanted = [name for name in names if name not in _TABLES]
    asked = list(dict.fromkeys(w for name in wanted for w in (name, *_ON_REQUEST.get(name, ()))))
    left_out = {name for names in _ON_REQUEST.values() for name in names}
    if "predictors" in names:  # a grid: each network an arm, of which no other figure says much
        left_out |= {name for name in FIGURES if name not in asked}
    return Choice(wanted, asked, [n for n in FIGURES if n in asked or n not in left_out])


def _judge(made: Drawing) -> None:
    """TypeError unless a drawing has what `Drawing` says: the page would be lost with it."""
    panels, words = made.panels, (made.title, made.caption, made.alt)
    figures = isinstance(panels, list | tuple) and all(hasattr(p, "savefig") for p in panels)
    if not figures or not panels or not all(isinstance(word, str) for word in words):
        raise TypeError("its Drawing needs figures of matplotlib, and title, caption, alt as text")


def make(name: str, study: Study, look: Look) -> Drawing | str | None:
    """A figure; None: the study has nothing that it shows; a string: what went wrong."""
    if name in _OF_ACCURACY and FIGURES[name] is SHIPPED[name] and not study.has_accuracy:
        return None
    try:
        made = FIGURES[name](study, look)
        if not isinstance(made, Drawing | None):
            kind = type(made).__name__
            raise TypeError(f"it gives a {kind}; report.figures.Drawing is needed, or None")
        if made is not None:
            _judge(made)
    except Exception as error:  # one figure, maybe somebody's own, must not cost the page
        why = " ".join(str(error).split())
        return f"Figure {name!r} could not be drawn: {type(error).__name__}: {why}."
    return made if made is None or study.in_nats else units.drawing(made)
