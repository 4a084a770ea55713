"""prunejax: how does pruning change what a neural network learns?

The library is loaded as it is used: `import prunejax; prunejax.masks.prune(...)`. A study that is
on disk is read by `prunejax.load(DIR)`; `prunejax.run(config, DIR)` runs one.
"""

import sys

TYPE_CHECKING = False  # as in typing, whose import takes longer than all of this
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

# What others import; the folders study, train, record, report and cluster are the instrument.
__all__ = [
    "allocate", "curvature", "data", "errors", "groups", "interventions", "losses", "masks",
    "measures", "methods", "models", "rng", "schedules", "scores", "shrink", "sparsify", "sparsity",
    "trees", "wiring",
]  # fmt: skip

# Ctrl-C while a command loads, before anything listens for signals, would be a trace of Python.
_words = getattr(sys, "argv", None) or [""]
_as_module = _words[0] == "-m" and any(
    word.removeprefix("-m").partition(".")[0] == "prunejax" for word in sys.orig_argv
)
if _as_module or _words[0].endswith("/prunejax"):
    import os
    import signal

    def _leave(*_: object) -> None:
        os.write(2, b"prunejax: interrupted; nothing was begun\n")
        os._exit(75)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, say
        signal.signal(signal.SIGINT, _leave)

_FUNCTIONS = {"load": "study.loaded", "run": "study.run"}


def __getattr__(name: str) -> "Any":
    import importlib

    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    known = [*__all__, *_FUNCTIONS]
    raise AttributeError(
        f"module 'prunejax' has no attribute {name!r}; there are: {', '.join(known)}"
    )


def __dir__() -> list[str]:
    return [*__all__, *_FUNCTIONS, "__version__"]
