"""Bounds of outputs against sampling, closed forms and attacks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import losses, models, rng, trees
from prunejax.measures import bounds
from prunejax.measures import steps as steps_lib
from prunejax.models.convnets import ConvNet
from prunejax.models.mlp import MLP
from prunejax.models.vgg import VGG

NETWORKS = {
    "mlp": (MLP(num_classes=3, hidden=(7, 6), batch_norm=True), (2, 3, 1)),
    "convnet": (
        ConvNet(num_classes=3, features=(3, "M", 4), hidden=(5,), kernel=3, valid=True), (8, 8, 1)
    ),
    "vgg": (VGG(num_classes=3, features=(3, "M", 4)), (6, 6, 2)),
}  # fmt: skip
UNBIASED = {f"{name}, unbiased": (module.clone(unbiased_variance=True), shape)
            for name, (module, shape) in NETWORKS.items()}  # fmt: skip


@functools.cache
def network(name):
    """Module, variables of random BatchNorms, steps, and inputs."""
    module, shape = (NETWORKS | UNBIASED)[name]
    generator = np.random.default_rng(0)

    def fill(path, leaf):
        values = generator.normal(size=leaf.shape)
        if path.endswith("kernel"):
            values *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return jnp.asarray(0.5 + np.abs(values) if path.endswith("var") else values, leaf.dtype)

    shapes = jax.eval_shape(lambda: models.init(module, rng.at(0, "init"), shape))
    variables = trees.map_with_path(fill, shapes)
    x = jnp.asarray(generator.normal(size=(4, *shape)), jnp.float32)
    return module, variables, steps_lib.steps_of(module, variables, shape), x


@functools.cache
def compiled(name, fn):
    """`(low, high, rows) -> bounds` of a network, in one program."""
    steps = network(name)[2]

    def run(low, high, rows):
        found = fn(steps, low, high, rows)
        return found.lower, found.upper, found.unstable

    program = jax.jit(run, compiler_options={"xla_backend_optimization_level": 1})
    return lambda *box: bounds.Bounds(*program(*box))


@pytest.mark.parametrize("name", NETWORKS | UNBIASED)
def test_the_steps_are_the_network(name):
    module, variables, steps, x = network(name)
    np.testing.assert_allclose(
        steps_lib.forward(steps, x), module.apply(variables, x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_hold_sampled_outputs_and_crown_is_tighter(name):
    _, _, steps, x = network(name)
    radius, samples = 0.15, 25_000  # of each of four inputs
    draw = jax.random.uniform(rng.at(1, "box"), (samples, *x.shape), minval=-radius, maxval=radius)
    outputs = jax.lax.map(lambda d: steps_lib.forward(steps, x + d), draw, batch_size=1250)
    rows = jnp.eye(3)
    found = {
        kind: compiled(name, fn)(x - radius, x + radius, rows)
        for kind, fn in (("interval", bounds.interval), ("crown", bounds.crown))
    }
    for bound in found.values():
        assert np.all(np.asarray(outputs.min(0)) >= bound.lower - 1e-4)
        assert np.all(np.asarray(outputs.max(0)) <= bound.upper + 1e-4)
    width = {k: float(jnp.mean(b.upper - b.lower)) for k, b in found.items()}
    assert width["crown"] < width["interval"]
    assert np.all(found["crown"].unstable <= found["interval"].unstable)


def test_one_linear_layer_is_exact():
    generator = np.random.default_rng(2)
    kernel, bias = generator.normal(size=(5, 3)), generator.normal(size=3)
    steps = [steps_lib.Affine(jnp.asarray(kernel), jnp.asarray(bias), steps_lib._dense)]
    x = jnp.asarray(generator.normal(size=(2, 5)))
    exact = np.asarray(x) @ kernel + bias
    spread = 0.3 * np.abs(kernel).sum(0)
    for fn in (bounds.interval, bounds.crown):
        found = fn(steps, x - 0.3, x + 0.3, jnp.eye(3))
        np.testing.assert_allclose(found.lower, exact - spread, rtol=1e-5)
        np.testing.assert_allclose(found.upper, exact + spread, rtol=1e-5)
        assert not found.unstable.any()


def test_crown_of_two_layers_by_hand():
    """y = relu(x) - relu(-x) / 2 on [-1, 2]: the lines around both ReLUs, written out."""
    first = steps_lib.Affine(jnp.array([[1.0, -1.0]]), jnp.zeros(2), steps_lib._dense)
    last = steps_lib.Affine(jnp.array([[1.0], [-0.5]]), jnp.zeros(1), steps_lib._dense)
    steps = [first, steps_lib.Relu(), last]
    low, high = jnp.array([[-1.0]]), jnp.array([[2.0]])
    found = bounds.crown(steps, low, high, jnp.eye(1))
    boxes, rows = bounds.tightened(steps, low, high), jnp.ones((1, 1, 1))
    # Below: relu(x) >= x (2 > 1), relu(-x) <= (2 - x) / 3: y >= x - (2 - x) / 6, at -1: -1.5.
    assert float(bounds._lower(steps, boxes, rows)[0, 0]) == pytest.approx(-1.5)
    assert float(found.lower[0, 0]) == pytest.approx(-0.5)  # of intervals, which is tighter here
    # Above: relu(x) <= 2 (x + 1) / 3, relu(-x) >= 0: y <= 2.
    assert float(found.upper[0, 0]) == pytest.approx(2.0)
    assert float(found.unstable[0]) == 1


def test_a_point_is_certified_as_it_is_classified():
    _, _, steps, x = network("mlp")
    logits = steps_lib.forward(steps, x)
    right = jnp.argmax(logits, -1)
    rows = bounds.margins_of(right, 3)
    crown = compiled("mlp", bounds.crown)
    found = crown(x, x, rows)
    assert bounds.certified(found).all()
    margins = np.sort(np.asarray(logits), axis=1)
    np.testing.assert_allclose(
        found.lower.min(1), margins[:, -1] - margins[:, -2], rtol=1e-3, atol=1e-5
    )
    assert not bounds.certified(crown(x - 50, x + 50, rows)).any()
    wrong = bounds.margins_of((right + 1) % 3, 3)
    assert not bounds.certified(crown(x, x, wrong)).any()
    none = jax.jit(bounds.margins_of, static_argnums=1)(right - 3, 3)  # no class, traced
    assert not bounds.certified(crown(x, x, none)).any()
    with pytest.raises(ValueError, match="classes are 0 to 2"):
        bounds.margins_of(right - 3, 3)


def test_other_networks_are_refused():
    module = models.create("resnet20")
    with pytest.raises(ValueError, match="not for ResNet"):
        steps_lib.steps_of(module, {}, (8, 8, 3))

    class Gated(MLP):
        """Has a layer more than it says."""

        def logits(self, *args, **options):
            return nn.Dense(3, name="gate")(super().logits(*args, **options))

    more = Gated(num_classes=3, hidden=(4,))
    variables = more.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
    with pytest.raises(ValueError, match="bounds of Gated know no layer 'gate'"):
        steps_lib.steps_of(more, variables, (2, 2, 1))


def test_attacked_accuracy_is_never_below_what_is_certified():
    module, variables, _, x = network("mlp")
    outputs = jax.tree_util.Partial(module.apply, variables)
    labels = jnp.argmax(outputs(x), -1)
    for radius in (0.02, 0.1, 0.4):
        low, high = x - radius, x + radius
        safe = bounds.certified(
            compiled("mlp", bounds.crown)(low, high, bounds.margins_of(labels, 3))
        )
        survived = losses.survives(outputs, x, labels, low, high, rng.at(0, "probe"), 20, 2)
        assert np.all(np.asarray(survived) | ~np.asarray(safe))


def test_more_restarts_never_help_the_network():
    module, variables, _, x = network("convnet")
    outputs = jax.tree_util.Partial(module.apply, variables)
    labels = jnp.argmax(outputs(x), -1)
    box = (x - 0.3, x + 0.3)
    one, many = (
        losses.survives(outputs, x, labels, *box, rng.at(0, "probe"), 5, n) for n in (1, 4)
    )
    assert np.all(~np.asarray(many) | np.asarray(one))


def test_stability_is_the_share_of_settled_signs():
    module, variables, steps, x = network("mlp")
    found = bounds.stability(module, variables, x, 0.2)
    assert set(found) == {"dense1", "dense2"}
    flat = np.asarray(x).reshape(4, -1)  # of the first layer intervals are exact: by hand
    kernel, bias = np.asarray(steps[0].kernel), np.asarray(steps[0].bias)
    middle, spread = flat @ kernel + bias, 0.2 * np.abs(kernel).sum(0)
    unstable = (middle - spread < 0) & (middle + spread > 0)
    np.testing.assert_allclose(found["dense1"], -unstable.mean(0), atol=1e-6)
    assert not bounds.stability(module, variables, x, 0.0)["dense2"].any()
