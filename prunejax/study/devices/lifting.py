"""From one member to many: their arrays stacked, and functions of one lifted to the stack."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from prunejax.cluster.mesh import MEMBER
from prunejax.study.devices import ahead
from prunejax.study.planning.programs import Member
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

    Dealt out to the devices in turn: on each stand as many, and as many of each arm, whose events
    take all of them the same time. Copies need not train, and no device waits then.

    Args: devices: that the stack is spread over; they divide `size`.
    """
    many, each = len(members), size // devices
    places = [k % devices * each + k // devices for k in range(many)]
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


class Lift:
    """`lift(fn, out)`: of a function of one member the compiled one of the stack."""

    def __init__(self, mesh: jax.sharding.Mesh, vectorized: bool) -> None:
        """Over `mesh`; the members of one device by `vmap`, or one after another."""
        self._mesh, self._vectorized = mesh, vectorized

    def __call__(
        self,
        fn: Callable[..., Tree],
        out: Tree,
        donate: bool = False,
        loops: bool = False,
        options: dict[str, Any] | None = None,
        bare: Callable[[Tree], Tree] = lambda members: members,
        back: Callable[[Tree, Tree], Tree] = lambda found, members: found,
    ) -> Any:
        """`fn(member_args, *shared)` of one member -> of the stack; compiled at its first call.

        Args:
          loops: it changes its first argument in a loop: of members that go one after another each
            is changed where it stands. (Without a loop in it a member would be read there while
            parts of it are written, and XLA would copy the whole stack for each.)
          bare: what the function gets of the stack.
          back: see `ahead.Compiled`.
        """
        jitted = jax.jit(
            self.stacked(fn, loops),
            donate_argnums=(0,) if donate else (),
            out_shardings=out,
            compiler_options=options,
        )
        return ahead.Compiled(jitted, lambda members, *shared: (bare(members), shared), back)

    def stacked(
        self, fn: Callable[..., Tree], loops: bool = False
    ) -> Callable[[Tree, tuple[Any, ...]], Tree]:
        """The function of the stack and of what its members share, not compiled."""
        # Of members that several devices share each, on as many groups of devices as there are:
        # what the compiler sends may have all devices meet. So none may take another branch than
        # the others (`vmap`, of one member at a time: both are computed, and one is chosen).
        alike = 1 if 1 not in self._mesh.shape.values() else None

        def each(members: Tree, shared: tuple[Any, ...]) -> Tree:
            one = lambda m: fn(m, *shared)  # noqa: E731
            if self._vectorized:
                return jax.vmap(one)(members)
            if not loops:
                return jax.lax.map(one, members, batch_size=alike)
            take, put = jax.lax.dynamic_slice_in_dim, jax.lax.dynamic_update_slice_in_dim

            # A map fills a stack of zeros, which is then copied to where the results belong.
            def change(i: jax.Array, states: Tree) -> Tree:
                some = jax.tree.map(lambda x: take(x, i, 1), states)
                if alike:
                    found = jax.vmap(one)(some)
                else:
                    found = fn(jax.tree.map(lambda x: x[0], some), *shared)
                    found = jax.tree.map(lambda x: x[None], found)
                return jax.tree.map(lambda x, new: put(x, new, i, 0), states, found)

            return jax.lax.fori_loop(0, len(jax.tree.leaves(members)[0]), change, members)

        # Profiles and lists of compiled programs show it.
        own = fn.func if isinstance(fn, functools.partial) else fn
        each.__name__ = own.__name__.replace("<lambda>", "members")
        if self._mesh.size == 1:
            return each
        return jax.shard_map(  # the compiler spreads over `data`, this over members
            each,
            mesh=self._mesh,
            in_specs=(PartitionSpec(MEMBER), PartitionSpec()),
            out_specs=PartitionSpec(MEMBER),
            axis_names={MEMBER},
            check_vma=False,
        )
