"""Scores against closed forms, NumPy and Monte Carlo; the table's entries under jit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import masks, rng, scores


def kernel():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 4, 6)), jnp.float32)


def inputs():
    r = np.random.default_rng(1)
    f = lambda *s: jnp.asarray(r.normal(size=s), jnp.float32)  # noqa: E731
    return scores.ScoreInputs(kernel(), f(6), f(6), jnp.abs(f(6)), f(3, 3, 4, 6), jax.random.key(0))


def test_filter_norms():
    w = np.asarray(kernel())
    np.testing.assert_allclose(scores.filter_l1(kernel()), np.abs(w).sum((0, 1, 2)), rtol=1e-5)
    flat = w.reshape(-1, 6)
    np.testing.assert_allclose(scores.filter_l2(kernel()), np.linalg.norm(flat, axis=0), rtol=1e-5)
    np.testing.assert_array_equal(scores.magnitude(kernel()), np.abs(w))


@pytest.mark.parametrize("axis", [4, -5, (0, 4), (0, -4), (3, 3)])
def test_an_axis_that_is_not_there_is_refused(axis):
    """It was taken modulo the rank: another axis, in silence."""
    for act in (
        lambda: scores.filter_l1(kernel(), axis),
        lambda: scores.filter_l2(kernel(), axis),
        lambda: scores.filter_saliency(kernel(), kernel(), axis),
    ):
        with pytest.raises(ValueError, match="axis"):
            act()
    with pytest.raises(ValueError, match="out of bounds"):
        scores.filter_l1(jnp.float32(3))


@pytest.mark.parametrize(
    ("scale", "bias"), [(1.0, 0.0), (0.5, -0.7), (-1.3, 0.4), (2.0, 1.0), (-0.8, -1.0)]
)
def test_expected_batchnorm_output_against_monte_carlo(scale, bias):
    x = np.random.default_rng(0).normal(size=1_000_000)
    relu = np.maximum(bias + abs(scale) * x, 0)
    value = float(scores.ebn(jnp.float32(scale), jnp.float32(bias)))
    assert abs(value - relu.mean()) < 4 * relu.std() / 1000
    signed = float(scores.ebn_signed(jnp.float32(scale), jnp.float32(bias)))
    if scale > 0:
        assert signed == pytest.approx(value, rel=1e-6)
    else:  # minus the expected value of ReLU(-x)
        other = np.maximum(-(bias + scale * x), 0)
        assert abs(signed + other.mean()) < 4 * other.std() / 1000
        assert signed <= 0


def test_expected_batchnorm_output_without_variance():
    bias = jnp.array([-1.0, 0.0, 2.0])
    np.testing.assert_array_equal(scores.ebn(jnp.zeros(3), bias), [0, 0, 2])
    gradient = jax.grad(lambda b: scores.ebn(jnp.zeros(3), b).sum())(bias)
    assert np.isfinite(np.asarray(gradient)).all()


def test_running_mean_of_activations_updates_every_tenth_step():
    value, reference = jnp.zeros(2), np.zeros(2)
    for step in range(25):
        new = jnp.array([step, 2.0 * step])
        value = scores.update_activation_mean(value, new, jnp.int32(step))
        if (step + 1) % 10 == 0:
            reference = 0.9 * reference + 0.1 * np.asarray(new)
        np.testing.assert_allclose(value, reference, rtol=1e-6)
    assert reference[0] > 0


def test_saliency():
    i = inputs()
    w, g = np.asarray(i.kernel), np.asarray(i.gradient)
    np.testing.assert_allclose(scores.saliency(i.kernel, i.gradient), np.abs(w * g), rtol=1e-6)
    np.testing.assert_allclose(
        scores.filter_saliency(i.kernel, i.gradient), np.abs((w * g).sum((0, 1, 2))), rtol=1e-4
    )


@pytest.mark.parametrize("name", list(scores.SCORES))
def test_every_score_gives_one_finite_number_per_unit(name):
    entry = scores.SCORES[name]
    i = inputs()
    network = {n: jnp.abs(i.kernel) for n in scores.NETWORK}
    i = i._replace(network=network, decay=jnp.float32(0.1), stability=-jnp.linspace(0, 1, 6))
    i = i._replace(learnt=i.kernel - 0.1)
    eager, jitted = entry.fn(i), jax.jit(entry.fn)(i)
    assert eager.shape == ((3, 3, 4, 6) if entry.per_weight else (6,))
    assert np.isfinite(np.asarray(eager)).all()
    np.testing.assert_allclose(jitted, eager, rtol=1e-5)
    known = {"norm", "activations", "gradient", "decay", "network", "stability", "learnt"}
    assert entry.needs <= known


@pytest.mark.parametrize(
    "name",
    [
        "ebn",
        "ebn_signed",
        "activations",
        "saliency",
        "undecayed",
        "stability",
        "learnt",
        *scores.NETWORK,
    ],
)
def test_a_missing_input_is_told(name):
    empty = inputs()._replace(scale=None, bias=None, activation=None, gradient=None)
    with pytest.raises(ValueError, match="needs"):
        scores.SCORES[name].fn(empty)


def test_random_masks_do_not_follow_the_weights():
    """Streams by name: a 'random' score must be independent of the initial weights' draws."""
    correlations = []
    for seed in range(40):
        w = jax.random.uniform(rng.stream(seed, "init"), (500,))
        s = scores.random(rng.at(seed, "score", 0, 0), w)
        correlations.append(np.corrcoef(w, s)[0, 1])
    assert abs(np.mean(correlations)) < 4 / np.sqrt(40 * 500)
    # the trap: split(key, n)[j] is fold_in(key, j)
    key = jax.random.key(0)
    assert bool(
        jnp.all(
            jax.random.key_data(jax.random.split(key, 4)[2])
            == jax.random.key_data(jax.random.fold_in(key, 2))
        )
    )
    streams = {str(jax.random.key_data(rng.stream(0, name))) for name in rng.STREAMS}
    assert len(streams) == len(rng.STREAMS)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_sums_and_products_of_16_bits_are_single_precision(dtype):
    many, big = jnp.ones((100_000, 2), dtype), jnp.full((4, 2), 300, dtype)
    np.testing.assert_array_equal(scores.filter_saliency(many, many), [100_000, 100_000])
    assert bool(jnp.isfinite(scores.saliency(big, big)).all())
    one, zero = jnp.ones(2, dtype), jnp.zeros(2, dtype)
    np.testing.assert_allclose(scores.ebn(one, zero), 0.3989423, rtol=1e-6)


def test_undecayed_pruning_against_float64_and_its_limits():
    i = inputs()
    w, g = (np.asarray(x, np.float64) for x in (i.kernel, i.gradient))
    found = scores.undecayed(i.kernel, i.gradient, 0.3)
    np.testing.assert_allclose(found, np.abs(-w * g + 0.3 * w**2), rtol=1e-6, atol=1e-6)
    mask = lambda s, keep=100: np.asarray(masks.prune({"k": s}, keep)["k"])  # noqa: E731
    none = scores.undecayed(i.kernel, i.gradient, 0.0)
    np.testing.assert_array_equal(mask(none), mask(scores.saliency(i.kernel, i.gradient)))
    much = scores.undecayed(i.kernel, i.gradient, 1e12)
    by_size = mask(scores.magnitude(i.kernel))
    np.testing.assert_array_equal(mask(much), by_size)
    # Where the decayed loss is stationary, any decay ranks as magnitude does.
    still = scores.undecayed(i.kernel, -0.3 * i.kernel, 0.3)
    np.testing.assert_allclose(still, 0.6 * w**2, rtol=1e-5)
    np.testing.assert_array_equal(mask(still), by_size)
    # With the decay in the gradient the score collapses to |w g|.
    total = scores.undecayed(i.kernel, i.gradient + 0.3 * i.kernel, 0.3)
    np.testing.assert_allclose(total, np.abs(w * g), rtol=1e-4, atol=1e-6)
    for decay in (0.0, 0.3, 1e12):
        collapsed = scores.undecayed(i.kernel, i.gradient, decay, grad_of="total")
        np.testing.assert_array_equal(collapsed, scores.saliency(i.kernel, i.gradient))
        in_full = np.abs(-w * (g + decay * w) + decay * w**2)  # as the formula has it
        atol = 1e-6 + 1e-15 * decay
        np.testing.assert_allclose(collapsed, in_full, rtol=1e-6, atol=atol)
    with pytest.raises(ValueError, match="grad_of 'both' is not one of: data, total"):
        scores.undecayed(i.kernel, i.gradient, 0.3, grad_of="both")
    # Masks of one score are nested.
    kept = [mask(found, k) for k in (150, 100, 20, 5)]
    assert all(not (b & ~a).any() for a, b in itertools.pairwise(kept))
    with pytest.raises(ValueError, match="decay -1 must be at least 0"):
        scores.undecayed(i.kernel, i.gradient, -1)


def test_a_gradient_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 2\) and a gradient of shape \(2,\)"):
        scores.saliency(jnp.ones((3, 2)), jnp.ones(2))
