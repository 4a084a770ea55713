"""Windows: exact lengths, targets, noise, restored values; against a per-unit Python simulation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import interventions as iv
from prunejax import masks as masks_lib
from prunejax.groups import Group
from prunejax.interventions import FOREVER, Features, Table
from prunejax.ops import noise
from prunejax.train import regrowth
from tests import mechanics

GROUPS = (
    Group(
        "a", "conv_a/kernel", ("bn_a/scale", "bn_a/bias"), ("bn_a/mean", "bn_a/var"), None, 6, ()
    ),
    Group("b", "dense_b/kernel", (), (), "gate_b", 4, ("dense_b/bias",)),
)


def tree(seed=0):
    r = np.random.default_rng(seed)
    f = lambda *s: jnp.asarray(r.normal(size=s), jnp.float32)  # noqa: E731
    params = {
        "conv_a": {"kernel": f(3, 3, 2, 6)},
        "bn_a": {"scale": f(6), "bias": f(6)},
        "dense_b": {"kernel": f(5, 4), "bias": f(4)},
        "head": {"kernel": f(4, 3)},
    }
    return params, {"bn_a": {"mean": f(6), "var": jnp.abs(f(6))}}


def table(kind, duration=FOREVER, cumulative=False, restore="no", mask_norm=True, scale=1.0):
    return Table(
        kind=jnp.int32(iv.KINDS[kind]),
        duration=jnp.int32(duration),
        cumulative=jnp.bool_(cumulative),
        restore=jnp.int32(iv.RESTORES[restore]),
        mask_norm=jnp.bool_(mask_norm),
        noise_scale=jnp.float32(scale),
        target=jnp.int32(0),
        score=jnp.int32(0),
        counts=jnp.zeros((1, 2), jnp.int32),
        replay=jnp.bool_(False),
    )


def features(**kw):
    base = {"finite": True, "zero": True, "gaussian": True, "restore": True}
    return Features(**(base | kw))


def chosen(a=(), b=()):
    return {
        "a": jnp.zeros(6, bool).at[jnp.array(a, int)].set(True),
        "b": jnp.zeros(4, bool).at[jnp.array(b, int)].set(True),
    }


@partial(jax.jit, static_argnames="features")
def _event(params, stats, windows, table, selected, counter, features):
    windows = iv.open_windows(GROUPS, params, stats, windows, table, features, selected)
    params = iv.act(
        GROUPS, params, windows, table, features, seed=jnp.uint32(3), counter=counter, opening=True
    )
    return params, windows


@partial(jax.jit, static_argnames="features")
def _step(params, stats, windows, table, counter, features):
    params = iv.act(
        GROUPS, params, windows, table, features, seed=jnp.uint32(3), counter=counter, opening=False
    )
    masks = iv.mask_tree(GROUPS, params, windows, table)
    acted = masks_lib.apply(masks, params)
    moved = jax.tree.map(lambda p: p + 0.125, params)
    params = jax.tree.map(jnp.where, masks, moved, params)
    stats = jax.tree.map(lambda s: s + 1.0, stats)
    return acted, *iv.advance(GROUPS, params, stats, windows, table, features)


class Run:
    """Event and steps as the training loop does them; adding 1/8 stands for the optimizer."""

    def __init__(self, table, features, seed=0):
        self.params, self.stats = tree(seed)
        self.table, self.features = table, features
        self.windows = iv.initial(GROUPS, self.params, self.stats, features=features)
        self.steps, self.events = 0, 0
        self.acted = []  # parameters as the forward pass of each step saw them

    def event(self, selected):
        self.params, self.windows = _event(
            self.params, self.stats, self.windows, self.table, selected, self.events, self.features
        )
        self.events += 1

    def step(self):
        acted, self.params, self.stats, self.windows = _step(
            self.params, self.stats, self.windows, self.table, self.steps, self.features
        )
        self.acted.append(acted)
        self.steps += 1


def kernel(params):
    return np.asarray(params["conv_a"]["kernel"])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_zeroing_holds_exactly_n_forward_passes_then_regrows(steps):
    run = Run(table("zero", steps, mask_norm=False), features())
    before = kernel(run.params)
    run.event(chosen(a=(1, 4)))
    assert not kernel(run.params)[..., [1, 4]].any()
    for _ in range(steps + 3):
        run.step()
    zero = [not kernel(p)[..., [1, 4]].any() for p in run.acted]
    assert zero == [True] * steps + [False] * 3
    np.testing.assert_array_equal(  # untouched filters only see the updates
        kernel(run.params)[..., 0], before[..., 0] + 0.125 * (steps + 3)
    )
    # regrowth starts from zero with the update of the window's last step
    np.testing.assert_allclose(kernel(run.params)[..., 1], 0.125 * 4)
    assert (np.asarray(run.windows.remaining["a"]) == 0).all()


def test_permanent_pruning_masks_weights_norm_and_gate_for_good():
    run = Run(table("prune"), features())
    run.event(chosen(a=(0,), b=(2, 3)))
    for _ in range(5):
        run.step()
    last = run.acted[-1]
    assert not kernel(last)[..., 0].any()
    assert last["bn_a"]["scale"][0] == 0
    assert last["bn_a"]["bias"][0] == 0
    assert not np.asarray(last["dense_b"]["kernel"])[:, 2:].any()
    assert not np.asarray(last["dense_b"]["bias"])[2:].any()
    assert kernel(run.params)[..., 0].any() == False  # noqa: E712  stored zeros are the mask
    gates = iv.gates(GROUPS, run.windows, run.table)
    np.testing.assert_array_equal(gates["gate_b"], [True, True, False, False])
    assert (np.asarray(run.windows.remaining["b"])[2:] == FOREVER).all()


@pytest.mark.parametrize("released", [False, True])
def test_windows_that_never_close_take_a_bool_and_do_the_same(released):
    """A second event after some steps, an empty one, and a layer that none targets."""
    few = {"zero": False, "gaussian": False, "restore": False, "released": released}
    counted = Run(table("prune", cumulative=True), features(**few))
    bits = Run(table("prune", cumulative=True), features(finite=False, **few))
    for run in (counted, bits):
        for selected in (chosen(a=(0,)), chosen(), chosen(a=(2, 5))):
            run.event(selected)
            run.step()
    for name, left in counted.windows.remaining.items():
        assert left.dtype == jnp.int32
        assert bits.windows.remaining[name].dtype == bool
        np.testing.assert_array_equal(left == FOREVER, bits.windows.remaining[name])
        assert set(np.unique(left)) <= {0, FOREVER}
    np.testing.assert_array_equal(bits.windows.remaining["a"], [1, 0, 1, 0, 0, 1])
    for a, b in zip(counted.acted, bits.acted, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    _, closed = regrowth.regrow(GROUPS, bits.params, bits.windows, chosen(a=(2,)))
    assert closed.remaining["a"].dtype == bool
    np.testing.assert_array_equal(closed.remaining["a"], [1, 0, 0, 0, 0, 1])


def test_unmasked_norm_keeps_scale_bias_and_gate():
    run = Run(table("prune", mask_norm=False), features())
    run.event(chosen(a=(0,), b=(1,)))
    run.step()
    assert run.acted[0]["bn_a"]["bias"][0] != 0
    assert run.acted[0]["dense_b"]["bias"][1] != 0
    assert np.asarray(iv.gates(GROUPS, run.windows, run.table)["gate_b"]).all()


@pytest.mark.parametrize("steps", [1, 3])
def test_restore_is_bit_exact_with_norm_and_statistics(steps):
    run = Run(table("zero", steps, cumulative=True, restore="weights+norm"), features())
    before, stats = run.params, run.stats
    run.event(chosen(a=(2, 5), b=(1,)))
    for _ in range(steps):
        run.step()
    for name in ("kernel", "bias"):  # a layer without BatchNorm: its own bias is held, and put back
        assert all(not np.asarray(p["dense_b"][name])[..., 1].any() for p in run.acted)
        np.testing.assert_array_equal(
            run.params["dense_b"][name][..., 1], before["dense_b"][name][..., 1]
        )
    t = [2, 5]
    np.testing.assert_array_equal(kernel(run.params)[..., t], kernel(before)[..., t])
    for name in ("scale", "bias"):
        np.testing.assert_array_equal(
            run.params["bn_a"][name][jnp.array(t)], before["bn_a"][name][jnp.array(t)]
        )
    for name in ("mean", "var"):
        np.testing.assert_array_equal(
            run.stats["bn_a"][name][jnp.array(t)], stats["bn_a"][name][jnp.array(t)]
        )
        np.testing.assert_allclose(run.stats["bn_a"][name][0], stats["bn_a"][name][0] + steps)
    assert all(not kernel(p)[..., t].any() for p in run.acted)
    assert all(not np.asarray(p["bn_a"]["bias"])[t].any() for p in run.acted)


def test_restore_weights_only_leaves_the_norm_to_training():
    run = Run(table("zero", 2, restore="weights", mask_norm=False), features())
    before = run.params
    run.event(chosen(a=(1,)))
    run.step()
    run.step()
    np.testing.assert_array_equal(kernel(run.params)[..., 1], kernel(before)[..., 1])
    np.testing.assert_allclose(run.params["bn_a"]["scale"][1], before["bn_a"]["scale"][1] + 0.25)


def test_cumulative_reopens_earlier_targets_with_their_current_values():
    run = Run(table("zero", 2, cumulative=True, restore="weights+norm"), features())
    run.event(chosen(a=(0,)))
    for _ in range(4):
        run.step()
    at_second = kernel(run.params)
    run.event(chosen(a=(3,)))
    np.testing.assert_array_equal(np.asarray(run.windows.remaining["a"]), [2, 0, 0, 2, 0, 0])
    run.step()
    run.step()
    np.testing.assert_array_equal(kernel(run.params)[..., [0, 3]], at_second[..., [0, 3]])


def test_newest_windows_of_two_events_overlap_and_close_apart():
    run = Run(table("zero", 3, mask_norm=False), features())
    run.event(chosen(a=(0,)))
    run.step()
    run.event(chosen(a=(1,)))
    np.testing.assert_array_equal(np.asarray(run.windows.remaining["a"])[:2], [2, 3])
    run.step()
    run.step()
    np.testing.assert_array_equal(np.asarray(run.windows.remaining["a"])[:2], [0, 1])


def test_a_layer_without_new_targets_is_left_alone():
    run = Run(table("zero", 3, cumulative=True, mask_norm=False), features())
    run.event(chosen(a=(0,)))
    for _ in range(3):
        run.step()
    run.event(chosen(b=(0,)))
    assert (np.asarray(run.windows.remaining["a"]) == 0).all()


def test_gaussian_draws_once_per_step_of_the_window_with_the_reference_std():
    run = Run(table("gaussian", 4, mask_norm=False), features())
    start = kernel(run.params)
    sigma = start[..., 0].std(ddof=1)  # filter 0 is the first untargeted one
    run.event(chosen(a=(2, 4)))
    draws = [kernel(run.params) - start]
    for _ in range(7):
        prior = kernel(run.params)
        run.step()
        draws.append(kernel(run.acted[-1]) - prior)
    changed = [bool(np.abs(d[..., [2, 4]]).max() > 0) for d in draws]
    # the event's draw is that of the window's first step: 4 draws in 4 steps
    assert changed == [True, False, True, True, True, False, False, False]
    assert all(not d[..., [0, 1, 3, 5]].any() for d in draws)
    first = draws[0][..., [2, 4]]
    assert 0.6 * sigma < first.std() < 1.4 * sigma
    assert not np.allclose(draws[2], draws[3])


def test_endless_noise_is_drawn_at_the_event_and_at_every_later_step():
    run = Run(table("gaussian", FOREVER, mask_norm=False), features())
    before = kernel(run.params)
    run.event(chosen(a=(2,)))
    changed = [(kernel(run.params) != before)[..., 2].any()]
    for _ in range(4):
        before = kernel(run.params)
        run.step()
        changed.append((kernel(run.acted[-1]) != before)[..., 2].any())
    assert changed == [True, False, True, True, True]  # the event's draw is the first step's
    assert int(run.windows.remaining["a"][2]) == FOREVER


@pytest.mark.parametrize(
    ("kind", "steps"), [("zero", 5), ("zero", FOREVER), ("gaussian", 5), ("gaussian", FOREVER)]
)
def test_an_event_leaves_windows_that_are_open_to_the_next_step(kind, steps):
    run = Run(table(kind, steps, mask_norm=False), features())
    run.event(chosen(a=(1,)))
    run.step()
    before = kernel(run.params)
    assert before[..., 1].all()  # regrown by a step
    run.event(chosen(a=(3,), b=(0,)))
    after = kernel(run.params)
    np.testing.assert_array_equal(after[..., 1], before[..., 1])
    assert (after[..., 3] != before[..., 3]).all()
    run.step()
    assert (kernel(run.acted[-1])[..., 1] != before[..., 1]).all()


def test_gaussian_std_statistics_and_scale():
    params, _ = tree()
    targeted = chosen(a=(0, 1))["a"]
    start = params["conv_a"]["kernel"]
    sigma = float(iv.reference_std(start, targeted))
    assert sigma == pytest.approx(kernel(params)[..., 2].std(ddof=1), rel=1e-5)

    def draw(step):
        active, scale = {"a": chosen(a=(1,))["a"]}, jnp.float32(2.0)
        return noise.add_to({"a": start}, active, {"a": targeted}, scale, 0, "noise", step)["a"]

    moved = jax.jit(jax.vmap(draw))(jnp.arange(200))
    samples = np.asarray(moved - start[None])
    assert not samples[..., [0, 2, 3, 4, 5]].any()
    assert np.std(samples[..., 1]) == pytest.approx(2 * sigma, rel=0.05)
    assert abs(np.mean(samples[..., 1])) < 3 * 2 * sigma / np.sqrt(200 * 18)


def test_nothing_untargeted_means_no_noise_scale():
    assert float(iv.reference_std(jnp.ones((2, 3)), jnp.ones(3, bool))) == 0.0


@pytest.mark.parametrize(
    ("shape", "targeted", "kept"),
    [
        ((1, 4), [True, False, False, True], []),  # a filter of one weight: no spread
        ((5,), [True, False, False, True, False], [1, 2, 4]),  # the weights of a vector are units
        ((5,), [True, True, True, True, False], []),  # one weight has none
        ((2, 2), [[True, False], [True, True]], []),
        ((2, 2), [[True, False], [False, True]], [1, 2]),
    ],
)
def test_one_weight_has_no_spread_for_noise_to_follow(shape, targeted, kept):
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = np.std(w.ravel()[kept], ddof=1) if kept else 0.0
    assert float(iv.reference_std(w, np.array(targeted))) == pytest.approx(expected, rel=1e-5)


def test_dense_sparse_dense_frees_the_mask_with_the_norm_as_it_was():
    run = Run(table("prune", 3), features())
    scale = float(run.params["bn_a"]["scale"][1])
    run.event(chosen(a=(1,)))
    for _ in range(3):
        run.step()
    assert all(not kernel(p)[..., 1].any() and p["bn_a"]["scale"][1] == 0 for p in run.acted)
    assert float(run.params["bn_a"]["scale"][1]) == scale
    assert not kernel(run.params)[..., 1].any()
    run.step()
    np.testing.assert_allclose(kernel(run.params)[..., 1], 0.125)


def test_kind_none_targets_but_does_nothing():
    run = Run(table("none"), features())
    before = run.params
    run.event(chosen(a=(0, 1), b=(3,)))
    assert np.asarray(run.windows.targeted["a"]).sum() == 2
    jax.tree.map(np.testing.assert_array_equal, run.params, before)


@pytest.mark.parametrize(
    ("passes", "steps", "batches", "expected"),
    [  # the equivalence table: test batches of 128 (79) and of 256 (40)
        (1, 391, 79, 0), (129, 391, 79, 50), (1500, 391, 79, 1105),
        (129, 391, 40, 89), (750, 391, 40, 630), (1500, 391, 40, 1220), (3000, 391, 40, 2480),
    ],
)  # fmt: skip
def test_released_accounting(passes, steps, batches, expected):
    assert mechanics.window_steps(passes, steps, batches) == expected


@pytest.mark.parametrize("restore", ["no", "weights+norm"])
def test_as_released_counts_every_pass_and_one_more(restore):
    passes, epoch_steps, test_batches = 17, 5, 3
    run = Run(
        table("zero", passes, restore=restore, mask_norm=restore != "no"), features(released=True)
    )
    run.event(chosen(a=(1,)))
    trained = 0
    for _ in range(test_batches):  # the evaluation after the event
        run.step()
    for _ in range(10):
        for _ in range(epoch_steps):
            trained += int(run.windows.remaining["a"][1]) > (restore == "no")
            run.step()
        for _ in range(2 * test_batches):
            run.step()
    assert trained == mechanics.window_steps(passes, epoch_steps, test_batches)
    zero = [not kernel(p)[..., 1].any() for p in run.acted]
    assert sum(zero) == passes + (restore == "no")  # the pass that restores sees the old weights


def test_weight_units_zero_and_noise_single_weights():
    params, stats = tree()
    f = features()
    w = iv.initial(GROUPS, params, stats, weights=True, features=f)
    selected = {n: jnp.zeros(t.shape, bool) for n, t in w.targeted.items()}
    selected["a"] = selected["a"].at[0, 1, 1, 2].set(True)
    for kind in ("prune", "zero", "gaussian"):
        t = table(kind, 2, mask_norm=False)
        after, opened = _event(params, stats, w, t, selected, 0, f)
        changed = kernel(after) != kernel(params)
        assert changed.sum() == 1
        assert changed[0, 1, 1, 2]
        masks = iv.mask_tree(GROUPS, params, opened, t)
        assert (~np.asarray(masks["conv_a"]["kernel"])).sum() == (kind == "prune")


def test_step_transform_is_the_same_under_jit_and_vmap():
    f = features()
    tables = [
        table("zero", 2, mask_norm=False),
        table("gaussian", 2, mask_norm=False),
        table("prune"),
    ]
    params, stats = tree()

    def go(t):
        w = iv.initial(GROUPS, params, stats, features=f)
        w = iv.open_windows(GROUPS, params, stats, w, t, f, chosen(a=(1, 2), b=(0,)))
        p = iv.act(GROUPS, params, w, t, f, seed=jnp.uint32(1), counter=jnp.int32(0), opening=True)
        p, s, w = iv.advance(GROUPS, p, stats, w, t, f)
        return p, s, w.remaining

    stacked = jax.jit(jax.vmap(go))(jax.tree.map(lambda *x: jnp.stack(x), *tables))
    for i, t in enumerate(tables):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6),
            stacked,
            jax.jit(go)(t),
        )
