"""When units are removed and how many: events as lists of (epoch, count). Host code, exact.

Every schedule has the signature `schedule(*, units, fraction, start, end, period) ->
[(epoch, count), ...]`:

    units     how many units the layer has
    fraction  of them that is removed in the end (0..1)
    start     epoch (from 0) after which the first event falls; `end`: last epoch for an event
    period    epochs between events

Counts are exact integers: fractions are read as the decimal numbers that were written (0.9 is
9/10), and the units finally kept are `ceil((1 - fraction) * units)` (released code of Bartoldson
et al. 2020). The release rounds up what binary fractions give: `ceil((1 - 0.7) * 10)` is 4 there,
and exactly 3. Of the 9,900 pairs of 1 to 100 units and 1 to 99 percent 57 differ so, by one unit;
of the 1,881 pairs of 5, 10, ..., 1045 units and tenths 104; of the paper's layers and fractions
none. An event may have the count 0: nothing happens then.
"""

import inspect
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np

Events = list[tuple[int, int]]
BEFORE_TRAINING = -1  # the epoch of an event before the first training step


def exact(fraction: float | Fraction) -> Fraction:
    """The decimal number as written: 0.9 -> 9/10, not the nearest binary fraction.

    Raises:
      ValueError: it is outside of [0, 1], no number (a truth value is none), or traced.
    """
    try:
        inside = bool(0 <= fraction <= 1)
        number = Fraction(str(fraction)) if inside else Fraction(0)  # str: the shortest decimal
    except (TypeError, ValueError):  # that a value is traced is a TypeError, too
        raise ValueError(
            f"fraction {fraction!r} is no number in [0, 1] that is known here: counts are made of "
            "it on the host, outside of jit"
        ) from None
    if not inside:
        raise ValueError(f"fraction {fraction!r} is not in [0, 1]: it is the part that is removed")
    return number


def _check(units: int, start: int, end: int, period: int) -> None:
    for name, value in (("units", units), ("start", start), ("end", end), ("period", period)):
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise ValueError(f"{name} {value!r} is no integer")
    if units < 1:
        raise ValueError(f"units {units!r} must be at least 1")
    if period < 1:
        raise ValueError(f"period {period!r} must be at least 1 epoch")
    if start < 0:
        raise ValueError(f"start {start!r} must be epoch 0 or later; 'scratch' prunes before it")
    if end < start:
        raise ValueError(f"end {end!r} is before start {start!r}")


def kept(units: int, fraction: float | Fraction) -> int:
    """Units that are finally kept: `ceil((1 - fraction) * units)`, exact."""
    return ceil((1 - exact(fraction)) * units)


def share(units: int, fraction: float | Fraction) -> int:
    """A fraction of units or steps, rounded down: `floor(fraction * units)`, exact.

    >>> share(100, 0.29)
    29
    """
    return floor(exact(fraction) * units)


def last_epoch(name: str, *, start: int, end: int, period: int) -> int:
    """The epoch of a schedule's last event, found without listing the events."""
    if name == "scratch":
        return BEFORE_TRAINING
    return start if name == "one_shot" else start + (end - start) // period * period


def _from_kept(epochs: Sequence[int], left: Sequence[int], units: int) -> Events:
    """Counts from the units kept after each event; never negative."""
    events, before = [], units
    for epoch, after in zip(epochs, left, strict=True):
        after = min(after, before)
        events.append((epoch, before - after))
        before = after
    return events


def linear(*, units: int, fraction: float | Fraction, start: int, end: int, period: int) -> Events:
    """The paper's ramp: n events at start, start + period, ... <= end.

    With N units and K = kept(N, fraction), event i (1..n) leaves `ceil(K + (N - K)(n - i)/n)`.
    Bartoldson et al. 2020, released code.

    >>> [k for _, k in linear(units=512, fraction=0.9, start=6, end=275, period=40)]
    [65, 66, 66, 65, 66, 66, 66]
    """
    _check(units, start, end, period)
    final, epochs = kept(units, fraction), range(start, end + 1, period)
    n = len(epochs)
    return _from_kept(epochs, by_power(units, final, n, 1), units)  # rounded up as in the release


def one_shot(
    *, units: int, fraction: float | Fraction, start: int, end: int, period: int
) -> Events:
    """All at once after epoch `start`; `end` and `period` are not used.

    >>> one_shot(units=10, fraction=0.25, start=3, end=0, period=1)
    [(3, 2)]
    """
    del end, period
    _check(units, start, start, 1)
    return [(start, units - kept(units, fraction))]


def scratch(*, units: int, fraction: float | Fraction, start: int, end: int, period: int) -> Events:
    """All at once before training (epoch -1); `start`, `end` and `period` are not used.

    >>> scratch(units=10, fraction=0.25, start=0, end=0, period=1)
    [(-1, 2)]
    """
    del start, end, period
    _check(units, 0, 0, 1)
    return [(BEFORE_TRAINING, units - kept(units, fraction))]


def cubic(*, units: int, fraction: float | Fraction, start: int, end: int, period: int) -> Events:
    """Fast first, then slower: sparsity `f (1 - (1 - i/n)^3)` after event i of n.

    Zhu & Gupta 2017, equation 1, with initial sparsity 0; events as in `linear`, the last of them
    at the final sparsity.

    >>> [k for _, k in cubic(units=1000, fraction=0.8, start=0, end=3, period=1)]
    [462, 238, 87, 13]
    """
    _check(units, start, end, period)
    # the last may fall on `end`
    final, epochs = kept(units, fraction), range(start, end + 1, period)
    n = len(epochs)
    return _from_kept(epochs, by_power(units, final, n, 3), units)


def geometric(
    *, units: int, fraction: float | Fraction, start: int, end: int, period: int
) -> Events:
    """The same fraction *of what is left* at every event: `N (K/N)^(i/n)` remain, rounded up.

    The rounds of iterative magnitude pruning (Frankle & Carbin 2019). `fraction` 1 would need an
    infinite factor and is refused.

    >>> [k for _, k in geometric(units=1000, fraction=0.488, start=0, end=2, period=1)]
    [200, 160, 128]
    """
    _check(units, start, end, period)
    final, epochs = kept(units, fraction), range(start, end + 1, period)
    if final == 0:
        raise ValueError("fraction 1.0 cannot be reached in geometric rounds; use 'linear'")
    return _from_kept(epochs, by_rate(units, final, len(epochs)), units)


def by_power(units: int, final: int, events: int, power: int) -> list[int]:
    """Units left after each of n events: `final + (units - final) (1 - i/n)^power`, rounded up."""
    n = events
    # integers: less a floor is the ceiling
    return [final - (final - units) * (n - i) ** power // n**power for i in range(1, n + 1)]


def by_rate(units: int, final: int, events: int) -> list[int]:
    """Units left after each of n events: `units (final / units)^(i/n)`, rounded up.

    >>> by_rate(1000, 512, 3)
    [800, 640, 512]
    """
    rate = final / max(units, 1)
    # Rounded first: a power in float64 may exceed the integer it means, and so would its ceiling.
    return [*(ceil(round(units * rate ** (i / events), 6)) for i in range(1, events)), final]


SCHEDULES: dict[str, Callable[..., Events]] = {
    "linear": linear,
    "one_shot": one_shot,
    "scratch": scratch,
    "cubic": cubic,
    "geometric": geometric,
}
SHIPPED = dict(SCHEDULES)


def planned(name: str, fields: Mapping[str, Any], **given: Any) -> Events:
    """The events of a schedule by name, which need not be of this module.

    Args:
      name: a key of SCHEDULES.
      fields: what its keyword arguments beyond `given` are taken from.
      given: what every schedule takes.

    Raises:
      ValueError: a schedule that cannot be.
    """
    schedule = SCHEDULES[name]
    takes = inspect.signature(schedule).parameters
    rest = {p.name for p in takes.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    any_name = any(p.kind is p.VAR_KEYWORD for p in takes.values())  # **rest takes what is given
    extra = [argument for argument in takes if argument not in rest and argument not in given]
    own = [argument for argument in extra if argument in fields]
    absent = [x for x in extra if x not in fields and takes[x].default is inspect.Parameter.empty]
    missing = [] if any_name else [argument for argument in given if argument not in takes]
    if absent or missing:
        raise ValueError(
            f"schedule {name!r}: it takes {', '.join(given)} by name, and else fields of "
            f"config.prune; not there: {', '.join([*missing, *absent])}"
        )
    found = schedule(**given, **{argument: fields[argument] for argument in own})
    try:
        events = [(operator.index(time), operator.index(count)) for time, count in found]
    except (TypeError, ValueError):
        events = [(0, -1)]
    if any(count < 0 for _, count in events):
        raise ValueError(
            f"schedule {name!r} gives {found!r}; a list of (time, units that go) is needed, whole "
            "numbers, none below 0"
        )
    return events


def counts(events: Events, epochs: int) -> np.ndarray:
    """Events as an int32 array [epochs + 1]: row 0 before training, row e + 1 after epoch e.

    Raises:
      ValueError: an event with a count falls after the last epoch, or before epoch -1; a count
        that is below 0, no integer, or too large for int32 together with others of its epoch.
    """
    table = np.zeros(epochs + 1, np.int64)
    for epoch, count in events:
        whole = isinstance(count, numbers.Integral) and not isinstance(count, bool)
        if not whole or not 0 <= count < 2**31:
            raise ValueError(
                f"an event that removes {count!r} units at epoch {epoch!r}: a count is an integer "
                "of at least 0, below 2^31"
            )
        if epoch >= epochs:
            if count == 0:
                continue
            raise ValueError(
                f"an event that removes {count} units falls after epoch {epoch}, but training "
                f"ends after epoch {epochs - 1}; end the schedule earlier or train longer"
            )
        if epoch < BEFORE_TRAINING:
            raise ValueError(
                f"an event at epoch {epoch}: epochs count from 0, -1 is before training"
            )
        table[epoch + 1] += count  # events of one epoch add up
    if table.max() >= 2**31:
        raise ValueError(f"{table.max()} units in one epoch do not fit into 32 bits")
    return table.astype(np.int32)
