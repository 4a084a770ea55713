"""Models that name their layers as they like, and the check that masked units are gone."""

import flax.linen as nn
import jax
import pytest

from configs import default
from prunejax import config, models, plan, study, unit_check
from prunejax.checks import ConfigError
from prunejax.models import MODELS
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


def test_a_study_of_a_model_with_other_names_runs(monkeypatch, tmp_path):
    c = arms(monkeypatch, {})
    c.seeds = 1
    monkeypatch.setattr(study.report, "build", lambda paths: paths[0] / "report.html")
    study.run(c, tmp_path / "run", default.get_config(), quiet=True)
    rows = (tmp_path / "run" / "events.csv").read_text().splitlines()
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (FC | {"entries": ("fc1",)}, "last unit of layer 'fc1' masked .*'fc2' still reads"),
        (FC | {"entries": (("fc1", "bn2"),)}, "layer 'fc1' masked .*'fc2' still reads"),
        ({"entries": (("h1", "", ""),)}, "layer 'h1' masked .*'h2' still reads"),
        ({"activation": "sigmoid"}, "layer 'h1' masked .*'h2' still reads 0.5"),
        ({"entries": (("h2", "", "h1/bias"), "h1")}, "layer 'h2' masked .* still reads"),
    ],
    ids=["no norm", "another norm", "no bias", "sigmoid", "another bias"],
)
def test_a_masked_unit_that_is_not_gone_is_told_before_training(monkeypatch, options, said):
    with pytest.raises(ConfigError, match=said):
        build(monkeypatch, options)


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


@pytest.mark.parametrize("name", ["mlp", "lenet300", "lenet5", "conv4", "vgg4_bn", "resnet20"])
def test_masked_units_of_the_models_of_this_package_are_gone(name):
    module = models.create(name, width=0.125)
    shape = (28, 28, 1) if "lenet" in name else (8, 8, 3)
    variables = jax.eval_shape(lambda key: models.init(module, key, shape), jax.random.key(0))
    groups = models.groups(module, variables)[:4]
    unit_check.check(module, variables, shape, groups, always=True)
    wrong = groups[0]._replace(norm=(), bias=())
    if groups[0].affine:
        with pytest.raises(ConfigError, match="still reads"):
            unit_check.check(module, variables, shape, [wrong], always=True)
