"""From checked settings to programs and members: which runs share a compiled program, and with
which arrays (intervention table, learning rates) each of them starts.
"""

import json
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from prunejax import data as data_lib
from prunejax.data import Dataset, StreamedSet
from prunejax.errors import ConfigError
from prunejax.study import config as config_lib
from prunejax.study import lineage, outline, programs
from prunejax.study.config import Variant
from prunejax.study.lineage import Start
from prunejax.study.outline import Events, Outline
from prunejax.study.programs import Batch, Member

__all__ = ["Batch", "Member", "build"]

# Settings that are arrays of a run, so that runs which differ only here share a program.
ARRAYS = {
    "optimizer": ("learning_rate", "schedule", "milestones", "decay", "weight_decay"),
    "prune": (
        *(
            "method",
            "schedule",
            "unit",
            "rounds",
            "of",
            "layers",
            "fraction",
            "allocation",
            "start",
            "end",
        ),
        *("period", "score", "target", "grow", "regrow", "phases", "evaluate_between"),
        *("update_every", "update_fraction", "update_schedule", "update_end", "update_score"),
        *("redistribute", "weight_init", "refresh_every", "dead_decay", "score_rate"),
        *("threshold", "penalty"),
    ),
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
    "start",
    "keep",
)


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
    outlines: dict[str, Outline] = {}
    for key, together in keyed.items():
        settings = together[0].settings
        data_key = json.dumps(config_lib.to_dict(settings.data), sort_keys=True)
        if data_key not in datasets:
            datasets[data_key] = load_dataset(settings)
        outlines[key] = outline.outline(settings, datasets[data_key])
    of = {arm.label: outlines[key] for key, some in keyed.items() for arm in some}
    graph = _graph(arms, of)
    planned = _events({arm.label: arm for arm in arms}, of, graph[0])
    return [
        programs.batch(together, outlines[key], planned, *graph) for key, together in keyed.items()
    ]


def _seeds(settings: ConfigDict) -> range:
    return range(settings.first_seed, settings.first_seed + settings.seeds)


def _graph(
    arms: Sequence[Variant], of: Mapping[str, Outline]
) -> tuple[dict[str, Start], dict[str, set[int]], dict[str, tuple[int, ...]]]:
    """How every run begins, which of its states it leaves, and which of those stay."""
    lengths = {
        a.label: (of[a.label].per_epoch, a.settings.epochs * of[a.label].per_epoch) for a in arms
    }
    starts: dict[str, Start] = {}
    asked: dict[str, tuple[int, ...]] = {}
    for arm in arms:
        where = f"keep (variant {arm.label!r})"
        steps = [lineage.point(text, *lengths[arm.label], where) for text in arm.settings.keep]
        for seed in _seeds(arm.settings):
            run = f"{arm.label}-{seed}"
            starts[run] = lineage.start_of(arm.settings, seed, lengths, arm.label)
            asked[run] = tuple(steps)
    kept = lineage.kept(starts, asked)
    for run, left in kept.items():
        early = [s for s in left if 0 <= s < starts[run].step]
        if early:
            raise ConfigError(
                f"the state of {run!r} at step {early[0]} is asked for, but its training begins at "
                f"step {starts[run].step}; name a later one"
            )
    return starts, kept, asked


def _events(
    arms: Mapping[str, Variant], of: Mapping[str, Outline], starts: Mapping[str, Start]
) -> dict[str, Events]:
    """Label -> events, counted from what the runs that an arm starts from leave live."""
    planned: dict[str, Events] = {}
    for label in lineage.ordered({name: arm.settings for name, arm in arms.items()}):
        settings = arms[label].settings
        start = starts[f"{label}-{settings.first_seed}"]
        parent, at = None, 0.0
        if start.source is not None and "masks" in start.source.parts:
            parent = planned[settings.start.run].live
            at = start.source.done if start.source.step == lineage.END else start.source.step - 0.5
        planned[label] = outline.events(arms[label], of[label], parent, at, start.step)
    return planned
