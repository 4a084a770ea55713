"""A layout that was decided, and the devices with which a study that began in it goes on."""

import dataclasses
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from prunejax.errors import ConfigError


class Way(NamedTuple):
    """A layout, and how many devices share one member in it."""

    layout: str
    share: int = 1

    def __str__(self) -> str:
        return self.layout + f" (a run over {self.share} devices)" * (self.share > 1)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is remembered (`layout.json`), so that a study continues as it began."""

    layout: str
    devices: int  # that are used
    platform: str
    fits: int  # members that train at once, at most
    why: str
    processes: int = 1
    share: int = 1  # devices that train one member together


def available(settings: ConfigDict, decided: Decision | None = None) -> list[jax.Device]:
    """The devices a study may use; those of an earlier decision must still be there.

    A layout's results depend on its number of devices in their last bits (one device more or less
    changes what is computed together), so that a study continues on exactly as many: on one
    wherever it used one, and on the first ones of a larger machine.

    Raises:
      ConfigError: there are fewer devices than asked for or used before, or of another platform;
        devices that share a member are divided over another number of processes.
    """
    devices = jax.devices()
    wanted = settings.population.devices
    if wanted > len(devices):
        raise ConfigError(
            f"config.population.devices = {wanted} is more than the {len(devices)} devices of "
            f"platform {devices[0].platform!r} there are"
        )
    if decided is None:
        return devices[: wanted or None]  # 0: all
    if decided.platform != devices[0].platform:
        raise ConfigError(
            f"this study began on platform {decided.platform!r} and the devices here are "
            f"{devices[0].platform!r}: its runs would differ from those that are done. Continue "
            "there, or start it in a new workdir"
        )
    if decided.devices > len(devices):
        raise ConfigError(
            f"this study began in layout {decided.layout!r} on {decided.devices} devices and here "
            f"are {len(devices)}: what is computed together would change, and with it the last "
            f"bits of its results. Continue on {decided.devices} devices, or start it in a new "
            "workdir"
        )
    processes = jax.process_count()
    if decided.share > 1 and decided.processes != processes:
        raise ConfigError(
            f"this study began in {decided.processes} processes and here are {processes}: the "
            f"{decided.share} devices that share a member would add in another order, which "
            f"changes the last bits of its results. Continue in {decided.processes} processes, or "
            "start it in a new workdir"
        )
    return devices[: decided.devices]
