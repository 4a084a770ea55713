"""What process 0 tells the others, as JSON: it says what they read, never what they run."""

import base64
import errno
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from prunejax.errors import ConfigError, RecordError, WorkdirError

_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (ConfigError, WorkdirError, ValueError, TypeError, KeyError)
}


def encode(value: Any) -> bytes:
    """JSON of plain values, and of tuples, paths, arrays and errors in them.
    Raises TypeError: a value of another type.
    """
    return json.dumps(_plain(value)).encode()


def decode(content: bytes) -> Any:
    """What was encoded; of an unknown error a RuntimeError with its text."""
    return json.loads(content, object_hook=_rich)


def _plain(value: Any) -> Any:
    # `np.float64` is a float, too, and would lose its type.
    if isinstance(value, bool | int | float | str | None) and not isinstance(value, np.generic):
        return value
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if type(value) is tuple:  # a named one would arrive without its names
        return {"?": "tuple", "is": [_plain(v) for v in value]}
    if isinstance(value, dict):
        return {"?": "dict", "is": [[_plain(k), _plain(v)] for k, v in value.items()]}
    if isinstance(value, Path):
        return {"?": "path", "is": str(value)}
    if isinstance(value, np.ndarray | np.generic):
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        return {"?": "array", "is": base64.b85encode(file.getvalue()).decode()}
    if isinstance(value, OSError):
        name = "RecordError" if isinstance(value, RecordError) else "OSError"
        return {"?": name, "is": [value.errno, value.strerror or str(value)]}
    if isinstance(value, Exception):
        name = next((k.__name__ for k in type(value).__mro__ if k.__name__ in _ERRORS), "")
        return {
            "?": name or "error",
            "is": str(value) if name else f"{type(value).__name__}: {value}",
        }
    raise TypeError(f"{type(value).__name__} cannot be told to other processes")


def _rich(found: dict[str, Any]) -> Any:
    kind, content = found["?"], found["is"]
    if kind == "tuple":
        return tuple(content)
    if kind == "dict":
        return {key: value for key, value in content}
    if kind == "path":
        return Path(content)
    if kind == "array":
        array = np.load(io.BytesIO(base64.b85decode(content)), allow_pickle=False)
        return array if array.ndim else array[()]  # scalars keep their type
    if kind in ("RecordError", "OSError"):
        return (RecordError if kind == "RecordError" else OSError)(
            content[0] or errno.EIO, content[1]
        )
    return _ERRORS.get(kind, RuntimeError)(content)
