"""How many devices JAX simulates on the host of a study: decided before its backends start."""

import json
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from prunejax.configs import default
from prunejax.system import limits
from prunejax.system.files import expand

MOST = default.FIELDS["population"]["devices"].high


def use(
    config: ConfigDict, workdir: str | os.PathLike[str] | None = None, processes: int = 1
) -> None:
    """Makes one host device per core (or `population.devices`) where the CPU is the backend.

    As many as the study in `workdir` began with, if that is more: it can then continue on a
    machine with fewer cores. Both numbers are of all `processes` together. Has to come before JAX
    touches its backends; later it changes nothing.
    """
    group = config.get("population")
    asked = group.get("devices") if hasattr(group, "get") else None
    # What cannot be is told when the settings are checked, which is later.
    count = -(-asked // processes) if isinstance(asked, int) and 0 < asked <= MOST else 0
    before = [0]
    for pattern in ("layout.json", "shards/*/layout.json") if workdir else ():
        try:
            for file in Path(expand(workdir or "")).glob(pattern):
                decided = json.loads(file.read_text()).values()
                before += [-(-entry["devices"] // processes) for entry in decided]
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            pass  # not ours, or damaged: told when the directory is opened
    try:
        jax.config.update("jax_num_cpu_devices", max(count or limits.cores(), *before))
    except RuntimeError:
        return
