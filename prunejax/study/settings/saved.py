"""The arms of a study that is on disk, with all of their settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from prunejax.configs import default
from prunejax.errors import ConfigError
from prunejax.report import tables
from prunejax.study.settings import config as config_lib
from prunejax.study.settings import entries
from prunejax.study.settings.config import Variant
from prunejax.system import config_file


def arms(path: Path, changes: Mapping[str, Any] | None = None) -> list[Variant]:
    """The arms of the study in a run directory, as its `config.json` says.

    What the config file of that study registered is registered again, from the copy that is kept.

    Args: path: the run directory. changes: fields of `config.measures` and other values for them.

    Raises ConfigError: settings that cannot be, or that are not there any more.
    """
    config_file.restore(path)
    entries.check()
    saved = tables.read_json(path / "config.json")
    for name in ("measures", "variants"):
        if name not in saved:
            raise ConfigError(f"{path / 'config.json'} has no {name!r}: it was changed; restore it")
    saved["measures"] |= changes or {}
    labels = saved.pop("variants")
    config = ConfigDict(saved)
    config.variants = default.arms(labels)
    return config_lib.variants(config, default.get_config())
