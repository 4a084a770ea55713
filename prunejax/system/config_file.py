"""A config file that registers things of its own, found again by `measure` and `report`."""

import hashlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from prunejax.errors import ConfigError

KEY = "config_file"  # in study.json
_loaded: set[str] = set()  # digests of files whose registrations this process has


def describe(file: str | os.PathLike[str]) -> dict[str, str]:
    """Path and SHA-256 of a config file that this process has loaded.
    Raises ConfigError: it cannot be read any more.
    """
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"--config={file} cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(content).hexdigest()
    _loaded.add(digest)
    return {"path": os.path.abspath(file), "sha256": digest}


def _found(workdir: Path, file: Path, digest: str) -> Path:
    """The file with the bytes that the study was run by: where it was, or in the run directory."""
    changed = False
    # In it, since a run directory may have come from another machine; or in that of all its shards.
    for place in (file, workdir / file.name, workdir.parent.parent / file.name):
        try:
            content = place.read_bytes()
        except OSError:
            continue
        # the bytes decide, not the time: a study is what its file said
        if hashlib.sha256(content).hexdigest() == digest:
            return place
        changed |= place == file
    why = "it is not there"
    if changed:
        why = f"it was changed since (SHA-256 {digest[:12]}... then)"
    raise ConfigError(
        f"{workdir} needs what {file} registers, and {why}; restore it, or put it, as it was, into "
        f"{workdir}"
    )


def restore(workdir: Path) -> None:
    """Runs the config file of a study again where the study needs what it registers.

    Nothing happens for other studies, or where this process has run that file.

    Raises ConfigError: the file is gone, was changed, or raises.
    """
    try:
        known: Any = json.loads((workdir / "study.json").read_text()).get(KEY)
    except (OSError, ValueError, AttributeError):
        return  # no study: told by who reads it
    if not known or known["sha256"] in _loaded:
        return
    digest, file = known["sha256"], _found(workdir, Path(known["path"]), known["sha256"])
    name = f"prunejax_config_{digest[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{file} raises {type(error).__name__}: {error}") from error
    _loaded.add(digest)
