"""Ways of pruning by name: score, allocation, schedule of drops and growths, dead weights, moments.

A `Method` is a row of settings; METHODS has one for each published way, every part of which
`resolve` lets the caller replace. `timetable.plan` turns a method and the shapes of the parameters
into exact counts by step; `prunejax.sparsify` carries it out in an optax loop. docs/methods.md
describes each.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prunejax import allocate, registry, schedules
from prunejax.methods import growth
from prunejax.methods.evidence import EVIDENCE, NEEDS


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of pruning. Steps count the updates of the optimizer from 0.

    Attributes:
      initial: masks to begin with: "dense", a score of `evidence.EVIDENCE` (or a function of
        `Evidence`) by which they are made from the first parameters, or "masks": given ones.
      score: what events keep: "magnitude", a function of a leaf (shape kept), "learnt" (top
        score parameters), "learnt_magnitude" (top |S|, a control), or "threshold" (soft movement).
      allocation: "global", "uniform", "erk", or path rule -> sparsity.
      schedule: "none"; "once" (at `start`); "swaps"; "cubic"; "accelerated_cubic" (from
        `jump_sparsity` at `start`); "refresh" (new masks at every event, to the end of training);
        "cubic_refresh" (cubic, then refresh); "phases" (compress and release at `phases` in turn).
      growth: None, "random" or "gradient": with it, events also swap `drop` of the live weights.
      dead: "zero" (parameters are masked), "trained" (straight-through: dead weights get the
        gradient of the masked network) or "frozen" (they wait at their value).
      reset: whose moments an event zeroes: "grown" (what it made live) or "all".
      sparsity: fraction removed in the end, of all prunable weights.
      start: step of the first event. None: `every` for swaps, else 0.
      end: last step at which masks change (swaps, cubic); about three quarters of training.
      every: steps between events.
      drop: f_0, share of the live weights that an event swaps, of a layer (or of all, where layers
        are ranked together) at most as many as are dead.
      decay: of the drop fraction until `end`: "cosine", "constant" or "linear".
      redistribute: swaps rank all layers together, so that densities move between layers.
      gradient_step: whether an update that swaps also takes its gradient step.
      average: batches whose gradients are averaged for growth: those up to the event's, at most
        as many as there are up to the first event, and from one to the next.
      jump_sparsity: sparsity of the first event of "accelerated_cubic".
      phases: steps of "phases": compress, release, compress, ...; an odd number.
      rounds: of the initial score. None: 100 for SynFlow, 1 for others.
      nm: (n, m): n of m consecutive weights along `axis` instead of a sparsity.
      axis: of `nm`.
      dead_decay: SR-STE: `dead_decay * w` is added to the gradient of dead weights.
      score_rate: learning rate of score parameters.
      penalty: soft movement: weight of mean sigmoid(S), over all prunable weights.
      threshold: soft movement: live where sigmoid(S) exceeds it, at least 0.5 % of a leaf.
    """

    initial: str | Callable[..., Any] = "dense"
    score: str | Callable[..., Any] = "magnitude"
    allocation: str | Mapping[str, float] = "global"
    schedule: str = "none"
    growth: str | None = None
    dead: str = "zero"
    reset: str = "grown"
    sparsity: float | None = None
    start: int | None = None
    end: int | None = None
    every: int | None = None
    drop: float = 0.3
    decay: str = "cosine"
    redistribute: bool = False
    gradient_step: bool = True
    average: int = 1
    jump_sparsity: float | None = None
    phases: Sequence[int] | None = None
    rounds: int | None = None
    nm: tuple[int, int] | None = None
    axis: int = -2
    dead_decay: float = 0.0
    score_rate: float | None = None
    penalty: float | None = None
    threshold: float | None = None

    @property
    def learnt(self) -> bool:
        """Whether there are score parameters."""
        return self.score in ("learnt", "learnt_magnitude", "threshold")


_swap = Method(initial="random", allocation="erk", schedule="swaps")
_learn = Method(score="learnt", schedule="cubic_refresh", dead="frozen", every=1)
METHODS: dict[str, Method] = {
    # before training
    "random": Method(initial="random", allocation="uniform"),
    "magnitude": Method(initial="magnitude"),
    "snip": Method(initial="snip"),
    "grasp": Method(initial="grasp"),
    "synflow": Method(initial="synflow"),
    # sparse throughout
    "static": Method(initial="random", allocation="erk"),
    "set": dataclasses.replace(_swap, growth="random"),
    # RigL's updates take the place of a gradient step (Evci et al. 2020, algorithm 1).
    "rigl": dataclasses.replace(_swap, growth="gradient", gradient_step=False),
    # dense to sparse
    "once": Method(schedule="once"),
    "gradual": Method(schedule="cubic"),
    "gradual_regrow": Method(schedule="cubic", growth="gradient"),
    "ste": Method(initial="magnitude", schedule="refresh", dead="trained", every=1),
    "acdc": Method(schedule="phases", reset="all"),
    "movement": _learn,
    "movement_soft": dataclasses.replace(_learn, score="threshold", schedule="refresh"),
    "nm": Method(initial="magnitude", nm=(2, 4)),
}
SCORES = ("magnitude", "learnt", "learnt_magnitude", "threshold")
_NEEDED = {  # by schedule
    "once": ("start",),
    "swaps": ("end", "every"),
    "cubic": ("end", "every"),
    "accelerated_cubic": ("end", "every", "jump_sparsity"),
    "refresh": ("every",),
    "cubic_refresh": ("end", "every"),
    "phases": ("phases",),
}
CHOICES = {
    "schedule": ("none", *_NEEDED),
    "growth": (None, "random", "gradient"),
    "dead": ("zero", "trained", "frozen"),
    "reset": ("grown", "all"),
}
_MEANING = {
    "start": "the step of the event",
    "end": "the last step at which masks change, e.g. three quarters of training",
    "every": "the steps between events",
    "jump_sparsity": "the sparsity of the first event",
    "phases": "steps that compress and release weights in turn, see timetable.alternate",
    "sparsity": "the fraction removed (0..1), or allocation= as a dict from path rule to sparsity",
    "score_rate": "the learning rate of the score parameters",
    "penalty": "the weight of mean sigmoid(scores)",
    "threshold": "live are scores whose sigmoid exceeds it",
    "forward": "prunejax.sparsify.forward: dead weights are not 0, so the loop differentiates "
    "loss(forward(params, state)), and says so by this argument",
} | NEEDS


def resolve(
    method: str | Method, *, ingredients: Mapping[str, Any] | None = None, **parts: Any
) -> Method:
    """A method with some parts replaced, checked.

    `sparsity` may be a dict from path rule to sparsity, which is then the allocation.

    Args:
      method: of METHODS, or a row of one's own.
      ingredients: what the caller has of loss, output, seed and forward (None: has not); without
        it they are not asked for.
      parts: fields of `Method`.

    Raises:
      ValueError: an unknown method, part or choice; a setting that the method needs is missing;
        parts that do not go together.
    """
    name = method if isinstance(method, str) else "this method"
    base = registry.lookup(METHODS, method, "method") if isinstance(method, str) else method
    known = [f.name for f in dataclasses.fields(Method)]
    for part in parts:
        registry.one_of(part, known, f"{name}: no setting {part!r}; there are")
    if isinstance(parts.get("sparsity"), Mapping):
        parts |= {"allocation": parts["sparsity"], "sparsity": None}
    m = dataclasses.replace(base, **parts)
    for field, choices in (CHOICES | {"decay": tuple(growth.DECAYS)}).items():  # open to others
        if getattr(m, field) not in choices:
            raise ValueError(
                f"{name}: {field} {getattr(m, field)!r} is not one of: "
                + ", ".join(map(str, choices))
            )
    if isinstance(m.score, str) and m.score not in SCORES:
        raise ValueError(
            f"{name}: score {m.score!r} is not one of: {', '.join(SCORES)}, or a function of a leaf"
        )
    needed = [*_NEEDED.get(m.schedule, ())]
    needed += ["score_rate"] if m.learnt else []
    needed += ["penalty", "threshold"] if m.score == "threshold" else []
    whole = m.nm is None and m.score != "threshold" and m.initial != "masks"
    if whole and isinstance(m.allocation, str):
        needed.append("sparsity")
    missing = [field for field in needed if getattr(m, field) is None]
    if not missing:  # what cannot be is told before more is asked for
        _numbers(name, m)
        _together(name, m)
    if ingredients is not None:
        missing += [x for x in _ingredients(m) if ingredients.get(x) is None]
    if missing:
        raise ValueError(
            f"{name} needs " + "; ".join(f"{field}= ({_MEANING[field]})" for field in missing)
        )
    return m


def _ingredients(m: Method) -> list[str]:
    """What a method needs beyond settings and updates: arguments of `sparsify`."""
    found: list[str] = []
    if isinstance(m.initial, str) and m.initial not in ("dense", "masks"):
        entry = registry.lookup(EVIDENCE, m.initial, "score of a network")
        found += entry.needs.split()
    if m.growth == "random" and "seed" not in found:
        found.append("seed")
    return [*found, "forward"] if m.dead != "zero" else found


def pair(nm: Any) -> tuple[int, int]:
    """N:M as (n, m): n of every m.

    Raises:
      ValueError: it is no such pair.
    """
    found = tuple(nm) if isinstance(nm, tuple | list) else ()
    whole = len(found) == 2 and all(map(registry.is_whole, found))
    if not whole or not 0 <= found[0] <= found[1] or found[1] < 1:
        raise ValueError(f"nm = {nm!r} must be a pair of integers (n, m), 0 <= n <= m, m >= 1")
    return found[0], found[1]


def _numbers(name: str, m: Method) -> None:
    """Refuses settings that are not of their kind, each by its name."""
    least = {"start": 0, "end": 0, "every": 1, "average": 1, "rounds": 1, "axis": -math.inf}
    for field, bound in least.items():
        value = getattr(m, field)
        if value is not None and not (registry.is_whole(value) and int(value) >= bound):
            limit = f" of at least {bound}" if bound > -math.inf else ""
            raise ValueError(f"{name}: {field} = {value!r} must be an integer{limit}")
    for field in ("dead_decay", "score_rate", "penalty", "threshold"):
        value = getattr(m, field)
        known = isinstance(value, numbers.Real)
        of_device = getattr(value, "shape", None) == ()  # may be traced
        if value is not None and not (of_device or (known and 0 <= float(value) < math.inf)):
            raise ValueError(f"{name}: {field} = {value!r} must be a finite number of at least 0")
    for field in ("redistribute", "gradient_step"):
        if not isinstance(getattr(m, field), bool):
            raise ValueError(f"{name}: {field} = {getattr(m, field)!r} must be True or False")
    named = not isinstance(m.allocation, Mapping)
    if named and m.allocation not in ("global", *allocate.ALLOCATIONS):
        raise ValueError(
            f"{name}: allocation {m.allocation!r} is not one of: global, "
            f"{', '.join(allocate.ALLOCATIONS)}, or a dict from path rule to sparsity"
        )
    by_leaf = {} if named else {f"sparsity of {rule!r}": x for rule, x in m.allocation.items()}  # type: ignore[union-attr]
    parts = {field: getattr(m, field) for field in ("sparsity", "jump_sparsity", "drop")}
    for field, value in (parts | by_leaf).items():
        if value is not None:
            try:
                schedules.exact(value)
            except ValueError as error:
                raise ValueError(f"{name}: {field} = {value!r}: {error}") from None
    if m.nm is not None:
        pair(m.nm)
    if m.phases is not None:
        steps = list(m.phases) if isinstance(m.phases, Iterable) else []
        whole = all(map(registry.is_whole, steps))
        if not whole or len(steps) % 2 == 0 or steps != sorted(set(steps)) or steps[0] < 0:
            raise ValueError(
                f"{name}: phases = {m.phases!r} must be an odd number of rising steps: compress, "
                "release, ..., compress"
            )


def _together(name: str, m: Method) -> None:
    swapping = m.growth is not None
    if m.initial == "masks" and (m.schedule not in ("none", "swaps") or m.sparsity is not None):
        raise ValueError(
            f"{name}: masks= are kept, or swapped by set and rigl, at the sparsity that they have: "
            "no sparsity=, no other schedule (pruning further by events: sparsify(tx, events))"
        )
    if m.schedule == "swaps" and not swapping:
        raise ValueError(f"{name}: schedule 'swaps' needs growth='random' or 'gradient'")
    if swapping and m.schedule not in ("swaps", "cubic", "accelerated_cubic"):
        raise ValueError(f"{name}: growth {m.growth!r} does not go with schedule {m.schedule!r}")
    if swapping and m.nm is not None:
        raise ValueError(f"{name}: nm = {m.nm} and growth: blocks of N:M cannot swap; use ste")
    if m.nm is not None and (m.sparsity is not None or m.score == "threshold"):
        raise ValueError(f"{name}: nm = {m.nm} beside another sparsity: n of every m is one")
    if m.dead != "zero" and m.schedule not in ("refresh", "cubic_refresh"):
        raise ValueError(f"{name}: dead {m.dead!r} goes with schedule 'refresh' or 'cubic_refresh'")
    if m.learnt and m.dead != "frozen":
        raise ValueError(f"{name}: score {m.score!r} goes with dead='frozen'")
    if m.dead_decay and m.dead != "trained":
        raise ValueError(f"{name}: dead_decay goes with dead='trained' (straight-through)")
    if m.average > 1 and m.growth != "gradient":
        raise ValueError(f"{name}: average = {m.average} goes with growth='gradient'")
