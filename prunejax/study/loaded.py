"""A study that is on disk, for notebooks: `prunejax.load(DIR)`.

study = prunejax.load("runs/digits")
study.runs                      # a pandas.DataFrame, a row per run
study.columns("runs")           # the same as NumPy arrays, without pandas
study.arrays("S_large-0")       # what measures left: eigenvalues, density, ...
study.targets("S_large-0")      # (event, layer) -> bool: which units an event targeted
study.model("S_large-0").apply(study.variables("S_large-0"), x)
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import data as data_lib
from prunejax import interventions, registry, shrink
from prunejax import masks as masks_lib
from prunejax.errors import ConfigError
from prunejax.record import arms, remote
from prunejax.report import remeasured, tables
from prunejax.study import final
from prunejax.study.planning.programs import Batch, Member
from prunejax.study.settings.resolved import to_dict
from prunejax.system import files, optional
from prunejax.system.files import plain_name
from prunejax.train.step import Program, TrainState

Tree = Any
Frame = Any  # pandas.DataFrame
_TEXT = ("run", "variant", "layer", "status")  # labels stay text even where they look like numbers


def load(workdir: str | os.PathLike[str]) -> "Loaded":
    """A study's tables, arrays, masks and weights; of one that is still running, what is there.

    Args:
      workdir: a run directory, or one whose `shards/` are to be read together.

    Raises:
      ReportError: it is no run directory.
    """
    return Loaded(tuple(remote.find([os.fspath(workdir)])))


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a study left behind; nothing is read before it is asked for.

    Attributes:
      paths: the run directories: one, or one a shard.
    """

    paths: tuple[Path, ...]

    def __repr__(self) -> str:
        return f"<study {self.config.get('name')!r} in {self.paths[0]}: {len(self.names)} runs>"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config, `variants` with the changes of each."""
        return tables.read_json(self.paths[0] / "config.json")

    @cached_property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Variant -> all of its settings, nested."""
        return {arm.label: to_dict(arm.settings) for arm in final.arms(self.paths[0])}

    @cached_property
    def names(self) -> list[str]:
        """The runs that have ended, as `runs.csv` has them."""
        return [row["run"] for row in self._rows("runs")]

    @property
    def epochs(self) -> Frame:
        """A row per run and epoch; see `table`."""
        return self.table("epochs")

    @property
    def events(self) -> Frame:
        """A row per event and layer; see `table`."""
        return self.table("events")

    @property
    def runs(self) -> Frame:
        """A row per run, measures that were added later included; see `table`."""
        return self.table("runs")

    def table(self, name: str, settings: bool = True) -> Frame:
        """A table as a `pandas.DataFrame`: `columns` with the extra "notebook".

        Raises:
          ConfigError: there is no such table, or no pandas.
        """
        found = self.columns(name, settings)
        return optional.need("a table as a DataFrame (columns() gives arrays)", "pandas").DataFrame(
            found
        )

    def columns(self, name: str, settings: bool = True) -> dict[str, np.ndarray]:
        """A table of the run directory by column, e.g. "epochs", "events", "runs", "classes".

        Args:
          name: of the file, without `.csv`. "runs" has the columns of `measures.csv`, too.
          settings: a column for each setting in which the variants differ, by its dotted name.

        Returns:
          Arrays: whole numbers int64, others float64 with NaN for empty cells, truth values bool,
          everything else text.

        Raises:
          ConfigError: there is no such table.
        """
        known = sorted({file.stem for path in self.paths for file in path.glob("*.csv")})
        registry.one_of(name, known, f"no table {name!r} in {self.paths[0]}; there are")
        rows: list[dict[str, Any]] = [dict(row) for row in self._rows(name)]
        if name == "runs":
            remeasured.join(rows, self._rows("measures"), context=True)
        names = list(dict.fromkeys(key for row in rows for key in row))
        columns = {key: _column(key, [row.get(key, "") for row in rows]) for key in names}
        if settings and "variant" in columns:
            for field, values in self._differing.items():
                if field not in columns:
                    of = [values.get(str(v)) for v in columns["variant"]]
                    columns[field] = _column(field, of)
        return columns

    @cached_property
    def _differing(self) -> dict[str, dict[str, Any]]:
        """Dotted field -> variant -> value, of the fields in which variants differ."""
        flat = {label: arms.flat(settings) for label, settings in self.settings.items()}
        fields = dict.fromkeys(field for values in flat.values() for field in values)
        found = {f: {label: values.get(f) for label, values in flat.items()} for f in fields}
        return {f: v for f, v in found.items() if len({repr(x) for x in v.values()}) > 1}

    def _rows(self, table: str) -> list[dict[str, str]]:
        return [row for path in self.paths for row in tables.read_csv(path / f"{table}.csv")]

    def arrays(self, run: str) -> dict[str, np.ndarray]:
        """What measures left of a run (`measures/RUN.npz`); empty if nothing."""
        return self._npz("measures", run)

    def targets(self, run: str) -> dict[tuple[int, str], np.ndarray]:
        """(event, layer) -> bool, the units it targeted.

        An event that follows an epoch is called by it, one before training -1; those by step,
        updates and several rounds before training are the run's `epochs`, `epochs` + 1, ... in
        their order.
        """
        found = self._npz("targets", run)
        split = {name: name.partition("/") for name in found}
        return {(int(event), layer): found[name] for name, (event, _, layer) in split.items()}

    def _npz(self, folder: str, run: str) -> dict[str, np.ndarray]:
        self._check(run)
        for path in self.paths:
            file = path / folder / f"{plain_name(run)}.npz"
            if file.exists():
                with files.arrays(file) as saved:
                    return dict(saved)
        return {}

    def _check(self, run: str) -> None:
        if run not in self.names:
            raise ConfigError(
                f"no run {run!r} has ended in {self.paths[0]}; there are: "
                f"{', '.join(self.names) or 'none'}." + registry.suggestion(run, self.names)
            )

    @cached_property
    def _finals(self) -> dict[str, tuple[Batch, Member, Any]]:
        batches = final.programs(self.paths[0])
        found = [entry for path in self.paths for entry in final.states(path, batches)]
        return {member.run: (batch, member, state) for batch, member, state in found}

    def _final(self, run: str) -> tuple[Batch, TrainState]:
        self._check(run)
        if run not in self._finals:
            raise ConfigError(
                f"run {run!r} has no final state: it stopped early, or checkpoints/ is not whole; "
                "those that have one: " + ", ".join(self._finals)
            )
        batch, _, state = self._finals[run]
        return batch, state()

    def program(self, run: str) -> Program:
        """What is static of a run: module, groups, optimizer, shape of an input, ..."""
        return self._final(run)[0].program

    def model(self, run: str) -> Any:
        """The Flax module of a run."""
        return self.program(run).module

    def dataset(self, run: str) -> Any:
        """The data set of a run (`prunejax.data.Dataset`): arrays of each split, mean and std."""
        return self._final(run)[0].dataset

    def weights(self, run: str) -> Tree:
        """The masked parameters with which a run ended."""
        return masks_lib.apply(self.masks(run), self._final(run)[1].params)

    def variables(self, run: str) -> dict[str, Tree]:
        """The variables of `model(run).apply(variables, x)`: masked parameters, running statistics.

        `x` is what the network reads: `(image / 255 - mean) / std` of the run's data set. Residual
        networks have "gates": which channels of a sum are open.
        """
        batch, state = self._final(run)
        found = {"params": self.weights(run)}
        if state.batch_stats:
            found["batch_stats"] = state.batch_stats
        gates = interventions.gates(batch.program.groups, state.windows, state.table)
        return found | ({"gates": gates} if gates else {})

    def masks(self, run: str) -> Tree:
        """The masks with which a run ended: True = live, the scalar True where nothing is pruned.

        A dead filter's BatchNorm scale and bias are masked with it, as in training.
        """
        batch, state = self._final(run)
        return interventions.mask_tree(
            batch.program.groups, state.params, state.windows, state.table
        )

    def shrunk(self, run: str, fold: bool = False) -> tuple[Any, dict[str, Tree]]:
        """The network of a run without its dead units: model and variables, the same outputs.

        Args:
          run: "<variant>-<seed>".
          fold: BatchNorm goes into kernels and biases.

        Raises:
          ValueError: as `prunejax.shrink.shrink`; of a model that is not of this package also
            where the outputs on 8 test examples differ.
        """
        of, variables, live = self.program(run), self.variables(run), self.masks(run)
        cut = functools.partial(shrink.shrink, fold=fold, constants="keep")
        if registry.is_shipped(type(of.module)):  # tests hold what its `shrunk` gives
            return cut(of.module, variables, live)
        images, _ = self.dataset(run).first("test", 8)
        scaled = functools.partial(data_lib.normalize, mean=of.mean, std=of.std)
        x = (of.prepare or scaled)(jnp.asarray(images))
        with jax.default_matmul_precision("highest"):  # sums of fewer terms, not of fewer digits
            small, found = cut(of.module.clone(dtype=jnp.float32), variables, live, example=x)
        return small.clone(dtype=of.module.dtype), found


def _column(name: str, values: Sequence[Any]) -> np.ndarray:
    """A column in the narrowest of bool, int64, float64 and text that holds all its cells."""
    texts = ["" if v is None else str(v) for v in values]
    if name in _TEXT:
        return np.array(texts, object)
    if texts and set(texts) <= {"true", "false"}:
        return np.array([text == "true" for text in texts])
    if texts and all(isinstance(v, bool) for v in values):
        return np.array(values)
    try:
        return np.array([int(text) for text in texts], np.int64)
    except (ValueError, OverflowError):
        pass
    try:
        return np.array([float(text) if text else np.nan for text in texts], np.float64)
    except ValueError:
        return np.array(texts, object)
