"""Attacks, smoothing and hardened training against closed forms and simulation; in studies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from prunejax import losses, rng
from prunejax.configs import default
from prunejax.errors import ConfigError
from prunejax.measures import bounds, smoothing
from prunejax.study.devices.arrangement import device_data
from prunejax.study.loop import measuring
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from prunejax.train import prune as prune_lib
from prunejax.train import step
from prunejax.train.hardening import Harden
from tests.studies import tiny


def test_the_attack_finds_the_worst_corner_of_a_linear_network():
    generator = np.random.default_rng(0)
    w = jnp.asarray(generator.normal(size=(6, 2)), jnp.float32)
    x, labels = jnp.asarray(generator.normal(size=(5, 6)), jnp.float32), jnp.zeros(5, int)
    low, high = x - 0.2, x + 0.2
    outputs = jax.tree_util.Partial(lambda w, z: z @ w, w)
    worst = losses.projected_gradient(
        outputs, x, labels, low, high, key=rng.at(0, "probe"), steps=10
    )
    np.testing.assert_allclose(worst, x + 0.2 * jnp.sign(w[:, 1] - w[:, 0])[None], atol=1e-6)
    margin = np.asarray(x @ (w[:, 0] - w[:, 1])) - 0.2 * np.abs(np.asarray(w[:, 0] - w[:, 1])).sum()
    survives = losses.survives(outputs, x, labels, low, high, rng.at(0, "probe"), 10, 2)
    np.testing.assert_array_equal(survives, margin > 0)


def narrow(hole, value):
    """Of z: class 0 up to 0.5, then class 1; near `hole` the label's logit is `value`."""

    def outputs(hole, z):
        slope = jnp.concatenate([0.5 - z, z - 0.5], 1)
        own = jnp.where(jnp.abs(z[:, 0] - hole) < 0.02, value, slope[:, 0])
        return slope.at[:, 0].set(own)

    return jax.tree_util.Partial(outputs, hole)


def attack(outputs, restarts):
    """Worst input of the box [-1, 1], begun at 0, and whether the network survives."""
    x, labels = jnp.zeros((1, 1)), jnp.zeros(1, int)
    box, key = (x - 1.0, x + 1.0), rng.at(0, "probe")
    worst = losses.projected_gradient(
        outputs, x, labels, *box, key=key, steps=20, restarts=restarts
    )
    survived = losses.survives(outputs, x, labels, *box, key, 20, restarts)
    return float(worst[0, 0]), bool(survived[0])


@pytest.mark.parametrize("restarts", [1, 3])
def test_an_input_with_a_nan_output_is_what_the_attack_looks_for(restarts):
    """Steps of 0.125 from 0 meet the hole before they are past 0.5."""
    worst, survived = attack(narrow(0.25, jnp.nan), restarts)
    assert worst == pytest.approx(0.25)
    assert not survived


def test_an_infinite_right_answer_does_not_end_the_attack():
    """Its cross entropy is NaN (inf - inf), its class is the label."""
    worst, survived = attack(narrow(0.25, jnp.inf), 3)
    assert worst > 0.5
    assert not survived


def test_a_nan_slope_does_not_leave_the_box():
    """Where only the derivative is NaN, the network is right everywhere and stays so."""

    def outputs(one, z):
        kink = one * jnp.sqrt(jnp.abs(z)) * 0  # 0, with a NaN slope at 0
        return jnp.concatenate([1 + kink, -1 + 0.1 * z], 1)

    worst, survived = attack(jax.tree_util.Partial(outputs, jnp.ones(())), 1)
    assert worst == 0.0
    assert survived


def test_an_example_survives_where_all_points_that_the_attack_saw_are_right():
    """By the points themselves; of three classes the largest cross entropy may be a right one."""
    generator = np.random.default_rng(0)
    w, v = (jnp.asarray(generator.normal(size=s), jnp.float32) for s in ((2, 9), (9, 3)))
    seen = []

    def outputs(weights, z):
        jax.debug.callback(lambda z: seen.append(np.array(z, np.float64)), z)
        return jnp.sin(3 * z @ weights[0]) @ weights[1]

    x = jnp.asarray(generator.normal(size=(400, 2)), jnp.float32)
    given = np.sin(3 * np.asarray(x, np.float64) @ np.asarray(w)) @ np.asarray(v)
    labels = jnp.asarray(given.argmax(1))
    box, key = (x - 0.15, x + 0.15), rng.at(0, "probe")
    outputs = jax.tree_util.Partial(outputs, (w, v))
    survived = np.asarray(losses.survives(outputs, x, labels, *box, key, 6, 2))
    jax.effects_barrier()
    points = np.stack(seen)
    assert len(np.unique(points, axis=0)) == 2 * (1 + 6) - 1 + 1  # starts, steps; once more at x
    assert np.abs(points - np.asarray(x)).max() < 0.15 + 1e-6
    classes = (np.sin(3 * points @ np.asarray(w)) @ np.asarray(v)).argmax(-1)
    np.testing.assert_array_equal(survived, (classes == np.asarray(labels)).all(0))
    worst = losses.projected_gradient(outputs, x, labels, *box, key=key, steps=6, restarts=2)
    by_worst = np.asarray(losses.predicted(outputs(worst))) == np.asarray(labels)
    assert (by_worst & ~survived).sum() > 0
    assert not (survived & ~by_worst).any()


def test_clopper_pearson_covers_and_is_scipys():
    for k, n, alpha in ((0, 10, 0.05), (7, 10, 0.05), (10, 10, 0.01), (990, 1000, 0.001)):
        found = smoothing.clopper_pearson(k, n, alpha)
        test = stats.binomtest(k, n, alternative="greater")
        expected = test.proportion_ci(1 - alpha, method="exact").low
        assert float(found) == pytest.approx(expected, abs=1e-12)
    generator = np.random.default_rng(0)
    counts = generator.binomial(200, 0.8, size=20_000)
    missed = np.mean(smoothing.clopper_pearson(counts, 200, 0.05) > 0.8)
    assert 0.02 < missed < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 20_000)


def test_smoothing_a_half_space_gives_its_distance():
    """Of a half space the smoothed radius is the distance to it (Cohen et al., section 3.2)."""
    w = jnp.array([3.0, 4.0])
    outputs = jax.tree_util.Partial(lambda w, z: jnp.stack([z @ w, jnp.zeros(len(z))], 1), w)
    x = jnp.array([[0.3, 0.3], [0.0, 0.001], [-0.2, -0.2]])
    found = smoothing.smooth(outputs, x, 2, 0.5, key=rng.at(0, "probe"), draws=4000)
    distance = np.abs(np.asarray(x @ w)) / 5
    assert list(found.classes[[0, 2]]) == [0, 1]
    assert found.classes[1] == -1  # too near to tell
    assert found.abstentions == pytest.approx(1 / 3)
    for i in (0, 2):
        assert 0.8 * distance[i] < found.radii[i] < distance[i]
    plain = lambda z: outputs(z)  # noqa: E731
    few = [smoothing.smooth(f, x, 2, 0.5, key=rng.at(0, "p"), draws=9) for f in (outputs, plain)]
    np.testing.assert_array_equal(*(f.classes for f in few))
    labels = np.array([0, 0, 1])
    assert found.certified(labels) == pytest.approx(2 / 3)
    assert found.certified(labels, radius=0.35) == pytest.approx(1 / 3)
    for wrong in (labels[:1], labels - 1):  # one for all; -1 is an abstention
        with pytest.raises(ValueError, match="labels of 3 inputs; one each, from 0"):
            found.certified(wrong)
    with pytest.raises(ValueError, match="a positive sigma"):
        smoothing.smooth(outputs, x, 2, 0.0, key=rng.at(0, "probe"))


def test_nan_outputs_are_no_class_of_the_smoothed_network():
    """Of three inputs one gives NaN always, one in a fifth of the draws, one never."""

    def outputs(share, z):
        nan = jnp.arange(3)[:, None] * 10 + jnp.abs(z) > share  # |z| is below 10
        return jnp.where(nan, jnp.nan, jnp.array([[1.0, 0.0]]))

    share = jnp.array([[-1.0], [10 + stats.norm.ppf(0.9)], [99.0]])
    found = smoothing.smooth(
        jax.tree_util.Partial(outputs, share), jnp.zeros((3, 1)), 2, 1.0,
        key=rng.at(0, "probe"), draws=2000,
    )  # fmt: skip
    assert list(found.classes) == [-1, 0, 0]
    assert found.probabilities[0] == 0
    assert 0.75 < found.probabilities[1] < 0.8 < found.probabilities[2]
    assert found.certified(np.zeros(3, int)) == pytest.approx(2 / 3)


def test_hardened_inputs_are_noisy_or_worst():
    x = jnp.full((2000, 3), 0.5)
    w = jnp.array([[1.0, -1.0], [2.0, 0.0], [0.0, 1.0]])
    keys = rng.at(0, "input noise"), rng.at(0, "attack")
    labels = jnp.zeros(2000, int)
    noisy = Harden(noise=0.2).harden(x, labels, lambda z: z @ w, *keys)
    assert float(jnp.std(noisy - x)) == pytest.approx(0.2, rel=0.05)
    # Pixels of 0..1 with mean 0.5 and std 0.25: inputs are in [-2, 2], a radius of 0.1 is 0.4.
    image = Harden(radius=0.1, mean=(0.5,), std=(0.25,))
    found = image.harden(jnp.array([[0.5, -1.9, 1.8]]), labels[:1], lambda z: z @ w, *keys)
    np.testing.assert_allclose(found, [[0.1, -2.0, 2.0]], atol=1e-6)
    # Noise may leave a pixel outside: further than the radius, the nearest pixel is all there is.
    far = image.harden(jnp.array([[-4.0, 2.2, 4.0]]), labels[:1], lambda z: z @ w, *keys)
    np.testing.assert_allclose(far, [[-2.0, 1.8, 2.0]], atol=1e-6)
    assert not Harden().acts


def measured(config, batch, state):
    """The measures of a study: between what is proven and what is right without an attack."""
    settings = config_lib.variants(config, default.get_config())[0].settings
    measurer = measuring.Measurer(batch, settings, print)
    columns, arrays, failed = measurer.measure(jax.tree.map(np.asarray, state))
    assert not failed
    assert columns["interval_certified"] <= columns["crown_certified"] <= columns["pgd_accuracy"]
    context = measurer.context(jax.tree.map(np.asarray, state))
    of = context.network()
    x, labels = of.batches[0]
    right = np.asarray(jnp.argmax(of.module.apply(of.variables, x), -1) == labels)
    assert np.all(right | ~arrays["pgd_accuracy_by_example"][: len(right)])
    assert arrays["smoothed_radii"].shape == (context.examples,)
    # Inputs are pixels in 0..1 less mean over std.
    assert float(jnp.min(x)) >= float(of.low.min()) - 1e-5
    assert float(jnp.max(x)) <= float(of.high.max()) + 1e-5


def test_a_hardened_study_trains_on_other_inputs():
    """One step of the plain study, and of one with noise and an attack: two networks."""
    kernels = {}
    for name, changes in {
        "plain": {}, "both": {"noise": 0.3, "radius": 0.1, "steps": 1}
    }.items():  # fmt: skip
        config = tiny(a={"harden": changes})
        config.model.name, config.model.width = "mlp64_64", 0.125
        config.measures.names, config.measures.examples = ("robustness", "smoothing"), 40
        (batch,) = plan.build(config_lib.variants(config, default.get_config()))
        member = batch.members[0]
        state = step.initial_state(batch.program, np.uint32(0), member.table, member.hyper)
        data = jax.tree.map(jnp.asarray, device_data(batch.dataset))
        one = jax.jit(lambda s, d, b=batch: step.train_steps(b.program, s, d, jnp.int32(1)))
        after = one(state, data)
        if not changes:
            measured(config, batch, after)
        kernels[name] = np.asarray(after.params["dense1"]["kernel"])
        assert int(after.bad_step) == -1
    assert not np.array_equal(kernels["plain"], kernels["both"])


def test_a_study_prunes_the_least_stable_units():
    """The targets of an event are the units of lowest `bounds.stability` on the first examples."""
    prune = {"schedule": "scratch", "score": "stability", "fraction": (0.5,), "layers": ("dense2",)}
    config = tiny(a={"prune": prune})
    config.model.name, config.model.width = "mlp64_64", 0.125
    config.prune.saliency_examples = 16
    (batch,) = plan.build(config_lib.variants(config, default.get_config()))
    member = batch.members[0]
    state = step.initial_state(batch.program, np.uint32(0), member.table, member.hyper)
    data = jax.tree.map(jnp.asarray, device_data(batch.dataset))
    chosen = jax.jit(lambda s, d: prune_lib.select(batch.program, s, d, jnp.int32(0)))(state, data)
    x = step.inputs(batch.program, data.train_images[:16])
    radius = 0.1 / np.array(batch.dataset.std)
    found = bounds.stability(batch.program.module, {"params": state.params}, x, radius)
    order = np.argsort(np.asarray(found["dense2"]), kind="stable")
    worst = found["dense2"][order[3]]
    assert chosen["dense2"].sum() == 4
    assert np.all(np.asarray(found["dense2"])[np.asarray(chosen["dense2"])] <= worst)
    config.model.name = "resnet20"
    config.variants.a.prune.layers = (".*",)
    with pytest.raises(ConfigError, match="bounds MLPs"):
        plan.build(config_lib.variants(config, default.get_config()))
