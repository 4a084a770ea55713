"""What a study's numbers may depend on beside its config: `environment.json`."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("prunejax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


def environment() -> dict[str, Any]:
    """Versions, devices, and the git commit with its local changes."""
    devices = jax.devices()
    commit, dirty = git_state(Path(__file__).resolve().parent)
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": [f"{d.platform}: {d.device_kind}" for d in devices],
        # Of float32 products and convolutions: on a GPU "default" means TF32 (10 bits of mantissa),
        # on a TPU bfloat16; JAX_DEFAULT_MATMUL_PRECISION=highest is single precision everywhere.
        "matmul_precision": jax.config.values["jax_default_matmul_precision"] or "default",
        "processes": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "git_commit": commit,
        "git_dirty": dirty,  # whether the package differs from that commit
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        return "not installed"


def git_state(package: Path) -> tuple[str | None, bool | None]:
    """The commit that a package's files are of, and whether they differ from it.

    Args: package: the folder with `__init__.py`.

    Returns:
      Twice None where no repository tracks that file: one that only encloses it, as of a project
      with an environment inside, says nothing about it.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "-s", "--", ".")
    return commit or None, None if commit is None or changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command says about a folder, None where it fails."""
    # Set inside hooks, these name another repository than the folder's.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        found = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments], capture_output=True,
            text=True, errors="replace", timeout=10, env=environment,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
