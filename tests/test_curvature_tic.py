"""The ratio Tr(C)/Tr(H): its value against dense oracles, its interval by coverage."""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from scipy import stats

from prunejax import rng
from prunejax.curvature import callables, kernels, splits
from prunejax.curvature.gradients import forms_by_example
from prunejax.curvature.ratios import tic
from prunejax.curvature.trace import fieller, hessian_trace

N = 12


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def normal(name, *shape):
    return jax.random.normal(rng.at(17, name), shape)


def network():
    """A regression with nested tuples; ten parameters."""
    params = ({"w": normal("w", 2, 3)}, (normal("v", 3), jnp.float64(0.2)))
    batch = (normal("x", N, 2), normal("y", N))

    def losses(params, batch):
        first, (v, bias) = params
        return (jnp.tanh(batch[0] @ first["w"]) @ v + bias - batch[1]) ** 2

    return losses, params, batch


def mean_of(losses):
    return lambda params, batch: jnp.mean(losses(params, batch))


def dense(losses, params, batch):
    """[N, P] gradients and [N, P, P] Hessians of the single examples."""
    flat, unravel = ravel_pytree(params)

    def vector(x):
        return losses(unravel(x), batch)

    return tuple(np.asarray(jax.jit(d(vector))(flat)) for d in (jax.jacobian, jax.hessian))


def stack_of(columns, params):
    unravel = ravel_pytree(params)[1]
    return jax.vmap(unravel)(jnp.asarray(columns.T))


def pairs(h, count, params):
    """The `count` eigenpairs of largest magnitude, with the fields of `Eigenpairs`."""
    values, basis = np.linalg.eigh(h)
    order = np.argsort(-np.abs(values))[:count]
    return SimpleNamespace(values=values[order], vectors=stack_of(basis[:, order], params))


def test_all_eigenpairs_give_the_exact_ratio_and_the_trace_of_each_example():
    losses, params, batch = network()
    g, h = dense(losses, params, batch)
    found = tic(losses, params, batch, eigenpairs=pairs(h.mean(0), 10, params))
    np.testing.assert_allclose(found.value, (g**2).sum(1).mean() / np.trace(h.mean(0)), rtol=1e-10)
    np.testing.assert_allclose(found.trace_by_example, np.trace(h, axis1=1, axis2=2), rtol=1e-9)
    assert (found.method, found.probes, found.live_dim) == ("eigenvalues", 10, 10)
    assert found.stderr_probes == 0.0


def test_probes_are_those_of_hessian_trace():
    losses, params, batch = network()
    key = rng.at(0, "probe")
    for distribution in ("rademacher", "gaussian"):
        found = tic(losses, params, batch, key=key, probes=9, distribution=distribution)
        reference = hessian_trace(
            mean_of(losses), params, batch, key=key, probes=9, distribution=distribution
        )
        np.testing.assert_allclose(found.probe_values, reference.samples, rtol=1e-9)
        np.testing.assert_allclose(found.trace, reference.value, rtol=1e-10)


def test_live_subspace_equals_the_smaller_problem():
    losses, params, batch = network()
    masks = jax.tree.map(lambda p: normal(f"m{p.shape}", *p.shape) > -0.3, params)
    live = np.asarray(ravel_pytree(masks)[0])
    assert 0 < live.sum() < 10
    g, h = dense(losses, params, batch)
    sub = h.mean(0) * np.outer(live, live)
    found = tic(losses, params, batch, eigenpairs=pairs(sub, int(live.sum()), params), masks=masks)
    expected = (g[:, live] ** 2).sum(1).mean() / np.trace(sub)
    np.testing.assert_allclose(found.value, expected, rtol=1e-10)
    assert found.live_dim == live.sum()
    key = rng.at(1, "probe")
    sampled = tic(losses, params, batch, key=key, probes=400, masks=masks)
    assert abs(sampled.trace - np.trace(sub)) < 4 * sampled.trace_stderr


def test_splits_and_chunks_change_nothing():
    losses, params, batch = network()
    options = {"key": rng.at(2, "probe"), "probes": 5, "centered": True}
    whole = tic(losses, params, batch, **options)
    cut = [jax.tree.map(lambda x, s=s: x[s], batch) for s in (slice(0, 5), slice(5, N))]
    parts = tic(losses, params, cut, chunk=4, **options)
    for name in ("value", "stderr", "stderr_probes", "trace", "trace_stderr"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-8), name
    np.testing.assert_allclose(parts.interval, whole.interval, rtol=1e-8)


@pytest.mark.parametrize(("room", "size"), [(0, 3), (5, 5), (100, 7)])
def test_small_networks_take_more_examples_at_once(monkeypatch, room, size):
    losses, params, batch = network()
    source, sizes = (rng.at(2, "probe"), jnp.arange(4)), []
    module = sys.modules[forms_by_example.__module__]
    each = kernels.intermediate_bytes((callables.as_argument(losses),), params, batch) // N
    whole = forms_by_example(losses, params, batch, source, distribution="rademacher")

    def counted(batches, chunk):
        sizes.append(chunk)
        return splits.chunks(batches, chunk)

    monkeypatch.setattr(module, "chunks", counted)
    for name, value in {"CHUNK": 3, "MOST": 7, "BYTES": room * each}.items():
        monkeypatch.setattr(module, f"FORMS_{name}", value)
    found = forms_by_example(losses, params, batch, source, distribution="rademacher")
    assert sizes == [size]
    np.testing.assert_allclose(found, whole, rtol=1e-10)


def test_probe_error_is_the_spread_over_keys_with_the_data_fixed():
    losses, params, batch = network()
    runs = [tic(losses, params, batch, key=rng.at(i, "probe"), probes=16) for i in range(150)]
    stated = np.sqrt(np.mean([r.stderr_probes**2 for r in runs]))
    spread = np.std([r.moment.value / r.trace for r in runs], ddof=1)
    assert stated == pytest.approx(spread, rel=0.2)


def test_example_error_with_eigenvectors_is_the_jackknife():
    """Leave-one-out with the two leading eigenvalues computed again each time."""
    n = 150
    mix = normal("mix", 4, 4)

    def losses(p, batch):
        return 0.5 * (batch[0] @ p - batch[1]) ** 2

    batch = (normal("x", n, 4) @ mix, normal("y", n))
    g, h = dense(losses, jnp.zeros(4), batch)
    found = tic(losses, jnp.zeros(4), batch, eigenpairs=pairs(h.mean(0), 2, jnp.zeros(4)))

    def ratio(keep):
        return (g[keep] ** 2).sum(1).mean() / np.linalg.eigvalsh(h[keep].mean(0))[-2:].sum()

    left_out = np.array([ratio(np.arange(n) != i) for i in range(n)])
    jackknife = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    assert found.stderr == pytest.approx(jackknife, rel=0.05)
    plain = tic(losses, jnp.zeros(4), batch, eigenpairs=found.probe_values)
    assert plain.value == pytest.approx(found.value)
    assert plain.trace_by_example is None
    assert plain.stderr != pytest.approx(found.stderr, rel=0.05)


MIX = np.linspace(-1.0, 2.0, 64).reshape(8, 8) % 1.7  # correlated inputs: H is far from diagonal


def regression_losses(p, batch):
    return 0.5 * (batch[0] @ p - batch[1]) ** 2


def test_interval_covers_the_ratio_of_the_population():
    """Linear regression on pure noise: Tr(C) = σ² Tr(H) in the population, the ratio is σ²."""
    hits, trials, n, parts = 0, 160, 100, np.zeros(2)
    for trial in range(trials):
        x = jax.random.normal(rng.at(trial, "x"), (n, 8)) @ MIX
        y = 1.5 * jax.random.normal(rng.at(trial, "y"), (n,))
        found = tic(
            regression_losses, jnp.zeros(8), (x, y), key=rng.at(trial, "probe"), probes=12, chunk=n
        )
        low, high = found.interval
        hits += low < 2.25 < high
        parts += np.array([found.stderr_probes, found.stderr_examples]) / found.value / trials
    assert 0.90 <= hits / trials <= 0.99
    assert parts.min() > 0.1  # neither part alone explains the error


def test_intervals_agree_where_the_trace_is_well_determined():
    losses, params, batch = network()
    _, h = dense(losses, params, batch)
    found = tic(losses, params, batch, eigenpairs=pairs(h.mean(0), 10, params))
    narrow = tic(losses, params, batch, eigenpairs=pairs(h.mean(0), 10, params), confidence=0.01)
    low, high = narrow.interval
    assert low < found.value < high
    half = (high - low) / 2
    assert half == pytest.approx(stats.t.ppf(0.505, N - 1) * found.stderr, rel=1e-3)


def test_fieller_by_brute_force():
    cov = np.array([[0.3, 0.05], [0.05, 0.1]])
    low, high = fieller(2.0, 3.0, cov, 2.0)
    r = np.linspace(-5, 5, 200001)
    inside = (2.0 - r * 3.0) ** 2 <= 4 * (cov[0, 0] - 2 * r * cov[0, 1] + r**2 * cov[1, 1])
    np.testing.assert_allclose([low, high], [r[inside].min(), r[inside].max()], atol=1e-4)
    assert fieller(2.0, 0.1, cov, 2.0) == (-np.inf, np.inf)


def test_a_trace_that_may_be_zero_gives_an_unbounded_interval():
    """A saddle: curvatures of both signs that nearly cancel, seen through noisy examples."""

    def losses(p, batch):
        return 0.5 * jnp.sum(batch * p[None] ** 2, 1) + jnp.sum(p, 0)

    batch = normal("x", 30, 2)
    batch = batch - batch.mean(0, keepdims=True) + 0.05
    found = tic(losses, jnp.ones(2), batch, key=rng.at(0, "probe"), probes=4)
    assert abs(found.trace) < 2 * found.trace_stderr
    assert found.interval == (-np.inf, np.inf)


def test_nnx_parameters_in_float32():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model, nnx.Param)
    x = normal("x", 10, 3).astype(jnp.float32)

    def losses(state, batch):
        return jnp.sum((nnx.merge(graph, state)(batch) - 1.0) ** 2, 1)

    found = tic(losses, state, x, key=rng.at(0, "probe"), probes=300)
    exact = 2 * (2 * (x**2).sum(1).mean() + 2)
    assert abs(found.trace - exact) < 4 * found.trace_stderr
    assert np.isfinite(found.value)


def test_wrong_inputs_say_what_is_allowed():
    losses, params, batch = network()
    with pytest.raises(ValueError, match="key= and at least 2 probes"):
        tic(losses, params, batch)
    with pytest.raises(ValueError, match=r"at least 2 probes \(got 1\)"):
        tic(losses, params, batch, key=rng.at(0, "probe"), probes=1)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 95"):
        tic(losses, params, batch, key=rng.at(0, "probe"), confidence=95)
    with pytest.raises(ValueError, match="unknown distribution of probes 'sphere'"):
        tic(losses, params, batch, key=rng.at(0, "probe"), distribution="sphere")


@pytest.mark.parametrize(
    ("spread", "least", "most"), [(0.0, 0.93, 0.97), (1.0, 0.9, 0.95), (2.0, 0.6, 0.8)]
)
def test_fieller_covers_less_where_tails_are_heavy(spread, least, most):
    """Ratios of means of 64: log-normal numerators of this log sd (0: normal), n(5, 2) below."""
    draw, count, n = np.random.default_rng(0), 1500, 64
    hits = above = 0
    for _ in range(count):
        a = draw.lognormal(0, spread, n) if spread else draw.normal(1, 0.3, n)
        b = draw.normal(5, 2, n)
        low, high = fieller(a.mean(), b.mean(), np.cov(a, b) / n, float(stats.t.ppf(0.975, n - 1)))
        truth = np.exp(spread**2 / 2) / 5
        hits += low <= truth <= high
        above += truth > high
    assert least <= hits / count <= most
    assert not spread or above > 0.8 * (count - hits)
