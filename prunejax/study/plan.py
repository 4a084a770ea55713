"""From checked settings to programs and members: which runs share a compiled program, and with
which arrays (intervention table, learning rates) each of them starts.
"""

import dataclasses
import json
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from prunejax import data as data_lib
from prunejax import interventions, models, trees
from prunejax.data import Dataset, StreamedSet
from prunejax.errors import ConfigError
from prunejax.interventions import FOREVER, Features, Table
from prunejax.study import checks, event_plan, fit_check, unit_check
from prunejax.study import config as config_lib
from prunejax.study.config import Variant
from prunejax.train import optim, prune
from prunejax.train.step import Hyper, Program

# Settings that are arrays of a run, so that runs which differ only here share a program.
ARRAYS = {
    "optimizer": ("learning_rate", "schedule", "milestones", "decay", "weight_decay"),
    "prune": ("schedule", "layers", "fraction", "start", "end", "period", "score", "target"),
}
NOT_STATIC = (
    "seeds",
    "first_seed",
    "variants",
    "name",
    "report",
    "population",
    "checkpoint",
    "measures",
    "intervention",
)


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a study."""

    run: str  # "<variant>-<seed>", unique in the study
    variant: str
    seed: int
    table: Table  # NumPy arrays
    hyper: Hyper  # NumPy arrays
    twin: str = ""  # the run whose targets are replayed

    @property
    def events(self) -> np.ndarray:
        """Rows of the counts in which something is targeted (row e + 1 follows epoch e)."""
        return np.flatnonzero(np.asarray(self.table.counts).sum(axis=1))


@dataclasses.dataclass(frozen=True)
class Batch:
    """The members that share one compiled program and one data set."""

    program: Program
    dataset: Dataset | StreamedSet
    members: tuple[Member, ...]
    notes: tuple[str, ...] = ()  # what is not as asked for, in words


def load_dataset(settings: ConfigDict) -> Dataset | StreamedSet:
    """The data set of one arm's settings (ValueError where it does not exist or is too small)."""
    d = settings.data
    if d.stream or data_lib.must_stream(d.name, d.data_dir or None):
        _check_streamed(settings)
        return data_lib.open_streamed(d.name, data_dir=d.data_dir or None, image_size=d.image_size)
    return data_lib.load(
        d.name,
        data_dir=d.data_dir or None,
        train_examples=d.train_examples or None,
        test_examples=d.test_examples or None,
        validation_examples=d.validation_examples,
        label_noise=d.label_noise,
        imbalance=d.imbalance,
        seed=d.seed,
    )


def _check_streamed(settings: ConfigDict) -> None:
    """Refuses what needs the whole set in memory."""
    d, m = settings.data, settings.measures
    neutral = dict.fromkeys(
        ("train_examples", "test_examples", "validation_examples", "label_noise"), 0
    ) | {"imbalance": 1}
    for field, value in neutral.items():
        if d[field] != value:
            raise ConfigError(
                f"config.data.{field} = {d[field]!r}: {d.name!r} is streamed, and such a set "
                f"is used whole and as it is; leave it at {value}, or prepare a smaller set"
            )
    if settings.intervention.as_released:
        raise ConfigError(
            f"config.intervention.as_released = True: {d.name!r} is streamed, and the released "
            "evaluation needs a set in memory; leave it at False"
        )
    if m.names and not m.examples:
        raise ConfigError(
            f"config.measures.examples = 0 (all): {d.name!r} is streamed, and the examples of "
            "measures are held in memory; give their number"
        )


def _static_key(settings: ConfigDict) -> str:
    """What has to be equal for two runs to share a compiled program."""
    plain = config_lib.to_dict(settings)
    released = plain["intervention"]["as_released"]
    for name in NOT_STATIC:
        plain.pop(name)
    for part, names in ARRAYS.items():
        for name in names:
            plain[part].pop(name)
    return json.dumps([plain, released], sort_keys=True)


def build(arms: Sequence[Variant]) -> list[Batch]:
    """Programs and members of a study, grouped by what has to be compiled together.

    Raises:
      ConfigError (or another ValueError): data, model, layer or schedule that cannot be had.
    """
    datasets: dict[str, Dataset | StreamedSet] = {}
    keyed: dict[str, list[Variant]] = {}
    for arm in arms:
        keyed.setdefault(_static_key(arm.settings), []).append(arm)
    batches = []
    for together in keyed.values():
        settings = together[0].settings
        data_key = json.dumps(config_lib.to_dict(settings.data), sort_keys=True)
        if data_key not in datasets:
            datasets[data_key] = load_dataset(settings)
        batches.append(_batch(together, datasets[data_key]))
    return batches


def _batch(arms: Sequence[Variant], dataset: Dataset | StreamedSet) -> Batch:
    settings = arms[0].settings
    if settings.batch_size > dataset.train_examples:
        raise ConfigError(
            f"config.batch_size = {settings.batch_size} is more than the {dataset.train_examples} "
            "training examples; lower it"
        )
    examples = dataset.per_epoch(settings.batch_size)
    options = settings.model.to_dict()
    options["dtype"] = jnp.dtype(options["dtype"])
    module = models.create(options.pop("name"), num_classes=dataset.num_classes, **options)
    shape = dataset.image_shape
    variables = fit_check.variables(settings, module, dataset)
    if settings.population.microbatch and "batch_stats" in variables:
        raise ConfigError(
            f"config.population.microbatch = {settings.population.microbatch}: BatchNorm in "
            f"{settings.model.name!r} needs the whole batch; set it to 0"
        )
    if settings.model.unbiased_variance and "batch_stats" not in variables:
        raise ConfigError(
            f"config.model.unbiased_variance = True: {settings.model.name!r} has no BatchNorm that "
            "keeps a variance; leave it at False"
        )
    params, all_groups = variables["params"], models.groups(module, variables)
    counted = {
        a.label: event_plan.event_counts(a.settings, a.label, all_groups, params) for a in arms
    }
    used = {name for counts in counted.values() for name in counts}
    groups = tuple(g for g in all_groups if g.name in used)
    scores = tuple(sorted({a.settings.prune.score for a in arms if counted[a.label]}))
    for arm in arms:
        if counted[arm.label]:
            own = [g for g in groups if g.name in counted[arm.label]]
            fit_check.score(arm, own, dataset.train_examples)
    rows = settings.epochs + 1
    stacked = {
        a.label: np.stack(
            [counted[a.label].get(g.name, np.zeros(rows, np.int32)) for g in groups], axis=1
        ).astype(np.int32)
        if groups
        else np.zeros((rows, 1), np.int32)  # checkpoints cannot hold empty arrays
        for a in arms
    }
    o = settings.optimizer
    try:
        decays = trees.select(params, o.weight_decay_rule)
    except ValueError as error:
        raise ConfigError(f"config.optimizer.weight_decay_rule: {error}") from None
    try:
        frozen = trees.select(params, o.frozen) if o.frozen else None
    except ValueError as error:
        raise ConfigError(f"config.optimizer.frozen: {error}") from None
    program = Program(
        module=module,
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
        features=_features(arms, stacked),
        scores=scores,
        train_examples=examples,
        image_shape=shape,
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
        forecast=settings.measures.forecast,
        microbatch=settings.population.microbatch,
        data_parallel=settings.population.data_parallel,
    )
    tables = {a.label: _table(a.settings, stacked[a.label], scores) for a in arms}
    hypers = {a.label: _hyper(a.settings) for a in arms}
    members = tuple(
        Member(
            run=f"{arm.label}-{seed}",
            variant=arm.label,
            seed=seed,
            table=tables[arm.label],
            hyper=hypers[arm.label],
            twin=f"{arm.settings.intervention.twin}-{seed}"
            if arm.settings.intervention.twin
            else "",
        )
        for arm in arms
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds)
    )
    if not program.weights:
        unit_check.check(module, variables, shape, groups)
    notes = tuple(
        note
        for arm in arms
        for note in event_plan.idle_layers(arm.settings, arm.label, all_groups, params)
    )
    return Batch(program, dataset, members, notes)


def _features(arms: Sequence[Variant], stacked: dict[str, np.ndarray]) -> Features:
    acting = [a for a in arms if stacked[a.label].sum()]
    finite = [a for a in acting if a.settings.intervention.duration >= 0]
    kinds = {a.settings.intervention.kind for a in acting}
    return Features(
        finite=bool(finite or kinds & {"zero", "gaussian"}),
        zero="zero" in kinds,
        gaussian="gaussian" in kinds,
        restore=any(a.settings.intervention.restore != "no" for a in finite),
        released=arms[0].settings.intervention.as_released,
    )


def _table(settings: ConfigDict, counts: np.ndarray, scores: tuple[str, ...]) -> Table:
    i, p = settings.intervention, settings.prune
    return Table(
        kind=np.int32(interventions.KINDS[i.kind]),
        duration=np.int32(FOREVER if i.duration < 0 else i.duration),
        cumulative=np.bool_(interventions.SCOPES[i.scope]),
        restore=np.int32(interventions.RESTORES[i.restore]),
        mask_norm=np.bool_(i.mask_norm),
        noise_scale=np.float32(i.noise_scale),
        target=np.int32(prune.TARGETS[p.target]),
        score=np.int32(scores.index(p.score) if p.score in scores else 0),
        counts=counts,
        replay=np.bool_(bool(i.twin)),
    )


def _hyper(settings: ConfigDict) -> Hyper:
    o = settings.optimizer
    try:
        rates = optim.learning_rates(
            o.schedule,
            o.learning_rate,
            settings.epochs,
            milestones=tuple(o.milestones),
            decay=o.decay,
        )
        highest = max(rates)
    except OverflowError:
        highest = float("inf")
    if highest > checks.LARGEST:
        raise ConfigError(
            f"config.optimizer.decay = {o.decay} takes the learning rate beyond single precision"
        )
    return Hyper(np.asarray(rates, np.float32), np.float32(o.weight_decay))
