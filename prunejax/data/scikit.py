"""Tables that scikit-learn ships, read from its files."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from prunejax.system import optional


def table(name: str, *files: str, delimiter: str | None = None, **options: Any) -> np.ndarray:
    """[examples, features + 1]: the features and, in the last column, the target.

    Without importing scikit-learn where that can be avoided: its import takes seconds, more than
    the rest of a small study's start.

    Args:
      name: of the set: `sklearn.datasets.load_NAME`.
      files: of scikit-learn's folder of data, with the columns in order.
      delimiter: of the files.
      options: of scikit-learn's loader, where the files are not there.
    """
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "datasets" / "data"
        paths = [folder / file for file in files]
        if all(path.is_file() for path in paths):
            return np.column_stack([np.loadtxt(path, delimiter=delimiter) for path in paths])
    datasets = optional.need(f"the data set {name!r}", "sklearn.datasets")
    raw = getattr(datasets, f"load_{name}")(**options)
    return np.column_stack([raw.data, raw.target])
