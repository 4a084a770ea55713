"""Prunability against NumPy, made curves and brute force over every count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

from prunejax import losses, scores
from prunejax.measures import predictors
from prunejax.measures.prunability import GRID, prunability, prune_curve
from prunejax.measures.pruned_evaluation import _scores, evaluated


def table_of(values):
    """A "network" whose loss is looked up by how many weights are left: any curve one likes."""
    return Partial(lambda v, p: v[jnp.count_nonzero(p["w"]["kernel"])], jnp.asarray(values))


def weights(n):
    return {"w": {"kernel": jnp.arange(1.0, n + 1)[None]}}


def mlp(params, x):
    return (
        jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None]) @ params["b"]["kernel"]
    )


def evaluate(params, batch):
    x, y = batch
    logits = mlp(params, x)
    loss = -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y].mean()
    return {"loss": loss, "accuracy": (logits.argmax(-1) == y).mean()}


@pytest.fixture(scope="module")
def trained():
    """Eight small networks and their data: three classes in eight dimensions."""

    def one(key):
        keys = jax.random.split(key, 5)
        y = jax.random.randint(keys[0], (96,), 0, 3)
        x = 1.5 * jax.random.normal(keys[1], (3, 8))[y] + jax.random.normal(keys[2], (96, 8))
        params = {
            "a": {"kernel": 0.4 * jax.random.normal(keys[3], (8, 12)), "bias": jnp.zeros(12)},
            "b": {"kernel": 0.4 * jax.random.normal(keys[4], (12, 3))},
        }
        slope = jax.grad(lambda p: evaluate(p, (x, y))["loss"])
        step = lambda p, _: (jax.tree.map(lambda w, g: w - 0.5 * g, p, slope(p)), None)  # noqa: E731
        return jax.lax.scan(step, params, None, 120)[0], (x, y)

    nets, data = jax.device_get(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 8)))
    pick = lambda tree, i: jax.tree.map(lambda v: jnp.asarray(v[i]), tree)  # noqa: E731
    return [(pick(nets, i), pick(data, i)) for i in range(8)]


def kept_by_numpy(params, count):
    """Magnitude pruning of both kernels by a stable sort."""
    a, b = (np.asarray(params[k]["kernel"]) for k in "ab")
    flat = np.concatenate([a.ravel(), b.ravel()])
    order = np.argsort(-np.abs(flat), kind="stable")
    flat = np.where(np.isin(np.arange(flat.size), order[:count]), flat, 0)
    return {
        "a": {"kernel": flat[: a.size].reshape(a.shape), "bias": params["a"]["bias"]},
        "b": {"kernel": flat[a.size :].reshape(b.shape)},
    }


def test_the_curve_is_that_of_numpys_masks(trained):
    params, data = trained[0]
    curve = prune_curve(evaluate, params, data)
    assert curve.units == 8 * 12 + 12 * 3
    assert curve.examples == 96
    one = jax.jit(evaluate)
    for place in (0, 10, 30, -1):
        count = int(np.ceil(round(curve.fractions[place] * curve.units, 9)))
        expected = one(kept_by_numpy(params, count), data)
        assert curve.values["loss"][place] == pytest.approx(float(expected["loss"]), rel=1e-5)
        assert curve.values["accuracy"][place] == pytest.approx(float(expected["accuracy"]))
        assert sum(c[place] for c in curve.layers.values()) == count
    assert curve.loss == pytest.approx(float(one(params, data)["loss"]), rel=1e-6)
    # Batches of unequal size give the same means.
    batched = prune_curve(evaluate, params, data, batch_size=40)
    np.testing.assert_allclose(batched.values["loss"], curve.values["loss"], rtol=1e-5)


def test_bisection_is_the_grid_within_one_step_and_brute_force_over_counts(trained):
    params, data = trained[1]
    on_grid = prunability(evaluate, params, data, beta=0.3)
    refined = prunability(evaluate, params, data, beta=0.3, refine=True)
    assert on_grid.value - 0.02 <= refined.value <= on_grid.value
    one = jax.jit(evaluate)
    losses = [float(one(kept_by_numpy(params, k), data)["loss"]) for k in range(133)]
    met = np.array(losses) <= 1.3 * losses[-1]
    k = round(refined.value * 132)
    assert refined.count == k
    assert met[k]
    assert not met[k - 1]


def test_cost_and_one_program_for_all(trained):
    class Counts:
        calls = traces = 0

        def call(self):
            self.calls += 1

    seen = Counts()

    def counted(params, batch):
        seen.traces += 1
        jax.debug.callback(seen.call)
        return evaluate(params, batch)

    before = evaluated._cache_size()
    params, (x, y) = trained[2]
    assert len(GRID) == 53  # and no more evaluations than that
    grid = [(i + 1) / 50 for i in range(50)]
    prune_curve(counted, params, (x, y), batch_size=32, grid=grid)
    jax.effects_barrier()
    assert seen.calls / 3 == 50
    first = seen.traces
    for member, data in trained[3:5]:  # other networks and other methods: the same program
        prune_curve(counted, member, data, batch_size=32, grid=grid)
        options = {"method": "random", "draws": 2, "key": jax.random.key(1)}
        prune_curve(counted, member, data, batch_size=32, grid=grid, **options)
    assert seen.traces == first
    assert evaluated._cache_size() == before + 1


def test_both_readings_of_the_smallest():
    losses = [9, 9, 1, 9, 9, 1.05, 9, 1, 1.05, 1, 1.0]  # by weights left
    found = prunability(table_of(losses), weights(10), grid=[i / 10 for i in range(11)])
    assert (found.value, found.monotone, found.count) == (0.2, 0.7, 2)
    strict = prunability(table_of(losses), weights(10), beta=0, grid=[i / 10 for i in range(11)])
    assert (strict.value, strict.monotone) == (0.2, 0.9)
    refined = prunability(table_of(losses), weights(10), grid=[0.1, 0.6, 0.8], refine=True)
    assert (refined.value, refined.monotone, refined.count) == (0.7, 0.7, 7)


def test_live_weights_that_all_matter():
    w = jnp.where(jnp.arange(50) < 20, 1.0, 0.0).reshape(5, 10)
    loss = Partial(lambda target, p: 1 + jnp.sum((p["w"]["kernel"] - target) ** 2), w)
    found = prunability(loss, {"w": {"kernel": w}}, beta=0)
    assert (found.value, found.monotone, found.count) == (0.4, 0.4, 20)
    needed = jnp.arange(1.0, 51.0).reshape(5, 10)
    loss = Partial(lambda target, p: 1 + jnp.sum((p["w"]["kernel"] - target) ** 2), needed)
    assert prunability(loss, {"w": {"kernel": needed}}, beta=0).value == 1


def test_falls_with_beta(trained):
    curve = prune_curve(evaluate, *trained[5])
    for tolerance in ("relative", "absolute", "accuracy"):
        found = [curve.at(beta, tolerance).value for beta in (0, 0.01, 0.1, 0.3, 1)]
        assert found == sorted(found, reverse=True), tolerance
    assert curve.core() == curve.at(0.05, "accuracy").value


def test_layers_rescaled(trained):
    """The function stays; global magnitude ranks layers against each other, layerwise does not."""
    params, data = trained[6]
    other = {
        "a": jax.tree.map(lambda w: 16.0 * w, params["a"]),
        "b": {"kernel": params["b"]["kernel"] / 16},
    }
    curves = {
        s: [prune_curve(evaluate, p, data, scope=s) for p in (params, other)]
        for s in ("global", "layer")
    }
    a, b = curves["layer"]
    np.testing.assert_allclose(a.values["loss"], b.values["loss"], rtol=1e-4)
    assert a.at().value == b.at().value
    assert [int(c[10]) for c in a.layers.values()] == [int(np.ceil(0.22 * n)) for n in (96, 36)]
    a, b = (prune_curve(evaluate, p, data) for p in (params, other))
    assert a.at().value != b.at().value
    assert "b/kernel" in b.at(100).collapsed


def test_random_masks_cost_more_than_magnitude(trained):
    found = []
    for i, (params, data) in enumerate(trained):
        options = {"method": "random", "draws": 4, "key": jax.random.key(i)}
        random = prune_curve(evaluate, params, data, **options)
        assert random.draws["loss"].shape == (4, random.fractions.size)
        assert random.at(1).stderr >= 0
        found.append((random.at(1).value, prune_curve(evaluate, params, data).at(1).value))
    random, magnitude = np.array(found).T
    assert (random >= magnitude).all()
    assert random.mean() > magnitude.mean() + 0.1


def test_random_masks_do_not_follow_weights_of_the_same_key():
    key = jax.random.key(3)
    drawn = {name: jax.random.uniform(key, (100, 100)) for name in "ab"}
    params = {name: {"kernel": w} for name, w in drawn.items()}
    found = _scores("random", params, None, 2, key)
    columns = [np.ravel(tree[n]["kernel"]) for tree in (*found, params) for n in "ab"]
    related = stats.spearmanr(np.array(columns[:5]).T).statistic - np.eye(5)
    assert np.abs(related).max() < 0.05


def test_a_loss_of_zero_switches_the_tolerance_and_says_so():
    found = prunability(table_of([1, 0.01, 5e-4, 0]), weights(3), grid=[0, 1 / 3, 2 / 3])
    assert found.switched
    assert found.count == 2
    assert not prunability(table_of([1, 1.0]), weights(1)).switched
    with pytest.raises(ValueError, match="use tolerance='absolute'"):
        prunability(table_of([0, -1.0]), weights(1))


def test_losses_that_are_not_finite_fail():
    found = prunability(table_of([np.nan, np.nan, -np.inf, 1]), weights(3), grid=[0, 0.3, 0.6])
    assert found.value == 1
    with pytest.raises(ValueError, match="the network itself is nan"):
        prunability(table_of([1, np.nan]), weights(1))


def test_where_targets_are_numbers_there_is_no_accuracy_to_keep():
    table = table_of([4, 2, 1])

    def regression(params):
        return {"loss": table(params), "accuracy": jnp.nan}

    curve = prune_curve(regression, weights(2), grid=[0, 0.5])
    assert curve.at(1.0).value == 0.5
    with pytest.raises(ValueError, match="accuracy is nan, as where targets are numbers"):
        curve.at(0.05, "accuracy")

    class Context:
        outputs = staticmethod(lambda params, batch: batch)
        params, test = None, [jnp.zeros((3, 1))]

    Context.curve = curve
    columns, _ = predictors.prunability(Context)
    assert columns["prunability"] == 1
    assert np.isnan([columns["prunability_area"], columns["core_fraction"]]).all()


@pytest.mark.parametrize(
    ("loss", "cap"), [("cross_entropy", np.log(5)), ("mse", 1 / 5), ("hinge", 1.0), ("own", 3.0)]
)
def test_areas_end_at_the_loss_of_a_constant_guess(loss, cap, monkeypatch):
    """By closed form; every network of this curve is worse than that but the whole one."""
    monkeypatch.setitem(losses.LOSSES, "own", lambda z, y: 3.0 + jnp.sum(z, -1) + 0.0 * y)
    table = table_of([7, 7, 0.1])
    curve = prune_curve(
        lambda p: {"loss": table(p), "accuracy": jnp.float32(0.5)}, weights(2), grid=[0, 0.5]
    )
    labels = [jnp.array([0, 1, 4]), jnp.array([2])]

    class Context:
        outputs = staticmethod(lambda params, batch: batch[0])
        params, batches = None, [(jnp.ones((len(y), 5)), y) for y in labels]
        loss_of = None if loss == "cross_entropy" else functools.partial(losses.objective, loss)

    Context.curve = curve
    columns, _ = predictors.prunability(Context)
    assert columns["prunability_area"] == pytest.approx(cap / 2 + (cap + 0.1) / 4, rel=1e-6)
    Context.loss_of = staticmethod(lambda z, y: jnp.full(len(y), jnp.inf))
    assert np.isnan(predictors.prunability(Context)[0]["prunability_area"])


def test_area_and_collapse():
    curve = prune_curve(table_of([np.inf, 4, 2, 1]), weights(3), grid=[0, 1 / 3, 2 / 3])
    assert curve.area(cap=3) == pytest.approx((3 + 3) / 6 + (3 + 2) / 6 + (2 + 1) / 6)
    assert curve.area() == np.inf
    empty = prunability(table_of([1, 1.0, 1]), weights(2), grid=[0, 0.5])
    assert (empty.value, empty.count, empty.collapsed) == (0, 0, ("w/kernel",))


def test_scores_masks_and_rules(trained):
    params, data = trained[7]
    slope = jax.jit(jax.grad(lambda p: evaluate(p, data)["loss"]))
    tree = jax.jit(lambda p: jax.tree.map(scores.saliency, p, slope(p)))(params)
    tree["a"]["bias"] = jnp.zeros(())
    assert prune_curve(evaluate, params, data, method=tree, grid=[0.5]).units == 132
    units = {
        "a": {"kernel": jnp.ones((1, 12)), "bias": jnp.ones(12)},
        "b": {"kernel": jnp.zeros(())},
    }
    assert prune_curve(evaluate, params, data, method=units, grid=[0.5]).units == 24
    only = prune_curve(evaluate, params, data, prunable="b/kernel", grid=[0.5])
    assert (only.units, list(only.layers)) == (36, ["b/kernel"])
    # What is dead stays dead, and is no obstacle: half of it can go at no cost.
    half = jax.tree.map(lambda w: jnp.arange(w.size).reshape(w.shape) % 2 == 0, params)
    half["a"]["bias"] = jnp.array(True)
    options = {"method": "random", "draws": 2, "key": jax.random.key(0), "masks": half}
    curve = prune_curve(evaluate, params, data, grid=[0.5, 0.75], **options)
    assert [sum(c) for c in zip(*curve.layers.values(), strict=True)] == [66, 66, 66]
    assert curve.values["loss"][0] == curve.values["loss"][1] == curve.loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "block"}, "scope 'block' is not one of"),
        ({"method": "large"}, "method 'large' is not one of"),
        ({"method": "random"}, "needs a key"),
        ({"grid": [0.5, 1.5]}, "grid from 0.5 to 1.5"),
        ({"grid": [0.5, float("nan")]}, "grid from nan to nan"),
        ({"tolerance": "loss"}, "tolerance 'loss' is not one of"),
        ({"tolerance": "accuracy"}, "needs evaluate to return an 'accuracy'"),
        ({"beta": -1}, "beta is -1"),
        ({"prunable": {"w": {"kernel": False}}}, "no leaf is prunable"),
    ],
)
def test_bad_requests(options, message):
    with pytest.raises(ValueError, match=message):
        prunability(table_of([1, 1.0]), weights(1), **options)


def test_a_tree_of_flags_may_be_a_list():
    """As the parameters then are one; a list of words is rules."""
    params = [jnp.arange(1.0, 5.0)[None], jnp.arange(5.0, 9.0)[None]]
    found = [_scores("magnitude", params, of, 1, None)[0] for of in ([True, False], ["0"], "0")]
    for scored in found:
        np.testing.assert_array_equal(scored[0], params[0])
        assert scored[1].shape == ()
