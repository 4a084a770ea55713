"""Eigenpairs, spectral densities and the released power iteration against dense matrices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import curvature
from prunejax.curvature import basis, vectors
from prunejax.curvature.density import smoothed
from prunejax.curvature.eigenpairs import ORDERS
from prunejax.curvature.krylov import Krylov
from tests import curvature_cases as cases

KEY = jax.random.key(0)
SPREAD = np.concatenate([10.0 * 0.8 ** np.arange(12), -3.0 * 0.6 ** np.arange(6), np.zeros(42)])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def prescribed(values: Any, masks: Any = None) -> tuple[np.ndarray, curvature.Operator]:
    matrix, like, matvec = cases.with_spectrum(values)
    return matrix, curvature.from_matvec(matvec, like, masks)


def rows(stack: Any, count: int) -> np.ndarray:
    on_host = jax.tree.map(np.asarray, stack)
    return np.stack([cases.flat(vectors.index(on_host, i)) for i in range(count)])


def check_pairs(found: Any, matrix: np.ndarray, k: int, tolerance: float) -> np.ndarray:
    """Values, vectors and residuals against the dense matrix; returns the vectors [k, n]."""
    wanted = np.linalg.eigvalsh(matrix)
    wanted = wanted[np.argsort(ORDERS[found.which](wanted), kind="stable")][:k]
    if found.which == "magnitude":
        wanted, values = np.abs(wanted), np.abs(found.values)  # signs of equal sizes may differ
    else:
        values = found.values
    np.testing.assert_allclose(values, wanted, atol=tolerance)
    assert np.all(np.diff(ORDERS[found.which](found.values)) >= 0)
    v = rows(found.vectors, k)
    np.testing.assert_allclose(v @ v.T, np.eye(k), atol=1e-10)
    left = np.linalg.norm(v @ matrix - found.values[:, None] * v, axis=1)
    np.testing.assert_allclose(found.residuals, left, rtol=1e-3, atol=1e-11)
    assert found.converged.all()
    return v


@pytest.mark.parametrize("which", list(ORDERS))
@pytest.mark.parametrize("basis_size", [None, 14])
def test_extreme_pairs_of_a_prescribed_spectrum(which: str, basis_size: int | None):
    matrix, operator = prescribed(SPREAD)
    found = curvature.eigenpairs(
        operator, 5, key=KEY, which=which, tolerance=1e-7, basis_size=basis_size
    )
    check_pairs(found, matrix, 5, 1e-7)
    assert found.checks == 5
    assert (found.restarts > 0) == (basis_size is not None)
    assert found.products < (60 if basis_size is None else 150)


@pytest.mark.parametrize(
    "values",
    [
        [5.0, 5.0, 5.0, 4.0, 4.0, -4.0, -4.0, 1.0] + [0.5] * 6 + [0.0] * 6,
        [2.0] * 20,
        [0.0] * 20,
        [3.0, 3.0] + [0.0] * 18,
    ],
)
def test_multiple_eigenvalues_are_counted_and_full_depth_is_exact(values: list[float]):
    matrix, operator = prescribed(values)
    for which in ORDERS:
        few = curvature.eigenpairs(operator, 4, key=KEY, which=which, tolerance=1e-9)
        check_pairs(few, matrix, 4, 1e-9)
    everything = curvature.eigenpairs(operator, len(values), key=KEY)
    check_pairs(everything, matrix, len(values), 1e-10)
    assert everything.products == len(values)


@pytest.mark.parametrize("basis_size", [10, 11, 12, 13])
def test_an_invariant_space_that_leaves_one_row_loses_no_part_of_a_product(basis_size: int):
    """Of three eigenvalues each start vector's space ends after three products: at 9 of 10 rows."""
    matrix, operator = prescribed(np.repeat([1.0, 4.0, 9.0], 7))
    space = Krylov(operator, basis_size, KEY)
    for _ in range(3):
        space.steps(3)
        assert space.done == space.basis.size
    for which in ORDERS:
        found = curvature.eigenpairs(
            operator, 4, key=KEY, which=which, tolerance=1e-9, basis_size=basis_size
        )
        check_pairs(found, matrix, 4, 1e-8)


@pytest.mark.parametrize("masked", [False, True])
def test_pairs_of_a_networks_hessian(masked: bool):
    case = cases.mlp()
    masks = cases.masks_for(case.params) if masked else None
    alive = cases.live(case.params, masks) if masked else np.ones(cases.flat(case.params).size)
    matrix = cases.restricted(cases.dense_hessian_of(case), alive)
    inner = matrix[np.ix_(alive > 0, alive > 0)]
    for which in ORDERS:
        found = curvature.top_eigenpairs(
            case.loss, case.params, 3, case.batches, key=KEY, masks=masks, which=which,
            tolerance=1e-8,
        )  # fmt: skip
        assert (found.live_dim, found.examples) == (len(inner), 11)
        values = np.linalg.eigvalsh(inner)
        values = values[np.argsort(ORDERS[which](values))][:3]
        np.testing.assert_allclose(found.values, values, atol=1e-7)
        v = rows(found.vectors, 3)
        assert np.all(v[:, alive == 0] == 0)
        left = np.linalg.norm(v @ matrix - found.values[:, None] * v, axis=1)
        np.testing.assert_allclose(found.residuals, left, rtol=1e-3, atol=1e-11)
    full = curvature.top_eigenpairs(
        case.loss, case.params, len(inner), case.data, key=KEY, masks=masks
    )
    np.testing.assert_allclose(full.values, np.linalg.eigvalsh(inner)[::-1], atol=1e-11)
    assert full.live_dim == full.products == len(inner)


def test_pairs_of_a_gauss_newton_matrix_without_batches():
    """The output loss then takes the outputs alone, as in products."""
    a = np.random.default_rng(0).normal(size=(6, 4))
    outputs = lambda p: jnp.asarray(a) @ p  # noqa: E731
    operator = curvature.GaussNewton(outputs, lambda z: jnp.sum(z**2), jnp.zeros(4))
    check_pairs(curvature.eigenpairs(operator, 2, key=KEY), 2 * a.T @ a, 2, 1e-9)


def test_float32_parameters_have_a_spectrum_where_float64_is_enabled():
    """A basis keeps the parameters' type; JAX warns of casts in an update, and that fails here."""
    a = np.random.default_rng(1).normal(size=(6, 4))
    narrow = jnp.asarray(a, jnp.float32)
    operator = curvature.Hessian(lambda p: jnp.sum((narrow @ p) ** 2), jnp.zeros(4, jnp.float32))
    found = curvature.eigenpairs(operator, 2, key=KEY)
    assert found.vectors.dtype == jnp.float32
    values = np.linalg.eigvalsh(2 * a.T @ a)
    np.testing.assert_allclose(found.values, values[:1:-1], rtol=1e-5)
    density = curvature.estimate_density(operator, key=KEY, starts=1)  # at full depth
    np.testing.assert_allclose(density.nodes[0], values, rtol=1e-4)
    trace = curvature.estimate_trace(operator, key=KEY, method="xtrace", probes=12)  # all of it
    np.testing.assert_allclose(trace.value, values.sum(), rtol=1e-5)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-8])
def test_a_search_ends_two_products_late_at_most_and_seldom_asks_the_device(
    tolerance: float, monkeypatch: Any
):
    """Ritz values are not looked at after every product; by a loop that does, written here."""
    calls, extend = [], basis._extend_by_rows

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args[2])
        return extend(*args, **options)

    monkeypatch.setattr(basis, "_extend_by_rows", counted)
    case, k = cases.mlp(), 5
    operator = curvature.Hessian(case.loss, case.params, case.data)
    space = Krylov(operator, 50, vectors.named_key(KEY, "lanczos"))
    while True:
        space.steps(1)
        values, _, left = space.ritz()
        wanted = np.argsort(-np.abs(values))[:k]
        if space.done >= k and np.all(left[wanted] <= tolerance * space.norm):
            break
    assert calls == [1] * space.products
    calls.clear()
    found = curvature.eigenpairs(operator, k, key=KEY, which="magnitude", tolerance=tolerance)
    assert found.converged.all()
    until = [n + max(10, n // 5) for n in range(space.products, space.products + 3)]
    assert min(found.products, operator.live_dim) in [min(n, operator.live_dim) for n in until]
    assert sum(calls) >= found.products
    assert len(calls) < found.products / 2


def test_unconverged_pairs_say_so():
    _, operator = prescribed(np.linspace(0.9, 1.0, 60))
    found = curvature.eigenpairs(operator, 4, key=KEY, tolerance=1e-8, max_products=12)
    assert found.products == 12
    assert not found.converged.any()
    assert np.all(found.residuals > 1e-8)


def test_float32_pairs_of_a_convolutional_network():
    with jax.enable_x64(False):
        case = jax.tree.map(jnp.asarray, cases.conv_net()._replace(model=None, output_loss=None))
        case = case._replace(model=cases.conv_net().model, output_loss=cases.cross_entropy)
        found = curvature.top_eigenpairs(
            case.loss, case.params, 6, case.batches, key=KEY, which="magnitude"
        )
    exact = cases.conv_net()
    values = np.linalg.eigvalsh(cases.dense_hessian_of(exact))
    values = values[np.argsort(-np.abs(values))][:6]
    assert found.vectors["conv1"].dtype == jnp.float32
    assert found.converged.all()
    np.testing.assert_allclose(found.values, values, atol=1e-4 * np.abs(values).max())


def test_matfree_builds_the_same_tridiagonal_matrix():
    decomp = pytest.importorskip("matfree.decomp")
    matrix, operator = prescribed(SPREAD)
    space = Krylov(operator, 12, KEY)
    space.basis.append_random(KEY, 0)
    while space.done < 12:
        space.steps(1)
    start = jnp.asarray(cases.flat(space.basis[0]))
    result = decomp.tridiag_sym(12, reortho="full")(lambda v: jnp.asarray(matrix) @ v, start)
    dense = result.J_small
    np.testing.assert_allclose(space.matrix[:12, :12], dense, atol=1e-8)


def test_a_basis_that_does_not_fit_is_refused_with_its_size():
    _, operator = prescribed(SPREAD)
    eigenpairs = functools.partial(curvature.eigenpairs, operator, key=KEY)
    bytes_of_one = 60 * 8
    small = eigenpairs(3, memory_bytes=10 * bytes_of_one, tolerance=1e-6)
    assert small.restarts > 0
    assert small.converged.all()
    with pytest.raises(ValueError, match=f"takes {9 * bytes_of_one} bytes or more"):
        eigenpairs(3, memory_bytes=5 * bytes_of_one)
    with pytest.raises(ValueError, match="basis_size is 5; 3 pairs need at least 9"):
        eigenpairs(3, basis_size=5)
    with pytest.raises(ValueError, match=r"k must be 1\.\.60"):
        eigenpairs(61)
    with pytest.raises(ValueError, match="max_products is 2"):
        eigenpairs(3, max_products=2)
    with pytest.raises(ValueError, match=r"part of the spectrum 'botom'.*Did you mean 'bottom'"):
        eigenpairs(3, which="botom")


def test_density_at_full_depth_has_the_moments_of_the_start_vectors():
    matrix, operator = prescribed(SPREAD)
    found = curvature.estimate_density(operator, key=KEY, steps=100, starts=3)
    assert found.steps == 60
    own = vectors.named_key(KEY, "probe")
    for i in range(3):
        v = cases.flat(operator.draw(own, i, "rademacher"))
        for power in range(5):
            moment = np.sum(found.weights[i] * found.nodes[i] ** power)
            wanted = v @ np.linalg.matrix_power(matrix, power) @ v / 60
            assert moment == pytest.approx(wanted, rel=1e-8, abs=1e-9)


def test_density_approaches_the_smoothed_spectrum_within_its_band():
    values = np.concatenate([np.random.default_rng(0).normal(size=150), [6.0, 8.0]])
    _, operator = prescribed(values)
    found = curvature.estimate_density(operator, key=KEY, steps=40, starts=12, sigma=0.3)
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1.0, abs=1e-6)
    exact = smoothed(values[None], np.full((1, 152), 1 / 152), found.grid, 0.3)[0]
    inside = exact > 1e-3
    z = (found.density - exact)[inside] / found.stderr[inside]
    assert np.mean(np.abs(z) < 2.2) > 0.8
    assert abs(found.trace - values.sum()) < 4 * found.trace_stderr
    second, error = found.expectation(np.square)
    assert abs(second - np.mean(values**2)) < 4 * error
    assert (found.sigma, found.starts, found.steps, found.products) == (0.3, 12, 40, 480)


def test_density_of_the_live_subspace_has_no_weight_at_dead_zeros():
    case = cases.mlp()
    masks = cases.masks_for(case.params)
    alive = cases.live(case.params, masks)
    inner = cases.dense_hessian_of(case)[np.ix_(alive, alive)]
    found = curvature.spectral_density(
        case.loss, case.params, case.data, key=KEY, masks=masks, starts=30, steps=alive.sum()
    )
    assert found.live_dim == alive.sum()
    for power in (1, 2):
        moment, error = found.expectation(lambda x, power=power: x**power)
        wanted = np.trace(np.linalg.matrix_power(inner, power)) / alive.sum()
        assert abs(moment - wanted) < 4 * error + 1e-12


@pytest.mark.parametrize("values", [[0.0] * 12, [2.0] * 12])
def test_density_of_one_point(values: list[float]):
    _, operator = prescribed(values)
    found = curvature.estimate_density(operator, key=KEY, starts=1)
    assert found.products == 1
    assert found.grid[np.argmax(found.density)] == pytest.approx(values[0], abs=found.sigma / 2)
    assert np.isnan(found.stderr).all()


def written_power_iteration(
    matrix: np.ndarray, k: int, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """The released procedure on a dense matrix, written from its description (spec 5.1.1)."""
    work, x, values, found, products = matrix.copy(), start, [], [], 0
    for _ in range(k):
        before = 0.0
        for _ in range(20):
            y = work @ x
            estimate = x @ y
            x, products = y / np.linalg.norm(y), products + 1
            if abs((estimate - before) / estimate) < 1e-4:
                break
            before = estimate
        work = work - estimate * np.outer(x, x)
        values.append(estimate)
        found.append(x)
    order = np.argsort(values)[::-1]
    return np.array(values)[order], np.array(found)[order], products


def test_deflated_power_iteration_follows_its_description():
    matrix, operator = prescribed(SPREAD)
    start = cases.flat(operator.draw(vectors.named_key(KEY, "power"), 0, "uniform"))
    assert start.min() >= 0
    assert start.max() < 1
    values, directions, products = written_power_iteration(matrix, 8, start)
    found = curvature.power_iteration(operator, 8, key=KEY)
    assert found.products == products <= 160
    np.testing.assert_allclose(found.values, values, rtol=1e-6)
    assert np.all(np.diff(found.values) <= 0)
    v = rows(found.vectors, 8)
    np.testing.assert_allclose(np.abs(np.sum(v * directions, axis=1)), 1.0, atol=1e-6)
    left = np.linalg.norm(v @ matrix - found.values[:, None] * v, axis=1)
    np.testing.assert_allclose(found.residuals, left, rtol=1e-6, atol=1e-9)


def test_lanczos_needs_fewer_products_for_smaller_errors():
    case = cases.mlp()
    wanted = np.linalg.eigvalsh(cases.dense_hessian_of(case))
    wanted = wanted[np.argsort(-np.abs(wanted))][:10]
    operator = curvature.Hessian(case.loss, case.params, case.data)
    power = curvature.deflated_power_iteration(operator, k=10, key=KEY)
    lanczos = curvature.top_eigenpairs(operator, k=10, key=KEY, which="magnitude")
    assert lanczos.products + lanczos.checks < power.products
    error = [np.abs(np.sort(f.values) - np.sort(wanted)).max() for f in (lanczos, power)]
    assert error[0] < 0.01 * error[1]
    assert lanczos.residuals.max() < 0.1 * power.residuals.max()


def test_power_iteration_on_the_live_subspace():
    case = cases.mlp()
    masks = cases.masks_for(case.params)
    alive = cases.live(case.params, masks)
    found = curvature.deflated_power_iteration(
        case.loss, case.params, 2, case.batches, key=KEY, masks=masks, steps=200, tolerance=1e-12
    )
    inner = np.linalg.eigvalsh(cases.dense_hessian_of(case)[np.ix_(alive, alive)])
    wanted = inner[np.argsort(-np.abs(inner))][:2]
    np.testing.assert_allclose(found.values, np.sort(wanted)[::-1], rtol=1e-5)
    assert np.all(rows(found.vectors, 2)[:, ~alive] == 0)
    with pytest.raises(ValueError, match="steps must be"):
        curvature.deflated_power_iteration(case.loss, case.params, 2, case.data, key=KEY, steps=0)


def diagonal(values: Any) -> Any:
    scale = jnp.asarray(values, jnp.float32)
    return curvature.from_matvec(lambda v: scale * v, scale)


@pytest.mark.parametrize("values", [[0, 0, 0, 0], [0, 3, 0, 0]])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_power_iteration_gives_unit_vectors_of_the_eigenvalue_0(values: Any, k: int):
    found = curvature.power_iteration(diagonal(values), k, key=KEY, steps=200)
    wanted = np.sort(sorted(values, key=abs, reverse=True)[:k])[::-1]
    np.testing.assert_allclose(found.values, wanted, atol=1e-4)
    v = np.asarray(found.vectors)
    np.testing.assert_allclose(v @ v.T, np.eye(k), atol=1e-4)
    assert np.all(found.residuals < 1e-2)
    if not any(values):
        assert found.converged.all()
        assert np.all(found.values == 0)
        assert np.all(found.residuals == 0)
        # its start, and one of its own for each pair
        assert found.products == 2 * k


def test_deflated_power_iteration_of_a_loss_without_curvature():
    found = curvature.deflated_power_iteration(lambda p: jnp.sum(p), jnp.ones(5), 2, key=KEY)
    assert found.residuals.tolist() == found.values.tolist() == [0, 0]
    v = np.asarray(found.vectors)
    np.testing.assert_allclose(v @ v.T, np.eye(2), atol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e19, 1e30])
def test_eigenvalues_whose_squares_leave_the_range_of_float32(size: float):
    """They were the mean of some, 'converged', below 1e-19, and not finite, or 0, above 1e19."""
    with jax.enable_x64(False):
        diagonal = jnp.arange(1, 31, dtype=jnp.float32) * np.float32(size)
        operator = curvature.from_matvec(lambda v: diagonal * v, jnp.zeros(30))
        found = curvature.eigenpairs(operator, 3, key=KEY)
        np.testing.assert_allclose(found.values, size * np.array([30, 29, 28]), rtol=1e-5)
        assert found.converged.all()
        assert np.all(found.residuals > 0)
        # of one multiple eigenvalue the first product is the answer
        flat = curvature.from_matvec(lambda v: v * np.float32(size), jnp.zeros(4))
        power = curvature.power_iteration(flat, 1, key=KEY)
        np.testing.assert_allclose(power.values, size, rtol=1e-5)
        density = curvature.estimate_density(operator, key=KEY, steps=30, starts=1)
        np.testing.assert_allclose(density.nodes.max(), 30 * size, rtol=1e-5)
        rank_one = curvature.from_matvec(
            lambda v: jnp.zeros(9).at[0].set(v[0] * np.float32(size)), jnp.zeros(9)
        )
        trace = curvature.estimate_trace(rank_one, key=KEY, probes=6, method="hutch++")
        np.testing.assert_allclose(trace.value, size, rtol=1e-5)


def test_norms_bear_any_magnitude_with_the_same_bits_of_ordinary_ones():
    drawn = np.random.default_rng(0).normal(size=(50, 7))
    for dtype, sizes in (np.float32, (1e-35, 1e-20, 1e18, 1e36)), (np.float64, (1e-300, 1e300)):
        for size in (*sizes, 1e-9, 1.0, 3e7):
            tree = {"a": jnp.asarray(drawn * size, dtype), "b": jnp.asarray([size], dtype)}
            long = np.concatenate([np.asarray(x, np.longdouble).ravel() for x in tree.values()])
            norm = vectors.norm(tree)
            np.testing.assert_allclose(norm, np.linalg.norm(long / size) * size, rtol=1e-6)
            if size not in sizes:
                assert norm == jax.jit(lambda x: jnp.sqrt(vectors.dot(x, x)))(tree)
    for value, norm in (0.0, 0.0), (np.inf, np.inf), (-np.inf, np.inf), (np.nan, np.nan):
        for rest in (0.0, 1.0) if value else (0.0,):
            tree = jnp.float32(value), jnp.full(3, rest, jnp.float32), jnp.zeros((0, 2))
            np.testing.assert_equal(np.asarray(vectors.norm(tree)), np.asarray(norm))
