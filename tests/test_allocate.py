"""Allocations: exact totals, formulas, limits, and their way into masks."""

import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import allocate, masks

SHAPES = {"a": (3, 3, 2, 16), "b": (3, 3, 16, 12), "c": (12, 10), "d": (134,)}
TOTAL = sum(int(np.prod(s)) for s in SHAPES.values())


@pytest.mark.parametrize("name", list(allocate.ALLOCATIONS))
@pytest.mark.parametrize("keep", [0, 1, 100, 1234, TOTAL - 1, TOTAL])
def test_allocations_add_up_and_stay_within_layers(name, keep):
    counts = allocate.ALLOCATIONS[name](SHAPES, keep)
    assert list(counts) == list(SHAPES)
    assert sum(counts.values()) == keep
    assert all(0 <= counts[p] <= np.prod(s) for p, s in SHAPES.items())


def test_uniform_is_the_nearest_to_one_density():
    counts = allocate.uniform(SHAPES, 777)
    for path, shape in SHAPES.items():
        assert abs(counts[path] - 777 * np.prod(shape) / TOTAL) < 1
    assert allocate.uniform({"a": (3,), "b": (3,), "c": (3,)}, 4) == {"a": 2, "b": 1, "c": 1}


def test_erk_densities_follow_the_formula_and_cap_at_one():
    shapes = {"a": (3, 3, 64, 64), "b": (3, 3, 64, 128), "c": (4, 4)}
    counts = allocate.erk(shapes, 30_000)
    assert counts["c"] == 16  # would be denser than 1
    factor = (30_000 - 16) / (sum(shapes["a"]) + sum(shapes["b"]))
    assert counts["a"] == pytest.approx(factor * sum(shapes["a"]), abs=1)
    assert counts["b"] == pytest.approx(factor * sum(shapes["b"]), abs=1)


def test_counts_are_exact_where_floats_are_not():
    """33,554,431 units: float32 counts would be off."""
    shapes = {"a": (2**24 + 1,), "b": (2**24 - 2,)}
    for allocation in allocate.ALLOCATIONS.values():
        assert sum(allocation(shapes, 2**24 + 3).values()) == 2**24 + 3


def test_explicit_rules():
    params = {"a": {"kernel": jnp.ones((10, 10)), "bias": jnp.float32(0)}, "b": jnp.ones(7)}
    shapes = allocate.shapes_of(params)
    assert shapes == {"a/kernel": (10, 10), "b": (7,)}
    assert allocate.explicit(shapes, {"a/.*": 0.9}) == {"a/kernel": 10, "b": 7}
    assert allocate.explicit(shapes, {"a/.*": 0.9, ".*kernel": 0.9, "b": 1.0})["b"] == 0
    with pytest.raises(ValueError, match=r"c/\.\*.*a/kernel, b"):
        allocate.explicit(shapes, {"c/.*": 0.5})
    with pytest.raises(ValueError, match="disagree on leaf 'a/kernel'"):
        allocate.explicit(shapes, {"a/.*": 0.9, ".*kernel": 0.5})
    with pytest.raises(ValueError, match=r"1\.5"):
        allocate.explicit(shapes, {"b": 1.5})


@pytest.mark.parametrize("keep", [-1, TOTAL + 1])
def test_impossible_totals(keep):
    for allocation in allocate.ALLOCATIONS.values():
        with pytest.raises(ValueError, match=f"there are {TOTAL} units"):
            allocation(SHAPES, keep)


def test_counts_go_into_masks():
    scores = {"w": jnp.arange(12.0).reshape(3, 4), "v": jnp.arange(6.0), "never": jnp.float32(1)}
    counts = allocate.uniform(allocate.shapes_of(scores), 9)
    m = masks.prune(scores, counts, scope="layer")
    assert {"w": int(m["w"].sum()), "v": int(m["v"].sum())} == counts == {"w": 6, "v": 3}


@pytest.mark.parametrize("name", allocate.ALLOCATIONS)
def test_a_count_is_an_integer(name):
    with pytest.raises(ValueError, match=r"2\.5 is no integer"):
        allocate.ALLOCATIONS[name]({"a": (4,)}, 2.5)


def test_python_numbers_have_no_shape():
    assert allocate.shapes_of({"a": 3.0, "b": jnp.ones((2, 3)), "c": None}) == {"b": (2, 3)}


def test_sparsities_are_a_dict():
    with pytest.raises(ValueError, match="or a dict from path rule to sparsity"):
        allocate.counts({"a": (3, 4)}, None, [("a", 0.5)])
