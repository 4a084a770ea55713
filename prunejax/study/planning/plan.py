"""From checked settings to programs and members: which runs share a compiled program, and with
which arrays (intervention table, learning rates) each of them starts.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from prunejax import data as data_lib
from prunejax.data import Dataset, StreamedSet
from prunejax.errors import ConfigError
from prunejax.study.planning import batch_check, live, outline, programs, ticket_file
from prunejax.study.planning.outline import Events, Outline
from prunejax.study.planning.programs import Batch, Member
from prunejax.study.settings import config as config_lib
from prunejax.study.settings import lineage
from prunejax.study.settings.config import Variant
from prunejax.study.settings.lineage import Source, Start

__all__ = ["Batch", "Member", "build"]

# What decides how many units are live when, and so the arrays of a smaller network.
COUNTS = (
    *("schedule", "unit", "rounds", "of", "ratio_of", "layers", "fraction", "allocation"),
    *("start", "end", "period"),
)
# Settings that are arrays of a run, so that runs which differ only here share a program.
ARRAYS = {
    "optimizer": (
        *("learning_rate", "schedule", "milestones", "decay", "restarts", "weight_decay"),
        "warmup_steps",
    ),
    "prune": (
        *COUNTS,
        *("method", "score", "target", "grow", "regrow", "phases", "evaluate_between"),
        *("decay_coef", "grad_of"),
        *("update_every", "update_fraction", "update_schedule", "update_end", "update_score"),
        *("redistribute", "weight_init", "refresh_every", "dead_decay", "score_rate"),
        *("threshold", "penalty"),
    ),
}
# What tells no programs apart: no step reads it, it is arrays of a run, or of the whole study.
NOT_STATIC = (
    *("seeds", "first_seed", "variants", "name", "report", "population", "checkpoint"),
    *("measures", "intervention", "start", "keep", "connect"),
    *("stop_loss", "evaluate_every", "evaluate_train", "trackers"),
)


def load_dataset(settings: ConfigDict, seed: int | None = None) -> Dataset | StreamedSet:
    """The data set of one arm's settings (ValueError where it does not exist or is too small).

    Args:
      settings: of the arm.
      seed: of the run, where every seed has data of its own (`data.by_seed`).
    """
    d = settings.data
    if d.stream or data_lib.must_stream(d.name, d.data_dir or None):
        _check_streamed(settings)
        return data_lib.open_streamed(d.name, data_dir=d.data_dir or None, image_size=d.image_size)
    return data_lib.load(
        d.name, data_dir=d.data_dir or None, train_examples=d.train_examples or None,
        test_examples=d.test_examples or None, validation_examples=d.validation_examples,
        label_noise=d.label_noise, imbalance=d.imbalance, pad=d.pad, noise=d.noise,
        standardize=d.standardize,
        seed=d.seed if seed is None else lineage.named_seed(seed, f"data/{d.seed}"),
    )  # fmt: skip


def _check_streamed(settings: ConfigDict) -> None:
    """Refuses what needs the whole set in memory."""
    d, m = settings.data, settings.measures
    names = ("train_examples", "test_examples", "validation_examples", "label_noise")
    neutral = dict.fromkeys((*names, "pad", "noise"), 0) | {"imbalance": 1, "by_seed": False}
    neutral["standardize"] = True
    for field, value in neutral.items():
        if d[field] != value:
            raise ConfigError(
                f"config.data.{field} = {d[field]!r}: {d.name!r} is streamed, and such a set "
                f"is used whole and as it is; leave it at {value}, or prepare a smaller set"
            )
    for field in ("evaluate_train", "stop_loss", "trackers"):
        if settings[field]:
            raise ConfigError(
                f"config.{field} = {settings[field]!r}: {d.name!r} is streamed, and this needs the "
                "training set in memory; leave it out"
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
    released = plain["intervention"]["as_released"]  # static: it decides which passes count
    for name in NOT_STATIC:
        plain.pop(name)
    for part, names in ARRAYS.items():
        for name in names:
            if not (part == "prune" and plain[part]["shrink_every"] and name in COUNTS):
                plain[part].pop(name)
    return json.dumps([plain, released], sort_keys=True)


def build(arms: Sequence[Variant]) -> list[Batch]:
    """Programs and members of a study, grouped by what has to be compiled together.
    Raises ConfigError (or another ValueError): data, model, layer or schedule that cannot be had.
    """
    datasets: dict[str, Dataset | StreamedSet] = {}
    keyed: dict[tuple[str, int | None], list[Variant]] = {}
    for arm in arms:
        of_arm = _seeds(arm.settings) if arm.settings.data.by_seed else (None,)
        for seed in of_arm:
            keyed.setdefault((_static_key(arm.settings), seed), []).append(arm)
    outlines: dict[tuple[str, int | None], Outline] = {}
    for (key, seed), together in keyed.items():
        settings = together[0].settings
        data_key = json.dumps([config_lib.to_dict(settings.data), seed], sort_keys=True)
        if data_key not in datasets:  # one copy in memory for all arms
            datasets[data_key] = load_dataset(settings, seed)
        outlines[key, seed] = outline.outline(settings, datasets[data_key])
    of = {arm.label: outlines[key] for key, some in keyed.items() for arm in some}
    graph = _graph(arms, of)
    planned = _events({arm.label: arm for arm in arms}, of, graph[0])
    made = [
        programs.batch(
            together, outlines[key, seed], planned, *graph,
            _seeds(together[0].settings) if seed is None else (seed,),
        )
        for (key, seed), together in keyed.items()
    ]  # fmt: skip
    batch_check.check(made)
    return _sharing(made, [key for key, _ in keyed])


def _sharing(batches: list[Batch], keys: Sequence[str]) -> list[Batch]:
    """The batches; those that differ in nothing but their data have one and the same program, and
    the `ends` of all its runs.

    Args:
      batches: of a study.
      keys: what their settings have in common with those that may share a program.
    """
    first: dict[str, Batch] = {}
    found = []
    for batch, key in zip(batches, keys, strict=True):
        one = first.setdefault(key, batch).program
        found.append(dataclasses.replace(batch, program=one) if batch.program == one else batch)
    runs: dict[int, Counter[tuple[int, ...]]] = {}  # what is compiled for one serves all
    for batch in found:
        runs.setdefault(id(batch.program), Counter()).update(batch.ends)
    return [dataclasses.replace(batch, ends=runs[id(batch.program)]) for batch in found]


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
    pairs = [pair for arm in arms[:1] for pair in arm.settings.connect.pairs]  # of the study
    ends = {label for pair in pairs for label in pair.split(":")}
    taken = {
        run: (*steps, *((lineage.END,) if run.rpartition("-")[0] in ends else ()))
        for run, steps in asked.items()
    }
    kept = lineage.kept(starts, taken)
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
        start = starts[f"{label}-{settings.first_seed}"]  # events are alike for all seeds
        parent, at = None, 0.0
        if settings.start.ticket:
            parent = ticket_file.check(settings, label, of[label])
        elif start.source is not None and "masks" in start.source.parts:
            other = settings.start.run  # -0.5 below: left before that step's events
            parent = live.handed_on(planned[other].live, arms[other].settings.intervention)
            at = start.source.done if start.source.step == lineage.END else start.source.step - 0.5
        back = start.rewind  # after the events before training
        later = back if back is not None and "scores" in back.parts else start.source
        taken = _gathered(start.source, planned), _gathered(later, planned)
        planned[label] = outline.events(arms[label], of[label], parent, at, start.step, taken)
    for label, arm in arms.items():
        if twin := arm.settings.intervention.twin:
            outline.check_twin(label, planned[label], twin, planned[twin])
    return planned


def _gathered(source: Source | None, planned: Mapping[str, Events]) -> bool:
    """Whether scores that training gathers are taken from a state that has some."""
    if source is None or "scores" not in source.parts:
        return False
    return planned[source.run.rpartition("-")[0]].gathered <= source.done
