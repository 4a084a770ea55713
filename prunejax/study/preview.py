"""`--plan`: what a study is going to do, before anything is compiled or trained."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from ml_collections import ConfigDict

from prunejax.study import arrangement, memory, run
from prunejax.study.plan import Batch, Member


def lines(config: ConfigDict, defaults: ConfigDict) -> list[str]:
    """The plan in words: arms with their runs and events, programs, memory, work.

    Memory is that of the state of one run (parameters, optimizer, statistics, masks); the data set
    and activations come on top, which are known only when the program is compiled. Work is
    examples seen in training times 3 forward passes (one forward, about two backward), counted
    for matrix products and convolutions by shape from the network's own trace.

    Raises:
      ConfigError: the config is refused, in the words of `run`, which judges the devices too.
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
    total = sum(_work(b) * len(b.members) for b in batches)
    seen = sum(_seen(b) * len(b.members) for b in batches)
    found.append(f"work      {seen:,} examples in training, {total:.3g} floating-point operations")
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
    at = [_when(members[0], int(row)) for row in members[0].events]
    counts = np.asarray(members[0].table.counts)
    dead = batch.program.nm or batch.program.forward != "masked"  # then that is what they count
    counts = counts.max(axis=0) if dead else counts.sum(axis=0)
    layers = ", ".join(
        f"{n:,} of {g.units:,} in {g.name}" if not batch.program.weights else f"{n:,} in {g.name}"
        for g, n in zip(batch.program.groups, counts, strict=True)
        if n
    )
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


def _seen(batch: Batch) -> int:
    return batch.program.epochs * batch.program.train_examples


def _work(batch: Batch) -> float:
    """Floating-point operations in which one run trains: 3 forward passes an example."""
    p, state = batch.program, arrangement.shapes(batch.program, batch.members[0])
    variables = {"params": state.params}
    if jax.tree.leaves(state.batch_stats):
        variables["batch_stats"] = state.batch_stats
    x = jax.ShapeDtypeStruct((1, *p.image_shape), jnp.float32)
    module = p.module.clone(conv_method="lax") if hasattr(p.module, "conv_method") else p.module
    trace = jax.make_jaxpr(lambda v, x: module.apply(v, x, train=False))(variables, x)
    return 3.0 * _seen(batch) * _products(trace.jaxpr)


def _products(jaxpr: Any) -> float:
    """Twice the multiplications of all matrix products and convolutions in a trace."""
    total = 0.0
    for equation in jaxpr.eqns:
        size = sum(float(np.prod(v.aval.shape)) for v in equation.outvars)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * size * float(np.prod([shape[axis] for axis in contracted]))
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2 * size * float(np.prod(kernel)) / kernel[out]
        else:
            for inner in jaxprs_in_params(equation.params):
                total += _products(inner)
    return total
