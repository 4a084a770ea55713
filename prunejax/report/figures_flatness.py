"""Measured numbers against stability and accuracy: figures 6, E3 and E5."""

import re
from math import isfinite

import numpy as np
from matplotlib.axes import Axes

from prunejax.measures import statistics
from prunejax.measures.summary import by_variant, measure_columns, number, value
from prunejax.report import markup
from prunejax.report.figures import STABILITY, Drawing, legend_label
from prunejax.report.results import Study
from prunejax.report.style import (
    Look,
    figure,
    legend_below,
    pad,
    with_interval,
)

# Which columns belong to which figure; what matches nothing is drawn as "other measures".
_FIGURES = {
    "flatness": r"(hessian_)?trace.*|.*second_moment.*|.*covariance.*|.*noise_scale.*",
    "tic": r"tic.*|.*_tic",
    "epsilon": r"epsilon.*",
}


def columns_of(study: Study, name: str) -> list[str]:
    """The measured columns that figure `name` shows."""
    columns = measure_columns(study.good)
    if name in _FIGURES:
        return [c for c in columns if re.fullmatch(_FIGURES[name], c)]
    return [c for c in columns if not any(re.fullmatch(p, c) for p in _FIGURES.values())]


def _panel(
    axes: Axes, study: Study, look: Look, x: tuple[str, float], y: tuple[str, float]
) -> None:
    """A point per run with standard errors; x and y are (column, factor)."""
    for variant, rows in by_variant(study.good).items():
        errors = []
        for column, factor in (x, y):
            error = [factor * number(row.get(f"{column}_stderr")) for row in rows]
            errors.append(error if np.isfinite(error).any() else None)
        axes.errorbar(
            [x[1] * value(row, x[0]) for row in rows],
            [y[1] * value(row, y[0]) for row in rows],
            xerr=errors[0],
            yerr=errors[1],
            linestyle="none",
            marker=look.marker(variant),
            color=look.color(variant),
            alpha=0.8,
            elinewidth=0.8,
            markersize=5,
        )
    a = np.array([x[1] * value(row, x[0]) for row in study.good])
    b = np.array([y[1] * value(row, y[0]) for row in study.good])
    slope, intercept = statistics.fit_line(a, b)
    if isfinite(slope):
        span = np.array([np.nanmin(a), np.nanmax(a)])
        axes.plot(span, slope * span + intercept, color="#555555", linewidth=1.2, zorder=1)
    r, tau = statistics.pearson(a, b), statistics.kendall(a, b)
    title = f"{with_interval('r', r)}\n{with_interval('τ', tau)}, n = {r.n}"
    axes.set_title(title, fontsize=9)
    pad(axes)


def _measures(study: Study, look: Look, name: str, title: str, caption: str) -> Drawing | None:
    """Each measure against stability (top) and accuracy against it (bottom)."""
    columns = columns_of(study, name)
    if not columns or len(study.good) < 2:
        return None
    wide = 2 if len(columns) == 4 else min(3, len(columns))
    blocks = -(-len(columns) // wide)
    made = figure(5.5 * wide if wide < 3 else 11, 0.6 + 6.6 * blocks)
    grid = made.subplots(2 * blocks, wide, squeeze=False)
    if len(columns) == 1:  # side by side
        made = figure(11, 4.6)
        grid = made.subplots(1, 2, squeeze=False).T
    for axes in grid.flatten():
        axes.set_visible(False)
    for index, column in enumerate(columns):
        top, bottom = grid[2 * (index // wide) : 2 * (index // wide) + 2, index % wide]
        words = markup.name(column)
        _panel(top, study, look, ("mean_stability", 100), (column, 1))
        top.set(visible=True, xlabel="mean stability (%)", ylabel=words)
        _panel(bottom, study, look, (column, 1), ("best_test_accuracy", 100))
        bottom.set(visible=True, xlabel=words, ylabel="best test accuracy (%)")
    variants = [v for v in study.variants if v in by_variant(study.good)]
    handles = [look.handle(v, legend_label(study, v), points=True) for v in variants]
    legend_below(made, handles, STABILITY)
    return Drawing(made, title, caption)


_ALL = (
    "One point per run, all runs; bars are standard errors of the estimates; Pearson r and "
    "Kendall τ with 95% confidence intervals."
)


def flatness(study: Study, look: Look) -> Drawing | None:
    """Figure 6: curvature and gradient noise."""
    return _measures(
        study,
        look,
        "flatness",
        "Curvature and gradient noise",
        _ALL + " The paper's claim: less stable training ends flatter (top, positive r) and "
        "flatter networks generalize better (bottom, negative r).",
    )


def tic(study: Study, look: Look) -> Drawing | None:
    """Figure E5: the TIC proxy."""
    return _measures(study, look, "tic", "Takeuchi information criterion", _ALL)


def epsilon(study: Study, look: Look) -> Drawing | None:
    """Figure E3: epsilon-flatness."""
    return _measures(
        study,
        look,
        "epsilon",
        "ε-flatness",
        _ALL + " ε is the smallest step along a leading eigenvector that raises the loss by 0.1.",
    )


def measures(study: Study, look: Look) -> Drawing | None:
    """All other measured columns in the form of figure 6."""
    return _measures(study, look, "other", "Other measures", _ALL)
