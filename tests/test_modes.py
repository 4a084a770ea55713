"""Scores from the exact Hessian against NumPy, by hand where it is diagonal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import masks
from prunejax.methods import before, modes
from prunejax.methods.evidence import EVIDENCE, Evidence

RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"kernel": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32), "bias": jnp.zeros((1, 4))},
    "b": {"kernel": jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)},
}
X = jnp.asarray(RNG.normal(size=(20, 3)), jnp.float32)
Y = jnp.asarray(RNG.integers(0, 2, 20))


def loss(p):
    z = jnp.tanh(X @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"]
    return -jnp.mean(jax.nn.log_softmax(z)[jnp.arange(20), Y])


def flat(p):
    return np.concatenate([np.ravel(p["a"]["kernel"]), np.ravel(p["b"]["kernel"])])


def second_differences():
    """The Hessian in float64 by central differences of the gradient."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), PARAMS)
        start, step = flat(wide), 1e-5

        @jax.jit
        def gradient(v):
            def of(v):
                a = {"kernel": v[:12].reshape(3, 4), "bias": jnp.zeros((1, 4))}
                return loss({"a": a, "b": {"kernel": v[12:].reshape(4, 2)}})

            return jax.grad(of)(v)

        rows = []
        for i in range(start.size):
            e = np.zeros(start.size)
            e[i] = step
            rows.append((gradient(start + e) - gradient(start - e)) / (2 * step))
    return np.array(rows)


def test_scores_against_float64_differences():
    h, w = second_differences(), flat(PARAMS)
    e = Evidence(PARAMS, loss=loss)
    np.testing.assert_allclose(e.hessian, h, atol=2e-5)
    np.testing.assert_allclose(flat(modes.curvature(e)), np.diag(h), atol=2e-5)
    np.testing.assert_allclose(flat(modes.curvature_saliency(e)), np.diag(h) * w**2, atol=5e-5)
    values, vectors = np.linalg.eigh(h)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modes, "FAST", 3)
        found = flat(modes.mode_leverage(e))
    np.testing.assert_allclose(found, (vectors[:, -3:] ** 2).sum(1), atol=2e-3)
    assert values[-3] - values[-4] > 1e-3  # the three are apart from the rest
    assert found.sum() == pytest.approx(3, abs=1e-4)
    assert np.ndim(modes.curvature(e)["a"]["bias"]) == 0  # never pruned


def test_with_a_diagonal_hessian_leverage_keeps_the_largest_of_the_diagonal(monkeypatch):
    scale = jnp.asarray(RNG.permutation(np.arange(1.0, 13.0)).reshape(3, 4), jnp.float32)
    params = {"a": {"kernel": jnp.ones((3, 4))}}
    e = Evidence(params, loss=lambda p: jnp.sum(scale * p["a"]["kernel"] ** 2) / 2)
    monkeypatch.setattr(modes, "FAST", 5)
    live = masks.prune(modes.mode_leverage(e), keep=5)["a"]["kernel"]
    np.testing.assert_array_equal(live, scale >= 8)
    by_curvature = masks.prune(modes.curvature(e), keep=5)["a"]["kernel"]
    np.testing.assert_array_equal(live, by_curvature)


def test_weights_of_16_bits_are_scored_in_single_precision():
    """The loss is in single precision either way, so that scores are those of wide weights."""
    short = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), short)

    def of(p):
        return loss(jax.tree.map(lambda x: x.astype(jnp.float32), p))

    with jax.numpy_dtype_promotion("strict"):
        e = Evidence(short, loss=of)
        found = {name: EVIDENCE[name].fn(e) for name in modes.SCORES}
    whole = Evidence(wide, loss=loss)
    for name in modes.SCORES:
        assert found[name]["a"]["kernel"].dtype == jnp.float32
        expected = EVIDENCE[name].fn(whole)
        np.testing.assert_allclose(flat(found[name]), flat(expected), rtol=0.02, atol=1e-3)


def test_by_name_and_not_for_large_networks(monkeypatch):
    live = before.prune(PARAMS, "curvature_saliency", sparsity=0.75, loss=loss)
    assert sum(int(np.sum(m)) for m in jax.tree.leaves(live) if np.ndim(m)) == 5
    assert {"curvature", "mode_leverage"} <= set(EVIDENCE)
    monkeypatch.setattr(modes, "LIMIT", 19)
    with pytest.raises(ValueError, match="20 prunable weights: the exact Hessian is for 19"):
        modes.curvature(Evidence(PARAMS, loss=loss))
