"""Units that come back: their windows close, their weights begin at zero."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from prunejax import trees
from prunejax.groups import Group
from prunejax.interventions import Params, Windows

Array = jax.Array


def trained(windows: Windows) -> Windows:
    """After a training step: the units that are live now have been live in one."""
    ever = {name: ever | (windows.remaining[name] == 0) for name, ever in windows.ever.items()}
    return windows._replace(ever=ever)


def regrow(
    groups: Sequence[Group], params: Params, windows: Windows, grown: Mapping[str, Array]
) -> tuple[Params, Windows]:
    """Closes the windows of `grown` units, which come back at weight 0 and may be targets again.

    Args: groups, params, windows: as in `act`. grown: bool per unit and layer.

    Returns: The parameters (a filter's norm is as at the start: scale 1, bias 0) and the windows.
    """
    values: dict[str, Array] = {}
    for g in groups:
        back = grown[g.name]
        values[g.kernel] = jnp.where(back, 0, trees.get(params, g.kernel))
        if back.ndim == 1:
            for path in g.affine:
                start = 1.0 if path.endswith("scale") else 0.0
                values[path] = jnp.where(back, start, trees.get(params, path))
    some = functools.reduce(jnp.logical_or, (jnp.any(back) for back in grown.values()))
    return trees.replace(params, values), windows._replace(
        targeted={n: t & ~grown[n] for n, t in windows.targeted.items()},
        remaining={
            n: jnp.where(grown[n], jnp.zeros_like(r), r) for n, r in windows.remaining.items()
        },
        grown={n: jnp.where(some, grown[n], before) for n, before in windows.grown.items()},
    )
