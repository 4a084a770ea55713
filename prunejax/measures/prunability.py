"""Prunability: the smallest fraction of weights that can be kept without hurting the loss.

    curve = prune_curve(evaluate, params, train)            # loss against the fraction kept
    found = curve.at(beta=0.1)                              # loss <= (1 + beta) L; more betas free
    found = prunability(evaluate, params, train, refine=True)      # both, and bisection

`mu = min {a in grid : L(prune(w, a)) <= tolerance}`, without retraining; less is simpler. All
masks of a grid, all networks of one shape and all draws run through one compiled program: counts
and scores are data, and so are BatchNorm statistics given in a `jax.tree_util.Partial`.

Kuhn et al., arXiv 2103.06002, define the fraction; beta, grid and scope are this project's choice.
"core": Jackson et al. 2024, the fraction kept at which train accuracy is down by five points.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, inf
from typing import Any

import jax
import numpy as np

from prunejax.curvature import means, splits
from prunejax.curvature.callables import on_host
from prunejax.curvature.trace import mean_and_stderr
from prunejax.measures.pruned_evaluation import Pruner

Tree = Any
GRID = (*(i / 50 for i in range(1, 50)), 0.985, 0.99, 0.995, 1.0)
TOLERANCES = ("relative", "absolute", "accuracy")
CORE_DROP = 0.05
VOID = 1e-12  # a loss below leaves no relative tolerance
INSTEAD = 1e-3  # nats: the absolute tolerance then
_ROUNDING = 1e-6  # of accuracies, means in single precision


@dataclass(frozen=True)
class Prunability:
    """The smallest fraction kept that meets a tolerance.

    Attributes:
      value: mu, the smallest fraction of the grid (or refined) that meets it.
      monotone: the smallest such that every larger one of the grid meets it too.
      count: units kept at `value`: grows with the network, where the fraction does not.
      tolerance, beta: as asked for; `bound`: what the loss may be (accuracy: at least).
      switched: the loss was below 1e-12, so that a relative tolerance is void and the absolute one
        of 1e-3 was taken.
      stderr: of mu over the draws of random masks; NaN for one.
      collapsed: layers of which nothing is left at `value`.
    """

    value: float
    monotone: float
    count: int
    tolerance: str
    beta: float
    bound: float
    switched: bool
    stderr: float
    collapsed: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """Loss and accuracy against the fraction of prunable units kept.

    Attributes:
      fractions: [P], ascending; the last is 1.
      values: name -> [P], means over the draws.
      draws: name -> [draws, P].
      layers: path -> [P], units kept of each leaf (of the first draw).
      units: prunable units in all, dead ones included.
      examples: of the split.
      method, scope: of the masks.
    """

    fractions: np.ndarray
    values: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    layers: dict[str, np.ndarray]
    units: int
    examples: int
    method: str
    scope: str

    @property
    def loss(self) -> float:
        """Of the network as it is."""
        return float(self.values["loss"][-1])

    def bound(self, beta: float, tolerance: str) -> tuple[float, bool]:
        """(the largest loss or smallest accuracy that is allowed, whether the tolerance switched).

        Raises:
          ValueError: unknown tolerance, negative beta, a relative one for a negative loss, no
            accuracy, or none that is a number.
        """
        if tolerance not in TOLERANCES:
            raise ValueError(f"tolerance {tolerance!r} is not one of: {', '.join(TOLERANCES)}")
        if not beta >= 0:
            raise ValueError(f"beta is {beta!r}; it must be at least 0")
        if tolerance == "accuracy":
            if "accuracy" not in self.values:
                raise ValueError("tolerance 'accuracy' needs evaluate to return an 'accuracy' too")
            if not np.isfinite(self.values["accuracy"][-1]):
                raise ValueError(
                    "tolerance 'accuracy': the network's accuracy is nan, as where targets are "
                    "numbers; use 'relative' or 'absolute'"
                )
            return float(self.values["accuracy"][-1]) - beta - _ROUNDING, False
        if tolerance == "absolute":
            return self.loss + beta, False
        if self.loss < -VOID:
            raise ValueError(f"the loss is {self.loss:.3g} < 0: use tolerance='absolute'")
        if self.loss < VOID:
            return self.loss + INSTEAD, True
        return (1 + beta) * self.loss, False

    def at(self, beta: float = 0.1, tolerance: str = "relative") -> Prunability:
        """Prunability on this grid for a tolerance.

        Args:
          beta: relative: loss <= (1 + beta) L; absolute: loss <= L + beta, in nats; accuracy: it
            falls by at most beta, a fraction.
          tolerance: one of `TOLERANCES`.
        """
        bound, switched = self.bound(beta, tolerance)
        name = "accuracy" if tolerance == "accuracy" else "loss"
        met = _met(self.values[name], bound, tolerance)
        first = int(np.argmax(met))  # there is one: the network itself meets it
        every = int(met.size - np.argmin(np.append(met[::-1], False)))  # from there on all meet it
        own = [self.fractions[np.argmax(_met(d, bound, tolerance))] for d in self.draws[name]]
        _, stderr = mean_and_stderr(np.asarray(own))
        kept = {path: int(counts[first]) for path, counts in self.layers.items()}
        return Prunability(
            value=float(self.fractions[first]), monotone=float(self.fractions[every]),
            count=sum(kept.values()), tolerance=tolerance, beta=beta, bound=bound,
            switched=switched, stderr=stderr,
            collapsed=tuple(path for path, n in kept.items() if not n),
        )  # fmt: skip

    def area(self, cap: float = inf) -> float:
        """Area under min(loss, cap) over the fraction kept, from the smallest of the grid to 1.

        Args:
          cap: the loss of a constant guess, log C for cross entropy over C classes (of others see
            `predictors.constant_guess`); a loss that is not finite is cap. NaN gives NaN.
        """
        loss = np.where(np.isfinite(self.values["loss"]), self.values["loss"], inf)
        return float(np.trapezoid(np.minimum(loss, cap), self.fractions))

    def core(self, drop: float = CORE_DROP) -> float:
        """The smallest fraction kept at which accuracy is down by at most `drop`."""
        return self.at(drop, "accuracy").value


def _met(values: np.ndarray, bound: float, tolerance: str) -> np.ndarray:
    inside = values >= bound if tolerance == "accuracy" else values <= bound
    return np.isfinite(values) & inside


def _curve(pruner: Pruner, grid: Sequence[float]) -> Curve:
    given = [float(a) for a in grid]
    if not all(0 <= a <= 1 for a in given):  # NaN is none either
        raise ValueError(f"grid from {np.min(given):g} to {np.max(given):g}: fractions in [0, 1]")
    # the decimals as written
    exact = sorted({Fraction(str(a)) for a in given} | {Fraction(1)})
    exact = list({pruner.counts(a): a for a in exact}.values())  # of equal masks the largest a
    draws, kept = pruner(exact)
    values = {name: found.mean(0) for name, found in draws.items()}
    if "loss" not in values:
        raise ValueError(f"evaluate must return a 'loss', not only {', '.join(values)}")
    if not np.isfinite(values["loss"][-1]):
        raise ValueError(f"the loss of the network itself is {values['loss'][-1]}: nothing to keep")
    return Curve(
        np.array([float(a) for a in exact]), values, draws,
        dict(zip(pruner.sizes, kept, strict=True)), pruner.units,
        means.examples(pruner.groups), pruner.method, pruner.scope,
    )  # fmt: skip


@on_host()
def prune_curve(
    evaluate: Callable[..., Any],
    params: Tree,
    batches: splits.Batches = None,
    *,
    method: Any = "magnitude",
    scope: str = "global",
    grid: Sequence[float] = GRID,
    draws: int = 8,
    key: jax.Array | None = None,
    prunable: Any = None,
    masks: Tree | None = None,
    batch_size: int | None = None,
) -> Curve:
    """Loss (and accuracy) of a network at every fraction kept: one evaluation of the split each.

    Args:
      evaluate: `(params, batch) -> loss` or `{"loss": mean, "accuracy": fraction}`, means over the
        batch, with frozen BatchNorm statistics; `(params)` without batches.
      params: any tree of parameters.
      batches: the training set: one batch, a list, or a function (see `curvature.splits`).
      method: "magnitude", "random" (means over `draws` masks), or a tree of scores like params:
        larger is kept, its shape says what a unit is, scalar leaves are never pruned.
      scope: "global" (one ranking) or "layer" (the same fraction of each leaf).
      grid: fractions kept, in [0, 1]; 1 is added. `ceil(a units)` are kept, exactly; of fractions
        that keep equally many units the largest stands for all.
      draws: random masks.
      key: for them.
      prunable: rules of paths (`trees.match`) or a tree of bools; None: `trees.kernels`, neither
        biases nor norms.
      masks: the network's own masks: what is dead counts as a unit and stays dead.
      batch_size: cuts one batch into several.

    Raises:
      ValueError: unknown method or scope, nothing prunable, a loss that is not finite.
    """
    return _curve(
        Pruner(
            evaluate, params, batches, method, scope, draws, key, prunable, masks, batch_size
        ),
        grid,
    )  # fmt: skip


@on_host(prune_curve)
def prunability(
    evaluate: Callable[..., Any],
    params: Tree,
    batches: splits.Batches = None,
    *,
    beta: float = 0.1,
    tolerance: str = "relative",
    refine: bool = False,
    grid: Sequence[float] = GRID,
    **options: Any,
) -> Prunability:
    """Prunability of a network; see `prune_curve` and `Curve.at` for the arguments.

    Args:
      refine: bisection to single units between the grid's point that meets the tolerance and the
        one below, for both readings: log2(units / points) more evaluations each.
    """
    given: dict[str, Any] = {"method": "magnitude", "scope": "global", "draws": 8, "key": None}
    given |= {"prunable": None, "masks": None, "batch_size": None} | options
    pruner = Pruner(evaluate, params, batches, **given)
    curve = _curve(pruner, grid)
    found = curve.at(beta, tolerance)
    if not refine:
        return found
    edges = {}
    for reading in {found.value, found.monotone}:
        edges[reading] = _bisected(pruner, curve, reading, found)
    value, kept = edges[found.value]
    return replace(
        found, value=value, monotone=edges[found.monotone][0], count=int(kept.sum()),
        collapsed=tuple(p for p, n in zip(pruner.sizes, kept, strict=True) if not n),
    )  # fmt: skip


def _bisected(
    pruner: Pruner, curve: Curve, start: float, found: Prunability
) -> tuple[float, np.ndarray]:
    """The smallest fraction k / units above the grid's point below `start`, and units kept."""
    place = int(np.searchsorted(curve.fractions, start))
    kept = np.array([counts[place] for counts in curve.layers.values()])
    if place == 0:
        return start, kept
    low, high = (
        ceil(Fraction(str(float(a))) * pruner.units) for a in curve.fractions[place - 1 : place + 1]
    )
    best = start
    while high - low > 1:
        middle = (low + high) // 2
        values, counts = pruner([Fraction(middle, pruner.units)])
        value = values["accuracy" if found.tolerance == "accuracy" else "loss"].mean(0)
        if _met(value, found.bound, found.tolerance)[0]:
            high, best, kept = middle, middle / pruner.units, counts[:, 0]
        else:
            low = middle
    return best, kept
