"""Checks of what others put into the registries: in a line, before anything is trained."""

import dataclasses
import inspect
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import models, registry, scores, trees
from prunejax.configs import fields
from prunejax.errors import ConfigError
from prunejax.groups import Group
from prunejax.measures import columns as measure_columns
from prunejax.measures import suite
from prunejax.methods import evidence
from prunejax.record import columns as columns_lib
from prunejax.train import probes, trackers

# Every table that others may add to -> what it holds; None: a function. Beside each its module
# keeps SHIPPED, a copy of what the package put in.
REGISTRIES: dict[str, type | None] = {
    "models.MODELS": object,  # judged by `_models`
    "data.DATASETS": None,
    "losses.LOSSES": None,
    "scores.SCORES": scores.Score,
    "methods.evidence.EVIDENCE": evidence.NetworkScore,
    "schedules.SCHEDULES": None,
    "allocate.ALLOCATIONS": None,
    "methods.growth.DECAYS": None,
    "train.optim.OPTIMIZERS": None,
    "study.settings.presets.METHODS": dict,
    "measures.suite.MEASURES": suite.Measure,
    "train.probes.PROBES": probes.Probe,
    "train.trackers.TRACKERS": trackers.Tracker,
    "record.sinks.SINKS": None,
    "report.gallery.FIGURES": None,
}
# Columns of runs.csv and measures.csv that are no measure's, and those that a page adds.
_OF_RUNS = {
    *(*columns_lib.RUNS, *columns_lib.STRUCTURE, *columns_lib.FIT, columns_lib.LOSS_SUM),
    *(*columns_lib.SPENT, columns_lib.PRUNABLE, columns_lib.STOPPED),
    *(*measure_columns.STUDY, *measure_columns.CONTEXT, *measure_columns.LABELS),
}
# Registry, the attribute of an entry that is called ("": itself), and with what; "x=": by name.
CALLED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("data.DATASETS", "", ("data_dir",)),
    ("losses.LOSSES", "", ("outputs", "targets")),
    ("allocate.ALLOCATIONS", "", ("shapes", "keep")),
    ("methods.growth.DECAYS", "", ("part",)),
    ("train.optim.OPTIMIZERS", "", ("momentum", "nesterov")),
    ("record.sinks.SINKS", "", ("run",)),
    ("scores.SCORES", "fn", ("inputs",)),
    ("methods.evidence.EVIDENCE", "fn", ("evidence",)),
    ("measures.suite.MEASURES", "run", ("context",)),
    ("train.probes.PROBES", "sums", ("seen",)),
    ("train.probes.PROBES", "rows", ("total", "examples")),
    ("train.probes.PROBES", "arrays", ("total", "examples")),
    ("train.trackers.TRACKERS", "run", ("program", "state", "x", "targets")),
    ("train.trackers.TRACKERS", "check", ("program",)),
    ("report.gallery.FIGURES", "", ("study", "look")),
)
CALL_OF_MODELS = ("self", "x", "train=")


def check() -> None:
    """Refuses entries of the registries that are not what their registry holds.
    Raises ConfigError: names the registry, the entry, and what it must be.
    """
    for where, kind in REGISTRIES.items():
        for name, entry in _table(where)[0].items():
            if not (callable(entry) if kind is None else isinstance(entry, kind)):
                _refuse(where, name, entry, f"a {kind.__name__}" if kind else "a function")
    for where, attribute, given in CALLED:
        for name, entry in _table(where)[0].items():
            what = f"{where}[{name!r}]" + (f".{attribute}" if attribute else "")
            fn = getattr(entry, attribute) if attribute else entry
            if fn is not None or attribute not in ("rows", "arrays"):  # a probe may do without
                _callable_with(what, fn, given)
    for name, score in scores.SCORES.items():
        if not isinstance(score.needs, frozenset | set):
            raise ConfigError(
                f"scores.SCORES[{name!r}].needs is {score.needs!r}; a frozenset of names is needed"
            )
        for need in score.needs:
            if need not in scores.NEEDS:
                raise ConfigError(
                    f"scores.SCORES[{name!r}] needs {need!r}, which is none of: "
                    + ", ".join(sorted(scores.NEEDS))
                )
        if "network" in score.needs and name not in evidence.EVIDENCE:
            raise ConfigError(
                f"scores.SCORES[{name!r}] needs 'network', and methods.evidence.EVIDENCE has no "
                "entry of that name, which computes it"
            )
    for name, entry in evidence.EVIDENCE.items():
        for need in entry.needs.split():
            where = f"methods.evidence.EVIDENCE[{name!r}].needs: {need!r} is not one of"
            registry.one_of(need, evidence.NEEDS, where)
    _models()
    for name, (kind, _) in models.MODELS.items():
        _callable_with(f"models.MODELS[{name!r}].__call__", kind.__call__, CALL_OF_MODELS)
    _columns("measures.suite.MEASURES", suite.MEASURES, "runs", _OF_RUNS)
    _columns("train.trackers.TRACKERS", trackers.TRACKERS, "trackers", trackers.KEYS)
    _columns("train.probes.PROBES", probes.PROBES, "", probes.KEYS)
    _probes()


def _table(where: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A registry, and what the package put in; both empty where nobody has loaded its module."""
    module, _, name = where.rpartition(".")
    loaded = sys.modules.get(f"prunejax.{module}")  # figures come with matplotlib: not for this
    return (getattr(loaded, name), loaded.SHIPPED) if loaded else ({}, {})


def added(where: str) -> list[str]:
    """Names of a registry whose entry is new, or is in the place of one of the package.

    By entry, not by where its code is from: a model of the package with other attributes is an
    entry of others, too.
    """
    table, shipped = _table(where)
    return [name for name, x in table.items() if name not in shipped or x is not shipped[name]]


def registered() -> list[str]:
    """Names in the registries (models, data, ..., figures) and fields that are not of here."""
    return [*(name for where in REGISTRIES for name in added(where)), *fields.OWN]


def _callable_with(what: str, fn: Any, given: tuple[str, ...]) -> None:
    """Refuses a function that cannot be called with these arguments: by place, "x=" by name."""
    if not callable(fn):
        raise ConfigError(f"{what} is no function: {fn!r}; see docs/plugins.md")
    if registry.is_shipped(fn):
        return
    try:
        signature = inspect.signature(fn)
    except (ValueError, TypeError):  # of C, which tells none
        return
    places = [name for name in given if not name.endswith("=")]
    try:
        signature.bind(*places, **{name[:-1]: None for name in given if name.endswith("=")})
    except TypeError as error:
        raise ConfigError(
            f"{what} takes {signature}, and is called with ({', '.join(given)}): {error}; "
            "see docs/plugins.md"
        ) from None


def _refuse(where: str, name: str, entry: Any, what: str) -> None:
    found = "a function" if callable(entry) else repr(entry)
    raise ConfigError(f"{where}[{name!r}] is {found}; it must be {what}, see docs/plugins.md")


def _columns(where: str, table: Mapping[str, Any], file: str, taken: Collection[str]) -> None:
    """Refuses entries whose columns are no names, or stand in their file already.

    Args:
      where, table: the registry.
      file: that the columns of all its entries go to; "": a file each.
      taken: columns that every such file has.
    """
    for name, entry in table.items():
        columns = entry.columns
        if not isinstance(columns, tuple) or not all(isinstance(c, str) and c for c in columns):
            raise ConfigError(
                f"{where}[{name!r}] has columns {columns!r}; give a tuple of names: ('entropy',)"
            )
    for name, entry in table.items():
        others: set[str] = set()
        if file and name in added(where):  # those of the package share some on purpose
            others = {c for other in table if other != name for c in table[other].columns}
        twice = {c for c in entry.columns if entry.columns.count(c) > 1}
        for column in sorted({*taken, *others, *twice} & set(entry.columns)):
            raise ConfigError(
                f"{where}[{name!r}] has a column {column!r}, which is one of "
                f"{file or entry.table}.csv already; give it another name"
            )


def _models() -> None:
    for name, entry in models.MODELS.items():
        pair = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Mapping)
        kind: Any = entry[0] if pair else None
        if not (isinstance(kind, type) and issubclass(kind, models.Model)):
            what = "(subclass of models.base.Model, {fixed attributes})"
            _refuse("models.MODELS", name, entry, what)
        known = {field.name for field in dataclasses.fields(kind)}
        for attribute in set(entry[1]) - known:
            raise ConfigError(
                f"models.MODELS[{name!r}] fixes {attribute!r}, which is no attribute of "
                f"{kind.__name__}"
            )


def _probes() -> None:
    for name, probe in probes.PROBES.items():
        if bool(probe.table) != (probe.rows is not None):
            raise ConfigError(
                f"train.probes.PROBES[{name!r}] has {'no ' if not probe.table else ''}`table` and "
                f"{'no ' if probe.rows is None else ''}`rows`; a table needs both, arrays neither"
            )
        if not re.fullmatch(r"\w*", probe.table):
            raise ConfigError(
                f"train.probes.PROBES[{name!r}].table = {probe.table!r}: give letters, digits "
                "and '_'"
            )


def score(name: str, groups: Sequence[Group], params: Any) -> None:
    """Refuses a score that gives no number for each unit of these layers.
    Raises ConfigError: what it gives, or the error that it raises, and what it got.
    """
    entry = scores.SCORES[name]
    if "network" in entry.needs:
        _of_network(name, groups, params)
        return
    if registry.is_shipped(entry.fn):
        return
    for g in groups:
        kernel = trees.get(params, g.kernel)
        units = jax.ShapeDtypeStruct(kernel.shape[-1:], jnp.float32)
        given = {
            "kernel": kernel,
            "scale": units if len(g.norm) == 2 else None,
            "bias": units if len(g.norm) == 2 else None,
            "activation": units if "activations" in entry.needs else None,
            "gradient": kernel if "gradient" in entry.needs else None,
            "key": jax.eval_shape(lambda: jax.random.key(0)),
            "decay": jax.ShapeDtypeStruct((), jnp.float32),
            "stability": units if "stability" in entry.needs else None,
            "learnt": kernel if "learnt" in entry.needs else None,
        }
        try:
            found = jax.eval_shape(lambda given: entry.fn(scores.ScoreInputs(**given)), given)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            absent = ", ".join(key for key, value in given.items() if value is None)
            raise ConfigError(
                f"scores.SCORES[{name!r}] cannot score layer {g.name!r} of shape {kernel.shape}: "
                f"{' '.join(str(error).split())[:200]} (its inputs have no {absent}: those are "
                "asked for by `needs`, scale and bias are of a BatchNorm)"
            ) from None
        wanted = kernel.shape if entry.per_weight else kernel.shape[-1:]
        shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
        if shape != wanted or not _ranks(dtype):
            raise ConfigError(
                f"scores.SCORES[{name!r}] gives {dtype or type(found).__name__} {shape or ''} for "
                f"layer {g.name!r}; a number for each {'weight' if entry.per_weight else 'filter'} "
                f"is needed: {wanted}"
            )


def _ranks(dtype: Any) -> bool:
    """Whether numbers of this dtype have an order worth pruning by."""
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _of_network(name: str, groups: Sequence[Group], params: Any) -> None:
    """As `score`, of a score of the whole network: a loss stands for that of the study."""
    fn = evidence.EVIDENCE[name].fn
    if registry.is_shipped(fn):
        return

    def total(p: Any) -> jax.Array:
        return sum(jnp.sum(x) for x in jax.tree.leaves(p))  # type: ignore[return-value]

    def scored(p: Any) -> Any:
        rules = [re.escape(g.kernel) for g in groups]
        tree = fn(evidence.Evidence(p, rules=rules, loss=total, output=total))
        return {g.name: trees.get(tree, g.kernel) for g in groups}

    try:
        found = jax.eval_shape(scored, params)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise ConfigError(
            f"methods.evidence.EVIDENCE[{name!r}] cannot score this network: "
            f"{' '.join(str(error).split())[:200]}; give a tree of the parameters' structure, as "
            "`Evidence.map` does"
        ) from None
    for g in groups:
        wanted, got = trees.get(params, g.kernel).shape, found[g.name]
        if getattr(got, "shape", None) != wanted or not _ranks(got.dtype):
            raise ConfigError(
                f"methods.evidence.EVIDENCE[{name!r}] gives {got.dtype} {got.shape} for layer "
                f"{g.name!r}; a number for each weight is needed: {wanted}"
            )
