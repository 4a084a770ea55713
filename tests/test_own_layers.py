"""What a run prunes does not depend on the layers of other runs that share its program."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import models, scores, trees
from prunejax.configs import default
from prunejax.errors import ConfigError
from prunejax.models.base import Model
from prunejax.study.devices.arrangement import device_data
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from prunejax.train import prune as prune_lib
from prunejax.train import step
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

pytestmark = pytest.mark.usefixtures("few_layers", "quick_report")


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


def scored(config, *labels):
    """Layer -> scores of the first event of each arm, in its initial state, and what they are of.

    The arms share a program, which is compiled once.
    """
    (batch,) = planned(config)
    data = jax.tree.map(jnp.asarray, device_data(batch.dataset))
    scores_at = jax.jit(lambda s, d, row: prune_lib.unit_scores(batch.program, s, d, row))
    found = []
    for label in labels:
        (member,) = [m for m in batch.members if m.variant == label]
        state = step.initial_state(batch.program, jnp.uint32(3), member.table, member.hyper)
        found.append(jax.tree.map(np.asarray, scores_at(state, data, min(member.events))))
    return found, batch, state, data


def arm(score, layers, fraction=0.5):
    kind = {"granularity": "weight"} if scores.SCORES[score].per_weight else {}
    gathers = {"activations": {"schedule": "linear", "start": (3,), "end": (3,)}}
    if score.startswith("learnt"):
        gathers[score] = {"forward": "movement", "schedule": "linear", "unit": "step",
                          "start": (1,), "end": (1,)}  # fmt: skip
    when = gathers.get(score, {"schedule": "scratch"})
    return {
        "prune": kind | when | {"score": score, "layers": layers, "fraction": (fraction,)},
        "optimizer": {"weight_decay": 1e-3},
    }


def small_hessians(**arms):
    config = study(**arms)
    config.model.name, config.model.width = "few2", 0.06  # two layers of 8 units, BatchNorm
    config.prune.saliency_examples, config.epochs = 64, 4
    return config


@pytest.mark.parametrize("score", [n for n in scores.SCORES if "stability" not in n])
def test_a_score_is_of_the_arm_s_own_layers(score):
    a, b = arm(score, ONE), arm(score, ("dense2",), 0.25)
    (alone,), *_ = scored(small_hessians(a=a), "a")
    (beside, with_a), *_ = scored(small_hessians(a=a, b=b), "a", "b")
    assert (set(alone), set(beside)) == ({"dense1"}, {"dense1", "dense2"})  # they do meet
    np.testing.assert_array_equal(beside["dense1"], alone["dense1"])
    (other,), *_ = scored(small_hessians(b=b), "b")
    np.testing.assert_array_equal(with_a["dense2"], other["dense2"])


def in_float64(batch, state, data, path):
    """Gradient and Hessian of the mean cross entropy by one kernel, flat, of outputs that are
    divided by 200 and as they are: with BatchNorm in training form and float64, written anew.
    """
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), state.params)
        n = batch.program.saliency_examples
        x = np.asarray(data.train_images[:n], np.float64).reshape(n, -1) / 255
        x = (x - batch.program.mean[0]) / batch.program.std[0]
        y = np.asarray(data.train_labels[:n])
        kernel = trees.get(wide, path)

        def loss(flat, scale):
            p = trees.replace(wide, {path: flat.reshape(kernel.shape)})
            h = jnp.asarray(x)
            for i in (1, 2):
                h = h @ p[f"dense{i}"]["kernel"]
                h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)
                h = jnp.maximum(h * p[f"bn{i}"]["scale"] + p[f"bn{i}"]["bias"], 0)
            z = (h @ p["classifier"]["kernel"] + p["classifier"]["bias"]) / scale
            return jnp.mean(jax.nn.logsumexp(z, axis=1) - z[jnp.arange(n), y])

        both = jax.jit(lambda v, scale: (jax.grad(loss)(v, scale), jax.hessian(loss)(v, scale)))
        flat = kernel.ravel()
        return jax.tree.map(np.asarray, (both(flat, 200.0), both(flat, 1.0), flat))


def test_hessians_are_those_among_the_arm_s_own_weights(monkeypatch):
    monkeypatch.setattr("prunejax.methods.modes.FAST", 2)
    found = {}
    for score in ("grasp", "curvature", "curvature_saliency", "mode_leverage"):
        config = small_hessians(
            dense1=arm(score, ("dense1",)), dense2=arm(score, ("dense2",)),
            b=arm(score, BOTH, 0.25), c=arm("magnitude", BOTH),
        )  # fmt: skip
        scores_of, *of = scored(config, "dense1", "dense2")
        found[score] = [found[layer].ravel() for layer, found in zip(BOTH, scores_of, strict=True)]
        assert all(set(layers) == set(BOTH) for layers in scores_of)
    close = {"rtol": 2e-3, "atol": 2e-3}
    scaled = lambda x: x / np.abs(x).max()  # noqa: E731
    for i, layer in enumerate(BOTH):
        (small_g, small_h), (_, h), w = in_float64(*of, f"{layer}/kernel")
        ours = {score: of_layers[i] for score, of_layers in found.items()}
        np.testing.assert_allclose(scaled(ours["grasp"]), scaled(w * (small_h @ small_g)), **close)
        np.testing.assert_allclose(scaled(ours["curvature"]), scaled(np.diag(h)), **close)
        np.testing.assert_allclose(
            scaled(ours["curvature_saliency"]), scaled(np.diag(h) * w**2), **close
        )
        values, modes = np.linalg.eigh(h)
        assert values[-2] - values[-3] > 1e-2 * values[-1]  # two modes that are apart
        np.testing.assert_allclose(ours["mode_leverage"], (modes[:, -2:] ** 2).sum(1), **close)


def test_the_limit_of_the_exact_hessian_is_of_the_arm_s_own_weights(monkeypatch):
    monkeypatch.setattr("prunejax.methods.modes.LIMIT", 64)  # dense1 has 512
    a, b = arm("mode_leverage", ("dense2",)), arm("magnitude", BOTH)
    scored(small_hessians(a=a, b=b), "a")
    with pytest.raises(ConfigError, match=r"64 weights at most, and its prune\.layers have 576"):
        planned(small_hessians(a=arm("mode_leverage", BOTH), b=b))
