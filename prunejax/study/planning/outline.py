"""The model of some arms on their data, and the events of each arm, before anything is compiled."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from prunejax import models, scores
from prunejax.data import Dataset, StreamedSet
from prunejax.errors import ConfigError
from prunejax.groups import Group, of_kernels
from prunejax.study.planning import event_plan, fit_check, step_plan
from prunejax.study.planning import live as live_lib
from prunejax.study.planning.live import Live
from prunejax.study.planning.step_plan import Row
from prunejax.study.settings.config import Variant


class Outline(NamedTuple):
    """What arms of one program have in common before their events are known."""

    dataset: Dataset | StreamedSet
    module: models.Model
    variables: Any  # shapes
    groups: tuple[Group, ...]  # of the model
    per_epoch: int  # training steps

    @property
    def params(self) -> Any:
        """Shapes of the parameters."""
        return self.variables["params"]

    def arm(self, arm: Variant) -> event_plan.Arm:
        """One of the arms on the model."""
        return event_plan.Arm(arm.settings, arm.label, self.groups, self.params)


def outline(settings: ConfigDict, dataset: Dataset | StreamedSet) -> Outline:
    """The model for a data set. Raises ConfigError: model and settings do not go together."""
    if settings.batch_size > dataset.train_examples:
        raise ConfigError(
            f"config.batch_size = {settings.batch_size} is more than the {dataset.train_examples} "
            "training examples; lower it"
        )
    options = settings.model.to_dict()
    options["dtype"] = jnp.dtype(options["dtype"])
    module = models.create(options.pop("name"), num_classes=dataset.num_classes, **options)
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
    per_epoch = -(-dataset.per_epoch(settings.batch_size) // settings.batch_size)
    groups = tuple(models.groups(module, variables))
    if settings.prune.granularity == "weight":  # then classifier, stem, shortcuts, too
        groups += of_kernels(variables["params"], groups)
    return Outline(dataset, module, variables, groups, per_epoch)


class Events(NamedTuple):
    """The events of an arm."""

    rows: Sequence[Row]  # see `step_plan.rows`
    live: Live
    gathered: int  # training steps done from which on there are scores that training gathers
    past: int = 0  # updates of its course that fall before its training begins


def events(
    arm: Variant,
    of: Outline,
    parent: Live | None,
    at: float,
    begins: int,
    taken: tuple[bool, bool] = (False, False),
) -> Events:
    """The events of an arm.

    Args:
      parent: of the run whose masks it takes, None without one.
      at: the step of that run's state.
      begins: training steps that count as done when training begins.
      taken: whether it has scores of another run that training gathered, at its events before
        training, and from then on.

    Raises ConfigError: layers, counts or times that cannot be.
    """
    own = of.arm(arm)
    start = live_lib.begin(own, parent, at)
    rows = step_plan.rows(own, of.per_epoch, start)
    gone = Counter[str]()
    for row in rows:
        for name, k in row.drop.items():  # of swaps nothing is gone
            gone[name] += k - row.grow.get(name, 0)
    event_plan.check_totals(own, start.counts, gone)
    # Who goes on from a step goes on with the updates, too.
    ahead = [row for row in rows if not (row.update and row.step < begins)]
    rows, past = ahead, len(rows) - len(ahead)
    # A state is from before the events of its step; those that follow its epoch are over.
    over = lambda row: row.step < begins or (row.step == begins and row.place)  # noqa: E731
    early = [row.step for row in rows if row.step and over(row)]
    if early:
        raise ConfigError(
            f"config.prune.start (variant {arm.label!r}): an event at step {early[0]}, but its "
            f"training begins at step {begins}; start the schedule later, leave 'step' out of "
            "start.take, or prune before training (prune.schedule = 'scratch')"
        )
    _averaged(arm, of, rows)
    period = 1 if arm.settings.prune.forward == "movement" else scores.ACTIVATION_PERIOD
    gathered = 0 if taken[1] else begins // period * period + period
    _scored(arm, rows, taken[0], gathered)
    live = live_lib.with_events(start, arm.label, rows)
    live = live._replace(unknown=live.unknown or arm.settings.prune.schedule == "threshold")
    return Events(rows, live, gathered, past)


def _averaged(arm: Variant, of: Outline, rows: Sequence[Row]) -> None:
    """Refuses growth before there are as many batches as it averages; see `evidence`."""
    average, size = arm.settings.prune.average, arm.settings.batch_size
    whole = of.dataset.per_epoch(size) // size  # full batches of an epoch
    growing = [row.step for row in rows if any(row.grow.values())]
    if average == 1 or not growing:
        return
    epochs, rest = divmod(growing[0], of.per_epoch)
    there = epochs * whole + min(rest, whole)
    if there < average:
        raise ConfigError(
            f"config.prune.average = {average} (variant {arm.label!r}): the first event that "
            f"grows, at step {growing[0]}, has {there} full batches before it; average no more, "
            "or let it come later (prune.update_every, prune.start)"
        )


def _scored(arm: Variant, rows: Sequence[Row], taken: bool, first: int) -> None:
    """Refuses a choice by scores that training gathers before there are any: it would go by place.

    Args:
      taken: whether there are scores of another run before training.
      first: see `Events.gathered`.
    """
    p, masked = arm.settings.prune, arm.settings.prune.forward == "masked"
    own = "" if p.target == "random" or arm.settings.intervention.twin else "score"
    for row in rows:
        if masked and not any(row.drop.values()):  # units only come back
            continue
        step, field = row.step, "update_score" if row.update else own
        gathers = field and scores.SCORES[p[field]].needs & {"activations", "learnt"}
        if gathers and step < first and not (taken and not step):
            raise ConfigError(
                f"config.prune.{field} = {p[field]!r} (variant {arm.label!r}), and an event after "
                f"step {step}: before {first} training steps are done these scores are all 0 and "
                "would choose by place alone; let the first event come later (prune.start), or "
                "take 'scores' of another run that has some (start.take)"
            )


def check_twin(label: str, ours: Events, twin: str, theirs: Events) -> None:
    """Refuses a twin with other events: it replays the first of them at its own first, and so on.
    Raises ConfigError: the first that differs.
    """
    both = itertools.zip_longest(_counted(ours), _counted(theirs))
    for number, (own, other) in enumerate(both, 1):
        if own != other:
            raise ConfigError(
                f"variant {label!r} is a twin of {twin!r} but differs in event {number}: "
                f"{own or 'none'}, and {other or 'none'} there. Twins share all events: give both "
                "the same of prune.times, ratio_of, nm, phases and forward, prune.grow = 'none', "
                "and, where fractions are of what is live, the same masks to start with"
            )


def _counted(events: Events) -> list[str]:
    """How many units each event takes, in words."""
    told = []
    for row in events.rows:
        taken = row.drop if row.dead is None else row.dead
        of = ", ".join(f"{k} of {name}" for name, k in taken.items() if k)
        after = f"after epoch {row.place - 1}" if row.place else "before training"
        told.append(f"{of} {after if row.place is not None else f'at step {row.step}'}")
    return told
