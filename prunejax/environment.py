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
    """Versions, devices and the git commit: what a number may depend on."""
    devices = jax.devices()
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
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        return "not installed"


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
