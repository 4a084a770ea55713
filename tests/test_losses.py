import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import losses


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def random_logits(shape=(7, 5), seed=0):
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal(shape), rng.integers(0, shape[-1], shape[:-1])


def oracle(logits, labels, smoothing):
    """Cross entropy with the mixed target distribution, in float64, term by term."""
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    target = np.full(p.shape, smoothing / p.shape[-1])
    target[np.arange(len(labels)), labels] += 1 - smoothing
    return -(target * np.log(p)).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_against_float64(smoothing):
    logits, labels = random_logits()
    loss = losses.cross_entropy(jnp.float32(logits), jnp.asarray(labels), smoothing)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, oracle(logits, labels, smoothing), rtol=2e-6)
    traced = jax.jit(losses.cross_entropy)(jnp.float32(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(traced, loss, rtol=2e-6)


@pytest.mark.usefixtures("x64")
def test_cross_entropy_keeps_float64():
    logits, labels = random_logits()
    loss = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), 0.1)
    np.testing.assert_allclose(loss, oracle(logits, labels, 0.1), rtol=1e-13)


def test_cross_entropy_of_uniform_logits_is_log_classes():
    for smoothing in (0.0, 0.3):
        loss = losses.cross_entropy(jnp.zeros((2, 10)), jnp.array([0, 9]), smoothing)
        np.testing.assert_allclose(loss, np.log(10), rtol=1e-6)


def test_cross_entropy_of_large_logits_is_finite_and_exact():
    logits = jnp.array([[1e4, 0.0], [1e4, 0.0]])
    np.testing.assert_array_equal(losses.cross_entropy(logits, jnp.array([0, 1])), [0.0, 1e4])


def test_cross_entropy_of_bfloat16_is_computed_in_float32():
    logits, labels = random_logits()
    logits = jnp.asarray(logits, jnp.bfloat16)
    loss = losses.cross_entropy(logits, jnp.asarray(labels))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, oracle(logits.astype(jnp.float32), labels, 0), rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_cross_entropy_gradient_is_probability_minus_target():
    logits, labels = random_logits()
    logits, smoothing = jnp.asarray(logits), 0.2
    gradient = jax.grad(lambda z: losses.cross_entropy(z, jnp.asarray(labels), smoothing).sum())
    target = np.full(logits.shape, smoothing / 5)
    target[np.arange(7), labels] += 1 - smoothing
    np.testing.assert_allclose(gradient(logits), jax.nn.softmax(logits) - target, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_cross_entropy_second_derivatives_in_both_modes():
    # The Hessian of the loss in the logits is diag(p) - p p', whatever the label.
    z = jnp.array([0.3, -1.2, 2.0])
    p = jax.nn.softmax(z)
    expected = jnp.diag(p) - jnp.outer(p, p)

    def loss(z):
        return losses.cross_entropy(z, jnp.array(1), 0.1)

    for hessian in (jax.jacfwd(jax.jacrev(loss)), jax.jacfwd(jax.jacfwd(loss))):
        np.testing.assert_allclose(hessian(z), expected, atol=1e-14)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_bad_smoothing(smoothing):
    with pytest.raises(ValueError, match=f"label smoothing {smoothing}"):
        losses.cross_entropy(jnp.zeros((1, 2)), jnp.array([0]), smoothing)


def test_correct():
    logits = jnp.array([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [3.0, 3.0], [jnp.nan, 0.0]])
    hits = losses.correct(logits, jnp.array([1, 1, 0, 1, 0]))
    assert hits.dtype == bool
    assert hits.tolist() == [True, False, True, False, False]


def test_a_nan_output_is_of_no_class():
    logits = jnp.array([[jnp.nan, 0.0], [0.0, jnp.nan], [jnp.inf, 0.0], [3.0, 3.0]])
    assert losses.predicted(logits).tolist() == [-1, -1, 0, 0]
    assert losses.predicted(logits[:, None]).shape == (4, 1)
    assert losses.predicted(jnp.array([[1, 2]])).tolist() == [1]


def test_mse():
    outputs = jnp.array([[0.0, 2.0], [1.0, 1.0]])
    expected = [(0.0 + 1.0) / 2, (1.0 + 0.0) / 2]
    np.testing.assert_array_equal(losses.mse(outputs, jnp.array([1, 1])), expected)
    np.testing.assert_array_equal(losses.mse(outputs, jnp.array([[0.0, 1.0]] * 2)), expected)
    with pytest.raises(ValueError, match="shapes differ"):
        losses.mse(outputs, jnp.zeros(2))


K = 3
BAD = [[0, 1, -1], [0, 1, K], [-K, 1, 2], [0, 1, 300]]


@pytest.mark.parametrize("labels", BAD)
@pytest.mark.parametrize("fn", [losses.cross_entropy, losses.hinge, losses.mse, losses.correct])
@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_labels_that_are_no_classes(fn, labels, dtype):
    outputs, labels = jnp.float32(random_logits((3, K))[0]), np.array(labels, dtype)
    for given in (labels, jnp.asarray(labels)):
        with pytest.raises(
            ValueError, match=f"go from {labels.min()} to {labels.max()}; .* 0 to 2"
        ):
            fn(outputs, given)
        with pytest.raises(ValueError, match="classes are 0 to 2"):  # known while others are traced
            jax.jit(lambda z, given=given: fn(z, given))(outputs)
    right = (labels >= 0) & (labels < K)
    known = np.where(right, labels, 0)
    found = np.asarray(jax.jit(fn)(outputs, labels))
    if fn is losses.correct:
        assert not found[~right].any()
        assert not jax.jit(fn)(jnp.full((3, K), jnp.nan), labels).any()
    else:
        assert np.isnan(found[~right]).all()
        slope = jax.jit(jax.grad(lambda z, y: fn(z, y)[right].sum()))(outputs, labels)
        wanted = jax.grad(lambda z: fn(z, known)[right].sum())(outputs)
        np.testing.assert_allclose(slope, wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[right], np.asarray(fn(outputs, known))[right], rtol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (4, 1), (2,), ()])
@pytest.mark.parametrize("fn", [*losses.LOSSES.values(), losses.correct])
def test_labels_are_one_for_each_example(fn, shape):
    """[4] against [4, 1] was 4 x 4 answers, and one label that of all examples."""
    outputs, told = jnp.zeros((4, 3)), r"labels of shape|shapes differ|needs class labels"
    for given, kind in itertools.product((fn, jax.jit(fn)), (int, float)):
        with pytest.raises(ValueError, match=told):
            given(outputs, jnp.zeros(shape, kind))
