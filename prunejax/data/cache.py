"""Decoded arrays kept on disk, so that only the first start of a study decodes images.

An entry is a directory `KEY/` with `images.npy`, `labels.npy` and `entry.json`, which holds the
CRC-32 of both arrays. It is written under another name and renamed: it is there whole or not at
all. Whatever does not read back exactly as written counts as absent.
"""

import json
import os
import secrets
import shutil
import warnings
import zlib
from pathlib import Path

import numpy as np

from prunejax.system import files

ARRAYS = ("images", "labels")


def directory() -> Path:
    """`PRUNEJAX_CACHE`, else as `files.cache` has it.

    Raises:
      ValueError: there is no home directory, or no such user.
    """
    found = files.cache("PRUNEJAX_CACHE")
    if found is None:
        raise ValueError("there is no home directory")
    return found


def _checksum(array: np.ndarray) -> int:
    # Of the values in C order, however the array lies in memory.
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def read(key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """`(images, labels)` of the entry, or None if there is none or it is damaged."""
    try:
        entry = directory() / key
        expected = json.loads((entry / "entry.json").read_text())["crc32"]
        images, labels = (np.load(entry / f"{name}.npy") for name in ARRAYS)
        if [_checksum(images), _checksum(labels)] != expected:
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return images, labels


def write(key: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Stores the entry, replacing what was there; a directory that cannot be written is a warning.

    Several processes may do this at once: the last one's entry stays, and it is a whole one.
    """
    draft = None
    try:
        entry = directory() / key
        draft = entry.with_name(f".{key}.{os.getpid()}.{secrets.token_hex(4)}")
        draft.mkdir(parents=True)
        np.save(draft / "images.npy", images)
        np.save(draft / "labels.npy", labels)
        checksums = {"crc32": [_checksum(images), _checksum(labels)]}
        (draft / "entry.json").write_text(json.dumps(checksums))
        # A rename replaces no directory that holds something.
        shutil.rmtree(entry, ignore_errors=True)
        draft.rename(entry)
    except (OSError, ValueError) as error:  # ValueError: there is no home directory
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
        if read(key) is None:  # else another process was faster
            warnings.warn(
                f"cannot keep decoded images: {error}. Every start decodes them again; set "
                "PRUNEJAX_CACHE to a directory that can be written.",
                stacklevel=2,
            )
