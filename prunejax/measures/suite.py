"""What a study measures at the end of a run: `MEASURES`, by the names of `config.measures.names`.

A measure is a function of a `Context` (a loss with parameters, masks and data; no model class, no
config) that gives columns of `runs.csv` and arrays of `measures/RUN.npz`. Measures share what they
have in common (per-example forms, eigenpairs) through the context, which computes each once.

On which examples: curvature, gradients, sharpness, normality, robustness and smoothing on those of
`measures.split` (test by default, as the paper has its flatness; "train" for that of what was
trained); predictions and epsilon-flatness on the whole test set; what predicts generalization by
its definition (`training`: prunability, norms, margins, PAC-Bayes) on the training set alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from prunejax import losses, registry
from prunejax.curvature.density import estimate_density
from prunejax.curvature.perturb import eigenvector_perturbation, epsilon_flatness
from prunejax.curvature.ratios import NoiseScale, Tic, from_forms, gradient_noise_scale, tic
from prunejax.curvature.sharpness import average_sharpness, keskar_sharpness, sharpness
from prunejax.curvature.trace import mean_and_stderr
from prunejax.measures import normality, predictors, rivals, robustness
from prunejax.measures.columns import CONTEXT
from prunejax.measures.context import Context as Context
from prunejax.measures.context import Network as Network

Tree = Any
Columns = dict[str, float]
Arrays = dict[str, np.ndarray]
DIRECTIONS = 10  # leading eigenvectors that epsilon-flatness goes along (the paper's number)


class Measure(NamedTuple):
    """One entry of `MEASURES`."""

    run: Callable[[Context], tuple[Columns, Arrays]]
    columns: tuple[str, ...]  # of runs.csv, known before training
    running_only: bool = False  # not with the statistics of batches
    classes: bool = False  # not where targets are numbers
    training: bool = False  # of the training set by definition: not with measures.split "test"


def _hessian_trace(context: Context) -> tuple[Columns, Arrays]:
    """Tr(H) by Hutchinson; the standard error is over probes, the examples are given."""
    samples = context.trace_samples
    value, stderr = mean_and_stderr(samples)
    columns = {"hessian_trace": value, "hessian_trace_stderr": stderr}
    return columns, {"hessian_trace_samples": samples}


def _second_moment(context: Context) -> tuple[Columns, Arrays]:
    """Tr(C), uncentered as in the paper; the standard error is over examples."""
    found = context.moment
    columns = {"gradient_second_moment": found.value, "gradient_second_moment_stderr": found.stderr}
    return columns, {"gradient_squared_norms": found.squared_norms}


def _noise_scale(context: Context) -> tuple[Columns, Arrays]:
    """Tr(C)/|g|^2, C centered, unbiased (McCandlish et al. 2018); inf where |g|^2 <= 0.

    Its numerator, the trace of the gradients' covariance, is `gradient_noise`.
    """
    assert context.per_example is not None
    options = {"masks": context.masks}
    found = gradient_noise_scale(context.per_example, context.params, context.batches, **options)
    columns, arrays = _ratio("gradient_noise_scale", found)
    return columns | {"gradient_noise": found.moment.value}, arrays


def _tic(context: Context) -> tuple[Columns, Arrays]:
    """Tr(C)/Tr(H), Tr(H) by Hutchinson; the standard error knows of probes and examples."""
    return _ratio("tic", from_forms(context.moment, context.forms))


def _tic_leading(context: Context) -> tuple[Columns, Arrays]:
    """Tr(C) over the sum of the leading eigenvalues, as the paper has it."""
    assert context.per_example is not None
    found = tic(
        context.per_example, context.params, context.batches,
        eigenpairs=context.pairs, masks=context.masks, moment=context.moment,
    )  # fmt: skip
    return _ratio("tic_leading", found)


def _ratio(name: str, found: Tic | NoiseScale) -> tuple[Columns, Arrays]:
    columns = {name: found.value, f"{name}_stderr": found.stderr}
    return columns, {f"{name}_interval": np.array(found.interval)}


def _top_eigenvalues(context: Context) -> tuple[Columns, Arrays]:
    """The leading eigenvalues by magnitude, their signed sum, and their largest residual."""
    found = context.pairs
    columns = {
        "top_eigenvalue": float(found.values[0]),
        "hessian_trace_top": float(found.values.sum()),
        "eigen_residual": float(found.residuals.max()),
    }
    return columns, {"eigenvalues": found.values, "eigenvalue_residuals": found.residuals}


def _epsilon_flatness(context: Context) -> tuple[Columns, Arrays]:
    """Smallest step along a leading eigenvector that raises the test loss by 0.1 nats.

    Empty where no step of the paper's grid (up to 0.40) does.
    """
    # The most positive ones: `pairs` go by the signed value, as the paper's do.
    vectors = jax.tree.map(lambda x: x[:DIRECTIONS], context.pairs.vectors)
    line = eigenvector_perturbation(  # on the full test set, as in the paper
        context.evaluate, context.params, vectors, context.test, masks=context.masks
    )
    found = epsilon_flatness(line)
    return {"epsilon_flatness": found.value if found.reached else np.nan}, {
        "epsilons": line.grid,
        "loss_increase": line.increase("loss"),
        "accuracy_increase": line.increase("accuracy"),
    }


def _sharpness(context: Context) -> tuple[Columns, Arrays]:
    """Worst case in a ball, Keskar's percentage, and the mean under noise of the ball's size."""
    of = (context.loss, context.params, context.batches)
    options: dict[str, Any] = {"key": context.key, "masks": context.masks}
    worst = sharpness(*of, radius=context.radius, **options)
    keskar = keskar_sharpness(*of, **options)
    sigma = context.radius / context.live_dim**0.5  # noise of expected squared length radius^2
    mean = average_sharpness(*of, sigma=sigma, samples=context.probes, **options)
    return {
        "sharpness_worst": worst.value,
        "sharpness_keskar": keskar.value,
        "sharpness_average": mean.value,
        "sharpness_average_stderr": mean.stderr,
    }, {"sharpness_restarts": worst.restarts}


def _spectral_density(context: Context) -> tuple[Columns, Arrays]:
    """The whole spectrum as a density (stochastic Lanczos quadrature); arrays only."""
    found = estimate_density(context.hessian, key=context.key)
    names = ("grid", "density", "stderr", "nodes", "weights")
    return {}, {f"spectral_{name}": getattr(found, name) for name in names}


def _normality(context: Context) -> tuple[Columns, Arrays]:
    """How far BatchNorm's normalized activations are from N(0, 1), trained and untrained."""
    if context.activations is None:
        raise ValueError("normality needs the activations of a network")
    trained, untrained = (
        normality.normality(context.activations(which)) for which in (True, False)
    )
    return trained.columns(), normality.arrays(trained, untrained)


MEASURES: dict[str, Measure] = {
    "hessian_trace": Measure(_hessian_trace, ("hessian_trace", "hessian_trace_stderr")),
    "gradient_second_moment": Measure(
        _second_moment, ("gradient_second_moment", "gradient_second_moment_stderr"), True
    ),
    "gradient_noise_scale": Measure(
        _noise_scale,
        ("gradient_noise_scale", "gradient_noise_scale_stderr", "gradient_noise"),
        True,
    ),
    "tic": Measure(_tic, ("tic", "tic_stderr"), True),
    "tic_leading": Measure(_tic_leading, ("tic_leading", "tic_leading_stderr"), True),
    "top_eigenvalues": Measure(
        _top_eigenvalues, ("top_eigenvalue", "hessian_trace_top", "eigen_residual")
    ),
    "epsilon_flatness": Measure(_epsilon_flatness, ("epsilon_flatness",), True),
    "sharpness": Measure(
        _sharpness,
        ("sharpness_worst", "sharpness_keskar", "sharpness_average", "sharpness_average_stderr"),
    ),
    "spectral_density": Measure(_spectral_density, ()),
    "predictions": Measure(predictors.predictions, predictors.PREDICTIONS, classes=True),
    "prunability": Measure(predictors.prunability, predictors.PRUNABILITY, training=True),
    "ticket": Measure(predictors.ticket, predictors.TICKET),
    "prunability_forms": Measure(predictors.prunability_forms, predictors.FORMS, training=True),
    "rivals": Measure(predictors.rival_measures, rivals.COLUMNS, True, training=True),
    "robustness": Measure(robustness.attacked, robustness.ATTACKED, True, True),
    "smoothing": Measure(robustness.smoothed, robustness.SMOOTHED, True, True),
    "normality": Measure(
        _normality,
        (
            *("normality_ks", "normality_ks_worst"),
            *("normality_skewness", "normality_excess_kurtosis"),
        ),
    ),
}
SHIPPED = dict(MEASURES)


def columns(names: Sequence[str]) -> tuple[str, ...]:
    """The columns of `runs.csv` that the named measures fill, in that order."""
    found = [c for name in names for c in registry.lookup(MEASURES, name, "measure").columns]
    return tuple(dict.fromkeys(found))


def _checked(name: str, result: Any) -> tuple[Columns, Arrays]:
    """What a measure gave, as numbers and arrays.
    Raises ConfigError: it is not what its entry announces.
    """
    pair = isinstance(result, tuple) and len(result) == 2
    pair = pair and all(hasattr(part, "items") for part in result)
    kind = type(result).__name__
    registry.demand(pair, f"measure {name!r} gives {kind}; give two dicts, (columns, arrays)")
    known, more = MEASURES[name].columns, result[0].keys() - {*MEASURES[name].columns}
    registry.demand(
        not more,
        f"measure {name!r} gives {', '.join(sorted(more))}, and its entry has the columns: "
        + ", ".join(known),
    )
    for column, value in result[0].items():
        registry.demand(
            not np.ndim(value),
            f"measure {name!r}: column {column!r} has shape {np.shape(value)}; a number is needed "
            "(arrays are the second thing that it gives)",
        )
        registry.demand(
            np.asarray(value).dtype.kind in "biuf" or hasattr(value, "dtype"),
            f"measure {name!r}: column {column!r} is {value!r}; a number is needed",
        )
    arrays = {key: np.asarray(value) for key, value in result[1].items()}
    for key, value in arrays.items():
        numbers = value.dtype != object
        registry.demand(numbers, f"measure {name!r}: array {key!r} holds objects, not numbers")
    return {column: float(value) for column, value in result[0].items()}, arrays


def measure(context: Context, names: Sequence[str]) -> tuple[Columns, Arrays, dict[str, str]]:
    """Runs the named measures.

    A measure that cannot be taken (ValueError; ArithmeticError, as of a division by zero) gives
    NaN in its columns and does not keep the others from their results. Any other error is a fault
    of its code and stops the study.

    Returns:
      Columns, arrays, and per measure that failed the reason.

    Raises:
      ValueError: unknown name; what a measure gives is not what its entry announces.
    """
    found: Columns = dict.fromkeys(columns(names), float("nan"))
    arrays: Arrays = {}
    added: dict[str, str] = {}  # arrays of measures that are not the package's -> the measure
    failed = {}
    for name in names:
        try:
            if MEASURES[name].classes and not losses.is_classes(context.batches[0][1]):
                raise ValueError("it is about classes, and these targets are numbers")
            result = MEASURES[name].run(context)
        except (ValueError, ArithmeticError) as error:
            failed[name] = str(error)
        else:
            values, more = _checked(name, result)
            shipped = MEASURES[name] is SHIPPED.get(name)  # these share some on purpose
            twice = sorted(more.keys() & ({*added} if shipped else {*arrays, *CONTEXT}))
            whose = added[twice[0]] if shipped and twice else name
            other = f" of {name!r}" if shipped else " already"
            registry.demand(
                not twice,
                f"measure {whose!r} gives arrays {', '.join(twice)}, which measures/RUN.npz has"
                f"{other}; give them other names",
            )
            added |= {} if shipped else dict.fromkeys(more, name)
            found |= values
            arrays |= more
    return found, arrays, failed
