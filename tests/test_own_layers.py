"""What a run prunes does not depend on the layers of other runs that share its program."""

import flax.linen as nn
import numpy as np
import pytest

from prunejax import models, trees
from prunejax.configs import default
from prunejax.errors import ConfigError
from prunejax.models.base import Model
from prunejax.study import config as config_lib
from prunejax.study import plan
from tests.studies import go, planned, rows, small

WEIGHTS = {"granularity": "weight", "schedule": "scratch", "score": "magnitude", "fraction": (0.5,)}
GLOBAL = WEIGHTS | {"scope": "global"}
ONE, BOTH = ("dense1",), ("dense1", "dense2")
WAYS = {
    "weights": GLOBAL,
    "filters": GLOBAL | {"granularity": "filter", "score": "l2"},
    "random": GLOBAL | {"target": "random"},
    "regrow": GLOBAL
    | {"schedule": "cubic", "unit": "step", "start": (1,), "end": (3,)}
    | {"grow": "gradient", "regrow": 0.2, "evidence": "batch"},
    "redistributed": {
        "method": "rigl",
        "fraction": (0.5,),
        "update_every": 2,
        "redistribute": True,
    },
    "threshold": {
        "method": "movement_soft",
        "threshold": 0.5,
        "refresh_every": 2,
        "penalty": 0.5,
    },
    "movement": {"method": "movement", "start": (1,), "end": (3,), "fraction": (0.5,)},
    "ste": {"method": "ste", "refresh_every": 2, "fraction": (0.5,)},
}

pytestmark = pytest.mark.usefixtures("quick_report")


def study(**arms):
    config = small(**arms)
    config.epochs = 2
    config.keep = ("end",)
    return config


def masks(path, run):
    with np.load(path / "states" / f"{run}@end.npz") as saved:
        return {name: saved[name] for name in saved.files if name.startswith("masks/")}


@pytest.mark.parametrize("way", WAYS)
def test_a_ranking_over_layers_is_over_the_arm_s_own(tmp_path, way):
    prune = WAYS[way]
    a = {"prune": prune | {"layers": ONE}}
    config = study(a=a, b={"prune": prune | {"layers": BOTH}})
    assert len(planned(config)) == 1  # else they would not meet
    go(config, tmp_path / "both")
    go(study(a=a), tmp_path / "alone")
    ours, theirs = (
        [e for t in ("events", "updates") for e in some(tmp_path / n, t) if e["run"] == "a-0"]
        for n in ("both", "alone")
    )
    assert {e["layer"] for e in ours} == {"dense1"}
    counts = ("layer", "step", "targeted", "dropped", "grown", "live")
    of = lambda found: [[e.get(name) for name in counts] for e in found]  # noqa: E731
    if way != "threshold":  # how many is up to scores there, whose last digits differ
        assert of(ours) == of(theirs)
    found, alone = masks(tmp_path / "both", "a-0"), masks(tmp_path / "alone", "a-0")
    assert found["masks/dense2/kernel"].all()
    if way in ("weights", "filters"):  # chosen before training
        np.testing.assert_array_equal(found["masks/dense1/kernel"], alone["masks/dense1/kernel"])
    assert not masks(tmp_path / "both", "b-0")["masks/dense2/kernel"].all()


def some(path, table):
    return rows(path, table) if (path / f"{table}.csv").exists() else []


@pytest.mark.parametrize("way", ["weights", "movement", "ste", "threshold"])
def test_masks_taken_in_other_layers_stay(tmp_path, way):
    parent = WEIGHTS | {"layers": ("dense2",), "scope": "layer"}
    child = {
        "prune": WAYS[way] | {"layers": ONE},
        "start": {"run": "parent", "take": ("masks",)},
    }
    go(study(parent={"prune": parent}, child=child), tmp_path)
    ours, theirs = masks(tmp_path, "child-0"), masks(tmp_path, "parent-0")
    np.testing.assert_array_equal(ours["masks/dense2/kernel"], theirs["masks/dense2/kernel"])
    assert not ours["masks/dense1/kernel"].all()


def test_a_global_shuffle_keeps_to_the_layers_that_were_pruned(tmp_path):
    parent = {"prune": GLOBAL | {"layers": ONE}}
    child = {
        "prune": {"granularity": "weight", "scope": "global"},
        "start": {"run": "a", "take": ("masks",), "shuffle": "global"},
    }
    go(study(a=parent, s=child, b={"prune": GLOBAL | {"layers": BOTH}}), tmp_path / "both")
    go(study(a=parent, s=child), tmp_path / "alone")
    ours, theirs = masks(tmp_path / "both", "s-0"), masks(tmp_path / "alone", "s-0")
    assert ours["masks/dense2/kernel"].all()
    for name, live in theirs.items():
        np.testing.assert_array_equal(ours[name], live)


def test_events_by_layer_after_a_global_shuffle_are_refused():
    layered = WEIGHTS | {"layers": BOTH, "scope": "layer", "of": "live"}
    start = {"run": "a", "take": ("masks",), "shuffle": "global"}
    config = study(
        a={"prune": layered | {"fraction": (0.9, 0.1)}}, b={"prune": layered, "start": start}
    )
    with pytest.raises(ConfigError, match="shuffled globally"):
        plan.build(config_lib.variants(config, default.get_config()))


class Mixed(Model):
    """A layer with BatchNorm and one without."""

    def prunable(self):
        return (("first", "bn1"), ("second", ""))

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, name="first")(x.reshape(len(x), -1))
        x = nn.relu(self.norm(x, train, "bn1"))
        return self.logits(nn.relu(nn.Dense(8, name="second")(x)))


def test_a_score_of_batch_norm_beside_an_arm_of_a_layer_without(tmp_path, monkeypatch, promoting):
    monkeypatch.setitem(models.MODELS, "mixed", (Mixed, {}))
    prune = {"schedule": "scratch", "fraction": (0.5,)}
    config = study(
        a={"prune": prune | {"layers": ("first",), "score": "ebn"}},
        b={"prune": prune | {"layers": ("second",), "score": "l2"}},
    )
    config.model.name = "mixed"
    (batch,) = planned(config)
    assert [g.name for g in batch.program.groups] == ["first", "second"]
    assert not trees.paths(batch.members[0].table.layers)  # by layer: nothing is ranked together
    go(config, tmp_path)
    assert {(e["run"], e["layer"], e["live"]) for e in rows(tmp_path, "events")} == {
        ("a-0", "first", "4"),
        ("b-0", "second", "4"),
    }
