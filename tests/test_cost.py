"""Multiply-adds by counting, beside closed forms; what training costs, beside a sum by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import models, trees
from prunejax.methods import cost
from prunejax.study.loop import costs


def counted(name, shape, **options):
    module = models.create(name, **options)
    variables = jax.eval_shape(lambda: models.init(module, jax.random.key(0), shape))
    rest = {k: v for k, v in variables.items() if k != "params"}
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), rest)
    return cost.multiply_adds(
        lambda p: module.apply(ones | {"params": p}, jnp.ones((1, *shape))), variables["params"]
    )


def test_a_dense_layer_multiplies_every_weight_once():
    found = counted("mlp128_64", (8, 8, 1))
    assert {p: n for p, n in found.items() if n} == {
        "dense1/kernel": 64 * 128,
        "dense2/kernel": 128 * 64,
        "classifier/kernel": 640,
    }


@pytest.mark.parametrize("method", ["auto", "lax"])
def test_a_convolution_multiplies_every_weight_once_at_every_place(method):
    found = counted("resnet20", (16, 16, 3), width=0.25, conv_method=method)
    side = {"stem": 16, "stage1": 16, "stage2": 8, "stage3": 4, "classifier": 1}
    module = models.create("resnet20", width=0.25)
    params = jax.eval_shape(lambda: models.init(module, jax.random.key(0), (16, 16, 3)))["params"]
    kernels = {p: leaf for p, leaf in trees.leaves_with_paths(params) if leaf.ndim > 1}
    assert {p for p, n in found.items() if n} == set(kernels)
    for path, leaf in kernels.items():
        places = next((s for name, s in side.items() if path.startswith(name)), 16)
        assert found[path] == leaf.size * places**2, path


def test_all_products_are_those_with_leaves_and_those_between_activations():
    """A ViT block multiplies queries with keys and weights with values: tokens^2 units each."""
    depth, heads, units, tokens = 2, 2, 4, 5
    options = {"depth": depth, "heads": heads, "head_units": units, "mlp_units": 8, "patch": 4}
    module = models.ViT(num_classes=3, **options)
    x = jnp.ones((1, 8, 8, 1))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    of_leaves = cost.multiply_adds(lambda p: module.apply({"params": p}, x), variables["params"])
    found = cost.products(module.apply, variables, x)
    assert found - sum(of_leaves.values()) == depth * 2 * heads * units * tokens**2


def test_masked_stacked_and_repeated_products():
    mask = np.ones((3, 4), bool)

    def net(p):
        x = jnp.ones(3) @ jnp.where(mask, p["a"], 0).astype(jnp.float32).T.T
        x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, p["stack"])
        x = jax.jit(lambda x: x @ p["square"])(x)
        return x @ p["square"] + p["bias"]

    shapes = {"a": (3, 4), "stack": (5, 4, 4), "square": (4, 4), "bias": (4,)}
    params = {k: jnp.ones(s) for k, s in shapes.items()}
    assert cost.multiply_adds(net, params) == {"a": 12, "bias": 0, "square": 32, "stack": 80}
    with pytest.raises(ValueError, match="while"):
        cost.multiply_adds(
            lambda p: jax.lax.while_loop(lambda x: x[0] < 9, lambda x: x @ p["w"], jnp.ones(2)),
            {"w": jnp.ones((2, 2))},
        )


def test_costs_beside_a_sum_by_hand():
    work, d = {"a": 100, "b": 300, "stem": 50}, {"a": 0.5, "b": 0.1}
    assert cost.inference(work, d) == pytest.approx((50 + 30 + 50) / 450)
    assert cost.training(work, {}) == 1
    by_hand = sum(f * (2 * d.get(k, 1) + 1) for k, f in work.items()) / (3 * 450)
    assert cost.training(work, d, dense_gradient=True) == pytest.approx(by_hand)
    step = sum(f * 3 * d.get(k, 1) for k, f in work.items())
    update = sum(f * (2 * d.get(k, 1) + 1) for k, f in work.items())
    assert cost.training(work, d, extra_passes=0.01) == pytest.approx(
        (step + 0.01 * update) / (3 * 450)
    )


def test_mean_of_live_weights_over_steps():
    rows = [
        {"step": "0", "live": "80", "targeted": "20"},
        {"step": "10", "live": "60", "dropped": "30", "grown": "10"},
        {"step": "30", "live": "60", "dropped": "5", "grown": "5"},
    ]
    assert costs.mean_live(rows, 60, 0, 40) == (10 * 80 + 30 * 60) / 40
    assert costs.mean_live(rows[1:], 60, 0, 40) == (10 * 80 + 30 * 60) / 40
    assert costs.mean_live([], 7, 0, 40) == 7
    # Events that are evaluated have a row in both tables: only that of updates has what grew.
    event = {"run": "a", "step": "10", "live": "90", "targeted": "10"}
    both = event | {"dropped": "10", "grown": "5"}
    for events, updates in (([], [both]), ([event], [both])):
        found = costs.happened("a", events, updates)
        assert costs.mean_live(found, 90, 0, 20) == (10 * 95 + 10 * 90) / 20
    assert costs.happened("a", [event], [both | {"run": "b"}]) == [event]
    assert costs.mean_live(rows, 60, 20, 40) == 60
