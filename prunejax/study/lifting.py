"""From one member to many: their arrays stacked, and functions of one lifted to the stack."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from prunejax.cluster.mesh import MEMBER
from prunejax.study import ahead
from prunejax.study.programs import Member
from prunejax.train import step

Tree = Any


def arguments(member: Member) -> tuple[Any, ...]:
    """What `step.initial_state` takes besides its program."""
    own = (member.init_seed, member.data_seed)
    # A copy of a run has order, augmentation and dropout of its own, and the same weights.
    seeds = step.Seeds(*(np.uint32(member.seed if s is None else s) for s in own))
    return np.uint32(member.seed), member.table, member.hyper, seeds


def stack(trees: Sequence[Tree]) -> Tree:
    """Trees of arrays -> one tree with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def pad(members: Sequence[Member], size: int, devices: int = 1) -> tuple[list[Member], list[int]]:
    """A stack of members and of copies that fill it up, and the places of the members.

    On each device stand as many, in their order: copies need not train, and no device waits then.

    Args: devices: that the stack is spread over; they divide `size`.
    """
    many, each = len(members), size // devices
    own = [(many + devices - 1 - d) // devices for d in range(devices)]
    places = [d * each + i for d in range(devices) for i in range(own[d])]
    stacked = [members[i % many] for i in range(size)]
    for place, m in zip(places, members, strict=True):
        stacked[place] = m
    return stacked, places


def vectorizes(layout: str, cpu: bool) -> bool:
    """Whether members on one device go through a step together; else one after another."""
    return layout == "vectorized" or (layout == "sharded" and not cpu)


def padding_is_idle(vectorized: bool, share: int) -> bool:
    """Whether copies that fill a stack up neither train nor are tested.

    Where members go one after another they need not. Devices that share a member (`share` of
    them) take every step together.
    """
    return not vectorized and share == 1


def _mapped(fn: Callable[..., Tree], member: Tree, shared: tuple[Any, ...]) -> Tree:
    """`fn(m, *shared)` for each member m of the stack, one after another."""
    return jax.lax.map(lambda m: fn(m, *shared), member)


def _vectorized(fn: Callable[..., Tree], member: Tree, shared: tuple[Any, ...]) -> Tree:
    return jax.vmap(lambda m: fn(m, *shared))(member)


class Lift:
    """`lift(fn, out)`: of a function of one member the compiled one of the stack."""

    def __init__(self, mesh: jax.sharding.Mesh, vectorized: bool) -> None:
        """Over `mesh`; the members of one device by `vmap`, or one after another."""
        self._mesh, self._inner = mesh, _vectorized if vectorized else _mapped

    def __call__(
        self,
        fn: Callable[..., Tree],
        out: Tree,
        donate: bool = False,
        options: dict[str, Any] | None = None,
    ) -> Any:
        """`fn(member_args, *shared)` of one member -> of the stack; compiled at its first call."""
        return ahead.Compiled(
            jax.jit(
                self.stacked(fn),
                donate_argnums=(0,) if donate else (),
                out_shardings=out,
                compiler_options=options,
            )
        )

    def stacked(self, fn: Callable[..., Tree]) -> Callable[..., Tree]:
        """The function of the stack, not compiled."""
        members, everywhere = PartitionSpec(MEMBER), PartitionSpec()

        def stacked(member: Tree, *shared: Any) -> Tree:
            run = functools.partial(self._inner, fn)
            if self._mesh.size > 1:  # the compiler spreads over `data`, this over members
                run = jax.shard_map(
                    run,
                    mesh=self._mesh,
                    in_specs=(members, everywhere),
                    out_specs=members,
                    axis_names={MEMBER},
                    check_vma=False,
                )
            return run(member, shared)

        # Profiles and lists of compiled programs show it.
        own = fn.func if isinstance(fn, functools.partial) else fn
        stacked.__name__ = own.__name__.replace("<lambda>", "members")
        return stacked
