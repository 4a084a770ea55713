"""Decoded arrays kept on disk, so that only the first start of a study decodes images.

An entry is `KEY.npz` with the arrays `images` and `labels`, there whole or not at all. What does
not read back as written, by the check sums of the format, counts as absent.
"""

import warnings
from pathlib import Path

import numpy as np

from prunejax.system import files


def directory() -> Path:
    """`PRUNEJAX_CACHE`, else as `files.cache` has it.
    Raises ValueError: there is no home directory, or no such user.
    """
    found = files.cache("PRUNEJAX_CACHE")
    if found is None:
        raise ValueError("there is no home directory")
    return found


def read(key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """`(images, labels)` of the entry, or None if there is none or it is damaged."""
    try:
        with files.arrays(directory() / f"{key}.npz") as saved:
            return saved["images"], saved["labels"]
    except (ValueError, KeyError):  # also where there is no home directory
        return None


def write(key: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Stores the entry, replacing what was there; a directory that cannot be written is a warning.

    Several processes may do this at once: the last one's entry stays, and it is a whole one.
    """
    try:
        entry = directory() / f"{key}.npz"
        entry.parent.mkdir(parents=True, exist_ok=True)
        files.replace(entry, lambda file: np.savez(file, images=images, labels=labels))  # type: ignore[arg-type]
    except (OSError, ValueError) as error:  # ValueError: there is no home directory
        warnings.warn(
            f"cannot keep decoded images: {error.__cause__ or error}. Every start decodes them "
            "again; set PRUNEJAX_CACHE to a directory that can be written.",
            stacklevel=2,
        )
