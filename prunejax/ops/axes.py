"""Functions on meshes whose axes are explicit (`jax.sharding.AxisType.Explicit`)."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Tree = Any


def automatic(
    fn: Callable[..., Any],
    like: Tree,
    out: Callable[[Tree, NamedSharding], Tree] = lambda shardings, whole: shardings,
) -> Callable[..., Any]:
    """`fn` with the compiler choosing layouts inside; `fn` itself where no axis is explicit.

    On a mesh with explicit axes every contraction over a sharded axis would have to say how its
    result is sharded, those of a caller's loss included; automatic axes need not.

    Args:
      fn: its result is laid out as `out` says.
      like: tree of arrays, sharded or not, traced or not.
      out: `(shardings of like, whole) -> shardings of the result`, where `whole` is a copy on each
        device. Default: the result is a tree like `like`.
    """
    shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, like)
    meshes = [s.mesh for s in jax.tree.leaves(shardings)]
    mesh = next((m for m in meshes if AxisType.Explicit in m.axis_types), None)
    if mesh is None:
        return fn
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return jax.sharding.auto_axes(
        fn,
        axes=tuple(name for name, kind in kinds if kind == AxisType.Explicit),
        out_sharding=out(
            jax.tree.map(lambda s: NamedSharding(mesh, s.spec), shardings),
            NamedSharding(mesh, PartitionSpec()),
        ),
    )
