"""Figures from arrays and events: eigenvalues (E1, E2), spectra, loss curves (E4), forecasts, B1.

Arrays come from `measures/RUN.npz`:

* `eigenvalues` [k]: E1, E2.
* `spectral_grid`, `spectral_density`, `spectral_stderr` [g]: the whole spectrum.
* `epsilons` [m], `loss_increase` [directions, m]: loss increase in nats along eigenvectors: E4.
* `normality_edges` [bins + 1], `normality_layers` [layers] (names), `normality_trained` and
  `normality_untrained` [layers, bins]: densities of normalized activations: B1.
"""

from collections.abc import Sequence
from math import isfinite

import numpy as np

from prunejax.measures import forecasts, statistics
from prunejax.measures.columns import by_variant, number
from prunejax.report import words
from prunejax.report.figures import Drawing, arm_legend, dots, legend_label, listed
from prunejax.report.results import Study
from prunejax.report.style import (
    COLORS,
    GREY,
    Look,
    legend,
    line_handle,
    panel,
    plain_numbers,
)
from prunejax.system import files

_INTERVALS = " with 95% confidence intervals"


def arrays(study: Study, *names: str) -> dict[str, list[dict[str, np.ndarray]]]:
    """By arm: the arrays of its completed runs that have all of `names`."""
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for variant, rows in study.good_of.items():
        for row in rows:
            path = study.arrays.get(row["run"])
            if path is None:
                continue
            with files.arrays(path) as file:
                if all(name in file.files for name in names):
                    found.setdefault(variant, []).append({n: file[n] for n in names})
    return found


def eigenvalues(study: Study, look: Look) -> Drawing | None:
    """Figures E1 and E2: leading eigenvalues."""
    spectra = {
        variant: np.array([e[: min(map(len, lists))] for e in lists])
        for variant, items in arrays(study, "eigenvalues").items()
        for lists in [[np.sort(item["eigenvalues"].reshape(-1))[::-1] for item in items]]
    }
    if not spectra:
        return None
    first, bars = panel(xlabel="rank", ylabel="eigenvalue of the Hessian (nats)")
    second, lines = panel(xlabel="rank by magnitude", ylabel="|eigenvalue| (nats)")
    width = 0.8 / len(spectra)
    for index, (variant, found) in enumerate(spectra.items()):
        mean, low, _ = statistics.bands(found[:, :10])  # over seeds, rank by rank
        places = np.arange(mean.size) + 1 + (index - (len(spectra) - 1) / 2) * width
        error = np.where(np.isfinite(low), mean - low, 0)
        bars.bar(places, mean, width, yerr=error, color=look.color(variant), ecolor="#555555",
                 error_kw={"elinewidth": 0.8})  # fmt: skip
        size = -np.sort(-np.abs(found), axis=1)  # ranks by magnitude, run by run, before the mean
        style = {"color": look.color(variant), "linestyle": look.line(variant)}
        lines.plot(np.arange(size.shape[1]) + 1, statistics.means(size), **style)  # type: ignore[arg-type]
    bars.set_xticks(range(1, 1 + max(min(10, s.shape[1]) for s in spectra.values())))
    bars.grid(axis="x", visible=False)
    lines.set_yscale("log")
    plain_numbers(lines.yaxis)
    tops = [(v, float(statistics.means(found)[0])) for v, found in spectra.items()]
    sure = any(np.isfinite(statistics.bands(found)[1]).any() for found in spectra.values())
    return Drawing(
        [first, second, arm_legend(study, look, list(spectra), points=False)],
        "Leading eigenvalues of the Hessian",
        f"Means over seeds. First: the most positive eigenvalues{_INTERVALS * sure}. Second: all "
        "that were computed, by magnitude.",
        f"Largest eigenvalue in nats, mean over seeds: {listed(tops, '', form='.3g')}.",
    )


def _finite(items: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The runs all of whose arrays of numbers are finite."""
    numbers = [[a for a in item.values() if np.issubdtype(a.dtype, np.number)] for item in items]
    return [item for item, own in zip(items, numbers, strict=True)
            if all(np.isfinite(a).all() for a in own)]  # fmt: skip


def spectrum(study: Study, look: Look) -> Drawing | None:
    """The density of all eigenvalues (stochastic Lanczos quadrature)."""
    known = arrays(study, "spectral_grid", "spectral_density", "spectral_stderr")
    # one run, the first that has numbers: spectra of seeds are not averaged
    found = {v: own[0] for v, items in known.items() if (own := _finite(items))}
    if not found:
        return None
    made, axes = panel(
        xlabel="eigenvalue of the Hessian (nats)", ylabel="density (fraction per nat)"
    )
    top = 0.0
    for variant, item in found.items():
        grid, mean, error = (item[f"spectral_{n}"] for n in ("grid", "density", "stderr"))
        color = look.color(variant)
        axes.plot(grid, mean, color=color, linestyle=look.line(variant))
        axes.fill_between(grid, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
        top = max(top, float(mean.max()))
    axes.set(yscale="log", ylim=(1e-7 * top, 2 * top))
    plain_numbers(axes.yaxis)
    spans = [(v, float(item["spectral_grid"][-1])) for v, item in found.items()]
    return Drawing(
        [made, arm_legend(study, look, list(found), points=False)],
        "Spectrum of the Hessian",
        "Density of the eigenvalues of the first run of each arm, smoothed; the band is one "
        "standard error over start vectors, without a stated coverage.",
        f"The spectra reach, in nats: {listed(spans, '', form='.3g')}.",
    )


def perturbation(study: Study, look: Look) -> Drawing | None:
    """Figure E4: loss increase along the leading eigenvectors."""
    found = arrays(study, "epsilons", "loss_increase")
    if not found:
        return None
    means = {
        variant: statistics.means([item["loss_increase"] for item in items])
        for variant, items in found.items()
    }
    if not any(np.isfinite(m).any() for m in means.values()):
        return None
    low = min(float(np.nanmin(m)) for m in means.values())
    high = max(float(np.nanmax(m)) for m in means.values())
    panels = []
    for variant, increase in means.items():
        items = found[variant]
        labels = {"xlabel": "ε along the eigenvector", "ylabel": "loss increase (nats)"}
        made, axes = panel(2.8, title=legend_label(study, variant), **labels)
        panels.append(made)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        for direction, curve in enumerate(increase):
            shade = 1 - 0.8 * direction / max(len(increase), 1)
            axes.plot(items[0]["epsilons"], curve, color=look.color(variant), alpha=shade)
        axes.axhline(0.1, color="#888888", linestyle="--", linewidth=0.8)
    most = listed([(v, float(np.nanmax(m))) for v, m in means.items()], "", form=".2g")
    return Drawing(
        panels,
        "Loss along the leading eigenvectors",
        "Mean over seeds, one curve per direction, the leading one darkest. The dashed line is "
        "the increase of 0.1 that defines ε-flatness.",
        f"Largest mean loss increase along an eigenvector, in nats: {most}.",
    )


_ORDERS = {"first": "first order: g·d", "second": "second order: g·d + d·Hd/2"}


def forecast(study: Study, look: Look) -> Drawing | None:
    """Predicted against measured change of the loss at each event."""
    rows = forecasts.forecast_rows(study.events)
    losses = ("post_loss", "pre_loss")  # an event may leave a loss that is no number
    drawn = [r for r in rows if all(isfinite(number(r[c])) for c in losses)]
    if not drawn:
        return None
    panels, texts = [], []
    judged = forecasts.forecasts(rows)
    for order, column in forecasts.COLUMNS.items():
        made, axes = panel(
            4.0, xlabel="measured change of the loss (nats)", ylabel="predicted change (nats)"
        )
        panels.append(made)
        pairs: list[tuple[float, float]] = []
        for variant, own in by_variant(drawn).items():
            found = [point[1:] for point in forecasts.points(own, column)]
            dots(axes, look, variant, 4.5, *np.array(found).T)
            pairs += found
        measured, predicted = np.array(pairs).T
        limit = float(np.nanmax(np.abs(measured))) * 1.08
        axes.plot([-limit, limit], [-limit, limit], color=GREY, linewidth=1, zorder=1)
        low = min(0.0, float(np.nanmin(measured)), float(np.nanmin(predicted)))
        axes.set_xlim(max(1.1 * low, -limit), limit)
        axes.set_ylim(max(1.1 * low, -limit), max(limit, 1.05 * float(np.nanmax(predicted))))
        r = judged[order]
        error = "undefined" if r["rms_error"] is None else f"{r['rms_error']:.3g} nats"
        n = words.count(r["n"], "event")
        text = f"{words.coefficient('r', r['value'])}, rms error {error}, n = {n}"
        axes.set_title(f"{_ORDERS[order]}\n{text}")
        texts.append(f"{_ORDERS[order]}: {text}")
    return Drawing(
        [*panels, legend([look.handle(v, v, points=True) for v in by_variant(drawn)])],
        "Forecast of each event from gradient and curvature",
        "One point per pruning event of each run. On the line, the expansion of the loss around "
        "the weights before the event foretells what removing the targeted weights does. Events of "
        "one seed share their start: summary.json has the intervals, with seeds as blocks.",
        f"Predicted against measured change of the loss at each event: {'; '.join(texts)}.",
    )


def normality(study: Study, _look: Look) -> Drawing | None:
    """Figure B1: are normalized activations Gaussian, as the E[BN] score assumes?"""
    keys = ("normality_edges", "normality_layers", "normality_trained", "normality_untrained")
    found = _finite([item for items in arrays(study, *keys).values() for item in items])
    if not found:
        return None
    item = found[0]
    edges, layers = item["normality_edges"], [str(name) for name in item["normality_layers"]]
    center = (edges[1:] + edges[:-1]) / 2  # densities belong to the middle of a bin
    normal = np.exp(-(center**2) / 2) / np.sqrt(2 * np.pi)
    curves = (normal, item["normality_untrained"], item["normality_trained"])
    top = 1.05 * max(float(np.nanmax(curve)) for curve in curves)
    panels = []
    for index, layer in enumerate(layers):
        made, axes = panel(2.6, title=layer, xlabel="normalized activation", ylabel="density")
        panels.append(made)
        axes.fill_between(center, normal, color="#dddddd", linewidth=0)
        axes.plot(center, item["normality_untrained"][index], color=COLORS[0], linestyle="--")
        axes.plot(center, item["normality_trained"][index], color=COLORS[1])
        axes.set_ylim(0, top)
    handles = [
        line_handle("trained", COLORS[1]),
        line_handle("untrained", COLORS[0], line="--"),
        line_handle("N(0, 1)", "#bbbbbb"),
    ]
    away = np.abs(item["normality_trained"] - normal).max(axis=1)
    worst = int(np.argmax(away))
    return Drawing(
        [*panels, legend(handles)],
        "Normalized activations before scale and bias",
        "Density over channels and positions, before BatchNorm's scale and bias, of the first run "
        "that has it, against the standard normal density that the E[BN] score assumes.",
        f"The trained density is farthest from the normal one in {layers[worst]}, by "
        f"{away[worst]:.2g} at most.",
    )
