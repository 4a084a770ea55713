"""Lines, planes, directions and epsilon-flatness against closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prunejax import rng
from prunejax.curvature import means
from prunejax.curvature.directions import filter_normalize, random_directions, unit
from prunejax.curvature.perturb import (
    PAPER_GRID,
    Line,
    eigenvector_perturbation,
    epsilon_flatness,
    line,
    slice_1d,
    slice_2d,
)
from tests import curvature_cases as cases


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def normal(name, *shape):
    return cases.normal(7, name, *shape)


def regression():
    """Nested tuples; loss and a second quantity, as means over a batch."""
    params = ((normal("w", 3, 4),), normal("v", 4))
    data = (normal("x", 10, 3), normal("y", 10))

    def evaluate(params, batch):
        (w,), v = params
        error = jnp.tanh(batch[0] @ w) @ v - batch[1]
        return {"loss": jnp.mean(error**2), "accuracy": jnp.mean(jnp.abs(error) < 1)}

    return evaluate, params, data


def quadratic(eigenvalues, offset=0.0):
    """L(p) = Σ λ_i p_i^2 / 2 + offset, split over the leaves of a dict."""
    h = jnp.asarray(eigenvalues, jnp.float64)

    def loss(p):
        return 0.5 * jnp.sum(h * jnp.concatenate([p["a"], p["b"]]) ** 2) + offset

    return loss, {"a": jnp.zeros(1), "b": jnp.zeros(len(eigenvalues) - 1)}


def basis(n):
    eye = jnp.eye(n)
    return {"a": eye[:, :1], "b": eye[:, 1:]}


def test_line_equals_a_python_loop():
    evaluate, params, data = regression()
    directions = jax.tree.map(lambda p: normal(f"d{p.shape}", 3, *p.shape), params)
    grid = [0.5, -1.0, 0.0, 0.25]
    result = line(evaluate, params, directions, grid, data)
    assert result.grid.tolist() == [-1.0, 0.0, 0.25, 0.5]
    for d in range(3):
        for e, epsilon in enumerate(result.grid):
            moved = jax.tree.map(lambda p, v, d=d, e=epsilon: p + e * v[d], params, directions)
            expected = evaluate(moved, data)
            for name, value in expected.items():
                np.testing.assert_allclose(result.values[name][d, e], value, rtol=1e-12)
    here = evaluate(params, data)
    np.testing.assert_allclose([result.base[k] for k in here], list(here.values()), rtol=1e-12)
    np.testing.assert_allclose(
        result.increase(), result.values["loss"] - float(here["loss"]), rtol=1e-12, atol=1e-14
    )
    assert (result.examples, result.live_dim) == (10, 16)


@pytest.mark.parametrize("split", ["list", 3, 4, 10, 64])
def test_the_split_is_weighted_by_size(split):
    evaluate, params, data = regression()
    direction = jax.tree.map(lambda p: normal("d", *p.shape), params)
    whole = slice_1d(evaluate, params, direction, [0.3], data)
    if split == "list":
        cuts = ((0, 1), (1, 5), (5, 9), (9, 10))
        batches = [jax.tree.map(lambda x, s=slice(*c): x[s], data) for c in cuts]
        parts = slice_1d(evaluate, params, direction, [0.3], batches)
    else:
        parts = slice_1d(evaluate, params, direction, [0.3], data, batch_size=split)
    for name, value in whole.values.items():
        np.testing.assert_allclose(parts.values[name], value, rtol=1e-12)
    assert parts.examples == 10


def test_plain_numpy_batches_and_iterators():
    x = np.arange(6.0).reshape(3, 2)
    evaluate = lambda p, b: jnp.mean(b @ p)  # noqa: E731
    whole = slice_1d(evaluate, jnp.ones(2), jnp.ones(2), [0.5], x)
    parts = slice_1d(evaluate, jnp.ones(2), jnp.ones(2), [0.5], iter([x[:1], x[1:]]))
    assert whole.values["loss"] == pytest.approx(7.5)
    assert parts.values["loss"] == pytest.approx(7.5)
    assert (whole.examples, parts.examples) == (3, 3)


def test_equal_batches_share_one_scan():
    groups = means.stacked_groups(jnp.arange(10), 4)
    assert [g.shape for g in groups] == [(2, 4), (1, 2)]


def test_the_whole_split_is_one_trace_of_evaluate_per_batch_size():
    count = []

    def evaluate(params, batch):
        count.append(1)
        return jnp.mean(batch * params)

    line(evaluate, jnp.ones(()), jnp.ones((5,)), np.linspace(-1, 1, 21), jnp.ones(64), batch_size=8)
    assert len(count) <= 3  # its shape, and the body of the scan


def test_masks_hold_dead_coordinates_in_place():
    loss, params = quadratic([1.0, 2.0, 4.0])
    masks = {"a": jnp.array(True), "b": jnp.array([True, False])}
    result = line(loss, params, {k: v[None] for k, v in params.items()}, [1.0], masks=masks)
    assert result.live_dim == 2
    moved = line(loss, params, jax.tree.map(lambda p: jnp.ones((1, *p.shape)), params), [1.0])
    masked = line(
        loss, params, jax.tree.map(lambda p: jnp.ones((1, *p.shape)), params), [1.0], masks=masks
    )
    assert moved.values["loss"][0, 0] == 3.5
    assert masked.values["loss"][0, 0] == 1.5


def test_eigenvectors_are_scaled_to_unit_length_over_the_live_vector():
    loss, params = quadratic([2.0, 6.0, 10.0])
    directions = jax.tree.map(lambda x: 7.0 * x, basis(3))
    result = eigenvector_perturbation(loss, params, directions)
    assert result.grid.size == 81
    expected = 0.5 * np.array([2.0, 6.0, 10.0])[:, None] * PAPER_GRID**2
    np.testing.assert_allclose(result.increase(), expected, atol=1e-14)
    diagonal = {"a": jnp.ones((1, 1)), "b": jnp.ones((1, 2))}
    masked = eigenvector_perturbation(
        loss, params, diagonal, grid=[1.0], masks={"a": jnp.array(False), "b": jnp.array(True)}
    )
    np.testing.assert_allclose(masked.values["loss"], 0.5 * (6 + 10) / 2)


def test_plane_equals_the_closed_form():
    loss, params = quadratic([1.0, 3.0])
    surface = slice_2d(loss, params, basis(2), [0.0, 1.0, 2.0], [-1.0, 1.0])
    expected = 0.5 * (1.0 * surface.x[:, None] ** 2 + 3.0 * surface.y[None] ** 2)
    np.testing.assert_allclose(surface.values["loss"], expected, rtol=1e-12)
    assert surface.base["loss"] == 0.0
    with pytest.raises(ValueError, match="two directions, got 3"):
        slice_2d(*quadratic([1.0, 2.0, 3.0]), basis(3), [0.0], [0.0])


def test_bfloat16_parameters_move_in_float32_and_stay_bfloat16():
    seen = []

    def evaluate(params):
        seen.append(params.dtype)
        return jnp.sum(params.astype(jnp.float32))

    # Two steps of 2^-9: each alone would be lost next to 1 in bfloat16, their sum is not.
    params = jnp.ones(4, jnp.bfloat16)
    directions = jnp.full((2, 4), 2.0**-9, jnp.bfloat16)
    surface = slice_2d(evaluate, params, directions, [2.0], [2.0])
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    assert surface.values["loss"][0, 0] == 4 * (1 + 2**-7)


def test_nnx_and_equinox_parameters():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    graph, state = nnx.split(model, nnx.Param)
    x = normal("x", 5, 3)

    def evaluate(state, batch):
        return jnp.mean(nnx.merge(graph, state)(batch) ** 2)

    directions = random_directions(state, 2, key=rng.at(0, "probe"))
    result = line(evaluate, state, directions, [0.0, 0.1], x)
    np.testing.assert_allclose(result.values["loss"][:, 0], evaluate(state, x), rtol=1e-12)

    tree, static = eqx.partition(
        eqx.nn.Linear(3, 2, dtype=jnp.float64, key=jax.random.key(0)), eqx.is_inexact_array
    )

    def evaluate_eqx(tree, batch):
        return jnp.mean(jax.vmap(eqx.combine(tree, static))(batch) ** 2)

    directions = random_directions(tree, 1, key=rng.at(0, "probe"), normalization="filter")
    result = line(evaluate_eqx, tree, directions, [0.2], x)
    moved = jax.tree.map(lambda p, d: p + 0.2 * d[0], tree, directions.vectors)
    np.testing.assert_allclose(result.values["loss"][0, 0], evaluate_eqx(moved, x), rtol=1e-12)


def test_random_directions_are_unit_live_and_reproducible():
    params = {"w": normal("w", 30, 40), "b": normal("b", 7)}
    masks = {"w": normal("m", 30, 40) > 0, "b": jnp.array(True)}
    key = rng.at(1, "probe")
    found = random_directions(params, 3, key=key, masks=masks)
    norms = sum((x.reshape(3, -1) ** 2).sum(1) for x in jax.tree.leaves(found.vectors))
    np.testing.assert_allclose(norms, 1.0, rtol=1e-12)
    assert not np.any(np.asarray(found.vectors["w"])[:, ~np.asarray(masks["w"])])
    assert found.excluded == ()
    more = random_directions(params, 5, key=key, masks=masks)
    np.testing.assert_allclose(more.vectors["w"][:3], found.vectors["w"], rtol=1e-12)
    raw = np.asarray(random_directions(params, 40, key=key, normalization="none").vectors["w"])
    np.testing.assert_allclose([raw.mean(), raw.std()], [0.0, 1.0], atol=4 / np.sqrt(raw.size))


def test_filter_normalization_matches_each_filter():
    params = {"k": normal("k", 3, 3, 2, 5), "bias": normal("b", 5), "scale": jnp.ones(())}
    params["k"] = params["k"].at[..., 4].set(0.0)
    masks = {"k": normal("m", 3, 3, 2, 5) > 0, "bias": jnp.array(True), "scale": jnp.array(True)}
    found = random_directions(
        params, 2, key=rng.at(2, "probe"), normalization="filter", masks=masks
    )
    assert set(found.excluded) == {"bias", "scale"}
    assert not np.any(found.vectors["bias"])
    assert not np.any(found.vectors["scale"])
    live = np.where(masks["k"], params["k"], 0)
    for d in np.asarray(found.vectors["k"]):
        assert not np.any(d[~np.asarray(masks["k"])])
        for j in range(5):
            np.testing.assert_allclose(
                np.linalg.norm(d[..., j]), np.linalg.norm(live[..., j]), rtol=1e-12, atol=0
            )
    direction = {"k": jnp.ones((3, 3, 2, 5)), "bias": jnp.ones(5), "scale": jnp.ones(())}
    once = filter_normalize(direction, params)
    ratio = np.asarray(once["k"][0, 0, 0]) * np.sqrt(18)
    lengths = [np.linalg.norm(params["k"][..., j]) for j in range(5)]
    np.testing.assert_allclose(ratio, lengths, rtol=1e-12)


def test_unit_leaves_zero_vectors_alone():
    stack = {"a": jnp.array([[3.0], [0.0]]), "b": jnp.array([[4.0], [0.0]])}
    scaled = unit(stack)
    np.testing.assert_allclose(scaled["a"], [[0.6], [0.0]])
    np.testing.assert_allclose(scaled["b"], [[0.8], [0.0]])


@pytest.mark.parametrize("largest", [8.0, 10.0, 55.5])
def test_epsilon_flatness_of_a_quadratic(largest):
    """The loss rises by t at |ε| = sqrt(2 t / λ); on the grid at the next multiple of 0.01."""
    loss, params = quadratic([1.0, largest, -3.0], offset=2.5)
    flat = epsilon_flatness(eigenvector_perturbation(loss, params, basis(3)), threshold=0.1)
    exact = np.sqrt(0.2 / largest)
    assert flat.value == pytest.approx(np.ceil(exact * 100 - 1e-9) / 100, abs=1e-12)
    # Between two grid points the parabola lies below its chord by at most λ h^2 / 8.
    assert 0 <= exact - flat.interpolated + 1e-12 <= 0.01**2 / (8 * exact) + 1e-9
    assert (flat.direction, flat.reached) == (1, True)
    fine = eigenvector_perturbation(loss, params, basis(3), grid=np.linspace(-0.4, 0.4, 4001))
    assert epsilon_flatness(fine).interpolated == pytest.approx(exact, rel=1e-5)


def test_epsilon_flatness_takes_the_steeper_side():
    def loss(p):
        return jnp.where(p > 0, 5.0 * p, -20.0 * p)[0]

    flat = epsilon_flatness(line(loss, jnp.zeros(1), jnp.ones((1, 1)), PAPER_GRID))
    assert flat.sign == -1
    assert flat.interpolated == pytest.approx(0.1 / 20)
    assert flat.value == pytest.approx(0.01)


def test_epsilon_flatness_without_a_crossing_is_infinite_and_says_so():
    loss, params = quadratic([1e-3, 1e-3])
    flat = epsilon_flatness(eigenvector_perturbation(loss, params, basis(2)))
    assert (flat.value, flat.interpolated, flat.reached) == (np.inf, np.inf, False)
    assert (flat.direction, flat.sign, flat.largest) == (-1, 0, 0.4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_counts_as_risen(bad):
    values = np.array([[bad, 0.01, 0.0, 0.02, bad]])
    along = Line(np.array([-0.3, -0.1, 0.0, 0.1, 0.2]), {"loss": values}, {"loss": 0.0}, 1, 1)
    flat = epsilon_flatness(along)
    assert (flat.value, flat.interpolated, flat.sign) == (0.2, 0.2, 1)


def test_the_smallest_crossing_over_directions_decides():
    grid = np.array([-0.2, -0.1, 0.1, 0.2])
    values = np.array([[1.0, 0.0, 0.0, 1.0], [0.3, 0.0, 0.05, 5.0]])
    flat = epsilon_flatness(Line(grid, {"loss": values}, {"loss": 0.0}, 1, 1))
    assert flat.value == 0.2
    assert (flat.direction, flat.sign) == (1, 1)  # direction 0 crosses at 0.11
    assert flat.interpolated == pytest.approx(0.1 + 0.1 * 0.05 / 4.95)


def test_wrong_inputs_say_what_is_allowed():
    evaluate, params, data = regression()
    directions = jax.tree.map(lambda p: jnp.ones((2, *p.shape)), params)
    with pytest.raises(ValueError, match="grid must hold"):
        line(evaluate, params, directions, [], data)
    with pytest.raises(ValueError, match="grid must hold"):
        line(evaluate, params, directions, [0.0, np.nan], data)
    with pytest.raises(ValueError, match="a single direction is given as"):
        line(evaluate, params, params, [0.0], data)
    with pytest.raises(ValueError, match=r"scalars.*\(10,\)"):
        line(lambda p, b: b[1], params, directions, [0.0], data)
    with pytest.raises(ValueError, match="dtype int"):
        line(lambda p: jnp.sum(p), jnp.arange(3), jnp.ones((1, 3)), [0.0])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        line(evaluate, params, directions, [0.0], data, batch_size=0)
    with pytest.raises(ValueError, match="cut already"):
        line(evaluate, params, directions, [0.0], [data], batch_size=2)
    with pytest.raises(ValueError, match=r"unknown normalization 'units'.*Did you mean 'unit'"):
        random_directions(params, 1, key=rng.at(0, "probe"), normalization="units")
    with pytest.raises(ValueError, match="count must be at least 1"):
        random_directions(params, 0, key=rng.at(0, "probe"))
    along = line(evaluate, params, directions, [0.1], data)
    with pytest.raises(ValueError, match="the line has: accuracy, loss"):
        epsilon_flatness(along, quantity="error")
    with pytest.raises(ValueError, match="threshold must be positive"):
        epsilon_flatness(along, threshold=0.0)


@pytest.mark.parametrize("base", [np.nan, np.inf])
def test_nothing_rises_from_a_loss_that_is_not_finite(base):
    values = {"loss": np.array([[1.0, 2.0]]), "error": np.array([[0.0, 1.0]])}
    along = Line(np.array([-0.1, 0.1]), values, {"loss": base, "error": 0.0}, 1, 1)
    with pytest.raises(ValueError, match=f"the loss is {base} at ε = 0"):
        epsilon_flatness(along)
    assert epsilon_flatness(along, quantity="error").value == 0.1
