"""Members of a study as arrays with a leading axis."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from prunejax.study.programs import Member
from prunejax.train import step

Tree = Any


def arguments(member: Member) -> tuple[Any, ...]:
    """What `step.initial_state` takes besides its program."""
    own = (member.init_seed, member.data_seed)
    seeds = step.Seeds(*(np.uint32(member.seed if s is None else s) for s in own))
    return np.uint32(member.seed), member.table, member.hyper, seeds


def stack(trees: Sequence[Tree]) -> Tree:
    """Trees of arrays -> one tree with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def pad(members: Sequence[Member], size: int) -> list[Member]:
    """Members repeated up to `size`, a multiple of the devices that members are spread over."""
    return [members[i % len(members)] for i in range(size)]
