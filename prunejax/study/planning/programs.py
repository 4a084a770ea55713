"""The compiled program that some arms share, and the arrays with which each run begins."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from prunejax import trees
from prunejax.data import Dataset, StreamedSet
from prunejax.errors import ConfigError
from prunejax.interventions import Table
from prunejax.study.planning import fit_check, scoring, shrinking, step_plan, unit_check
from prunejax.study.planning import tables as tables_lib
from prunejax.study.planning.outline import Events, Outline
from prunejax.study.planning.step_plan import Row
from prunejax.study.settings import checks, lineage, probing
from prunejax.study.settings.config import Variant
from prunejax.study.settings.lineage import Start
from prunejax.train import optim
from prunejax.train.hardening import Harden
from prunejax.train.step import Hyper, Program


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a study."""

    run: str  # "<variant>-<seed>", unique in the study
    variant: str
    seed: int
    table: Table  # NumPy arrays
    hyper: Hyper  # NumPy arrays
    twin: str = ""  # the run whose targets are replayed
    evaluate_between: bool = False  # whether events between epochs are evaluated as others are
    start: Start = Start()  # noqa: RUF009 (frozen)
    keep: tuple[int, ...] = ()  # steps whose states it leaves (`lineage.END`: the last)
    asked: tuple[int, ...] = ()  # those of `keep` whose states stay when no run needs them more
    layers: tuple[str, ...] = ()  # whose units may be dead
    init_seed: int | None = None  # of the initial weights: the run's own, unless drawn anew
    gradient_updates: int = 0  # passes with a dense gradient that its growth takes
    data_seed: int | None = None  # of order, augmentation and dropout: the run's own, unless a copy

    @property
    def keys(self) -> dict[str, Any]:
        """The first columns of every table."""
        return {"run": self.run, "variant": self.variant, "seed": self.seed}

    @property
    def needs(self) -> set[str]:
        """The runs that have to come first."""
        return self.start.runs | ({self.twin} if self.twin else set())

    @functools.cached_property  # asked for after every epoch
    def events(self) -> dict[int, None]:
        """Rows of the table in which something is asked for (row e + 1 follows epoch e), in order.

        A dict, since "is there an event in this row?" is asked for each row.
        """
        # Rows beyond those of epochs are events also where none swaps: updates.csv has them.
        of_step = self.table.ids > len(self.hyper.learning_rate)
        found = np.flatnonzero(self.table.counts.any(axis=1) | of_step)
        return dict.fromkeys(found.tolist())

    def is_between(self, row: int) -> bool:
        """Whether a row is none of those before training and after epochs, one each."""
        return row > len(self.hyper.learning_rate)

    def is_tested(self, row: int) -> bool:
        """Whether the test split is looked at right before and after the event of a row."""
        return self.evaluate_between or not self.is_between(row)


@dataclasses.dataclass(frozen=True)
class Batch:
    """The members that share one compiled program and one data set."""

    program: Program
    dataset: Dataset | StreamedSet
    members: tuple[Member, ...]
    notes: tuple[str, ...] = ()  # what is not as asked for, in words
    # Live units of each group at the end -> runs that end so, of all shards: `shrinking.ends`.
    ends: Mapping[tuple[int, ...], int] = dataclasses.field(default_factory=dict)


def batch(
    arms: Sequence[Variant],
    of: Outline,
    planned: Mapping[str, Events],
    starts: Mapping[str, Start],
    kept: Mapping[str, set[int]],
    asked: Mapping[str, tuple[int, ...]],
    seeds: Sequence[int],
) -> Batch:
    """The arms of one program.

    Args:
      of: see `outline`.
      planned: label -> see `events`.
      starts: run -> how it begins.
      kept: run -> the steps whose states it leaves.
      asked: run -> those of them that stay.
      seeds: of the runs of each arm on this data set.
    """
    settings, dataset, per_epoch = arms[0].settings, of.dataset, of.per_epoch
    rows = {a.label: planned[a.label].rows for a in arms}
    pruning = [a for a in arms if a.settings.prune.schedule != "none"]
    used = {name for a in arms for name in planned[a.label].live.names}
    groups = tuple(g for g in of.groups if g.name in used)  # forward order, which decides ties
    scores = tuple(
        sorted(  # indices do not depend on the order of arms
            {a.settings.prune.score for a in pruning}
            | {a.settings.prune.update_score for a in arms if any(x.update for x in rows[a.label])}
        )
    )
    for arm in pruning:
        fit_check.score(arm, of.groups, of.params, dataset.train_examples)
    o = settings.optimizer
    decays = _selected(of.params, o.weight_decay_rule, "optimizer.weight_decay_rule")
    frozen = _selected(of.params, o.frozen, "optimizer.frozen") if o.frozen else None
    for arm in arms:
        if redraw := arm.settings.start.redraw:
            _selected(of.params, redraw, f"start.redraw (variant {arm.label!r})")
    program = Program(
        module=of.module,
        groups=groups,
        optimizer=optim.build(
            o.name,
            decays,
            momentum=o.momentum,
            nesterov=o.nesterov,
            clip_norm=o.clip_norm,
            decoupled=o.weight_decay_kind == "decoupled",
            frozen=frozen,
        ),
        features=tables_lib.features(arms, rows),
        scores=scores,
        train_examples=dataset.per_epoch(settings.batch_size),
        image_shape=dataset.image_shape,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        eval_batch_size=min(settings.eval_batch_size, dataset.test_examples),
        mean=dataset.mean,
        std=dataset.std,
        prepare=dataset.prepare,
        has_classes=dataset.has_classes,
        loss=settings.loss,
        augment=settings.data.augment,
        label_smoothing=o.label_smoothing,
        weights=settings.prune.granularity == "weight",
        global_scope=settings.prune.scope == "global",
        saliency_examples=settings.prune.saliency_examples,
        evidence=settings.prune.evidence,
        evidence_examples=scoring.balanced(settings, dataset),
        stability=scoring.stability(settings, of.module, dataset, scores),
        harden=Harden(**settings.harden.to_dict(), mean=dataset.mean, std=dataset.std),
        trackers=tuple(settings.trackers),
        stops=any(a.settings.stop_loss for a in arms),  # static: else no step asks
        probes=probing.named(settings, dataset),
        average=settings.prune.average,
        forward=settings.prune.forward,
        nm=tuple(settings.prune.nm) or None,
        forecast=settings.measures.forecast,
        microbatch=settings.population.microbatch,
        data_parallel=settings.population.data_parallel,
    )
    fit_check.optimizer(o.name, program.optimizer.transform, of.params)
    program = shrinking.with_cuts(program, arms, planned, per_epoch, dataset)
    steps = step_plan.shared_steps(list(rows.values()))
    names, own = [g.name for g in groups], tables_lib.own_layers(arms, program, of.groups)
    program = dataclasses.replace(program, domains=tables_lib.domains(arms, own))
    tables = {
        a.label: tables_lib.table(
            a.settings,
            step_plan.fill(
                rows[a.label], steps, names, settings.epochs, per_epoch, planned[a.label].past
            ),
            scores,
            own[a.label],
        )
        for a in arms
    }
    hypers = {a.label: tables_lib.hyper(a.settings) for a in arms}
    members = tuple(
        Member(
            run=f"{arm.label}-{seed}", variant=arm.label, seed=seed, table=tables[arm.label],
            hyper=hypers[arm.label],
            twin=(twin := arm.settings.intervention.twin) and f"{twin}-{seed}",
            evaluate_between=arm.settings.prune.evaluate_between,
            start=starts[f"{arm.label}-{seed}"], keep=tuple(sorted(kept[f"{arm.label}-{seed}"])),
            layers=planned[arm.label].live.names, asked=asked[f"{arm.label}-{seed}"],
            gradient_updates=_gradient_updates(arm.settings, rows[arm.label]),
            init_seed=lineage.named(seed, "ticket_reinit" if arm.settings.start.fresh else ""),
            data_seed=lineage.named(seed, arm.settings.start.copy),
        )
        for arm in arms
        for seed in seeds
    )  # fmt: skip
    if program.needs_activations:
        fit_check.activations(of.module, of.variables, dataset.image_shape, groups)
    if not program.weights:
        unit_check.check(of.module, of.variables, dataset.image_shape, groups)
    idle = [note for arm in arms for note in fit_check.idle_layers(of.arm(arm))]
    idle += [note for a in arms for note in _no_update(a, rows[a.label])]
    late = _after_training(arms, settings.epochs * program.steps_per_epoch)
    notes = (*late, *fit_check.decoupled(arms), *idle)
    ends = shrinking.ends(program, arms, planned, len(seeds))
    return Batch(program, dataset, members, notes, ends)


def _selected(params: Any, rule: str, field: str) -> Any:
    """`trees.select`, or a ConfigError that names the field."""
    try:
        return trees.select(params, rule)
    except ValueError as error:
        raise ConfigError(f"config.{field}: {error}") from None


def _after_training(arms: Sequence[Variant], steps: int) -> tuple[str, ...]:
    """See `checks.after_training`; what all arms share is told once."""
    found = {a.label: checks.after_training(a.settings, steps) for a in arms}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return tuple(f"Arm {label}: {note}" for label, notes in found.items() for note in notes)


def _gradient_updates(settings: ConfigDict, rows: Sequence[Row]) -> int:
    p = settings.prune
    growing = sum(any(row.grow.values()) for row in rows)
    return growing * p.average if p.grow == "gradient" else 0


def _no_update(arm: Variant, rows: Sequence[Row]) -> list[str]:
    p = arm.settings.prune
    asked = p.schedule != "none" and p.grow != "none" and p.update_every > 0
    if not asked or any(row.update for row in rows):
        return []
    return [
        f"Arm {arm.label}: no unit is swapped; no update falls into training "
        f"(prune.update_every = {p.update_every}, prune.update_end = {p.update_end})."
    ]
