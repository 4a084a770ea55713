"""prunejax: how does pruning change what a neural network learns?

The library is loaded as it is used: `import prunejax; prunejax.masks.prune(...)`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# What others import; the folders study, train, record, report and cluster are the instrument.
__all__ = [
    "allocate",
    "curvature",
    "data",
    "errors",
    "groups",
    "interventions",
    "losses",
    "masks",
    "measures",
    "methods",
    "models",
    "rng",
    "schedules",
    "scores",
    "shrink",
    "sparsify",
    "sparsity",
    "trees",
    "wiring",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(
        f"module 'prunejax' has no attribute {name!r}; there are: {', '.join(__all__)}"
    )


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
