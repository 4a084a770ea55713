"""Checks that a masked unit is gone: that whoever reads it reads exactly 0."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prunejax import interventions, registry, trees
from prunejax.errors import ConfigError
from prunejax.groups import Group
from prunejax.interventions import FOREVER, PRUNE, Table
from prunejax.measures import noting

EXAMPLES = 4
DRAWS = (1, -1)  # signs: what a ReLU hides of a unit in one draw is seen in the other
Tree = Any


def check(
    module: nn.Module,
    variables: Mapping[str, Tree],
    shape: Sequence[int],
    groups: Sequence[Group],
    *,
    always: bool = False,
) -> None:
    """Masks the last unit of each group and looks at what the layer behind it reads.

    All variables are drawn at random, so that no bias is 0 by its initialization. A reader is a
    module with a parameter of two or more axes; a group that none reads is passed over. Costs one
    compilation of the forward pass, so that models of this package are left to its tests.

    Args:
      module: the model. variables: its collections, or their shapes. shape: of one example.
      groups: what is checked.
      always: of models of this package too.

    Raises ConfigError: a reader still gets something else than 0 from a masked unit.
    """
    if not groups or (registry.is_shipped(type(module)) and not always):
        return
    owners = {p.rpartition("/")[0] for p, x in trees.leaves_with_paths(variables["params"])
              if len(x.shape) > 1}  # fmt: skip

    def inputs(note: noting.Note, variables: Tree, remaining: dict[str, Any], x: Any) -> Any:
        """Notes what each reader gets, in the order in which they are called."""

        def look(call: Any, args: tuple, options: Any, context: Any) -> Any:
            path = "/".join(context.module.path)
            if context.method_name == "__call__" and path in owners and args:
                note(path, args[0])
            return call(*args, **options)

        params, stats = variables["params"], variables.get("batch_stats", {})
        windows = interventions.initial(groups, params, stats)._replace(remaining=remaining)
        masked = interventions.mask_tree(groups, params, windows, _TABLE)
        used = dict(variables) | {
            "params": jax.tree.map(lambda p, m: jnp.where(m, p, 0), params, masked),
            "gates": interventions.gates(groups, windows, _TABLE),
        }
        with nn.intercept_methods(look):
            return module.apply(used, x, train=False)

    compiled = noting.noted(inputs)
    none = {g.name: np.zeros(g.units, np.int32) for g in groups}
    for random, x in _random(variables, shape):
        whole = compiled(random, none, x)
        for g in groups:
            last = np.zeros(g.units, np.int32)
            last[-1] = FOREVER
            part = compiled(random, none | {g.name: last}, x)
            _check_first_reader(module, g, whole, part, _norm(g, groups, variables))


def _norm(group: Group, groups: Sequence[Group], variables: Mapping[str, Tree]) -> str:
    """A norm as wide as `group` that belongs to none: what a model that does not say may mean."""
    owned = {path for g in groups for path in g.norm}
    wide = [path.removesuffix("/scale") for path, x in trees.leaves_with_paths(variables["params"])
            if path.endswith("/scale") and path not in owned
            and tuple(x.shape) == (group.units,)]  # fmt: skip
    named = [norm for norm in wide if group.name in norm]
    return next(iter([*named, *wide, "bn1"]))


def _check_first_reader(
    module: nn.Module,
    group: Group,
    whole: noting.Noted,
    part: noting.Noted,
    norm: str,
) -> None:
    """Of the readers whose input the mask changes, the first gets the unit itself: it must be 0."""
    # Exact: the same program, of the same inputs, gives the same bits where nothing changed.
    for (name, before), (_, after) in zip(whole, part, strict=True):
        changed = before != after
        if not changed.any():
            continue
        rest = np.abs(after[changed]).max()
        if rest == 0:
            return
        with_it = ", ".join((group.kernel, *group.affine))
        raise ConfigError(
            f"model {type(module).__name__}: with the last unit of layer {group.name!r} masked "
            f"({with_it}), {name!r} still reads {rest:.3g} where the unit was, and not 0; let "
            f"`prunable` name the norm behind the layer, e.g. ({group.name!r}, {norm!r}), take an "
            "activation that is 0 at 0, or put a gate behind a skip connection: docs/plugins.md"
        )


def _random(
    variables: Mapping[str, Tree], shape: Sequence[int]
) -> Iterator[tuple[dict[str, Tree], jax.Array]]:
    """Variables and images, with biases and means of both signs; kernels are drawn once."""
    rng = np.random.default_rng(0)

    def kernel(x: Any) -> Any:
        if len(x.shape) < 2:
            return x
        scale = 1 / np.sqrt(max(1, np.prod(x.shape[:-1])), dtype=np.float32)
        return jnp.asarray(scale * rng.standard_normal(x.shape, np.float32), x.dtype)

    def rest(path: str, x: Any, sign: int) -> Any:
        if len(x.shape) > 1:
            return x
        values = rng.standard_normal(x.shape, np.float32)
        if path.endswith(("/var", "/scale")):
            return jnp.asarray(np.abs(values) + np.float32(0.1), x.dtype)
        return jnp.asarray(sign * np.abs(values), x.dtype)

    kept = {k: v for k, v in variables.items() if k in ("params", "batch_stats")}
    kernels = jax.tree.map(kernel, kept)
    images = jnp.asarray(rng.standard_normal((EXAMPLES, *shape), np.float32))
    for sign in DRAWS:
        drawn = trees.map_with_path(lambda path, x, s=sign: rest(path, x, s), kernels)
        if "batch_stats" in drawn:  # against the biases, so that both push a unit to one side
            means = trees.map_with_path(
                lambda path, x: x if path.endswith("/var") else -x, drawn["batch_stats"]
            )
            drawn |= {"batch_stats": means}
        yield drawn, images


_TABLE = Table(
    kind=np.int32(PRUNE), duration=np.int32(FOREVER), cumulative=np.bool_(False),
    restore=np.int32(0), mask_norm=np.bool_(True), noise_scale=np.float32(0), target=np.int32(0),
    score=np.int32(0), counts=np.zeros((1, 1), np.int32), replay=np.bool_(False),
)  # fmt: skip
