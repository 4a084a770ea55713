"""Forward rules in which dead weights are hidden, not gone: straight-through and movement pruning.

Both compute the loss of the masked network and its gradient with respect to the masked weights,
dead ones too (the mask counts as the identity: straight-through, Bengio et al. 2013).

straight_through: that gradient trains every weight; SR-STE (Zhou et al. 2021) adds `dead_decay * w`
to it at dead weights. movement (Sanh et al. 2020): weights are trained where they are live and
wait at their value elsewhere; scores S, which begin at 0, learn by `dL/dS = w dL/d(w m)`, with
`penalty` times the gradient of the mean of sigmoid(S) over all weights of its layers besides.

Events choose among all weights (`choose`), and zero none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import masks as masks_lib
from prunejax import trees
from prunejax.groups import Group
from prunejax.interventions import Table, Windows, endless
from prunejax.methods import updates

Array = jax.Array
Tree = Any


def initial_scores(groups: tuple[Group, ...], params: Tree, rule: str) -> dict[str, Array]:
    """Score parameters by layer name: zeros of the kernels' shapes; none but for movement."""
    if rule != "movement":
        return {}
    return {g.name: jnp.zeros(trees.get(params, g.kernel).shape, jnp.float32) for g in groups}


def steer(
    rule: str,
    groups: tuple[Group, ...],
    params: Tree,
    gradients: Tree,
    masks: Tree,
    learnt: Mapping[str, Array],
    table: Table,
) -> tuple[Tree, Tree, dict[str, Array]]:
    """What the optimizer gets of a step's gradients, and the scores after it.

    Args:
      rule: "straight_through" or "movement".
      groups: the layers that may be pruned.
      params: weights, dead ones at the value that they have.
      gradients: with respect to the masked weights, not masked.
      learnt: score parameters by layer.

    Returns: Gradients, the masks of what is trained, and score parameters.
    """
    if rule == "straight_through":
        changed = {}
        for g in groups:
            live, slope, w = (trees.get(t, g.kernel) for t in (masks, gradients, params))
            changed[g.kernel] = updates.pulled(live, slope, w, table.dead_decay)
        # The optimizer gets no mask: dead weights are trained as well.
        return trees.replace(gradients, changed), masks_lib.ones(params), dict(learnt)
    # Of the arm's own layers: a run does not depend on which arms share its program.
    size = sum(learnt[g.name].size * owned(table, place) for place, g in enumerate(groups))
    found = {}
    for place, g in enumerate(groups):
        w, slope = (trees.get(t, g.kernel) for t in (params, gradients))
        pull = jnp.where(owned(table, place), table.penalty / size, 0)
        found[g.name] = updates.learnt(learnt[g.name], w, slope, table.score_rate, pull)
    return gradients, masks, found


def owned(table: Table, place: int) -> Any:
    """Whether events of this run choose among the layer at `place` of the program's: other layers
    are of other runs, or came masked from another run.
    """
    return True if isinstance(table.layers, tuple) else table.layers[place]


def own(table: Table, units: Sequence[Array]) -> list[Array]:
    """Of some units per layer (bool, in the program's order) those that events choose among."""
    return [u & owned(table, place) for place, u in enumerate(units)]


def others_stay(table: Table, windows: Windows, dead: Mapping[str, Array]) -> dict[str, Array]:
    """`dead` by layer, and what is dead already in layers that events do not choose among."""
    was = {name: windows.remaining[name] > 0 for name in dead}
    return {n: jnp.where(owned(table, i), x, was[n]) for i, (n, x) in enumerate(dead.items())}


def choose(
    windows: Windows, dead: Mapping[str, Array], happens: Array
) -> tuple[Windows, dict[str, Array], dict[str, Array]]:
    """The windows after an event that leaves exactly `dead` dead.

    Args: windows: before it. dead: bool per unit and layer. happens: whether it takes place at all.

    Returns: Windows, what the event made dead, and what it made live.
    """
    before = {n: left > 0 for n, left in windows.remaining.items()}
    after = {n: jnp.where(happens, dead[n], gone) for n, gone in before.items()}
    dropped = {n: after[n] & ~before[n] for n in after}
    grown = {n: before[n] & ~after[n] for n in after}
    some = jnp.any(jnp.stack([jnp.any(x) for x in grown.values()]))
    return (
        windows._replace(
            targeted=after,
            remaining={n: endless(after[n], left) for n, left in windows.remaining.items()},
            # What survives is asked of the last event that grew any.
            grown={n: jnp.where(some, grown[n], old) for n, old in windows.grown.items()},
        ),
        dropped,
        grown,
    )
