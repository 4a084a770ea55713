"""Data of signal and noise, the two-patch network, and its trackers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import data as data_lib
from prunejax import models, rng
from prunejax.train import trackers


@pytest.mark.parametrize("power", [1, 2, 3])
def test_the_network_is_the_sum_of_its_formula(power):
    module = models.create("two_patch", num_classes=3, neurons=4, power=power)
    x = np.asarray(jax.random.normal(rng.at(0, "x"), (5, 2, 6)))
    variables = models.init(module, rng.at(0, "init"), (2, 6))
    w = np.asarray(variables["params"]["neurons"]["kernel"], np.float64).reshape(6, 3, 4)
    found = module.apply(variables, x)
    expected = np.zeros((5, 3))
    for i in range(5):
        for j in range(3):
            for r in range(4):
                for patch in x[i]:
                    expected[i, j] += max(0.0, float(w[:, j, r] @ patch)) ** power
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    gradient = jax.grad(lambda v: module.apply(v, jnp.zeros_like(x)).sum())(variables)
    assert np.all(np.asarray(gradient["params"]["neurons"]["kernel"]) == 0)


def test_images_are_one_patch_and_bad_powers_are_refused():
    module = models.create("two_patch", neurons=2, init_std=0.5)
    variables = models.init(module, rng.at(0, "init"), (8, 8, 1))
    kernel = variables["params"]["neurons"]["kernel"]
    assert kernel.shape == (64, 20)
    assert float(kernel.std()) == pytest.approx(0.5, rel=0.05)
    with pytest.raises(ValueError, match="power is 4"):
        models.init(models.create("two_patch", power=4), rng.at(0, "init"), (4,))


def test_signal_noise_is_drawn_as_stated():
    name = "signal_noise:classes=3,dimension=40,train=600,test=20,signal=2,noise=0.5"
    data = data_lib.load(name, seed=1)
    assert data.train_images.shape == (600, 2, 40)
    assert data.num_classes == 3
    signal, noise = map(np.asarray, data.prepare.parts(jnp.asarray(data.train_images)))
    np.testing.assert_array_equal(signal, 2 * np.eye(40)[data.train_labels])
    np.testing.assert_array_equal(signal + noise, data.train_images.sum(1))
    assert noise.std() == pytest.approx(0.5, rel=0.02)
    first = (np.count_nonzero(data.train_images[:, 0], axis=-1) == 1).mean()
    assert 0.4 < first < 0.6
    assert np.all(np.bincount(data.train_labels) > 150)
    other = data_lib.load(name, seed=2)
    assert not np.array_equal(other.train_images, data.train_images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("signal_noise:mu=1", "'mu=1' is none of classes=int"),
        ("signal_noise:train=x", "'train=x'"),
        ("signal_noise:classes=9,dimension=4", "as many dimensions"),
        ("signal_noise:noise=-1", "noise of at least 0"),
    ],
)
def test_bad_constants_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        data_lib.load(name)


def test_gaussian_classes_are_drawn_as_stated():
    data = data_lib.load("gaussian:classes=3,dimension=5,train=6000,test=60,std=0.5", seed=2)
    means = np.stack([data.train_images[data.train_labels == c].mean(0) for c in range(3)])
    inside = data.train_images - means[data.train_labels]
    assert inside.std() == pytest.approx(0.5, rel=0.02)
    expected = np.asarray(jax.random.normal(rng.at(2, "gaussian", "means"), (3, 5)))
    np.testing.assert_allclose(means, expected, atol=0.06)
    np.testing.assert_array_equal(data.prepare(data.train_images), data.train_images)
    with pytest.raises(ValueError, match="at least 2 classes"):
        data_lib.load("gaussian:classes=1")


def test_noise_is_added_once_and_padding_holds_no_signal():
    plain = data_lib.load("digits", train_examples=50, test_examples=30, seed=3)
    noisy = data_lib.load("digits", train_examples=50, test_examples=30, pad=7, noise=0.7, seed=3)
    assert noisy.image_shape == (71,)
    signal, noise = map(np.asarray, noisy.prepare.parts(noisy.train_images))
    clean = np.asarray(data_lib.normalize(plain.train_images, plain.mean, plain.std))
    np.testing.assert_allclose(signal[:, :64], clean.reshape(50, 64))
    assert not signal[:, 64:].any()
    np.testing.assert_allclose(noisy.prepare(noisy.train_images), signal + noise)
    assert noise.std() == pytest.approx(0.7, rel=0.03)
    assert abs(np.corrcoef(noise[:30].ravel(), noisy.test_images[:, 1].ravel())[0, 1]) < 0.1
    with pytest.raises(ValueError, match="no images to add noise to"):
        data_lib.load("diabetes", noise=1.0)


def test_projections_against_loops():
    generator = np.random.default_rng(0)
    kernel, live = generator.normal(size=(5, 3, 2)), generator.random((5, 3, 2)) < 0.6
    signal, noise = generator.normal(size=(9, 5)), generator.normal(size=(9, 5))
    labels = np.array([0, 1, 2] * 3)
    found = trackers.projections(*map(jnp.asarray, (kernel, live, signal, noise, labels)))
    means = [signal[labels == j].mean(0) for j in range(3)]
    own = [kernel[:, j, r] @ noise[i] for i in range(9) for j in [labels[i]] for r in range(2)]
    rest = [
        kernel[:, j, r] @ noise[i]
        for i in range(9) for j in range(3) if j != labels[i] for r in range(2)
    ]  # fmt: skip
    kept = [
        sum(live[:, j, r] @ means[j] ** 2 for r in range(2)) / sum(means[j] ** 2) for j in (0, 1, 2)
    ]
    expected = [
        np.mean([max(kernel[:, j, r] @ means[j] for r in range(2)) for j in range(3)]),
        np.mean(own), max(own), np.mean(rest), max(rest), np.mean(kept), min(kept),
    ]  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-5)
