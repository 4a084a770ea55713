"""Spectrum, cuts, slaved modes and subspaces against NumPy and where they are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax.measures import manifold

RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(6, 6))
A = ROOT @ ROOT.T / 6 + np.diag([5.0, 3, 0, 0, 0, 0])
PARAMS = {"a": jnp.asarray(RNG.normal(size=(2, 2)), jnp.float32), "b": jnp.zeros(2)}


def flat(p):
    return jnp.concatenate([p["a"].ravel(), p["b"]])


def quadratic(p):
    v = flat(p)
    return v @ jnp.asarray(A, jnp.float32) @ v / 2


def test_eigenpairs_are_numpy_s_and_projection_goes_round():
    found = manifold.spectrum(quadratic, PARAMS)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(A)[::-1], rtol=1e-5)
    np.testing.assert_allclose(
        found.vectors @ np.diag(found.values) @ found.vectors.T, A, atol=1e-5
    )
    assert found.gradient_norm == pytest.approx(np.linalg.norm(A @ flat(PARAMS)), rel=1e-5)
    gaps = -np.diff(np.linalg.eigvalsh(A)[::-1])
    assert found.largest_gaps(2) == [int(i) + 1 for i in np.argsort(-gaps)[:2]]
    for kind in manifold.KINDS:
        v = found.basis(kind, 4)
        np.testing.assert_allclose(v.T @ v, np.eye(4), atol=1e-6)
        c = RNG.normal(size=4)
        np.testing.assert_allclose(v.T @ (v @ c), c, atol=1e-6)
    both = np.hstack([found.basis("fast", 2), found.basis("slow", 4)])
    np.testing.assert_allclose(both.T @ both, np.eye(6), atol=1e-6)
    with pytest.raises(ValueError, match="kinds are"):
        found.basis("middle", 2)


def test_cuts_at_gaps_that_are_wide_enough():
    values = [10.0, 4.0, 1.0, 0.9]  # gaps, ascending: 0.1, 3, 6
    assert manifold.cut(values, 1.0, (0.05, 1, 5, 7)) == {0.05: 1, 1: 2, 5: 3, 7: None}


def test_slaved_modes_are_exact_on_a_quadratic():
    found = manifold.spectrum(quadratic, PARAMS)
    follow = manifold.slaved(quadratic, PARAMS, found, 2)
    slow = RNG.normal(size=4)
    at = np.asarray(flat(PARAMS)) + found.vectors @ np.concatenate([follow(slow), slow])
    np.testing.assert_allclose(found.vectors[:, :2].T @ A @ at, 0, atol=1e-4)
    with pytest.raises(ValueError, match="fast modes"):
        manifold.slaved(quadratic, PARAMS, found, 6)


def test_lipschitz_is_zero_for_a_quadratic_and_known_for_a_cubic():
    key = jax.random.key(0)
    none = manifold.remainder_lipschitz(quadratic, PARAMS, radius=0.5, key=key, probes=3)
    assert none.mean == pytest.approx(0, abs=1e-5)
    # sum w^3 / 6 has the Hessian diag(w): the difference along r d is r max |d_i|
    cubic = lambda p: jnp.sum(flat(p) ** 3) / 6  # noqa: E731
    found = manifold.remainder_lipschitz(cubic, PARAMS, radius=0.5, key=key, probes=3)
    expected = []
    for i in range(3):
        d = np.asarray(jax.random.normal(jax.random.fold_in(key, i), (6,)))
        expected.append(0.5 * np.abs(d / np.linalg.norm(d)).max())
    assert found.mean == pytest.approx(np.mean(expected), rel=1e-4)


def test_training_in_a_subspace_is_projected_gradient_descent():
    found = manifold.spectrum(quadratic, PARAMS)
    v = found.basis("fast", 3)
    rates = np.linspace(0.1, 0.01, 7)
    end = manifold.train(lambda p, b: quadratic(p), PARAMS, v, jnp.zeros(7), rates=rates)
    w, speed = np.asarray(flat(PARAMS), float), np.zeros(3)
    for rate in rates:
        speed = 0.9 * speed + v.T @ A @ w
        w = w - rate * v @ speed
    np.testing.assert_allclose(flat(end), w, atol=1e-5)
    moved = np.asarray(flat(end)) - np.asarray(flat(PARAMS))
    np.testing.assert_allclose(v @ (v.T @ moved), moved, atol=1e-5)
    with pytest.raises(ValueError, match="needs 6 rows"):
        manifold.train(lambda p, b: quadratic(p), PARAMS, v[:5], jnp.zeros(7), rates=rates)


def test_large_networks_are_refused(monkeypatch):
    monkeypatch.setattr(manifold, "LIMIT", 5)
    with pytest.raises(ValueError, match="6 parameters"):
        manifold.spectrum(quadratic, PARAMS)
