"""Worst-case and average sharpness against closed forms and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import rng
from prunejax.curvature import splits
from prunejax.curvature.sharpness import average_sharpness, keskar_sharpness, sharpness
from tests import curvature_cases as cases

KEY = rng.at(11, "probe")


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def matrix(name, n, eigenvalues):
    q = np.linalg.qr(np.asarray(cases.normal(11, name, n, n)))[0]
    return q @ np.diag(eigenvalues) @ q.T


SPECTRUM = np.array([9.0, 4.0, 2.0, 1.0, -3.0])
H = matrix("h", 5, SPECTRUM)
W = np.array([0.8, -1.2, 0.3, 0.0, 2.0])


def pack(vector):
    return ({"a": jnp.asarray(vector[:2])}, jnp.asarray(vector[2:]))


def flat(tree):
    return jnp.concatenate([tree[0]["a"], tree[1]])


def quadratic(gradient=None, center=W):
    """L(p) = g'(p - w) + (p - w)'H(p - w)/2 + 1 on nested tuples."""
    g = np.zeros(5) if gradient is None else gradient

    def loss(params):
        d = flat(params) - center
        return g @ d + 0.5 * d @ H @ d + 1.0

    return loss, pack(W)


def ball_maximum(h, g, radius):
    """max of g'd + d'hd/2 over ||d|| = radius by the secular equation (h has λ1 > 0)."""
    values, basis = np.linalg.eigh(h)
    c = basis.T @ g
    low, high = values[-1] + 1e-12, values[-1] + np.linalg.norm(g) / radius + 1
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if np.linalg.norm(c / (mu - values)) > radius else (low, mu)
    d = basis @ (c / (mu - values))
    return g @ d + 0.5 * d @ h @ d


def test_ball_at_a_stationary_point_is_the_largest_eigenvalue():
    loss, params = quadratic()
    found = sharpness(loss, params, radius=0.3, key=KEY, steps=60)
    assert found.value == pytest.approx(0.5 * 9.0 * 0.3**2, rel=1e-6)
    assert found.loss == pytest.approx(1.0)
    assert found.restarts.shape == (3,)
    np.testing.assert_allclose(found.restarts, found.value, rtol=1e-3)
    d = flat(found.perturbation)
    np.testing.assert_allclose(jnp.linalg.norm(d), 0.3, rtol=1e-9)
    np.testing.assert_allclose(0.5 * d @ H @ d, found.value, rtol=1e-9)
    assert (found.live_dim, found.examples) == (5, 0)


def test_ball_away_from_a_stationary_point():
    g = np.array([0.5, -1.0, 0.2, 0.8, -0.3])
    loss, params = quadratic(g)
    found = sharpness(loss, params, radius=0.4, key=KEY, steps=100)
    assert found.value == pytest.approx(ball_maximum(H, g, 0.4), rel=1e-5)


def test_magnitude_scaling_is_the_ball_in_scaled_coordinates():
    loss, params = quadratic()
    scaled = np.abs(W)[:, None] * H * np.abs(W)
    found = sharpness(loss, params, radius=0.2, scaling="magnitude", key=KEY, steps=80)
    expected = 0.5 * 0.2**2 * np.linalg.eigvalsh(scaled)[-1]
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert flat(found.perturbation)[3] == 0.0  # a weight of zero does not move


def test_magnitude_scaling_does_not_see_a_rescaling_of_single_weights():
    """L(w) = f(c w) with weights w / c is the same network: the adaptive sharpness is the same."""
    c = np.array([3.0, 0.1, 10.0, 2.0, 0.5])
    loss, params = quadratic()

    def rescaled(p):
        return loss(pack(flat(p) * c))

    there = pack(W / c)
    options = {"radius": 0.2, "key": KEY, "steps": 80}
    first = sharpness(loss, params, scaling="magnitude", **options)
    second = sharpness(rescaled, there, scaling="magnitude", **options)
    assert second.value == pytest.approx(first.value, rel=1e-6)
    assert sharpness(rescaled, there, **options).value != pytest.approx(
        sharpness(loss, params, **options).value, rel=0.5
    )


def test_box_equals_brute_force_over_its_corners():
    """A convex function is largest at a corner; g makes the corners differ."""
    h, g = matrix("convex", 5, [3.0, 2.0, 1.0, 0.5, 0.2]), np.array([0.3, -0.2, 0.1, 0.4, -0.5])

    def loss(params):
        d = flat(params) - W
        return g @ d + 0.5 * d @ h @ d + 1.0

    for scaling, width in (("absolute", np.ones(5)), ("magnitude_plus_one", np.abs(W) + 1)):
        corners = np.array(list(itertools.product([-1, 1], repeat=5))) * 0.1 * width
        best = max(g @ d + 0.5 * d @ h @ d for d in corners)
        found = sharpness(
            loss, pack(W), radius=0.1, norm="linf", scaling=scaling, key=KEY, restarts=16
        )
        assert found.value == pytest.approx(best, rel=1e-9), scaling


def test_keskar_box_and_normalization():
    slope = np.array([1.0, -2.0, 0.5, 3.0, 0.1])

    def loss(params):
        return slope @ (flat(params) - W) + 4.0

    found = keskar_sharpness(loss, pack(W), epsilon=5e-4, key=KEY)
    rise = 5e-4 * np.sum(np.abs(slope) * (np.abs(W) + 1))
    assert found.increase == pytest.approx(rise, rel=1e-9)
    assert found.value == pytest.approx(100 * rise / 5.0, rel=1e-9)
    assert (found.scaling, found.norm) == ("magnitude_plus_one", "linf")


def test_masks_restrict_the_ball_and_the_box():
    loss, params = quadratic()
    live = np.array([True, False, True, True, False])
    masks = pack(live)
    sub = H[np.ix_(live, live)]
    found = sharpness(loss, params, radius=0.3, key=KEY, masks=masks, steps=80)
    assert found.value == pytest.approx(0.5 * 0.09 * np.linalg.eigvalsh(sub)[-1], rel=1e-6)
    assert found.live_dim == 3
    assert not np.any(np.asarray(flat(found.perturbation))[~live])
    average = average_sharpness(loss, params, sigma=0.1, samples=4000, key=KEY, masks=masks)
    expected = 0.5 * 0.01 * np.trace(sub)
    assert abs(average.value - expected) < 4 * average.stderr < 0.2 * expected


def test_batches_are_weighted_by_size():
    x = cases.normal(2, "x", 9, 5)

    def loss(params, batch):
        return jnp.mean((batch @ flat(params)) ** 2)

    cut = splits.batch_list(iter([x[:1], x[1:6], x[6:]]))
    options = {"radius": 0.2, "key": KEY, "steps": 10}
    whole, parts = (sharpness(loss, pack(W), b, **options) for b in (x, cut))
    assert parts.value == pytest.approx(whole.value, rel=1e-10)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    assert parts.examples == whole.examples == 9
    options = {"sigma": 0.1, "key": KEY, "samples": 5}
    whole, parts = (average_sharpness(loss, pack(W), b, **options) for b in (x, cut))
    assert parts.value == pytest.approx(whole.value, rel=1e-10)
    assert parts.stderr == pytest.approx(whole.stderr, rel=1e-8)


@pytest.mark.parametrize("scaling", ["absolute", "magnitude"])
def test_average_of_a_quadratic_is_half_the_scaled_trace(scaling):
    loss, params = quadratic(np.full(5, 0.7))
    s = np.ones(5) if scaling == "absolute" else np.abs(W)
    expected = 0.5 * 0.2**2 * np.sum(s**2 * np.diag(H))
    found = average_sharpness(loss, params, sigma=0.2, scaling=scaling, samples=3000, key=KEY)
    assert abs(found.value - expected) < 4 * found.stderr
    # The variance of d'Hd/2 is sigma^4 ||SHS||_F^2 / 2.
    spread = 0.2**2 * np.linalg.norm(s[:, None] * H * s) / np.sqrt(2)
    assert found.stderr == pytest.approx(spread / np.sqrt(3000), rel=0.1)


def test_antithetic_pairs_remove_the_linear_term():
    loss, params = quadratic(np.full(5, 5.0))
    options = {"sigma": 0.01, "samples": 400, "key": KEY}
    paired = average_sharpness(loss, params, **options)
    single = average_sharpness(loss, params, antithetic=False, **options)
    assert single.stderr > 20 * paired.stderr
    assert abs(single.value - paired.value) < 5 * single.stderr


def test_stated_standard_error_covers_the_truth():
    loss, params = quadratic()
    expected = 0.5 * 0.2**2 * np.trace(H)
    hits = 0
    for trial in range(200):
        found = average_sharpness(loss, params, sigma=0.2, samples=60, key=rng.at(trial, "probe"))
        hits += abs(found.value - expected) < 2 * found.stderr
    assert 0.90 <= hits / 200 <= 0.99


def test_a_loss_that_only_falls_has_no_sharpness():
    def loss(params):
        return -jnp.sum(flat(params) ** 2)

    zero = pack(np.zeros(5))
    found = sharpness(loss, zero, radius=1.0, key=KEY)
    assert found.value == 0.0
    assert not np.any(flat(found.perturbation))


def test_a_loss_that_blows_up_is_infinitely_sharp():
    def loss(params):
        return jnp.sum(1 / jnp.maximum(1.0 - flat(params) ** 2, 0.0))

    found = sharpness(loss, pack(np.zeros(5)), radius=10.0, norm="linf", key=KEY)
    assert found.value == np.inf
    assert np.isnan(
        sharpness(lambda p: loss(p) * np.nan, pack(np.zeros(5)), radius=1.0, key=KEY).value
    )


def test_float32_and_bfloat16_parameters():
    loss, params = quadratic()
    for dtype, tolerance in ((jnp.float32, 1e-4), (jnp.bfloat16, 0.2)):
        narrow = jax.tree.map(lambda p, t=dtype: p.astype(t), params)
        found = sharpness(lambda p: loss(p).astype(jnp.float32), narrow, radius=0.5, key=KEY)
        assert found.value == pytest.approx(0.5 * 9 * 0.25, rel=tolerance)


def test_wrong_inputs_say_what_is_allowed():
    loss, params = quadratic()
    with pytest.raises(ValueError, match="radius must be positive and finite, got 0"):
        sharpness(loss, params, radius=0.0, key=KEY)
    with pytest.raises(ValueError, match="restarts must be positive"):
        sharpness(loss, params, radius=1.0, restarts=0, key=KEY)
    with pytest.raises(ValueError, match="unknown norm 'l1'; there are: l2, linf"):
        sharpness(loss, params, radius=1.0, norm="l1", key=KEY)
    with pytest.raises(ValueError, match=r"unknown scaling 'magnitud'.*Did you mean 'magnitude'"):
        sharpness(loss, params, radius=1.0, scaling="magnitud", key=KEY)
    with pytest.raises(ValueError, match="one scalar, the mean over the batch"):
        sharpness(lambda p: (loss(p), {}), params, radius=1.0, key=KEY)
    with pytest.raises(ValueError, match="samples must be positive"):
        average_sharpness(loss, params, sigma=1.0, samples=0, key=KEY)
    with pytest.raises(ValueError, match="sigma must be positive"):
        average_sharpness(loss, params, sigma=-1.0, key=KEY)
