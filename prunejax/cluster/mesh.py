"""Devices as a mesh (`member`, `data`), and where the arrays of stacked runs lie on it.

The members of a study are spread over the axis `member`; the devices along `data` share one
member: its batch, and on request its parameters. Several processes see one mesh of all devices.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prunejax.errors import ConfigError

Tree = Any
MEMBER, DATA = AXES = ("member", "data")
SMALL = 1024  # arrays with fewer entries are not worth splitting


def make(devices: Sequence[jax.Device], data_parallel: int = 1) -> Mesh:
    """The mesh of `devices`: shape (devices / data_parallel, data_parallel).

    Raises ConfigError: `data_parallel` does not divide the number of devices, or some process has
    no device in the mesh.
    """
    if data_parallel < 1 or len(devices) % data_parallel:
        raise ConfigError(
            f"config.population.data_parallel = {data_parallel} does not divide the "
            f"{len(devices)} devices; choose a divisor, or other config.population.devices"
        )
    missing = set(range(jax.process_count())) - {d.process_index for d in devices}
    if missing:
        raise ConfigError(
            f"{len(devices)} of {len(jax.devices())} devices would be used and processes "
            f"{sorted(missing)} have none of them; with several processes use "
            "config.population.layout = 'sharded' over all devices, or config.population."
            f"data_parallel = {len(jax.devices())}"
        )
    return Mesh(np.array(devices).reshape(-1, data_parallel), AXES)


def check_split(shard_params: bool, share: int) -> None:
    """Refuses parameters that are split over one device (ConfigError); see `used_by`."""
    if shard_params and share == 1:
        raise ConfigError(
            "config.population.shard_params = True needs config.population.data_parallel of 2 or "
            "more: with 1 the mesh has no devices to split the parameters over"
        )


def used_by(
    layout: str, devices: Sequence[jax.Device], share: int, shard_params: bool
) -> list[jax.Device]:
    """The devices that a layout uses (of "auto": those that it might use).

    Args:
      layout: one of LAYOUTS, or "auto".
      share: how many of them share one member.
      shard_params: whether they split its parameters.

    Raises ConfigError: the devices do not divide, or there are none to split over.
    """
    check_split(shard_params, share)
    if len(devices) < share:
        raise ConfigError(
            f"config.population.data_parallel = {share} is more than the {len(devices)} devices "
            "there are"
        )
    used = list(devices) if layout in ("sharded", "auto") else list(devices)[:share]
    make(used, share)  # refuses what does not divide
    return used


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Leading array axes split over the named mesh axes (None: not split), the rest whole."""
    return NamedSharding(mesh, PartitionSpec(*axes))


def stacked(mesh: Mesh, one: Tree, split: bool) -> Tree:
    """The sharding of every leaf of stacked members.

    Args:
      one: tree of one member's arrays or shapes, without the member axis.
      split: also split every array of `SMALL` entries or more over `data`, along its longest axis
        that the number of devices divides (fully sharded data parallelism).
    """
    parts = mesh.shape[DATA]

    def place(leaf: Any) -> NamedSharding:
        spec = split_spec(leaf.shape, parts) if split else PartitionSpec()
        return sharding(mesh, MEMBER, *spec)

    return jax.tree.map(place, one)


def split_spec(shape: Sequence[int], parts: int) -> PartitionSpec:
    """How an array is split over `parts` devices along `data`; small ones stay whole."""
    fitting = [n if n % parts == 0 else 0 for n in shape]
    if math.prod(shape) < SMALL or not any(fitting):
        return PartitionSpec()
    return PartitionSpec(*[None] * int(np.argmax(fitting)), DATA)  # the first of the longest


@dataclasses.dataclass(frozen=True)
class Split:
    """Lays arrays inside a program out as `stacked` splits a member's arrays of their shapes."""

    parts: int

    def __call__(self, tree: Tree) -> Tree:
        """The same numbers; what devices have to add up, each adds up for its own part."""

        def one(leaf: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(leaf, split_spec(leaf.shape, self.parts))

        return jax.tree.map(one, tree)


def put(tree: Tree, where: Any) -> Tree:
    """Host arrays, the same in every process, as device arrays.

    Args: where: one sharding for all leaves, or a tree of shardings.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, where)
    if isinstance(where, NamedSharding):
        where = jax.tree.map(lambda _: where, tree)

    def one(leaf: Any, where: NamedSharding) -> jax.Array:
        host = np.asarray(leaf)
        # A process makes its devices' parts only.
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

    return jax.tree.map(one, tree, where)


def fetch(tree: Tree) -> Tree:
    """Device arrays as whole host arrays in every process; all processes must call it."""

    def one(leaf: Any) -> np.ndarray:
        here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        if here or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(one, jax.device_get(tree) if jax.process_count() == 1 else tree)


def held(stack: Tree, index: int) -> tuple[Tree, int] | None:
    """The arrays of the device that holds member `index` of stacked members, and its place there.

    None where another process may hold it, or several devices share it.
    """
    if jax.process_count() > 1:
        return None
    found, places = [], set()
    for leaf in jax.tree.leaves(stack):
        for shard in leaf.addressable_shards:
            place = index - (shard.index[0].start or 0)
            # A part of a member is not the member: devices along `data` may split it.
            if 0 <= place < shard.data.shape[0] and shard.data.shape[1:] == leaf.shape[1:]:
                found.append(shard.data)
                places.add((shard.device, place))
                break
        else:
            return None
    if len(places) != 1:  # leaves on several devices, or in other places
        return None
    return jax.tree.unflatten(jax.tree.structure(stack), found), places.pop()[1]
