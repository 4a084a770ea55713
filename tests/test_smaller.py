"""Training on smaller arrays: the masked steps up to rounding, the same bytes whatever happens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import interventions, trees
from prunejax.errors import ConfigError, Interrupted
from prunejax.train import smaller, step
from tests.faults import content
from tests.studies import PRUNE, begun, functions, go, planned, rows, tiny

pytestmark = pytest.mark.usefixtures("quick_report")

RANDOM = {"schedule": "scratch", "layers": (".*",), "fraction": (0.5,), "target": "random"}
EARLY = RANDOM | {"shrink_every": 1}
LATER = PRUNE | {
    "shrink_every": 2,
    "target": "random",
    "layers": ("dense1", "dense2"),
    "score": "l2",
}


def study(name, prune, optimizer, arms=("a",)):
    config = tiny(**{arm: {"prune": dict(prune)} for arm in arms})
    config.model.name, config.seeds = name, 1
    config.optimizer.name, config.optimizer.weight_decay = optimizer, 0.0
    return config


def test_steps_are_the_masked_ones_and_what_is_gone_is_zero():
    batch, data, state = begun(study("mlp", EARLY, "sgd"))  # with BatchNorm
    program = batch.program
    ((epoch, sizes),) = program.cuts
    assert epoch == 0
    assert sizes == tuple(g.units - g.units // 2 for g in program.groups)
    state, _ = functions(program).event(state, data, 0)
    cut = smaller.of(program, sizes)
    steps = {
        "ours": jax.jit(lambda s, d, n: smaller.trained(cut, step.train_steps, s, d, n)),
        "masked": functions(program).train,
    }
    flops = [fn.lower(state, data, 3).cost_analysis()["flops"] for fn in steps.values()]
    assert flops[0] < 0.75 * flops[1]
    found, masked = (fn(state, data, 3) for fn in steps.values())
    masks = jax.jit(lambda s: step.masks(program, s))(masked)
    leaves = (trees.leaves_with_paths(t) for t in (masks, found.params, masked.params))
    for (path, mask), (_, ours), (_, theirs) in zip(*leaves, strict=True):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert not ours[~np.broadcast_to(mask, ours.shape)].any(), path
        read = ours != 0  # rows that read a removed unit are gone as well
        assert read.any(), path
        np.testing.assert_allclose(ours[read], theirs[read], rtol=1e-4, atol=1e-6, err_msg=path)
    logits = jax.jit(lambda s: step.logits(program, s, data.test_images[:32]))
    np.testing.assert_allclose(logits(found), logits(masked), rtol=1e-4, atol=1e-4)
    assert int(found.step) == int(masked.step) == 3
    np.testing.assert_allclose(found.totals.loss, masked.totals.loss, rtol=1e-5)
    for name, units in masked.windows.remaining.items():
        np.testing.assert_array_equal(found.windows.remaining[name], units)


def test_with_a_flattened_map_outputs_are_the_same_and_all_comes_back_whole():
    config = study("lenet5", EARLY, "adam")
    batch, data, state = begun(config)
    program = batch.program
    for g in program.groups:  # the first half of the units of each layer, and one more
        gone = np.arange(g.units) < g.units // 2
        left = state.windows.remaining
        left[g.name] = interventions.endless(jnp.asarray(gone), left[g.name])
    live = jax.tree.map(lambda m, p: jnp.where(m, p, 0), step.masks(program, state), state.params)
    cut = smaller.of(program, program.cuts[0][1])
    seen = []

    def look(program, part, data):
        seen.append(step.logits(program, part, data.test_images[:8]))
        return part

    def both(s):
        back = smaller.trained(cut, look, s, data)
        return seen.pop(), step.logits(program, s, data.test_images[:8]), back

    ours, masked, back = jax.jit(both)(state._replace(params=live))
    np.testing.assert_allclose(ours, masked, rtol=1e-4, atol=1e-5)
    for (path, a), (_, b) in zip(
        trees.leaves_with_paths(back.params), trees.leaves_with_paths(live), strict=True
    ):
        same = np.asarray(a) == np.asarray(b)
        assert (same | (np.asarray(a) == 0)).all(), path


def test_filters_that_no_residual_sum_reads_can_go():
    config = study("resnet20", EARLY | {"layers": (".*conv1",)}, "sgd")
    (batch,) = planned(config)  # which compares the arrays with those of the smaller model
    assert len(batch.program.cuts) == 1


def test_sizes_follow_the_plan():
    (batch,) = planned(study("mlp128_64", LATER | {"shrink_every": 1}, "sgd"))
    whole = [g.units for g in batch.program.groups]
    drops = batch.members[0].table.counts
    assert [epoch for epoch, _ in batch.program.cuts] == [1, 2, 3]
    for epoch, sizes in batch.program.cuts:  # row e + 1 follows epoch e
        np.testing.assert_array_equal(sizes, whole - drops[: epoch + 1].sum(axis=0))
        assert smaller.sizes(batch.program, epoch) == sizes
    assert smaller.sizes(batch.program, 0) is None
    (seldom,) = planned(study("mlp128_64", LATER, "sgd"))
    assert seldom.program.cuts == batch.program.cuts[1:2]


def test_arms_that_lose_as_much_share_a_program_and_others_do_not():
    config = study("mlp128_64", LATER, "sgd", arms=("a", "b", "c"))
    config.variants.b.prune.target = "largest"
    config.variants.c.prune.fraction = (0.25, 0.25)
    assert [{m.variant for m in b.members} for b in planned(config)] == [{"a", "b"}, {"c"}]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two seeds that lose different units."""
    path = tmp_path_factory.mktemp("smaller") / "run"
    go(two(), path, page=False)
    return path


def two():
    config = study("mlp128_64", LATER, "sgd")
    config.seeds = 2
    return config


def test_interrupted_within_a_smaller_epoch_continues_to_the_same_bytes(finished, tmp_path):
    asked = iter([False] * 9 + [True])
    with pytest.raises(Interrupted):
        go(two(), tmp_path / "run", stop_requested=lambda: next(asked, False))
    go(two(), tmp_path / "run")
    assert content(tmp_path / "run") == content(finished)


def test_members_trained_together_are_those_trained_alone(finished, tmp_path):
    config = two()
    config.population.layout = "vectorized"
    go(config, tmp_path / "run")
    alone, together = (rows(path, "epochs") for path in (finished, tmp_path / "run"))
    key = lambda row: (row["run"], int(row["epoch"]))  # noqa: E731
    for a, b in zip(sorted(alone, key=key), sorted(together, key=key), strict=True):
        assert key(a) == key(b)
        assert a["sparsity"] == b["sparsity"]
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=1e-4)
    targets = [np.load(path / "targets" / "a-0.npz") for path in (finished, tmp_path / "run")]
    for name in targets[0].files:
        np.testing.assert_array_equal(*(t[name] for t in targets))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prune.granularity": "weight"}, "prune.granularity = 'filter'"),
        ({"prune.scope": "global"}, "prune.scope = 'layer'"),
        ({"intervention.kind": "zero"}, "intervention.kind = 'prune'"),
        ({"intervention.duration": 3}, "intervention.duration = -1"),
        ({"intervention.mask_norm": False}, "intervention.mask_norm = True"),
        ({"model.name": "resnet20", "prune.layers": (".*conv2",)}, "residual sum"),
    ],
)
def test_what_cannot_go_for_good_is_refused(changes, message):
    config = study("mlp128_64", EARLY, "sgd")
    for field, value in changes.items():
        part, name = field.split(".")
        if part == "prune":
            config.variants.a.prune[name] = value
        else:
            config[part][name] = value
    with pytest.raises(ConfigError, match="shrink_every") as caught:
        planned(config)
    assert message in str(caught.value)
