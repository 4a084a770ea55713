"""Normalized activations against a hand-written forward pass; statistics against scipy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from prunejax import models
from prunejax.measures import normality as nm
from prunejax.models.resnet import ResNet

X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


def network(hidden=(5, 4)):
    module = models.create("mlp", hidden=hidden)
    variables = models.init(module, jax.random.key(0), (1, 6, 1))
    r = np.random.default_rng(1)
    shake = lambda x: jnp.asarray(x + r.uniform(0.1, 0.5, x.shape), jnp.float32)  # noqa: E731
    return module, jax.tree.map(shake, variables)


def test_activations_are_those_of_a_hand_written_forward_pass():
    module, v = network()
    found = nm.normalized_activations(module, v, X.reshape(40, 1, 6, 1))
    h, expected = X.astype(np.float64), {}
    for i in (1, 2):
        a = h @ np.asarray(v["params"][f"dense{i}"]["kernel"], np.float64)
        z = (a - a.mean(0)) / np.sqrt(a.var(0) + 1e-5)
        expected[f"bn{i}"] = z
        p = v["params"][f"bn{i}"]
        h = np.maximum(z * np.asarray(p["scale"], float) + np.asarray(p["bias"], float), 0)
    assert list(found) == ["bn1", "bn2"]
    for name, z in expected.items():
        np.testing.assert_allclose(found[name], z, rtol=2e-4, atol=2e-4)


def test_layers_come_in_forward_order_not_sorted():
    module, v = network((2,) * 11)
    found = nm.normalized_activations(module, v, X.reshape(40, 1, 6, 1))
    assert list(found) == [f"bn{i}" for i in range(1, 12)]


def test_masked_filters_are_left_out():
    module, v = network()
    kernel = v["params"]["dense1"]["kernel"].at[:, 2].set(0.0)
    v["params"]["dense1"]["kernel"] = kernel
    found = nm.normalized_activations(module, v, X.reshape(40, 1, 6, 1))
    assert found["bn1"].shape == (40, 4)
    assert found["bn2"].shape == (40, 4)


class Again(nn.Module):
    """A norm that is computed again for the gradient, and one that is called twice."""

    lifted: bool

    @nn.compact
    def __call__(self, x, train=False):
        first = (nn.remat(nn.BatchNorm) if self.lifted else nn.BatchNorm)(True, name="first")
        second = nn.BatchNorm(True, name="second")
        x = first(x)
        if not self.lifted:
            return second(2 * second(x) + x)

        def body(norm, y):
            return 2 * norm(y) + x, norm(y)

        return nn.scan(body, variable_broadcast=True, length=2)(second, x)[1][-1]


def test_norms_in_loops_and_in_what_is_computed_again_are_looked_at():
    v = Again(False).init(jax.random.key(0), X)
    plain, lifted = (nm.normalized_activations(Again(k), v, X) for k in (False, True))
    h = X
    expected = []
    for _ in range(3):
        expected.append((h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5))
        h = expected[-1] if len(expected) == 1 else 2 * expected[-1] + expected[0]
    np.testing.assert_allclose(plain["first"], expected[0], rtol=1e-4, atol=1e-4)
    twice = np.concatenate([z.reshape(-1, 1) for z in expected[1:]])  # each call counts
    np.testing.assert_allclose(plain["second"], twice, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(lifted["first"], plain["first"], rtol=1e-4, atol=1e-4)
    each = lifted["second"].reshape(4, 240)  # two rounds of two calls
    np.testing.assert_allclose(each[::2].reshape(-1, 1), twice, rtol=1e-4, atol=1e-4)


def test_every_batch_norm_of_a_resnet_is_found_with_moments_zero_and_one():
    module = ResNet(stages=(4, 6), blocks=(1, 1))
    v = models.init(module, jax.random.key(0), (8, 8, 1))
    x = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
    found = nm.normalized_activations(module, v, x)
    assert set(found) == set(v["batch_stats"])
    result = nm.normality(found)
    np.testing.assert_allclose(result.mean, 0, atol=1e-4)
    assert np.all(result.std <= 1.0001)
    assert np.all(result.std > 0.9)


def test_numbers_agree_with_scipy():
    values = {
        "normal": np.random.default_rng(0).normal(size=(30, 7)),
        "skewed": np.random.default_rng(1).exponential(size=500) - 1,
        "ties": np.repeat([-1.0, 0.5, 0.5, 2.0], 5),
    }
    found = nm.normality(values)
    assert found.layers == tuple(values)
    for i, x in enumerate(values.values()):
        x = np.asarray(x, np.float32).ravel()
        assert found.examples[i] == x.size
        assert found.ks[i] == pytest.approx(stats.kstest(x, "norm").statistic, abs=1e-6)
        assert found.skewness[i] == pytest.approx(stats.skew(x.astype(float)), abs=1e-5)
        assert found.excess_kurtosis[i] == pytest.approx(stats.kurtosis(x.astype(float)), abs=1e-5)
        inside = np.mean((x >= -6) & (x <= 6))
        assert np.sum(found.density[i] * np.diff(found.edges)) == pytest.approx(inside)


def test_density_counts_like_numpy():
    x = np.array([-3.0, -1.0, -1.0, 0.2, 1.0, 9.0])
    found = nm.normality({"a": x}, edges=[-1.0, 0.0, 1.0])
    counts, _ = np.histogram(x, [-1.0, 0.0, 1.0])
    np.testing.assert_allclose(found.density[0], counts / 6)


def test_normal_values_are_near_and_uniform_values_far():
    r = np.random.default_rng(3)
    n = 20000
    found = nm.normality({"normal": r.normal(size=n), "uniform": r.uniform(-1, 1, n)})
    assert found.ks[0] < 1.63 / n**0.5  # exceeded by chance with probability 0.01
    assert found.ks[1] == pytest.approx(1 - stats.norm.cdf(1), abs=0.01)
    assert found.columns()["normality_ks_worst"] == found.ks[1]


def test_columns_are_of_absolute_skewness_and_signed_kurtosis():
    """Two layers skewed to opposite sides, one with tails and one with none."""
    r = np.random.default_rng(4)
    found = nm.normality({"left": -r.exponential(size=999), "right": r.uniform(size=999) ** 2})
    assert found.skewness[0] < 0 < found.skewness[1]
    assert found.excess_kurtosis[1] < 0 < found.excess_kurtosis[0]
    columns = found.columns()
    assert columns["normality_skewness"] == pytest.approx(np.abs(found.skewness).mean())
    assert columns["normality_excess_kurtosis"] == pytest.approx(found.excess_kurtosis.mean())
    assert "mean |skewness|, mean signed excess kurtosis" in nm.Normality.columns.__doc__


def test_arrays_keep_the_common_layers():
    a = nm.normality({"x": [0.1, 1.0], "y": [0.0, 2.0]})
    b = nm.normality({"y": [0.5, 0.6]})
    found = nm.arrays(a, b)
    assert list(found["normality_layers"]) == ["y"]
    np.testing.assert_array_equal(found["normality_trained"][0], a.density[1])
    assert found["normality_edges"].shape == (found["normality_untrained"].shape[1] + 1,)


def test_bad_requests():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(2)(x)

    v = Plain().init(jax.random.key(0), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="no BatchNorm"):
        nm.normalized_activations(Plain(), v, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="no values"):
        nm.normality({"a": []})
    with pytest.raises(ValueError, match="at least one"):
        nm.normality({})
