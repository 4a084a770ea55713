"""Checks that model, loss and scores of an arm fit its data set and each other."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from ml_collections import ConfigDict

from prunejax import groups as groups_lib
from prunejax import losses, models, registry, schedules, trees
from prunejax import scores as scores_lib
from prunejax.data import Dataset, StreamedSet
from prunejax.errors import ConfigError
from prunejax.groups import Group
from prunejax.methods import modes
from prunejax.study.planning import event_plan
from prunejax.study.settings import entries
from prunejax.study.settings.config import Variant
from prunejax.train import optim


def variables(
    settings: ConfigDict, module: models.Model, dataset: Dataset | StreamedSet
) -> dict[str, Any]:
    """The model's variables (shapes only); refuses a model or a loss that the data does not fit.
    Raises ConfigError: names the field and what the data is.
    """
    shape, name = dataset.image_shape, settings.data.name
    if settings.data.augment and (dataset.prepare is not None or len(shape) != 3):
        raise ConfigError(
            f"config.data.augment = True: crops and mirrors need images, which {name!r} has not; "
            "set it to False"
        )
    try:
        variables = models.shapes(module, shape)
    except (ValueError, TypeError, IndexError, FlaxError) as error:
        if len(shape) == 3:
            raise
        raise ConfigError(
            f"config.model.name = {settings.model.name!r} does not take the examples of {name!r}, "
            f"floats of shape {shape}: {' '.join(str(error).split())[:120].rstrip('.')}; try "
            "'mlp', or in a model of tokens x.astype(int)"
        ) from None
    labels = jax.ShapeDtypeStruct(
        (2,) if dataset.has_classes else (2, dataset.num_classes),
        np.int32 if dataset.has_classes else np.float32,
    )
    outputs = jax.ShapeDtypeStruct((2, dataset.num_classes), np.float32)
    if not registry.is_shipped(type(module)):
        given = jax.ShapeDtypeStruct((2, *shape), np.float32)
        of: Any = jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, given)
        told = str(getattr(of, "shape", f"a {type(of).__name__}"))
        numbers = jnp.issubdtype(getattr(of, "dtype", np.float32), jnp.floating)
        if told != str(outputs.shape) or not numbers:
            told = told if numbers else f"{of.dtype} {told}"
            raise ConfigError(
                f"config.model.name = {settings.model.name!r} gives {told} for "
                f"2 examples of {name!r}; {outputs.shape} is needed, a number for each output"
            )
        _wiring(module, variables["params"])
    try:
        values = jax.eval_shape(lambda z, y: losses.objective(settings.loss, z, y), outputs, labels)
        told = getattr(values, "shape", f"a {type(values).__name__}")
        if told != (2,):
            raise ValueError(f"it gives {told} for 2 examples, not one number each")
        if not jnp.issubdtype(values.dtype, jnp.floating):
            raise ValueError(f"it gives {values.dtype}, which has no gradient")
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"config.loss = {settings.loss!r} does not fit the data set {name!r}: "
            + " ".join(str(error).split())
        ) from None
    return variables


def _wiring(module: models.Model, params: Any) -> None:
    """Refuses links that are not those of the network: of a dense one every unit is live."""
    where = f"{type(module).__name__}.wiring"
    try:
        links = groups_lib.wiring(module)
        dense = jax.tree.map(lambda _: np.True_, params)
        found = groups_lib.live(links, params, dense).units if links else {}
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where} is none of this network: {error}") from None
    for stream, live in found.items():
        if not live.all():
            raise ConfigError(
                f"{where}: no links lead from 'input' through {int(np.sum(~live))} of the "
                f"{live.size} units of {stream!r} to 'output', though nothing is pruned; name "
                "every layer that writes or reads them"
            )


def activations(
    module: models.Model, variables: Any, shape: Sequence[int], groups: Sequence[Group]
) -> None:
    """Refuses a score of activations where the model records none of a layer.

    Args:
      module: the model. variables: its collections, or their shapes. shape: of one example.
      groups: the layers of its program.

    Raises ConfigError: names the model and the layer.
    """
    found = models.recorded(module, variables, shape)
    for g in groups:
        if found.get(g.name) != (g.units,):
            raise ConfigError(
                f"config.prune.score: model {type(module).__name__} records no activations of "
                f"layer {g.name!r}, a number for each of its {g.units} units, as "
                "prunejax.ops.layers.record_activation does (docs/plugins.md); choose another score"
            )


def score(arm: Variant, groups: Sequence[Group], params: Any, examples: int) -> None:
    """Refuses a score that the layers or the examples do not serve.

    Args: params: shapes of the parameters. examples: in the training set.

    Raises ConfigError: names the score, the variant, and what it needs.
    """
    score = scores_lib.SCORES[arm.settings.prune.score]
    rules = event_plan.layer_rules(arm.settings, groups)
    groups = [g for g in groups if g.name in rules]
    asked = arm.settings.prune.saliency_examples
    if "gradient" in score.needs and asked > examples:
        raise ConfigError(
            f"config.prune.saliency_examples = {asked} (variant {arm.label!r}) is more than the "
            f"{examples} training examples; lower it"
        )
    o, given = arm.settings.optimizer, arm.settings.prune.decay_coef
    if "decay" in score.needs and not o.weight_decay and given < 0:
        raise ConfigError(
            f"config.prune.score = {arm.settings.prune.score!r} (variant {arm.label!r}) without "
            "optimizer.weight_decay is |w g|: use 'weight_saliency', or set a weight decay or "
            "prune.decay_coef"
        )
    if arm.settings.prune.grad_of == "total":
        _total(arm, groups)
    for g in groups:
        if "norm" in score.needs and len(g.norm) < 2:
            raise ConfigError(
                f"config.prune.score = {arm.settings.prune.score!r} (variant {arm.label!r}) needs "
                f"a BatchNorm with scale and bias after the layer; {g.name!r} has none"
            )
    p = arm.settings.prune
    asks = {"score": p.score} | ({"update_score": p.update_score} if p.update_every else {})
    for field, name in asks.items():
        if scores_lib.SCORES[name].per_weight != (p.granularity == "weight"):
            other = {"weight": "filters, not weights", "filter": "weights, not filters"}
            able = [n for n, s in scores_lib.SCORES.items()
                    if s.per_weight == (p.granularity == "weight")]  # fmt: skip
            raise ConfigError(
                f"config.prune.{field} = {name!r} (variant {arm.label!r}) ranks "
                f"{other[p.granularity]}; for prune.granularity = {p.granularity!r} use: "
                f"{', '.join(able)}"
            )
        entries.score(name, groups, params)
        size = sum(int(np.prod(trees.get(params, g.kernel).shape)) for g in groups)
        if name in modes.SCORES and size > modes.LIMIT:
            raise ConfigError(
                f"config.prune.{field} = {name!r} (variant {arm.label!r}): the exact Hessian is "
                f"for {modes.LIMIT} weights at most, and its prune.layers have {size}; name fewer "
                "layers, or set a smaller model.width"
            )


def _total(arm: Variant, groups: Sequence[Group]) -> None:
    """Refuses `prune.grad_of = "total"` where no gradient of these kernels has a decay in it."""
    o, score = arm.settings.optimizer, arm.settings.prune.score
    try:
        rule = re.compile(o.weight_decay_rule)
    except re.error:
        return  # refused where the optimizer is made
    without = [g.name for g in groups if not rule.fullmatch(g.kernel)]
    why = ""
    if score != "undecayed":
        why = f"prune.score = {score!r} reads no gradient of a decayed loss; use 'undecayed'"
    elif not o.weight_decay or o.weight_decay_kind == "decoupled":
        why = (
            f"optimizer.weight_decay = {o.weight_decay} ({o.weight_decay_kind}) is no part of a "
            "gradient; set a coupled decay"
        )
    elif without:
        why = (
            f"optimizer.weight_decay_rule = {o.weight_decay_rule!r} leaves out "
            f"{', '.join(without)}; let it match their kernels"
        )
    if why:
        raise ConfigError(
            f"config.prune.grad_of = 'total' (variant {arm.label!r}): {why}, or leave it at 'data'"
        )


def decoupled(arms: Sequence[Variant]) -> tuple[str, ...]:
    """A note on arms whose score takes a decay out of the gradient that never was in it."""
    found = [
        arm.label
        for arm in arms
        if arm.settings.prune.schedule != "none"
        and arm.settings.prune.score == "undecayed"
        and arm.settings.optimizer.weight_decay_kind == "decoupled"
    ]
    if not found:
        return ()
    return (
        f"The score undecayed ({', '.join(found)}) is made for decay that is a part of the "
        "gradient; optimizer.weight_decay_kind = 'decoupled' is not, and its coefficient was used.",
    )


def optimizer(name: str, transform: Any, params: Any) -> None:
    """Refuses an optimizer of others that gives no steps downhill for these parameters.

    Args: name: of OPTIMIZERS. transform: what that entry gives. params: shapes of the parameters.

    Raises ConfigError: what it gives.
    """
    if registry.is_shipped(optim.OPTIMIZERS[name]):
        return
    where = f"train.optim.OPTIMIZERS[{name!r}]"
    if not all(callable(getattr(transform, part, None)) for part in ("init", "update")):
        raise ConfigError(
            f"{where} gives {type(transform).__name__}; an optax transformation is needed, as "
            "optax.scale_by_lion()"
        )

    def first(p: Any) -> Any:
        state = transform.init(p)
        return state, *transform.update(p, state, p)

    def kinds(tree: Any) -> Any:
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    try:
        state, updates, after = (kinds(x) for x in jax.eval_shape(first, params))
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise ConfigError(
            f"{where} cannot train this network: {' '.join(str(error).split())[:200]}"
        ) from None
    if updates != kinds(params) or state != after:
        what = "state" if updates == kinds(params) else "updates"
        like = {"state": "those that it had before", "updates": "those of the parameters"}[what]
        raise ConfigError(f"{where}: shapes and dtypes of its {what} are not {like}")

    def along(p: Any) -> jax.Array:  # of a gradient of ones
        _, u, _ = first(p)
        return sum(jnp.sum(x) for x in jax.tree.leaves(u))  # type: ignore[return-value]

    total = jax.jit(along)(jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), params))
    if not total >= 0:  # NaN, too
        raise ConfigError(
            f"{where}: of a gradient of ones its updates add up to {float(total):.3g}. Training "
            "subtracts them, times optimizer.learning_rate: give what has no rate and sign of its "
            "own (optax.scale_by_lion()), or append optax.scale(-1)"
        )


def idle_layers(arm: event_plan.Arm) -> list[str]:
    """What a reader must know of an arm: the layers of which its fraction is less than a unit."""
    settings, label, groups, params = arm
    p, found = settings.prune, []
    if p.schedule == "none" or p.ratio_of == "all":  # then more goes of every layer
        return []
    rules = event_plan.layer_rules(settings, groups)
    for g in (g for g in groups if g.name in rules):
        size = event_plan.units(g, settings, params)
        fraction = float(event_plan.of_rule(p.fraction, rules[g.name]))
        if fraction and schedules.kept(size, fraction) == size:
            found.append(f"{g.name} ({fraction:g} of {size})")
    return [f"Arm {label}: no unit is targeted in {', '.join(found)}."] if found else []
