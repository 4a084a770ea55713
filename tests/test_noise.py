"""The normal noise of interventions: its distribution, its independence, and where it comes from.

Fixed seeds decide; the limits are those of p = 1e-4 or rarer, in both directions.
"""

import functools

import jax
import numpy as np
from scipy import stats

from prunejax import rng
from prunejax.ops import noise

SHAPE = (1025, 1024)  # an odd number of rows: the last pair is cut


def test_a_million_draws_are_normal_and_independent():
    def draws(seed, counter, layer):
        keys = noise.keys(rng.at(seed, "noise", counter), ("conv1", "conv2"))
        return noise.normal(keys[layer], SHAPE)

    both = jax.jit(
        lambda: (
            draws(3, 7, "conv1"),
            draws(3, 8, "conv1"),
            draws(3, 7, "conv2"),
            draws(4, 7, "conv1"),
        )
    )
    first, *others = (np.asarray(z, np.float64) for z in both())
    n = first.size
    sorted_draws = np.sort(first, axis=None)
    assert np.isfinite(first).all()
    assert abs(first.mean()) < 4 / n**0.5
    assert abs(first.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(stats.skew(first, axis=None)) < 4 * (6 / n) ** 0.5
    assert abs(stats.kurtosis(first, axis=None)) < 4 * (24 / n) ** 0.5
    normal = stats.norm.cdf(sorted_draws)
    distance = max(np.abs(normal - (np.arange(n) + k) / n).max() for k in (0, 1))
    assert stats.kstwobign.sf(distance * n**0.5) > 1e-4
    # tails: beyond 3, 4 and 4.5 standard deviations; 1000 bins of equal mass
    for edge in (3.0, 4.0, 4.5):
        for tail in (first > edge, first < -edge):
            assert 1e-4 < stats.poisson.cdf(tail.sum(), n * stats.norm.sf(edge)) < 1 - 1e-4
    counts = np.histogram(normal, 1000, (0, 1))[0]
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4
    # neighbours, the two of a pair, other counters, layers and seeds; signs, sizes and both
    half, few = (SHAPE[0] + 1) // 2, first[:200]
    beside = [(few, first[k : k + 200]) for k in (1, 2, half)]
    beside += [(few[:, :-k], few[:, k:]) for k in (1, 2, 3, 512)]
    for x, y in beside + [(few, other[:200]) for other in others]:
        for f in (np.asarray, np.abs, np.square):
            assert abs(np.corrcoef(f(x).ravel(), f(y).ravel())[0, 1]) < 4.5 / x.size**0.5
        cells = np.histogram2d(*(stats.norm.cdf(v.ravel()) for v in (x, y)), 32, [[0, 1]] * 2)[0]
        assert stats.chisquare(cells.ravel()).pvalue > 1e-5


def test_draws_depend_on_the_key_and_the_place_alone():
    """Under `vmap`, in a loop and by itself: the same bits, in any shape; other keys differ."""
    keys = jax.vmap(lambda c: noise.keys(rng.at(1, "noise", c), ("a",))["a"])(np.arange(3))
    options = {"xla_backend_optimization_level": 1}  # at 0 last bits depend on what is around them
    compiled = functools.partial(jax.jit, compiler_options=options)
    for shape in ((7,), (1, 5), (3, 3, 2, 6)):
        alone = compiled(noise.normal, static_argnums=1)
        one = np.stack([alone(k, shape) for k in keys])
        many = compiled(jax.vmap(lambda k, s=shape: noise.normal(k, s)))(keys)
        loop = compiled(lambda k, s=shape: jax.lax.map(lambda x: noise.normal(x, s), k))(keys)
        assert one.shape == (3, *shape)
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, many)
        np.testing.assert_array_equal(one, loop)
        assert len(np.unique(one)) == one.size
