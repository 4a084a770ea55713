"""The basis that estimators grow, the order in which the device is asked, threads of BLAS."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threadpoolctl

from prunejax import curvature
from prunejax.curvature import dense
from prunejax.curvature.basis import Basis, ahead
from prunejax.curvature.lanczos import Krylov
from tests import curvature_cases as cases

KEY = jax.random.key(0)


def test_each_item_is_begun_before_the_one_before_is_read():
    order = []

    def begin(i):
        order.append(f"begin {i}")
        return i

    for i in ahead(map(begin, range(3))):
        order.append(f"read {i}")
    assert order == ["begin 0", "begin 1", "read 0", "begin 2", "read 1", "read 2"]
    assert list(ahead([])) == []


def test_vectors_that_add_nothing_are_left_out_in_the_midst_of_others():
    """The span's dimension is found, rows stay together, coefficients give the vectors back."""
    with jax.enable_x64(True):
        draws = np.random.default_rng(0).normal(size=(4, 9))
        w = np.stack([draws[0], draws[1], draws[0] - 2 * draws[1], 0 * draws[0], *draws[2:]])
        like = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
        operator = curvature.from_matvec(lambda v: v, like)

        def tree(x):
            return {"a": jnp.asarray(x[:6].reshape(2, 3)), "b": jnp.asarray(x[6:])}

        basis = Basis(operator, 5)
        found = [basis.end(b) for b in ahead(basis.begin(tree(x)) for x in w)]
        assert [left > 0 for _, left in found] == [True, True, False, False, True, True]
        assert basis.size == 4
        q = np.stack([cases.flat(basis[i]) for i in range(5)])
        np.testing.assert_allclose(q[:4] @ q[:4].T, np.eye(4), atol=1e-14)
        assert not q[4].any()
        for x, (h, left) in zip(w, found, strict=True):
            rest = x - h @ q[: len(h)]
            assert np.linalg.norm(rest) == pytest.approx(left, abs=1e-13)


def test_a_full_basis_takes_no_more():
    operator = curvature.from_matvec(lambda v: v, jnp.zeros(5))
    basis = Basis(operator, 2)
    assert [basis.append_random(KEY, i) for i in range(3)] == [True, True, False]
    before = np.asarray(basis.stack)
    h, left = basis.end(basis.begin(jnp.ones(5)))
    assert (len(h), left) == (2, 0.0)
    np.testing.assert_array_equal(basis.stack, before)


def test_steps_are_those_taken_one_by_one_and_end_where_the_space_does():
    with jax.enable_x64(True):
        for values in (np.arange(1.0, 21.0), np.repeat([1.0, 4.0, 9.0], 7)):
            _, like, matvec = cases.with_spectrum(values)
            spaces = [Krylov(curvature.from_matvec(matvec, like), 8, KEY) for _ in range(2)]
            for space in spaces:
                space.basis.append_random(KEY, 0)
            spaces[0].steps(8)
            while spaces[1].done < min(8, spaces[1].basis.size):
                spaces[1].step()
            assert spaces[0].products == spaces[0].done == min(8, len(set(values)))
            np.testing.assert_array_equal(spaces[0].matrix, spaces[1].matrix)


def test_blas_has_one_thread_inside_and_what_it_had_afterwards():
    def threads():
        found = threadpoolctl.threadpool_info()
        return [m["num_threads"] for m in found if m["user_api"] == "blas"]

    inside, met, before = dense.one_thread(threads), [], threads()
    assert set(inside()) == {1}
    workers = [threading.Thread(target=lambda: met.append(inside())) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {n for found in met for n in found} == {1}
    assert len(met) == 8
    assert threads() == before
    with pytest.raises(ZeroDivisionError):
        dense.one_thread(lambda: 1 / 0)()
    assert threads() == before
