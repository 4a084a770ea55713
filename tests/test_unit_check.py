"""Models that name their layers as they like, and the check that masked units are gone."""

import flax.linen as nn
import jax
import pytest

from prunejax import models, trees
from prunejax.configs import default
from prunejax.errors import ConfigError
from prunejax.models import MODELS, Bottleneck, ResNet, ViT
from prunejax.study.planning import plan, unit_check
from prunejax.study.settings import config
from prunejax.train import prune, step
from tests.studies import tiny


class Named(models.Model):
    """Two hidden layers called after `names`; `norms` ("" for none) come after each."""

    names: tuple[str, ...] = ("h1", "h2")
    norms: tuple[str, ...] = ("", "")
    entries: tuple = ("h1", "h2")
    activation: str = "relu"

    def prunable(self):
        return self.entries

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(x.shape[0], -1)
        for name, norm in zip(self.names, self.norms, strict=True):
            x = nn.Dense(8, name=name)(x)
            if norm:
                x = nn.BatchNorm(not train, name=norm)(x)
            x = getattr(nn, self.activation)(x)
        return self.logits(x)


FC = {"names": ("fc1", "fc2"), "norms": ("bn1", "bn2")}


def arms(monkeypatch, options, score="l2"):
    monkeypatch.setitem(MODELS, "named", (Named, options))
    first = options.get("entries", ("h1",))[0]
    layer = first if isinstance(first, str) else first[0]
    prune = {"schedule": "linear", "layers": (layer,), "end": (2,), "score": score}
    return tiny(S={"prune": prune, "model": {"name": "named"}})


def build(monkeypatch, options, score="l2"):
    c = arms(monkeypatch, options, score)
    return plan.build(config.variants(c, default.get_config()))


@pytest.mark.parametrize(
    ("options", "affine"),
    [
        ({}, ("h1/bias",)),
        (FC | {"entries": (("fc1", "bn1"),)}, ("bn1/scale", "bn1/bias")),
        ({"names": ("fc1", "conv2"), "norms": ("", ""), "entries": ("fc1",)}, ("fc1/bias",)),
        ({"entries": (("h1", "", "h1/bias"),)}, ("h1/bias",)),
    ],
    ids=["bias", "norm", "no norm", "bias named"],
)
def test_models_with_other_names_train(monkeypatch, options, affine):
    (batch,) = build(monkeypatch, options)
    assert batch.program.groups[0].affine == affine


@pytest.mark.parametrize("options", [{}, FC | {"entries": (("fc1", "bn1"), ("fc2", "bn2"))}])
def test_an_event_of_a_model_with_other_names_masks_what_belongs_to_a_unit(monkeypatch, options):
    (batch,) = build(monkeypatch, options)
    program, m = batch.program, batch.members[0]
    state = jax.eval_shape(lambda: step.initial_state(program, m.seed, m.table, m.hyper))
    scores = jax.eval_shape(lambda s: prune.unit_scores(program, s, None, 1), state)
    assert [x.shape for x in scores.values()] == [(8,)]
    masks = dict(trees.leaves_with_paths(jax.eval_shape(lambda s: step.masks(program, s), state)))
    group = program.groups[0]
    masked = {path for path, mask in masks.items() if mask.shape}
    assert masked == {group.kernel, *group.affine}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            FC | {"norms": ("one", "norm_fc1"), "entries": ("fc1",)},
            "last unit of layer 'fc1' masked .*'fc2' still reads .* e.g. \\('fc1', 'norm_fc1'\\)",
        ),
        (
            FC | {"entries": (("fc1", "bn2"),)},
            "layer 'fc1' masked .*'fc2' still reads .* e.g. \\('fc1', 'bn1'\\)",
        ),
        ({"entries": (("h1", "", ""),)}, "layer 'h1' masked .*'h2' still reads"),
        ({"activation": "sigmoid"}, "layer 'h1' masked .*'h2' still reads 0.5"),
        ({"entries": (("h2", "", "h1/bias"), "h1")}, "layer 'h2' masked .* still reads"),
    ],
    ids=["no norm", "another norm", "no bias", "sigmoid", "another bias"],
)
def test_a_masked_unit_that_is_not_gone_is_told_before_training(monkeypatch, options, said):
    with pytest.raises(ConfigError, match=said):
        build(monkeypatch, options)


class Lifted(models.Model):
    """A row at a time: a hidden layer that is computed again, one vectorized, a loop."""

    activation: str = "relu"

    def prunable(self):
        return ("again", "each")

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(*x.shape[:2], -1)
        act = getattr(nn, self.activation)
        x = act(nn.remat(nn.Dense)(6, name="again")(x))
        axes = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}
        x = act(nn.vmap(nn.Dense, in_axes=1, out_axes=1, **axes)(4, name="each")(x))
        return self.logits(nn.RNN(nn.SimpleCell(3, name="cell"))(x)[:, -1])


def test_readers_in_loops_and_in_what_is_computed_again_are_looked_at():
    shape = (3, 2, 1)
    module = Lifted()
    variables = jax.eval_shape(lambda key: models.init(module, key, shape), jax.random.key(0))
    groups = models.groups(module, variables)
    unit_check.check(module, variables, shape, groups)
    for group, reader in zip(groups, ("each", "cell/i"), strict=True):
        said = f"last unit of layer '{group.name}' masked .*'{reader}' still reads 0.5"
        with pytest.raises(ConfigError, match=said):
            unit_check.check(Lifted(activation="sigmoid"), variables, shape, [group])


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ((("h1", "bn9"),), "names the norm 'bn9'"),
        ((("h1", "", "shift"),), "names the bias 'shift'"),
        ((("h1", "", "", ""),), "neither the name of a layer nor"),
        ((7,), "neither the name of a layer nor"),
        (("h9",), "no leaf 'h9/kernel'"),
    ],
)
def test_entries_that_name_what_is_not_there_are_refused(entries, said):
    module = Named(entries=entries)
    variables = models.init(module, jax.random.key(0), (8, 8, 1))
    with pytest.raises(ValueError, match=said):
        models.groups(module, variables)


@pytest.mark.parametrize(
    ("module", "count"),
    [
        (models.create("mlp", width=0.125), 3),
        (models.create("mlp", width=0.125, batch_norm=False), 3),
        (models.create("conv4", width=0.125), 6),
        (models.create("vgg4_bn", width=0.125), 4),
        (ResNet(stages=(4, 8), blocks=(1, 1), projection=True), 4),
        (ResNet(stages=(4, 8), blocks=(1, 1), projection=False), 4),
        (Bottleneck(stages=(4,), blocks=(1,)), 3),
        (ViT(depth=1, heads=2, head_units=4, mlp_units=8, patch=4), 1),
    ],
    ids=["mlp", "without norm", "conv4", "vgg4_bn", "resnet", "option A", "bottleneck", "vit"],
)
def test_masked_units_of_the_models_of_this_package_are_gone(module, count):
    shape = (8, 8, 3)
    variables = jax.eval_shape(lambda key: models.init(module, key, shape), jax.random.key(0))
    groups = models.groups(module, variables)
    assert len(groups) == count
    unit_check.check(module, variables, shape, groups, always=True)
    wrong = [g._replace(norm=(), bias=()) for g in groups if g.affine and not g.gate]
    if wrong:
        with pytest.raises(ConfigError, match="still reads"):
            unit_check.check(module, variables, shape, wrong[:1], always=True)
