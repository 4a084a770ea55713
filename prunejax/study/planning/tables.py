"""The arrays with which the runs of an arm begin, and what the step of a program must hold."""

from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from prunejax import interventions
from prunejax import scores as scores_lib
from prunejax.errors import ConfigError
from prunejax.groups import Group
from prunejax.interventions import FOREVER, Features, Table
from prunejax.study.planning import event_plan
from prunejax.study.planning.step_plan import Filled, Row
from prunejax.study.settings import checks
from prunejax.study.settings.config import Variant
from prunejax.train import optim, prune
from prunejax.train.step import Hyper, Program


def features(arms: Sequence[Variant], rows: Mapping[str, Sequence[Row]]) -> Features:
    """What the arms of a program may do, by the events of each."""
    acting = [a for a in arms if rows[a.label]]
    finite = [a for a in acting if a.settings.intervention.duration >= 0]
    kinds = {a.settings.intervention.kind for a in acting}
    return Features(
        finite=bool(finite or kinds & {"zero", "gaussian"}),
        zero="zero" in kinds,
        gaussian="gaussian" in kinds,
        restore=any(a.settings.intervention.restore != "no" for a in finite),
        released=arms[0].settings.intervention.as_released,  # static: all arms of a program agree
        growth=arms[0].settings.prune.forward != "masked"
        or any(any(row.grow.values()) for own in rows.values() for row in own),
        pooled=any(a.settings.prune.redistribute for a in arms),
        threshold=any(a.settings.prune.schedule == "threshold" for a in arms),
        random=any("random" in (a.settings.prune.target, a.settings.prune.grow) for a in acting),
    )


def own_layers(
    arms: Sequence[Variant], program: Program, groups: Sequence[Group]
) -> dict[str, np.ndarray | tuple[()]]:
    """Label -> `Table.layers`: the layers of the program that an arm's rules choose.

    Others may be those of other arms, or came masked from the run that it starts from. () where
    nothing is ranked or scored over several layers, or all arms that prune choose all: then events
    need none.
    """
    over = program.global_scope or program.features.pooled or program.forward != "masked"
    over = over or any("network" in scores_lib.SCORES[name].needs for name in program.scores)
    names = [g.name for g in program.groups]
    rules = {
        a.label: event_plan.layer_rules(a.settings, groups)
        for a in arms
        if over and a.settings.prune.schedule != "none"
    }
    if all(name in chosen for chosen in rules.values() for name in names):
        return dict.fromkeys((a.label for a in arms), ())
    of = {a.label: rules.get(a.label, names) for a in arms}
    return {label: np.array([name in of[label] for name in names]) for label in of}


def domains(
    arms: Sequence[Variant], own: Mapping[str, np.ndarray | tuple[()]]
) -> tuple[tuple[bool, ...], ...]:
    """The layers, each of the program's in or out, among which scores of the network are taken.

    One entry for each choice of `own_layers` by arms with such a score; () where it is all layers.
    """
    found = set()
    for arm in arms:
        p = arm.settings.prune
        used = (p.score, p.update_score) if p.update_every else (p.score,)
        if p.schedule != "none" and any(
            "network" in scores_lib.SCORES[name].needs for name in used
        ):
            found.add(tuple(bool(x) for x in own[arm.label]))
    return tuple(sorted(found - {()}))


def table(
    settings: ConfigDict,
    filled: Filled,
    scores: tuple[str, ...],
    layers: np.ndarray | tuple[()] = (),
) -> Table:
    """An arm's intervention, row by row; `layers`: see `own_layers`."""
    i, p = settings.intervention, settings.prune
    index = lambda name: scores.index(name) if name in scores else 0  # noqa: E731
    smallest = prune.TARGETS["smallest"]
    return Table(
        kind=np.int32(interventions.KINDS[i.kind]),
        duration=np.int32(FOREVER if i.duration < 0 else i.duration),
        cumulative=np.bool_(interventions.SCOPES[i.scope]),
        restore=np.int32(interventions.RESTORES[i.restore]),
        mask_norm=np.bool_(i.mask_norm),
        noise_scale=np.float32(i.noise_scale),
        replay=np.bool_(bool(i.twin)),
        random_growth=np.bool_(p.grow == "random"),
        steps=filled.steps,
        ids=filled.ids,
        # Updates drop the smallest, whatever the arm's events target.
        target=np.where(filled.updates, smallest, prune.TARGETS[p.target]).astype(np.int32),
        score=np.where(filled.updates, index(p.update_score), index(p.score)).astype(np.int32),
        counts=filled.counts,
        grow=filled.grow,
        pooled=filled.pooled,
        layers=layers,
        fan_in=np.bool_(p.weight_init == "sparse_fan_in"),
        dead_decay=np.float32(p.dead_decay),
        score_rate=np.float32(p.score_rate),
        threshold=np.float32(p.threshold if p.schedule == "threshold" else -1),
        penalty=np.float32(p.penalty),
    )


def hyper(settings: ConfigDict) -> Hyper:
    """An arm's rates and coefficients."""
    o = settings.optimizer
    try:
        rates = optim.learning_rates(
            o.schedule, o.learning_rate, settings.epochs, milestones=tuple(o.milestones),
            decay=o.decay, restarts=tuple(o.restarts),
        )  # fmt: skip
        highest = max(rates)
    except OverflowError:
        highest = float("inf")
    if highest > checks.LARGEST:
        raise ConfigError(
            f"config.optimizer.decay = {o.decay} takes the learning rate beyond single precision"
        )
    asked = settings.prune.decay_coef
    decay = o.weight_decay if asked < 0 else asked
    if settings.prune.grad_of == "total":
        # -w (g + optimizer's w) + lambda w^2 = -w g + (lambda - optimizer's) w^2, exactly |w g|
        # where both are the same.
        decay -= o.weight_decay
    return Hyper(
        np.asarray(rates, np.float32),  # single precision from here on
        np.float32(o.weight_decay),
        np.float32(decay),
        np.float32(settings.start.scale),
        np.float32(settings.stop_loss),
        np.float32(o.warmup_steps),
    )
