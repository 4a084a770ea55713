"""When a method changes masks, and to which counts: exact integers by step, before any training."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from prunejax import allocate, registry, schedules
from prunejax.methods import growth
from prunejax.methods.table import Method


def alternate(*, total: int, warmup: int, sparse: int, dense: int, final: int) -> tuple[int, ...]:
    """Steps of AC/DC: dense warm-up, sparse and dense phases in turn, a long sparse phase.

    >>> alternate(total=600, warmup=60, sparse=30, dense=30, final=180)
    (60, 90, 120, 150, 180, 210, 240, 270, 300, 330, 360, 390, 420)

    Raises:
      ValueError: phases do not fill the time between warm-up and the final phase.
    """
    given = (total, warmup, sparse, dense, final)
    if not all(registry.is_whole(x) and x > 0 for x in given) or (total - warmup - final) % (
        sparse + dense
    ):
        raise ValueError(
            f"{total} steps less {warmup} (warm-up) and {final} (final) are no multiple of "
            f"{sparse} + {dense}, or one of them is no integer above 0; change one of them"
        )
    found = [warmup]
    for _ in range((total - warmup - final) // (sparse + dense)):
        found += [found[-1] + sparse, found[-1] + sparse + dense]
    return tuple(found)


class Plan(NamedTuple):
    """Exact counts of a method on given shapes. Columns: leaves in `paths`, or one for all."""

    paths: tuple[str, ...]
    scope: str  # of events: "global", "layer" or "nm" (then the column holds n of every m)
    steps: np.ndarray  # [events] rising
    keep: np.ndarray  # [events, columns]: live weights after the event
    swap: np.ndarray  # [events, columns]: of them regrown by it
    again: int  # steps between further events like the last, 0: none
    reselect: bool  # events choose among all weights, not only among the live
    relative: bool = False  # `keep` has what an event removes of each leaf (or of all) instead


def of_events(events: Sequence[tuple[int, int]], scope: str) -> Plan:
    """The plan of (step, count) pairs: units that go, of all leaves together or of each."""
    gone: dict[int, int] = {}
    for step, count in events:  # those of one step add up
        gone[step] = gone.get(step, 0) + count
    counts = np.array([[count] for count in gone.values()], np.int64).reshape(-1, 1)
    if counts.max(initial=0) < 2**31:
        counts = counts.astype(np.int32)
    steps = np.array([*gone], np.int32)
    return Plan((), scope, steps, counts, 0 * counts, 0, False, relative=True)


def plan(
    m: Method, shapes: Mapping[str, Sequence[int]], live: Mapping[str, int] | None = None
) -> Plan:
    """The events of a resolved method.

    Args:
      m: of `methods.resolve`.
      shapes: path -> shape of the leaves that are pruned.
      live: live weights of each where the masks are given, not made.

    Raises:
      ValueError: sparsities that do not fit the shapes, no event before the end, or events that
        come within the batches to average, those of the beginning of training included.
    """
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    reselect = m.schedule in ("refresh", "cubic_refresh", "phases")
    if m.nm is not None:
        scope, units, final = "nm", [m.nm[1]], [m.nm[0]]
    elif m.score == "threshold":
        scope, units, final = "layer", list(sizes.values()), list(sizes.values())
    else:
        kept: int | dict[str, int]
        # Given masks keep their counts, whatever the allocation.
        kept = dict(live) if live else allocate.counts(shapes, m.sparsity, m.allocation)
        if m.redistribute and not isinstance(kept, int):
            kept = sum(kept.values())
        scope = "global" if isinstance(kept, int) else "layer"
        units = [sum(sizes.values())] if isinstance(kept, int) else list(sizes.values())
        final = [kept] if isinstance(kept, int) else [kept[path] for path in sizes]
    steps, keep = _kept(m, shapes, units, final)
    swap = np.zeros_like(keep)
    if m.growth is not None:
        assert m.end is not None
        for i, step in enumerate(steps):
            wanted = [
                growth.swaps(n, m.drop, step=int(step), end=m.end, decay=m.decay) for n in keep[i]
            ]
            # No more than there are dead weights: a layer that is dense has nothing to swap.
            swap[i] = [min(w, u - n) for w, u, n in zip(wanted, units, keep[i], strict=True)]
    if not reselect and len(steps):  # events that change nothing are steps like others
        before = np.concatenate([[final if m.initial != "dense" else units], keep[:-1]])
        some = (swap > 0).any(1) | (keep != before).any(1)
        steps, keep, swap = steps[some], keep[some], swap[some]
    gap = int(np.diff(steps).min()) if len(steps) > 1 else m.average
    if m.average > gap:  # one window is summed at a time
        raise ValueError(
            f"average = {m.average}: batches before an event are averaged, and events come every "
            f"{gap} steps; average at most {gap} or let them come less often (every)"
        )
    growing = steps[(swap > 0).any(1)] if m.average > 1 else steps[:0]
    if len(growing) and growing[0] + 1 < m.average:  # batches from step 0 to the event's
        raise ValueError(
            f"average = {m.average}: the first event that grows, at step {growing[0]}, has "
            f"{growing[0] + 1} batches up to it; average no more, or let it come at step "
            f"{m.average - 1} or later (start)"
        )
    again = (m.every or 0) if m.schedule in ("refresh", "cubic_refresh") else 0
    # As JAX's integers are, unless a count needs more.
    kind = np.int32 if sum(sizes.values()) < 2**31 else np.int64
    return Plan(
        tuple(shapes), scope, steps.astype(np.int32), keep.astype(kind), swap.astype(kind), again,
        reselect,
    )  # fmt: skip


def _kept(
    m: Method, shapes: Mapping[str, Sequence[int]], units: list[int], final: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Steps of events and what each leaves live."""
    start = m.start if m.start is not None else (m.every or 0) if m.schedule == "swaps" else 0
    if m.schedule == "none":
        return np.zeros(0, int), np.zeros((0, len(units)), int)
    if m.schedule in ("once", "refresh"):
        return np.array([start]), np.array([final])
    if m.schedule == "phases":
        assert m.phases is not None
        # An odd number of them: the first compresses, and so does the last.
        rows = [units if i % 2 else final for i in range(len(m.phases))]
        return np.array(m.phases), np.array(rows)
    assert m.end is not None
    assert m.every is not None
    steps = np.arange(start, m.end + 1, m.every)
    n = len(steps)
    if not n:
        raise ValueError(f"end = {m.end} is before the first event, at step {start}")
    if m.schedule == "swaps":
        return steps, np.tile(final, (n, 1))
    if m.schedule != "accelerated_cubic":
        columns = [schedules.by_power(u, f, n, 3) for u, f in zip(units, final, strict=True)]
        return steps, np.array(columns).T
    if m.nm is not None or not isinstance(m.allocation, str):
        raise ValueError("accelerated_cubic needs a sparsity and an allocation by name")
    first = allocate.counts(shapes, m.jump_sparsity, m.allocation)
    at = [first] if isinstance(first, int) else [first[path] for path in shapes]
    if len(at) != len(final):
        at = [sum(at)]
    if any(a < f for a, f in zip(at, final, strict=True)):
        raise ValueError(
            f"jump_sparsity = {m.jump_sparsity} is beyond the final sparsity {m.sparsity}"
        )
    if n < 2:
        raise ValueError("accelerated_cubic needs at least two events: start to end in steps every")
    columns = [[a, *schedules.by_power(a, f, n - 1, 3)] for a, f in zip(at, final, strict=True)]
    return steps, np.array(columns).T
