"""Measured numbers against stability and accuracy: figures 6, E3 and E5."""

import re
from collections.abc import Sequence
from math import isfinite

from prunejax.measures.columns import measure_columns, number, numeric_columns
from prunejax.report.figures import Drawing, points_of, scatter_panel
from prunejax.report.results import Study
from prunejax.report.style import Look

# Which columns belong to which figure; what matches nothing is drawn as "other measures".
_FIGURES = {
    "flatness": r"(hessian_)?trace.*|.*second_moment.*|.*covariance.*|.*noise_scale.*",
    "tic": r"tic.*|.*_tic",
    "epsilon": r"epsilon.*",
}


_BARS = "bars are standard errors of the estimates; "
_MANY = 6  # more panels than this have their numbers above them and in the table alone


def columns_of(study: Study, name: str) -> list[str]:
    """The measured columns that figure `name` shows: none that the settings of an arm decide.

    Such a column (units that are dead after planned events, say) is the same in all runs of each
    arm, of which some have several; a line over it would be one over settings.
    """
    arms = [rows for rows in study.good_of.values() if len(rows) > 1]
    columns = [
        c
        for c in measure_columns(study.good)
        if not arms or any(len({row.get(c) for row in rows}) > 1 for rows in arms)
    ]
    if name in _FIGURES:
        return [c for c in columns if re.fullmatch(_FIGURES[name], c)]
    return [c for c in columns if not any(re.fullmatch(p, c) for p in _FIGURES.values())]


def _measures(study: Study, look: Look, name: str, title: str, more: str = "") -> Drawing | None:
    """Each measure against stability, where runs differ in it, then accuracy against it."""
    columns = columns_of(study, name)
    if not columns or len(study.good) < 2:
        return None
    pairs = [p for c in columns for p in (("mean_stability", c), (c, "best_test_accuracy"))]
    known = {*numeric_columns(study.good)}  # a regression has no accuracy
    if not study.has_events:
        known -= {"mean_stability"}
    one = [row for row in study.good if row["variant"] in study.comparable]
    variants = [v for v in study.comparable if v in study.good_of]
    style, key = points_of(study, look, variants)
    found = [scatter_panel(one, x, y, style) for x, y in pairs if {x, y} <= known]
    if not found:
        return None
    bars = any(isfinite(number(row.get(f"{c}_stderr"))) for row in study.good for c in columns)
    return Drawing(
        [*(made for made, _ in found), key],
        title,
        f"One point per run, all runs{study.where}; {_BARS * bars}Pearson r and Kendall τ.{more}",
        _finding([text for _, text in found]),
    )


def _finding(texts: Sequence[str]) -> str:
    """The coefficients of the panels; of many where they are listed."""
    if len(texts) > _MANY:
        return f"{len(texts)} pairs of quantities; the table All correlations has each coefficient."
    return f"Correlations: {'; '.join(texts)}."


def flatness(study: Study, look: Look) -> Drawing | None:
    """Figure 6: curvature and gradient noise."""
    first = "less stable training ends flatter (positive r with stability) and "
    claim = f" The paper's claim: {first if study.has_events else ''}flatter networks generalize "
    claim += "better (negative r with accuracy)."
    return _measures(study, look, "flatness", "Curvature and gradient noise", claim)


def tic(study: Study, look: Look) -> Drawing | None:
    """Figure E5: the TIC proxy."""
    return _measures(study, look, "tic", "Takeuchi information criterion")


def epsilon(study: Study, look: Look) -> Drawing | None:
    """Figure E3: epsilon-flatness."""
    what = " ε is the smallest step along a leading eigenvector that raises the loss by 0.1."
    return _measures(study, look, "epsilon", "ε-flatness", what)


def measures(study: Study, look: Look) -> Drawing | None:
    """All other measured columns in the form of figure 6."""
    return _measures(study, look, "other", "Other measures")
