"""`--plan`: what a study is going to do, before anything is compiled or trained."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from prunejax import models
from prunejax.methods import cost
from prunejax.study import run
from prunejax.study.devices import arrangement, memory
from prunejax.study.planning.plan import Batch, Member


def lines(config: ConfigDict, defaults: ConfigDict) -> list[str]:
    """The plan in words: arms with their runs and events, programs, memory, work.

    Memory is that of the state of one run (parameters, optimizer, statistics, masks); the data set
    and activations come on top, which are known only when the program is compiled. Work is
    examples seen in training times 3 forward passes (one forward, about two backward), counted
    for matrix products and convolutions by shape from the network's own trace.

    Raises ConfigError: the config is refused, in the words of `run`, which judges the devices too.
    """
    arms, batches = run.judged(config, defaults)
    runs = sum(len(b.members) for b in batches)
    found = [f"study     {arms[0].settings.name}: {len(arms)} arms, {runs} runs"]
    of = _by_arm(batches)
    for arm in arms:
        found.append(f"arm       {arm.label}: {_arm(*of[arm.label])}")
    for i, b in enumerate(batches, 1):
        found.append(f"program   {i} of {len(batches)}: {_program(b)}")
    notes = dict.fromkeys(note for b in batches for note in b.notes)
    found += [f"note      {note}" for note in notes]
    seen = [sum(_seen(b, m) for m in b.members) for b in batches]
    total = sum(_work(b) * n for b, n in zip(batches, seen, strict=True))
    most = "at most " if any(b.program.stops for b in batches) else ""
    work = f"{sum(seen):,} examples in training, {total:.3g} floating-point operations"
    found.append(f"work      {most}{work}")
    return found


def _by_arm(batches: Sequence[Batch]) -> dict[str, tuple[Batch, list[Member]]]:
    """Arms' runs, and a program of them: with `data.by_seed` each seed has its own batch."""
    found: dict[str, tuple[Batch, list[Member]]] = {}
    for b in batches:
        for m in b.members:
            found.setdefault(m.variant, (b, []))[1].append(m)
    return found


def _arm(batch: Batch, members: Sequence[Member]) -> str:
    seeds = sorted(m.seed for m in members)
    events = len(members[0].events)
    text = f"{len(members)} runs (seeds {seeds[0]} to {seeds[-1]}), "
    if not events:
        return text + "no events"
    steps = members[0].table.steps
    at = [_when(members[0], row) for row in sorted(members[0].events, key=lambda r: steps[r])]
    counts, back = (np.asarray(x) for x in (members[0].table.counts, members[0].table.grow))
    dead = batch.program.nm or batch.program.forward != "masked"  # then that is what they count
    counts = counts.max(axis=0) if dead else (counts - back).sum(axis=0)  # what comes back is there
    layers = ", ".join(
        f"{n:,} of {g.units:,} in {g.name}" if not batch.program.weights else f"{n:,} in {g.name}"
        for g, n in zip(batch.program.groups, counts, strict=True)
        if n
    )
    if batch.program.global_scope and counts.any():  # one ranking: all under the first layer
        layers = f"{counts.sum():,} in all chosen layers"
    when = at[0] if at[0] == at[-1] else f"{at[0]} to {at[-1]}"
    text += f"{events} events each, {when}" if events > 1 else f"one event {when}"
    return text + (f": {layers}" if layers else "")


def _when(member: Member, row: int) -> str:
    if not member.table.steps[row]:  # rounds, too
        return "before training"
    between = member.is_between(row)
    return f"after step {member.table.steps[row]}" if between else f"after epoch {row - 1}"


def _program(batch: Batch) -> str:
    state = arrangement.shapes(batch.program, batch.members[0])
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    p = batch.program
    return (
        f"{type(p.module).__name__}, {weights:,} parameters, {memory.size(size)} of state a run, "
        f"{p.epochs} epochs of {p.steps_per_epoch} steps of {p.batch_size}, "
        f"{len(batch.members)} runs"
    )


def _seen(batch: Batch, member: Member) -> int:
    """Examples that a run sees, from the step on at which its training begins."""
    p = batch.program
    begun, steps = divmod(member.start.step, p.steps_per_epoch)
    return (p.epochs - begun) * p.train_examples - steps * p.batch_size


def _work(batch: Batch) -> float:
    """Floating-point operations in which a run trains on an example: 3 forward passes.

    NaN where a loop of the network multiplies and its length is not known.
    """
    p = batch.program
    variables = models.shapes(p.module, p.image_shape)
    one = jax.ShapeDtypeStruct((1, *p.image_shape), jnp.float32)
    try:
        products = cost.products(lambda v, x: p.module.apply(v, x, train=False), variables, one)
    except ValueError:
        return math.nan
    return 3.0 * 2 * products  # a multiply-add is two operations
