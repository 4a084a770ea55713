"""Traces and diagonals: exact cases, unbiasedness, coverage of the standard errors, matfree."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from prunejax import curvature
from prunejax.curvature import sketch, vectors
from prunejax.curvature.trace import mean_and_stderr
from tests import curvature_cases as cases

KEY = jax.random.key(0)
DECAYING = 10.0 * 0.7 ** np.arange(40)
MIXED = np.concatenate([[8.0, -5.0, 3.0], np.linspace(-0.5, 0.7, 37)])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def quadratic(values: Any, seed: int = 0) -> tuple[np.ndarray, curvature.Hessian]:
    """A matrix with these eigenvalues, as the Hessian of a quadratic loss on a nested tree."""
    matrix, like, matvec = cases.with_spectrum(values, seed)
    return matrix, curvature.Hessian(functools.partial(_energy, matvec), like)


def _energy(matvec: Any, p: Any) -> jax.Array:
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y) / 2, p, matvec(p))))


@pytest.mark.parametrize("masked", [False, True])
def test_samples_are_the_quadratic_forms_of_the_probes(masked: bool):
    case = cases.mlp()
    masks = cases.masks_for(case.params) if masked else None
    found = curvature.hessian_trace(
        case.loss, case.params, case.batches, key=KEY, probes=6, masks=masks
    )
    alive = cases.live(case.params, masks) if masked else np.ones(found.live_dim, bool)
    matrix = cases.restricted(cases.dense_hessian_of(case), alive)
    own = vectors.named_key(KEY, "probe")
    probes = [
        cases.flat(vectors.sample(own, i, case.params, "rademacher", jnp.float64)) for i in range(6)
    ]
    assert all(set(np.unique(v)) == {-1.0, 1.0} for v in probes)
    wanted = [v @ matrix @ v for v in probes]
    np.testing.assert_allclose(found.samples, wanted, rtol=1e-10)
    assert found.value == pytest.approx(np.mean(wanted), rel=1e-12)
    assert found.stderr == pytest.approx(np.std(wanted, ddof=1) / np.sqrt(6), rel=1e-12)
    assert (found.live_dim, found.examples, found.probes) == (alive.sum(), 11, 6)
    assert found.converged is None


def test_the_trace_of_the_live_subspace():
    case = cases.mlp()
    masks = cases.masks_for(case.params)
    alive = cases.live(case.params, masks)
    wanted = np.trace(cases.restricted(cases.dense_hessian_of(case), alive))
    operator = curvature.Hessian(case.loss, case.params, case.data, masks=masks)
    for method, probes in (("hutchinson", 400), ("hutch++", 48), ("xtrace", 24)):
        found = curvature.estimate_trace(operator, key=KEY, method=method, probes=probes)
        assert abs(found.value - wanted) < 4 * found.stderr + 1e-9, method
        assert found.live_dim == alive.sum() < alive.size


def test_chunks_and_vectorization_do_not_change_a_sample():
    _, operator = quadratic(MIXED)
    reference = curvature.estimate_trace(operator, key=KEY, probes=10).samples
    for chunk, vectorize in ((1, False), (4, False), (3, True), (64, True)):
        found = curvature.estimate_trace(
            operator, key=KEY, probes=10, chunk=chunk, vectorize=vectorize
        )
        np.testing.assert_allclose(found.samples, reference, rtol=1e-12)
    more = curvature.estimate_trace(operator, key=KEY, probes=20)
    np.testing.assert_allclose(more.samples[:10], reference, rtol=1e-12)
    other = curvature.estimate_trace(operator, key=jax.random.key(1), probes=10)
    assert np.abs(other.samples - reference).min() > 1e-6


@pytest.mark.parametrize("raw", [False, True])
def test_any_matvec_and_either_kind_of_key(raw: bool):
    matrix, like, matvec = cases.with_spectrum(MIXED)
    key = jax.random.PRNGKey(3) if raw else jax.random.key(3)
    own = curvature.from_matvec(lambda v: jax.tree.map(np.asarray, matvec(v)), like)
    found = curvature.estimate_trace(own, key=key, probes=6)
    _, operator = quadratic(MIXED)
    same = curvature.estimate_trace(operator, key=key, probes=6)
    np.testing.assert_allclose(found.samples, same.samples, rtol=1e-10)
    masks = {"a": jnp.arange(27) < 9, "b": (jnp.asarray(False),)}
    part = curvature.from_matvec(matvec, like, masks)
    exact = curvature.estimate_trace(part, key=key, method="hutch++", probes=60)
    assert exact.value == pytest.approx(np.trace(matrix[:9, :9]), rel=1e-9)
    assert exact.stderr == 0
    assert exact.live_dim == 9


def test_signs_are_exact_on_a_diagonal():
    scale = jnp.arange(1.0, 6.0)
    found = curvature.hessian_trace(
        lambda p: jnp.sum(scale * p**2) / 2, jnp.ones(5), key=KEY, probes=4
    )
    assert (found.value, found.stderr) == (15.0, 0.0)
    normal = curvature.hessian_trace(
        lambda p: jnp.sum(scale * p**2) / 2, jnp.ones(5), key=KEY, probes=4, distribution="gaussian"
    )
    assert normal.stderr > 0


@pytest.mark.parametrize(
    ("method", "probes", "distribution", "values"),
    [
        ("hutchinson", 16, "rademacher", MIXED),
        ("hutchinson", 32, "gaussian", MIXED),
        ("hutch++", 30, "rademacher", MIXED),
        ("xtrace", 24, "gaussian", MIXED),
        ("xtrace", 24, "rademacher", MIXED),
        ("xtrace", 24, "gaussian", DECAYING),
    ],
)
def test_estimates_are_unbiased_and_their_errors_honest(
    method: str, probes: int, distribution: str, values: np.ndarray
):
    matrix, operator = quadratic(values)
    truth = np.trace(matrix)
    repeats = 200 if method == "hutchinson" else 100
    found = [
        curvature.estimate_trace(
            operator, key=jax.random.key(seed), method=method, probes=probes,
            distribution=distribution,
        )
        for seed in range(repeats)
    ]  # fmt: skip
    estimates = np.array([f.value for f in found])
    stderrs = np.array([f.stderr for f in found])
    spread = estimates.std(ddof=1)
    assert abs(estimates.mean() - truth) < 3.5 * spread / np.sqrt(repeats)
    quantile = stats.t.ppf(0.975, len(found[0].samples) - 1)
    covered = np.mean(np.abs(estimates - truth) <= quantile * stderrs)
    assert 0.90 <= covered <= 1.0
    # Errors are not simply large: their root mean square is the true spread.
    assert 0.75 < np.sqrt(np.mean(stderrs**2)) / spread < 1.35


def _sketched(values: np.ndarray, omega: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arguments of `sketch._leave_out` for a diagonal matrix."""
    q, r = np.linalg.qr(values[:, None] * omega)
    z = values[:, None] * q
    return r, q.T @ z, q.T @ omega, z.T @ omega, (omega**2).sum(0)


@pytest.mark.parametrize("rescaled", [True, False])
def test_samples_of_xtrace_and_those_of_one_vector_less_by_definition(rescaled: bool):
    dim, k = 40, 5
    omega = np.random.default_rng(0).normal(size=(dim, k))

    def sample(i: int, left_out: set[int]) -> float:
        basis = np.linalg.qr(MIXED[:, None] * np.delete(omega, list(left_out), axis=1))[0]
        w = omega[:, i] - basis @ (basis.T @ omega[:, i])
        factor = (dim - k + len(left_out)) / (w @ w) if rescaled else 1.0
        return np.trace(basis.T @ (MIXED[:, None] * basis)) + factor * (w @ (MIXED * w))

    rest = dim - k + 1 if rescaled else None
    samples, fewer = sketch._leave_out(*_sketched(MIXED, omega), rest)
    np.testing.assert_allclose(samples, [sample(i, {i}) for i in range(k)], rtol=1e-9)
    wanted = [[sample(i, {i, j}) for j in range(k)] for i in range(k)]
    np.testing.assert_allclose(fewer, wanted, rtol=1e-9)


@pytest.mark.parametrize("dim", [60, 300])
@pytest.mark.parametrize("decay", ["1/i", "1/i^2", "0.9^i", "flat"])
def test_the_error_of_xtrace_is_that_of_dependent_samples(dim: int, decay: str):
    """Its mean square is the true one, and Student's intervals cover; the spread alone is low."""
    i, k, repeats = np.arange(dim), 12, 400
    values = {
        "1/i": 1 / (i + 1),
        "1/i^2": 1 / (i + 1) ** 2,
        "0.9^i": 0.9**i,
        "flat": np.linspace(1, 3, dim),
    }[decay]
    draws = np.random.default_rng(dim).normal(size=(repeats, dim, k))
    errors, independent, squares = np.zeros((3, repeats))
    for n, omega in enumerate(draws):
        samples, fewer = sketch._leave_out(*_sketched(values, omega), dim - k + 1)
        errors[n] = samples.mean() - values.sum()
        independent[n] = samples.var(ddof=1) / k
        covariance = sketch.covariance(samples, fewer)
        squares[n] = independent[n] + max(covariance, 0.0)
    truth = np.mean(errors**2)
    assert abs(errors.mean()) < 3.5 * np.sqrt(truth / repeats)
    assert 0.85 < np.sqrt(squares.mean() / truth) < 1.25
    covered = np.abs(errors) <= stats.t.ppf(0.975, k - 1) * np.sqrt(squares)
    assert 0.91 <= covered.mean() <= 0.98
    assert np.sqrt(independent.mean() / truth) < 0.95


def test_sketches_win_where_eigenvalues_decay():
    matrix, operator = quadratic(DECAYING)
    errors = {}
    for method in ("hutchinson", "hutch++", "xtrace"):
        found = [
            curvature.estimate_trace(operator, key=jax.random.key(s), method=method, probes=24)
            for s in range(10)
        ]
        gaps = [abs(f.value - np.trace(matrix)) for f in found]
        errors[method] = np.sqrt(np.mean(np.square(gaps)))
        assert all(f.products + f.forms == 24 for f in found)
    assert errors["xtrace"] < 0.2 * errors["hutchinson"]
    assert errors["hutch++"] < 0.5 * errors["hutchinson"]


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("rank", [0, 3])
def test_low_rank_is_exact(method: str, rank: int):
    matrix, like, matvec = cases.with_spectrum([4.0, -2.0, 1.0][:rank] + [0.0] * (30 - rank))
    found = curvature.estimate_trace(
        curvature.from_matvec(matvec, like), key=KEY, method=method, probes=24
    )
    assert found.value == pytest.approx(np.trace(matrix), abs=1e-9)
    assert found.stderr < 1e-9


@pytest.mark.usefixtures("promoting")  # matfree promotes ranks
def test_matfree_agrees_on_the_same_probes():
    stochtrace = pytest.importorskip("matfree.stochtrace")
    _, like, matvec = cases.with_spectrum(MIXED)
    operator = curvature.from_matvec(matvec, like)

    def stack(name: str, law: str, count: int) -> Any:
        own = vectors.named_key(KEY, name)
        return cases.stack([operator.draw(own, i, law) for i in range(count)])

    ours = curvature.estimate_trace(operator, key=KEY, probes=12)
    probes = stack("probe", "rademacher", 12)
    theirs = stochtrace.estimator_monte_carlo_mean_and_sem(
        stochtrace.monte_carlo_trace(), sampler=lambda _: probes
    )(matvec, KEY)
    assert ours.value == pytest.approx(float(theirs[0]), rel=1e-10)
    assert ours.stderr == pytest.approx(float(theirs[1]) * np.sqrt(12 / 11), rel=1e-10)

    for law, rescaled in (("gaussian", True), ("rademacher", False)):
        ours = curvature.estimate_trace(
            operator, key=KEY, method="xtrace", probes=16, distribution=law
        )
        probes = stack("sketch", law, 8)
        integrand = stochtrace.leave_one_out_xtrace(apply_resphering=rescaled)
        np.testing.assert_allclose(np.sort(ours.samples), np.sort(integrand(matvec, probes)), 1e-9)


def test_sampling_goes_on_until_the_error_is_small_enough():
    matrix, operator = quadratic(MIXED)
    fixed = curvature.estimate_trace(operator, key=KEY, probes=16)
    found = curvature.estimate_trace(
        operator, key=KEY, probes=16, stderr_below=fixed.stderr / 3, max_probes=4096
    )
    assert found.converged is True
    assert found.stderr <= fixed.stderr / 3
    assert found.probes in {16 * 2**i for i in range(1, 9)}
    np.testing.assert_allclose(found.samples[:16], fixed.samples, rtol=1e-12)
    assert abs(found.value - np.trace(matrix)) < 4 * found.stderr
    half = found.samples[: found.probes // 2]
    assert mean_and_stderr(half)[1] > fixed.stderr / 3
    capped = curvature.estimate_trace(
        operator, key=KEY, probes=16, stderr_below=1e-9, max_probes=40
    )
    assert (capped.converged, capped.probes) == (False, 40)


class Scripted(curvature.Operator):
    """An operator whose quadratic forms are given."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__(jnp.zeros(3))
        self.values = values

    def sampled_forms(self, key: Any, indices: jax.Array, law: str, **options: Any) -> jax.Array:
        return jnp.asarray(self.values[np.asarray(indices)].ravel())


def test_a_running_mean_that_stands_still_does_not_end_the_sampling():
    # After every second sample the running mean is exactly 0.
    lucky = Scripted(np.tile([100.0, -100.0], 5000))
    found = curvature.estimate_trace(lucky, key=KEY, probes=1, stderr_below=2.0, max_probes=10000)
    assert found.value == 0
    assert (found.probes, found.converged) == (4096, True)  # 100 / sqrt(4096) < 2
    assert found.stderr == pytest.approx(100 / np.sqrt(4095), rel=1e-12)


def test_a_memory_bound_makes_chunks_smaller():
    case = cases.mlp()
    operator = curvature.Hessian(case.loss, case.params, case.data)
    free = curvature.estimate_trace(operator, key=KEY, probes=8, vectorize=True)
    assert free.chunk == 8
    bound = (operator.form_bytes(8, vectorize=True) + operator.form_bytes(4, vectorize=True)) // 2
    tight = curvature.estimate_trace(
        operator, key=KEY, probes=8, vectorize=True, memory_bytes=bound
    )
    assert tight.chunk == 4
    np.testing.assert_allclose(tight.samples, free.samples, rtol=1e-10)
    with pytest.raises(ValueError, match="give smaller batches"):
        curvature.estimate_trace(operator, key=KEY, probes=8, vectorize=True, memory_bytes=10)


@pytest.mark.parametrize("masked", [False, True])
def test_the_diagonal_and_its_errors(masked: bool):
    case = cases.mlp()
    masks = cases.masks_for(case.params) if masked else None
    alive = cases.live(case.params, masks) if masked else np.ones(cases.flat(case.params).size)
    wanted = np.diag(cases.restricted(cases.dense_hessian_of(case), alive))
    found = curvature.hessian_diagonal(
        case.loss, case.params, case.data, key=KEY, probes=150, masks=masks
    )
    value, stderr = cases.flat(found.value), cases.flat(found.stderr)
    assert np.all(value[alive == 0] == 0)
    assert np.all(stderr[alive == 0] == 0)
    moving = stderr > 1e-12
    z = (value - wanted)[moving] / stderr[moving]
    assert np.mean(np.abs(z) < 1.96) > 0.8
    assert np.abs(z).max() < 5
    np.testing.assert_allclose(value[~moving], wanted[~moving], atol=1e-10)
    samples = [cases.random_like(case.params)]
    assert jax.tree.structure(found.value) == jax.tree.structure(samples[0])


def test_other_matrices_have_traces_too():
    case = cases.mlp()
    split = (case.model, case.output_loss, case.params, case.batches)
    for operator, dense in (
        (curvature.GaussNewton(*split), cases.dense_ggn(case)),
        (curvature.EmpiricalFisher(case.loss, case.params, case.batches), cases.dense_fisher(case)),
    ):
        found = curvature.estimate_trace(operator, key=KEY, probes=200)
        assert abs(found.value - np.trace(dense)) < 4 * found.stderr
        assert found.stderr < 0.2 * found.value


def test_bad_arguments_are_refused_with_the_way_out():
    _, operator = quadratic(MIXED)
    estimate = functools.partial(curvature.estimate_trace, operator, key=KEY)
    with pytest.raises(ValueError, match=r"trace method 'hutchison'.*Did you mean 'hutchinson'"):
        estimate(method="hutchison")
    with pytest.raises(ValueError, match="distribution of probes 'uniform'"):
        estimate(distribution="uniform")
    with pytest.raises(ValueError, match="at least 6 probes"):
        estimate(method="hutch++", probes=4)
    with pytest.raises(ValueError, match="at least 4 probes"):
        estimate(method="xtrace", probes=2)
    with pytest.raises(ValueError, match="needs method='hutchinson'"):
        estimate(method="xtrace", stderr_below=1.0)
    with pytest.raises(ValueError, match="the first round alone has 64"):
        estimate(stderr_below=1.0, max_probes=10)
    with pytest.raises(ValueError, match="must be positive"):
        estimate(stderr_below=0.0)
    with pytest.raises(ValueError, match="chunk must be"):
        estimate(chunk=0)
    with pytest.raises(ValueError, match="probes must be"):
        estimate(probes=0)
    with pytest.raises(ValueError, match="give it alone"):
        curvature.hessian_trace(operator, jnp.ones(3), key=KEY)
    with pytest.raises(ValueError, match="no live coordinate"):
        curvature.hessian_trace(
            lambda p: jnp.sum(p**2), jnp.ones(3), key=KEY, masks=jnp.zeros(3, bool)
        )
    with pytest.raises(ValueError, match="not finite"):
        curvature.hessian_trace(
            lambda p: jnp.sum(jnp.sqrt(p)), jnp.zeros(30), key=KEY, method="xtrace"
        )


def test_one_probe_has_no_standard_error():
    _, operator = quadratic(MIXED)
    found = curvature.estimate_trace(operator, key=KEY, probes=1)
    assert np.isnan(found.stderr)
    assert np.isfinite(found.value)
