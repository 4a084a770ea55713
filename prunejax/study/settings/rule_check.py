"""Checks of forward rules, N:M and what growth looks at: parts of a method that go together."""

from ml_collections import ConfigDict

from prunejax.errors import ConfigError

_LEARNT = ("learnt", "learnt_magnitude")


def check(settings: ConfigDict, where: str) -> None:
    """Refuses parts of `prune` that do not go together.
    Raises ConfigError: names the field, the value, and what goes with it.
    """
    p = settings.prune
    if p.shrink_every:
        _smaller(settings, where)
    if p.schedule == "none":
        return
    _forward(settings, where)
    _needs(p, where)
    if p.nm:
        _nm(p, where)


def _forward(settings: ConfigDict, where: str) -> None:
    p, i = settings.prune, settings.intervention
    hidden = p.forward != "masked"
    if (p.score in _LEARNT) != (p.forward == "movement"):
        raise ConfigError(
            f"config.prune.score = {p.score!r}{where}: {' and '.join(_LEARNT)} go with "
            f"prune.forward = 'movement', which learns them (it is {p.forward!r}), and no other "
            "score does"
        )
    if (p.schedule == "threshold") and not hidden:
        raise ConfigError(
            f"config.prune.schedule = 'threshold'{where} goes with prune.forward = 'movement'"
        )
    if not hidden:
        return
    allowed = ("scratch",) if p.forward == "straight_through" else ("threshold", "by step")
    found = "by step" if p.unit == "step" and p.schedule != "scratch" else p.schedule
    if p.schedule == "threshold":
        found = "threshold"
    if found not in allowed or p.schedule == "phases" or p.rounds > 1:
        raise ConfigError(
            f"config.prune.schedule = {p.schedule!r}{where} does not go with prune.forward = "
            f"{p.forward!r}: straight_through has 'scratch' in one round, movement 'threshold', or "
            "a schedule with prune.unit = 'step'"
        )
    if p.granularity != "weight" or p.grow != "none" or i.kind != "prune" or i.duration >= 0:
        raise ConfigError(
            f"config.prune.forward = {p.forward!r}{where} needs prune.granularity = 'weight', "
            "prune.grow = 'none', intervention.kind = 'prune' and intervention.duration = -1"
        )
    if i.twin or i.as_released or settings.measures.forecast:
        raise ConfigError(
            f"config.prune.forward = {p.forward!r}{where} goes with no intervention.twin, "
            "intervention.as_released or measures.forecast: weights come back at its events"
        )


def _smaller(settings: ConfigDict, where: str) -> None:
    """Units have to go for good, in numbers that are known before."""
    p, i = settings.prune, settings.intervention
    for field, found, needed in (
        ("prune.granularity", p.granularity, "filter"),
        ("prune.scope", p.scope, "layer"),
        ("prune.grow", p.grow, "none"),
        ("prune.phases", tuple(p.phases), ()),
        ("intervention.kind", i.kind, "prune"),
        ("intervention.duration", i.duration, -1),
        ("intervention.mask_norm", i.mask_norm, True),
        ("intervention.as_released", i.as_released, False),
        ("intervention.twin", i.twin, ""),
        ("population.shard_params", settings.population.shard_params, False),
    ):
        if found != needed:
            raise ConfigError(
                f"config.prune.shrink_every = {p.shrink_every}{where} goes with {field} = "
                f"{needed!r} (it is {found!r}): units have to go for good, as many as planned"
            )


def _needs(p: ConfigDict, where: str) -> None:
    for field, wrong, needed in (
        ("refresh_every", p.refresh_every and p.forward == "masked", "prune.forward not 'masked'"),
        ("dead_decay", p.dead_decay and p.forward != "straight_through", "straight_through"),
        ("penalty", p.penalty and p.forward != "movement", "prune.forward = 'movement'"),
        ("threshold", p.threshold and p.schedule != "threshold", "prune.schedule = 'threshold'"),
        (
            "redistribute",
            p.redistribute and not (p.update_every and p.schedule == "scratch"),
            "prune.update_every and prune.schedule = 'scratch'",
        ),
        (
            "average",
            p.average > 1 and not (p.evidence == "batch" and p.grow == "gradient"),
            "prune.evidence = 'batch' and prune.grow = 'gradient'",
        ),
        (
            "weight_init",
            p.weight_init != "dense" and (p.granularity != "weight" or p.forward != "masked"),
            "prune.granularity = 'weight' and prune.forward = 'masked'",
        ),
    ):
        if wrong:
            raise ConfigError(f"config.prune.{field} = {p[field]!r}{where} goes with {needed}")
    if p.schedule == "threshold" and not p.refresh_every:
        raise ConfigError(
            f"config.prune.refresh_every = 0{where}: prune.schedule = 'threshold' looks at scores "
            "every so many training steps; give their number"
        )


def _nm(p: ConfigDict, where: str) -> None:
    nm = tuple(p.nm)
    if len(nm) != 2 or not 0 < nm[0] < nm[1]:
        raise ConfigError(f"config.prune.nm = {nm}{where} must be (n, m) with 0 < n < m, or ()")
    for field, wrong, why in (
        (
            "grow",
            p.grow != "none",
            "blocks of N:M cannot swap; set it to 'none', or forward to "
            "'straight_through', which changes masks without it",
        ),
        ("schedule", p.schedule == "threshold", "how many a threshold keeps is another sparsity"),
        ("scope", p.scope != "layer", "every block ranks its own weights; set it to 'layer'"),
        (
            "granularity",
            p.granularity != "weight",
            "blocks are of single weights; set it to 'weight'",
        ),
        ("of", p.of != "all", "n of m is a share of all weights; set it to 'all'"),
    ):
        if wrong:
            raise ConfigError(
                f"config.prune.nm = {nm}{where} goes with no prune.{field} = {p[field]!r}: {why}"
            )
