"""The resolved config of a study, and whether a directory holds it finished: without JAX.

Whoever gives the command of a finished study once more gets the answer at once; anything that is
not plainly finished is left to `run`, which says what is wrong.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from prunejax.configs import variants
from prunejax.record import ledger
from prunejax.system.files import expand, read_object

# Of schedulers and launchers that may start several processes of one program.
_SEVERAL = (
    *("SLURM_STEP_NODELIST", "JAX_COORDINATOR_ADDRESS", "TPU_PROCESS_ADDRESSES"),
    *("TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES", "OMPI_COMM_WORLD_SIZE"),
)


def to_dict(config: Any) -> Any:
    """A config as plain JSON types (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict() if isinstance(config, ConfigDict) else config))


def resolve(config: ConfigDict, defaults: ConfigDict, label: str = "none") -> dict[str, Any]:
    """The study as one nested dict: defaults, the file's values, and the overrides per variant.

    Args:
      config: what a config file gives, overrides applied.
      defaults: every field.
      label: of the one arm of a study without variants.
    """
    resolved: dict[str, Any] = to_dict(defaults)
    variants.merge(resolved, to_dict(config))
    resolved["variants"] = resolved["variants"] or {label: {}}
    return resolved


def finished(
    config: ConfigDict,
    defaults: ConfigDict,
    workdir: str,
    shard: tuple[int, int],
    environment: Mapping[str, str],
) -> tuple[Path, Path] | None:
    """Run directory and page of a study that was finished before, with everything in its place.

    Args:
      config, defaults: as of `resolve`.
      shard: (i, n), from 1.
      environment: a scheduler's variables: where several processes may have been started, the
        answer is None.

    Returns:
      None wherever there is any doubt: another config in any field or type, files that are
      missing or were changed, a shard without runs, a study that is not finished.
    """
    index, count = shard
    if not 1 <= index <= count or any(name in environment for name in _SEVERAL):
        return None
    try:
        path = Path(expand(workdir))
        path = path / "shards" / f"{index}-of-{count}" if count > 1 else path
        status = read_object(path / "status.json")
        page = path / ledger.PAGE
        if not status.get("finished") or status.get("report") != page.name:
            return None
        texts = [
            # As text: 1 and 1.0, or True and 1, are equal in Python.
            json.dumps(content, sort_keys=True)
            for content in (read_object(path / "config.json"), resolve(config, defaults))
        ]
        if texts[0] != texts[1] or ledger.damage(path, status) or ledger.lost_views(path, status):
            return None
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return path, page
