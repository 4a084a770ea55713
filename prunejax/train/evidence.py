"""What scores see of a network in training: gradients on chosen examples, whole-network scores."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import data as data_lib
from prunejax import losses, trees
from prunejax import scores as scores_lib
from prunejax.methods.evidence import EVIDENCE, Evidence
from prunejax.train.step import (
    Data,
    Program,
    TrainState,
    inputs,
    logits,
    masks,
    split_batch,
    variables,
)

Array = jax.Array
Tree = Any


def last_indices(program: Program, state: TrainState) -> Array:
    """The training examples of the last `program.average` full batches, the newest first.

    Before there were as many, the first one counts for those that lack; what averages several
    grows later (`outline.events`).
    """
    full = program.train_examples // program.batch_size  # of an epoch
    newest = jnp.maximum(state.step, 1) - 1  # the step of that batch, or a smaller one after it
    at = newest // program.steps_per_epoch * full
    at += jnp.minimum(newest % program.steps_per_epoch, full - 1)  # of full batches alone
    found = []
    for back in range(program.average):
        number = jnp.maximum(at - back, 0)
        epoch = number // full
        # The batches that training takes, looked up again and not kept.
        order = data_lib.epoch_permutation(state.seeds.data, epoch, program.train_examples)
        size = program.batch_size
        found.append(jax.lax.dynamic_slice(order, (number % full * size,), (size,)))
    return jnp.concatenate(found) if len(found) > 1 else found[0]


def evidence_batch(program: Program, state: TrainState, data: Data) -> tuple[Array, Array]:
    """Images and labels that scores see, by `program.evidence`.

    "first": the first `saliency_examples` training examples, so that the score is a function of
    the weights alone. "batch": those of the last training step (before training, of the first).
    "balanced": `evidence_examples`.
    """
    if program.evidence != "first":
        indices = (
            jnp.array(program.evidence_examples)
            if program.evidence == "balanced"
            else last_indices(program, state)
        )
        # As stored: neither augmented nor hardened.
        images, labels = (jnp.take(x, indices, axis=0) for x in data[:2])
    else:
        n = min(program.saliency_examples, program.train_examples)
        images, labels = data.train_images[:n], data.train_labels[:n]
    return split_batch(program, images), labels


def saliency_gradient(
    program: Program, state: TrainState, data: Data, *, dense: bool = False
) -> dict[str, Array]:
    """Gradient of the mean training loss at the running BatchNorm statistics, per kernel path.

    Args:
      program, state, data: as in `apply_event`.
      dense: of the masked parameters themselves, so that dead weights have one too: what the loss
        would gain if they came back. Else through the mask: 0 at dead weights.
    """
    images, labels = evidence_batch(program, state, data)
    found = variables(program, state)

    def loss(params: dict) -> Array:
        if dense:
            x = inputs(program, images)
            outputs: Any = program.module.apply(found | {"params": params}, x, train=False)
        else:
            outputs = logits(program, state, images, params)
        return jnp.mean(losses.objective(program.loss, outputs, labels))

    gradients = jax.grad(loss)(found["params"] if dense else state.params)
    return {g.kernel: trees.get(gradients, g.kernel) for g in program.groups}


def stability(program: Program, state: TrainState, data: Data) -> dict[str, Array]:
    """Layer -> stability of each unit on the examples of scores, by the program's bounds."""
    assert program.stability is not None
    images, _ = evidence_batch(program, state, data)
    return program.stability(variables(program, state), inputs(program, images))


def wanted(program: Program, chosen: Array, need: str, compute: Callable[[], Tree]) -> Tree:
    """What scores need, {} where none does; zeros where the one that is chosen does not.

    Members that go one by one then do not compute it (SynFlow, for an event by magnitude).

    Args:
      chosen: index of the score that an event uses.
      need: an entry of `needs` in `scores.SCORES`, or the name of a score.
    """
    of = [s == need or need in scores_lib.SCORES[s].needs for s in program.scores]
    if all(of) or not any(of):  # nothing to choose: no branch
        return compute() if any(of) else {}
    # Of the shapes of what is not computed: both branches of a cond give the same types.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute))
    return jax.lax.cond(jnp.array(of)[chosen], compute, lambda: zeros)


def network_scores(
    program: Program, state: TrainState, data: Data, chosen: Array
) -> dict[str, dict[str, Array]]:
    """Score name -> layer -> score per weight, of the scores that see the whole network.

    `chosen` is the one that is looked at, see `wanted`. Each is that of the layers among which the
    run's arm chooses, as `Evidence` has it with their `rules`: H g and modes are of the Hessian
    among those weights, whatever the other arms of the program prune. Layers of others score 0.

    BatchNorm uses the statistics of the examples for losses, and is in evaluation form with unit
    scale for SynFlow; the running statistics stay as they are. Dropout is off. GraSP's logits are
    divided by 200 (Wang et al. 2020).
    """
    names = [name for name in program.scores if "network" in scores_lib.SCORES[name].needs]
    if not names:
        return {}
    images, labels = evidence_batch(program, state, data)
    found, module = variables(program, state), program.module.clone(dropout=0.0)
    x = inputs(program, images)
    # The statistics of these examples are made on the way, and dropped.
    train: Any = {"train": True, "mutable": ["batch_stats"]} if "batch_stats" in found else {}

    def loss(params: dict, scale: float = 1.0) -> Array:
        outputs: Any = module.apply(found | {"params": params}, x, **train)
        outputs = outputs[0] if train else outputs
        return jnp.mean(losses.objective(program.loss, outputs / scale, labels))

    def output(params: dict) -> Array:
        kinds = jax.tree.leaves(params)[0].dtype
        # In float64 where SynFlow asks for it, and so is the module.
        ones = jnp.ones((1, *program.image_shape), kinds)
        plain = {"params": trees.map_with_path(_unit_norm, params)}
        if "batch_stats" in found:
            plain["batch_stats"] = trees.map_with_path(_unit_norm, found["batch_stats"])
        outputs: Any = module.clone(dtype=kinds).apply(found | plain, ones)
        return outputs

    live = masks(program, state)

    def among(name: str, domain: tuple[bool, ...]) -> dict[str, Array]:
        mine = {g.name: g.kernel for g, own in zip(program.groups, domain, strict=True) if own}
        scaled = partial(loss, scale=200.0) if name == "grasp" else loss
        rules = [re.escape(path) for path in mine.values()]
        e = Evidence(found["params"], rules=rules, masks=live, loss=scaled, output=output)
        tree = EVIDENCE[name].fn(e)
        own = {layer: trees.get(tree, path) for layer, path in mine.items()}
        kind = jnp.result_type(*own.values())  # all branches of a switch have the same
        others = {g.name: trees.get(state.params, g.kernel) for g in program.groups}
        return {n: jnp.zeros(w.shape, kind) for n, w in others.items()} | own

    domains = program.domains or ((True,) * len(program.groups),)

    def scores(name: str) -> dict[str, Array]:
        if len(domains) == 1:
            return among(name, domains[0])
        own = jnp.all(jnp.array(domains) == state.table.layers[None], axis=1)
        # Arms that are among none score by something else: what they get is not looked at.
        return jax.lax.switch(jnp.argmax(own), [partial(among, name, d) for d in domains])

    return {name: wanted(program, chosen, name, partial(scores, name)) for name in names}


_NORM = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}


def _unit_norm(path: str, leaf: Array) -> Array:
    """The leaf; of a BatchNorm ("bn..."), that of one which changes nothing."""
    *_, module, kind = ("", *path.split("/"))
    if "bn" not in module and "norm" not in module:
        return leaf
    return jnp.full_like(leaf, _NORM[kind]) if kind in _NORM else leaf
