"""Events choose by the library's rule: one tie rule, one treatment of NaN, in every scope."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import interventions, masks
from prunejax.groups import Group
from prunejax.train import evaluation, prune

NAN = float("nan")


def by_hand(worth, count, eligible):
    """Brute force: NaN goes first, then the smallest; of equals the later goes."""
    flat = np.concatenate([np.ravel(x) for x in worth])
    allowed = np.concatenate([np.ravel(x) for x in eligible])
    order = sorted(
        np.flatnonzero(allowed),
        key=lambda i: (not np.isnan(flat[i]), np.nan_to_num(flat[i], nan=0), -i),
    )
    gone = np.zeros(flat.size, bool)
    gone[order[:count]] = True
    ends = np.cumsum([np.size(x) for x in worth])[:-1]
    return [part.reshape(np.shape(x)) for part, x in zip(np.split(gone, ends), worth, strict=True)]


def test_the_stated_cases():
    """Six equal scores, two to go: the first four stay. A NaN goes before any number."""
    (gone,) = prune.targets([jnp.ones(6)], jnp.array([2]), [jnp.ones(6, bool)], "layer")
    assert (~gone).tolist() == [True, True, True, True, False, False]
    scores = [jnp.array([NAN, 1.0, 2.0, 3.0])]
    (gone,) = prune.targets(scores, jnp.array([2]), [jnp.ones(4, bool)], "layer")
    assert (~gone).tolist() == [False, False, True, True]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("shape", [(7,), (3, 4)])
def test_targets_against_brute_force_and_the_library(scope, shape):
    choose = jax.jit(prune.targets, static_argnums=3)
    random = np.random.default_rng(5)
    for _ in range(20):
        worth = [random.choice([NAN, -np.inf, -1.0, 0.0, 1.0, 2.0], shape) for _ in range(3)]
        eligible = [random.random(shape) < 0.7 for _ in range(3)]
        counts = np.array([random.integers(0, e.sum() + 1) for e in eligible])
        ours = choose([jnp.float32(w) for w in worth], jnp.int32(counts), eligible, scope)
        if scope == "global":
            expected = by_hand(worth, counts.sum(), eligible)
            keep = int(sum(e.sum() for e in eligible) - counts.sum())
        else:
            parts = zip(worth, counts, eligible, strict=True)
            expected = [by_hand([w], c, [e])[0] for w, c, e in parts]
            keep = [int(e.sum() - c) for e, c in zip(eligible, counts, strict=True)]
        trees = [jnp.float32(w) for w in worth]
        library = masks.prune(trees, keep, masks=eligible, scope=scope)
        for got, want, before, kept in zip(ours, expected, eligible, library, strict=True):
            np.testing.assert_array_equal(got, want)
            np.testing.assert_array_equal(before & ~got, kept)


@pytest.mark.parametrize("side", [2**4, 2**16])
def test_sparsity_of_2_to_the_32_parameters_does_not_wrap(side):
    """Half of the filters of one square kernel, which takes no memory: its entry is one."""
    groups = (Group("a", "a", (), (), None, side),)
    left = {"a": np.arange(side) % 2 == 0}
    state = SimpleNamespace(
        params={"a": np.broadcast_to(np.float32(0), (side, side))},
        windows=SimpleNamespace(remaining=left),
        table=SimpleNamespace(kind=np.int32(interventions.PRUNE), mask_norm=np.bool_(True)),
    )
    assert evaluation.sparsity(SimpleNamespace(groups=groups), state) == 0.5
