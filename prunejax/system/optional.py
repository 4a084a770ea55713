"""Packages that not every user needs: extras of prunejax, and the line that names a missing one."""

import importlib
import importlib.util
from types import ModuleType

from prunejax.errors import ConfigError

# Top-level module -> (package, extra that brings it), as pyproject.toml has them.
PACKAGES = {
    "PIL": ("pillow", "study"),
    "array_record": ("array-record", "tfds"),
    "fsspec": ("fsspec", "remote"),
    "flatbuffers": ("flatbuffers", "study"),
    "grain": ("grain", "stream"),
    "jinja2": ("jinja2", "study"),
    "matplotlib": ("matplotlib", "study"),
    "mlflow": ("mlflow-skinny", "mlflow"),
    "pandas": ("pandas", "notebook"),
    "sklearn": ("scikit-learn", "study"),
    "tensorboard": ("tensorboard", "study"),
    "tensorflow_datasets": ("tensorflow-datasets", "tfds"),
    "wandb": ("wandb", "wandb"),
}


def check(what: str, *modules: str) -> None:
    """Refuses what needs a package that is not installed; imports nothing.

    Args:
      what: that needs them, as the line begins: "a study's report".
      modules: names in `PACKAGES`.

    Raises ConfigError: a package is missing; the line has the command that installs it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise _missing(what, module)


def need(what: str, module: str) -> ModuleType:
    """The module, imported: "PIL.Image", "grain".
    Raises ConfigError: as `check`; what a package that is there raises is passed on.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise _missing(what, package) from None


def _missing(what: str, module: str) -> ConfigError:
    package, extra = PACKAGES[module]
    return ConfigError(
        f"{what} needs {package}, which is not installed: pip install 'prunejax[{extra}]' "
        f"(in a clone: pip install -e '.[{extra}]')"
    )
