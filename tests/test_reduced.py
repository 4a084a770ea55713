"""Measures of pruned runs on networks without dead units: the same function by fewer operations."""

import dataclasses
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import interventions, losses, models, trees
from prunejax.errors import ConfigError
from prunejax.models.mlp import MLP
from prunejax.models.resnet import ResNet
from prunejax.study.loop import measuring, reduced
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from tests.studies import PRUNE, begun, planned, tiny

HALF = {"schedule": "scratch", "layers": (".*",), "fraction": (0.5,), "target": "random"}


def config(name="mlp", width=0.125, **changes):
    found = tiny(a={"prune": HALF | changes})
    found.seeds, found.model.name, found.model.width = 1, name, width
    found.measures.names = ("hessian_trace", "top_eigenvalues")
    found.measures.examples, found.measures.probes, found.measures.eigenpairs = 20, 3, 2
    return found


def pruned(settings, gone=0.5):
    """The measurer of a study's only arm, and a state in which a share of all units is gone."""
    batch, _, state = begun(settings)
    left = state.windows.remaining
    for g in batch.program.groups:
        dead = np.random.default_rng(g.units).permutation(g.units) < gone * g.units
        left[g.name] = interventions.endless(jnp.asarray(dead), left[g.name])
    return measuring.Measurer(batch, settings, print), jax.device_get(state)


@pytest.fixture
def worth(monkeypatch):
    """However little it saves; "short": a residual network of two blocks."""
    monkeypatch.setattr(reduced, "WORTH", 1)
    monkeypatch.setitem(models.MODELS, "short", (ResNet, {"stages": (8,), "blocks": (2,)}))


def somewhere(context):
    """Live parameters that no training led to, and a live direction."""
    r = np.random.default_rng(0)

    def drawn(p, m):
        return jnp.asarray(np.where(m, p + 0.1 * r.normal(size=p.shape), 0), p.dtype)

    along = jax.tree.map(lambda p, m: drawn(0 * p, m), context.params, context.masks)
    return jax.tree.map(drawn, context.params, context.masks), along


@pytest.mark.parametrize("changes", [
    {"name": "mlp"},  # BatchNorm
    {"name": "lenet5", "width": 0.5},  # a flattened map and biases
    {"name": "short", "width": 1, "layers": (".*conv1",)},  # gates, and no unit of a residual sum
])  # fmt: skip
def test_it_is_the_same_function_of_all_parameters_where_masks_hold(worth, changes):
    measurer, state = pruned(config(**changes))
    context = measurer.context(state)
    assert context.live_loss is not None
    params, along = somewhere(context)

    def found(params, along, loss, per_example):
        def slope(p):
            return jax.grad(loss)(p, context.batches[0])

        gradient, product = jax.jvp(slope, (params,), (along,))
        live = [
            jax.tree.map(lambda x, m: jnp.where(m, x, 0), tree, context.masks)
            for tree in (gradient, product)
        ]
        return per_example(params, context.batches[0]), *live

    ways = [(context.live_loss, context.live_per_example), (context.loss, context.per_example)]
    small, whole = [
        jax.jit(lambda p, v, way=way: found(p, v, *way)).lower(params, along).compile()
        for way in ways
    ]
    flops = [each.cost_analysis()["flops"] for each in (small, whole)]
    assert flops[0] < 0.75 * flops[1]
    for ours, theirs in zip(small(params, along), whole(params, along), strict=True):
        for (path, a), (_, b) in zip(*map(trees.leaves_with_paths, (ours, theirs)), strict=True):
            assert np.abs(b).max() > 0 or path.endswith("bias"), path
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max() + 1e-7)


def test_measures_are_the_same_up_to_rounding(worth):
    measurer, state = pruned(config())
    context = measurer.context(state)
    whole = dataclasses.replace(context, live_loss=None, live_per_example=None)
    np.testing.assert_allclose(context.forms, whole.forms, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(context.pairs.values, whole.pairs.values, rtol=1e-5)
    assert context.pairs.live_dim == whole.pairs.live_dim
    assert context.hessian.like.keys() == context.params.keys()


def test_a_run_with_more_live_units_is_measured_whole(worth):
    for gone, smaller in ((0.5, True), (0.4, False), (0, False)):
        measurer, state = pruned(config(), gone)
        assert (measurer.context(state).live_loss is not None) == smaller


def test_dead_weights_that_may_vary_are_no_less_units(worth):
    settings = config()
    settings.measures.live_only = False
    measurer, state = pruned(settings)
    assert measurer.context(state).live_loss is None


def test_runs_share_what_is_compiled_whatever_the_loss_is(worth, monkeypatch):
    class Loss:  # of a user: one that has no hash
        __call__ = staticmethod(losses.LOSSES["cross_entropy"])
        __hash__ = None

    monkeypatch.setitem(losses.LOSSES, "cross_entropy", Loss())
    measurer, state = pruned(config())
    one, other = measurer.context(state), measurer.context(state)
    assert one.live_loss.func is other.live_loss.func
    assert one.live_per_example.func is other.live_per_example.func


def test_a_way_to_measure_is_compiled_by_one_thread(worth, monkeypatch):
    measurer, small = pruned(config())
    whole = jax.device_get(begun(config())[2])
    both, seen, patience = threading.Barrier(2), [], 30

    def together(context, names):  # whether another thread is here, too
        try:
            both.wait(patience)
            seen.append(True)
        except threading.BrokenBarrierError:
            seen.append(False)
            both.reset()
        return {}, {}, {}

    monkeypatch.setattr(measuring.suite, "measure", together)
    with ThreadPoolExecutor(2) as pool:
        for states, found in (
            ([small, whole], [True, True]),  # different programs
            ([small, small], [True, True]),  # known by now
        ):
            list(pool.map(measurer.measure, states))
            assert seen == found
            seen.clear()
        patience = 0.5
        list(pool.map(pruned(config())[0].measure, [small, small]))
        assert seen == [False, False]


def networks(settings, examples=1):
    (batch,) = planned(settings)
    return [dict(cut.units) for cut in reduced.networks(batch, examples, print)]


def test_layers_keep_a_half_or_a_quarter(worth):
    settings = config(layers=("dense1", "dense2"), fraction=(0.5, 0.8))
    settings.variants.b = {"prune": HALF | {"fraction": (0.76,)}}
    settings.variants.c = {"prune": HALF | {"fraction": (0.2,)}}  # shares nothing
    units = planned(settings)[0].program.groups[0].units
    half, quarter = (units, units // 2), (units, units // 4)
    assert networks(settings) == [
        {"dense1": quarter, "dense2": quarter, "dense3": quarter},
        {"dense1": half, "dense2": quarter},
    ]


def test_compilation_is_worth_it_by_examples_weights_and_runs_of_all_shards(monkeypatch):
    settings = config()
    settings.seeds = 3
    settings.variants.b = {"prune": HALF | {"target": "smallest"}}
    (batch,) = plan.build(config_lib.variants(settings, settings))
    assert list(batch.ends.values()) == [6]
    monkeypatch.setattr(reduced, "WORTH", 1)
    (cut,) = reduced.networks(batch, 1, print)
    saved = reduced._weights(batch.program.module, batch) - reduced._weights(
        cut.program.module, batch
    )
    monkeypatch.setattr(reduced, "WORTH", 10 * saved * 6)
    assert reduced.networks(batch, 10, print)
    assert not reduced.networks(batch, 9, print)


def test_seeds_with_data_of_their_own_count_together():
    settings = config()
    settings.seeds, settings.data.by_seed = 3, True
    batches = plan.build(config_lib.variants(settings, settings))
    assert [len(batch.members) for batch in batches] == [1, 1, 1]
    assert len({id(batch.program) for batch in batches}) == 1
    assert [list(batch.ends.values()) for batch in batches] == [[3]] * 3


@pytest.mark.parametrize("changes", [
    {"granularity": "weight", "score": "magnitude"},
    {"granularity": "weight", "score": "magnitude", "nm": (2, 4)},
    {"scope": "global", "target": "smallest"},
])  # fmt: skip
def test_where_numbers_are_known_only_in_training_runs_are_measured_whole(worth, changes):
    assert networks(config(**changes)) == []


def test_networks_without_a_smaller_form_are_measured_whole(worth):
    # Which channels of a residual sum go decides how blocks are wired.
    assert networks(config("short", 1, layers=(".*conv2",))) == []


def _raises(self, gone):
    raise KeyError("dense9")


@pytest.mark.parametrize(("shrunk", "why"), [
    (_raises, "MLP.shrunk gives no smaller model: KeyError: 'dense9'"),
    (lambda self, gone: None, "MLP.shrunk gives no smaller model: TypeError: "),
    (lambda self, gone: ("small", {}), "MLP.shrunk gives no smaller model: AttributeError: "),
])  # fmt: skip
def test_a_model_whose_smaller_form_fails_is_measured_whole_and_it_is_told(
    worth, monkeypatch, capsys, shrunk, why
):
    monkeypatch.setattr(MLP, "shrunk", shrunk)
    settings = config()
    settings.variants.b = {"prune": HALF | {"fraction": (0.75,)}}
    assert networks(settings) == []
    said = capsys.readouterr().out
    assert said.startswith(f"runs are measured on the whole network: {why}")
    assert said.count("\n") == 1
    settings.variants.a.prune.shrink_every = 1
    with pytest.raises(ConfigError, match=re.escape(f"(variant 'a'): {why}")):
        planned(settings)


def test_events_in_training_count_up_to_the_end(worth):
    settings = config()
    settings.variants.a.prune = PRUNE
    (found,) = networks(settings)  # a quarter of dense2 goes, half of dense3
    assert list(found) == ["dense3"]
