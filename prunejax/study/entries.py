"""Checks of what others put into the registries: in a line, before anything is trained."""

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import data, losses, models, schedules, scores, trees
from prunejax.errors import ConfigError
from prunejax.groups import Group
from prunejax.measures import suite
from prunejax.methods import evidence
from prunejax.record import columns as columns_lib
from prunejax.record import sinks
from prunejax.study import presets
from prunejax.train import probes, trackers

KINDS: tuple[tuple[str, Mapping[str, Any], type], ...] = (
    ("scores.SCORES", scores.SCORES, scores.Score),
    ("methods.evidence.EVIDENCE", evidence.EVIDENCE, evidence.NetworkScore),
    ("measures.suite.MEASURES", suite.MEASURES, suite.Measure),
    ("train.probes.PROBES", probes.PROBES, probes.Probe),
    ("train.trackers.TRACKERS", trackers.TRACKERS, trackers.Tracker),
    ("study.presets.METHODS", presets.METHODS, dict),
)
FUNCTIONS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("data.DATASETS", data.DATASETS),
    ("losses.LOSSES", losses.LOSSES),
    ("schedules.SCHEDULES", schedules.SCHEDULES),
    ("record.sinks.SINKS", sinks.SINKS),
)
# Registry, the attribute of an entry that is called ("": itself), entries, and with what.
CALLED: tuple[tuple[str, str, Mapping[str, Any], tuple[str, ...]], ...] = (
    ("data.DATASETS", "", data.DATASETS, ("data_dir",)),
    ("losses.LOSSES", "", losses.LOSSES, ("outputs", "targets")),
    ("record.sinks.SINKS", "", sinks.SINKS, ("run",)),
    ("scores.SCORES", "fn", scores.SCORES, ("inputs",)),
    ("methods.evidence.EVIDENCE", "fn", evidence.EVIDENCE, ("evidence",)),
    ("measures.suite.MEASURES", "run", suite.MEASURES, ("context",)),
    ("train.probes.PROBES", "sums", probes.PROBES, ("seen",)),
    ("train.probes.PROBES", "rows", probes.PROBES, ("total", "examples")),
    ("train.probes.PROBES", "arrays", probes.PROBES, ("total", "examples")),
    ("train.trackers.TRACKERS", "run", trackers.TRACKERS, ("program", "state", "x", "targets")),
    ("train.trackers.TRACKERS", "check", trackers.TRACKERS, ("program",)),
)
CALL_OF_MODELS = ("self", "x", "train=")


def check() -> None:
    """Refuses entries of the registries that are not what their registry holds.

    Raises:
      ConfigError: names the registry, the entry, and what it must be.
    """
    for registry, table, kind in KINDS:
        for name, entry in table.items():
            if not isinstance(entry, kind):
                _refuse(registry, name, entry, f"a {kind.__name__}")
            _columns(registry, name, getattr(entry, "columns", ()))
    for registry, table in FUNCTIONS:
        for name, entry in table.items():
            if not callable(entry):
                _refuse(registry, name, entry, "a function")
    for registry, attribute, table, given in CALLED:
        for name, entry in table.items():
            what = f"{registry}[{name!r}]" + (f".{attribute}" if attribute else "")
            fn = getattr(entry, attribute) if attribute else entry
            if fn is not None or attribute not in ("rows", "arrays"):  # a probe may do without
                _callable_with(what, fn, given)
    for name, score in scores.SCORES.items():
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
    _models()
    for name, (kind, _) in models.MODELS.items():
        _callable_with(f"models.MODELS[{name!r}].__call__", kind.__call__, CALL_OF_MODELS)
    _measures()
    _probes()


def _callable_with(what: str, fn: Any, given: tuple[str, ...]) -> None:
    """Refuses a function that cannot be called with these arguments: by place, "x=" by name."""
    if not callable(fn):
        raise ConfigError(f"{what} is no function: {fn!r}; see docs/plugins.md")
    if str(getattr(fn, "__module__", "")).startswith("prunejax."):
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


def _refuse(registry: str, name: str, entry: Any, what: str) -> None:
    found = "a function" if callable(entry) else repr(entry)
    raise ConfigError(f"{registry}[{name!r}] is {found}; it must be {what}, see docs/plugins.md")


def _columns(registry: str, name: str, columns: Any) -> None:
    if not isinstance(columns, tuple) or not all(isinstance(c, str) for c in columns):
        raise ConfigError(
            f"{registry}[{name!r}] has columns {columns!r}; give a tuple of names: ('entropy',)"
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


def _measures() -> None:
    taken = {*columns_lib.RUNS, *columns_lib.STRUCTURE, *columns_lib.FIT, columns_lib.LOSS_SUM}
    taken |= {*columns_lib.SPENT, columns_lib.PRUNABLE, columns_lib.STOPPED}
    for name, measure in suite.MEASURES.items():
        for column in taken & set(measure.columns):
            raise ConfigError(
                f"measures.suite.MEASURES[{name!r}] has a column {column!r}, which is one of "
                "runs.csv already; give it another name"
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

    Raises:
      ConfigError: what it gives, or the error that it raises, and what it got.
    """
    entry = scores.SCORES[name]
    if "network" in entry.needs:
        _of_network(name, groups, params)
        return
    if str(getattr(entry.fn, "__module__", "")).startswith("prunejax."):
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
        except (ValueError, TypeError, AttributeError) as error:
            absent = ", ".join(key for key, value in given.items() if value is None)
            raise ConfigError(
                f"scores.SCORES[{name!r}] cannot score layer {g.name!r} of shape {kernel.shape}: "
                f"{' '.join(str(error).split())[:200]} (its inputs have no {absent}: those are "
                "asked for by `needs`, scale and bias are of a BatchNorm)"
            ) from None
        wanted = kernel.shape if entry.per_weight else kernel.shape[-1:]
        shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
        if shape != wanted or dtype == jnp.bool_:
            raise ConfigError(
                f"scores.SCORES[{name!r}] gives {dtype or type(found).__name__} {shape or ''} for "
                f"layer {g.name!r}; a number for each {'weight' if entry.per_weight else 'filter'} "
                f"is needed: {wanted}"
            )


def _of_network(name: str, groups: Sequence[Group], params: Any) -> None:
    """As `score`, of a score of the whole network: a loss stands for that of the study."""
    fn = evidence.EVIDENCE[name].fn
    if str(getattr(fn, "__module__", "")).startswith("prunejax."):
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
        if getattr(got, "shape", None) != wanted or got.dtype == jnp.bool_:
            raise ConfigError(
                f"methods.evidence.EVIDENCE[{name!r}] gives {got.dtype} {got.shape} for layer "
                f"{g.name!r}; a number for each weight is needed: {wanted}"
            )
