"""The basis that estimators grow, the order in which the device is asked, threads of BLAS."""

import itertools
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threadpoolctl

from prunejax import curvature
from prunejax.curvature import callables, kernels
from prunejax.curvature.basis import Basis, ahead
from prunejax.curvature.krylov import Krylov
from tests import curvature_cases as cases

KEY = jax.random.key(0)


def form(v, a):
    """v'Av / 2, whose Hessian is A: an operator whose products are made several in one program."""
    flat = jnp.concatenate([x.ravel() for x in jax.tree.leaves(v)])
    return flat @ a @ flat / 2


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


def test_a_function_that_divides_by_the_length_of_its_vector_has_eigenpairs():
    """The product begun ahead may be with a row of zeros, of which such a function makes NaN."""
    diagonal = jnp.asarray(np.r_[3.0, 2.0, 1.0, np.zeros(37)], jnp.float32)

    def matvec(v):
        length = jnp.linalg.norm(v)
        return diagonal * (v / length) * length

    operator = curvature.from_matvec(matvec, jnp.zeros(40))
    found = curvature.eigenpairs(operator, 3, key=KEY)
    np.testing.assert_allclose(found.values, [3, 2, 1], rtol=1e-5)


def test_a_full_basis_takes_no_more():
    operator = curvature.from_matvec(lambda v: v, jnp.zeros(5))
    basis = Basis(operator, 2)
    assert [basis.append_random(KEY, i) for i in range(3)] == [True, True, False]
    before = np.asarray(basis.stack)
    h, left = basis.end(basis.begin(jnp.ones(5)))
    assert (len(h), left) == (2, 0.0)
    np.testing.assert_array_equal(basis.stack, before)


@pytest.mark.parametrize("inside", [False, True])
def test_steps_are_those_taken_one_by_one_and_end_where_the_space_does(inside):
    """Whether or not the host knows of one before the next; restarted, too."""
    with jax.enable_x64(True):
        for values in (np.arange(1.0, 21.0), np.repeat([1.0, 4.0, 9.0], 7)):
            matrix, like, matvec = cases.with_spectrum(values)
            if inside:
                operator = curvature.Hessian(form, like, jnp.asarray(matrix))
                v = operator.draw(KEY, 0, "gaussian")
                np.testing.assert_allclose(
                    cases.flat(operator.matvec(v)), matrix @ cases.flat(v), atol=1e-12
                )
            else:
                operator = curvature.from_matvec(matvec, like)
            assert (operator.inside() is not None) == inside
            spaces = [Krylov(operator, 8, KEY) for _ in range(2)]
            for space in spaces:
                space.basis.append_random(KEY, 0)
            spaces[0].steps(8)
            while spaces[1].done < min(8, spaces[1].basis.size):
                spaces[1].steps(1)
            assert spaces[0].products == spaces[0].done == min(8, len(set(values)))
            np.testing.assert_array_equal(spaces[0].matrix, spaces[1].matrix)
            grown = [Krylov(operator, 9, KEY) for _ in range(2)]
            for most, space in zip((1, 24), grown, strict=True):
                while (number := space.products) < 24:
                    if not space.room:
                        space.restart(np.arange(2))
                    if number in (5, 16):
                        space.fresh()
                    stop = min(x for x in (5, 16, 24) if x > number)
                    space.steps(min(most, stop - number, space.room))
            assert grown[0].products == grown[1].products == 24
            np.testing.assert_array_equal(grown[0].matrix, grown[1].matrix)
            jax.tree.map(np.testing.assert_array_equal, *(s.basis.stack for s in grown))


@pytest.mark.parametrize("x64", [False, True])
def test_a_basis_is_orthonormal_to_working_precision(x64):
    """A few roundings off, as after two whole passes each, whatever the products lie along."""
    normal = np.random.default_rng(0).normal(size=105)
    spectra = {
        "ill-conditioned": 10.0 ** -np.linspace(0, 12, 120),
        "low rank": np.r_[np.arange(1.0, 13.0), np.zeros(108)],
        "multiple": np.repeat([5.0, 4.0, -3.0, 1e-3], 30),
        "cluster": 1 + 1e-5 * np.r_[normal, normal[:15]],
        "network": np.r_[50 * 0.8 ** np.arange(15), 0.01 * normal],
    }
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        for name, values in spectra.items():
            matrix, like, _ = cases.with_spectrum(values)
            like = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), like)
            operator = curvature.Hessian(form, like, jnp.asarray(matrix, dtype))
            assert operator.inside() is not None
            space = Krylov(operator, 24, KEY)
            for number in range(12):
                if not space.room:
                    largest = np.argsort(-np.abs(space.ritz()[0]))[:12]
                    space.restart(largest)
                if number in (2, 7):  # then a product has parts along more rows than the last
                    space.fresh()
                space.steps(min(6, space.room))
                v = np.stack([cases.flat(space.basis[i]) for i in range(space.basis.size)])
                off = np.abs(v.astype(np.float64) @ v.T - np.eye(len(v))).max()
                assert off < 100 * jnp.finfo(dtype).eps, name
            assert space.products >= 20


@pytest.mark.parametrize("kind", ["one batch", "linear", "batches", "weighted", "matvec"])
def test_products_of_a_stack_are_those_of_its_vectors(kind):
    """In one program or call by call: the same vectors, and the same basis by rows."""
    with jax.enable_x64(True):
        case = cases.mlp()
        masks = cases.masks_for(case.params)
        hessian = partial(curvature.Hessian, case.loss, case.params, masks=masks)
        whole = hessian(case.data)
        operator = {
            "one batch": lambda: whole,
            "linear": lambda: hessian(case.data, linearize=True),
            "batches": lambda: hessian(case.batches),
            "weighted": lambda: hessian([case.data], weights=[3.0]),
            "matvec": lambda: curvature.from_matvec(whole.matvec, case.params, masks),
        }[kind]()
        assert (operator.inside() is None) == (kind not in ("one batch", "linear"))
        drawn = [operator.draw(KEY, i, "gaussian") for i in range(3)]
        stack = jax.tree.map(lambda *xs: jnp.stack(xs), *drawn)
        products = operator.products(stack)
        for i, v in enumerate(drawn):
            found = cases.flat(jax.tree.map(lambda x, i=i: x[i], products))
            np.testing.assert_allclose(found, cases.flat(whole.matvec(v)), rtol=0, atol=1e-12)
        empty = operator.products(jax.tree.map(lambda x: x[:0], stack))
        assert {x.shape[0] for x in jax.tree.leaves(empty)} == {0}
        rows, other = Basis(operator, 4), Basis(whole, 4)
        for basis in (rows, other):
            assert basis.append_random(KEY, 0)
        for i in range(3):
            ours = next(rows.products(i, 1))
            theirs = other.end(other.begin(whole.matvec(other[i])))
            np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-12)
            assert ours[1] == pytest.approx(theirs[1], abs=1e-12)


def test_a_custom_rule_is_looked_for_once_for_all_parameters_of_a_shape():
    traced = itertools.count()  # no list: a loss that refers to another one now is traced again

    def loss(p, x):
        next(traced)
        return jnp.sum(jnp.square(p * x[0, 0]))

    batch = jnp.ones((4, 1))
    for scale in (1.0, 2.0, 3.0):
        curvature.Hessian(loss, jnp.full(3, scale), batch).check_symmetric()
    assert next(traced) == 1
    # The product, its power and the square, the sum; [3] float32 each, or a scalar.
    found = kernels.intermediate_bytes((callables.as_argument(loss),), jnp.ones(3), batch)
    assert 2 * 12 + 4 <= found <= 8 * 12
    assert kernels.intermediate_bytes((callables.as_argument(loss),), jnp.ones(300), batch) > 2400


def test_blas_has_one_thread_inside_and_what_it_had_afterwards():
    def threads():
        found = threadpoolctl.threadpool_info()
        return [m["num_threads"] for m in found if m["user_api"] == "blas"]

    inside, met, before = callables.one_thread(threads), [], threads()
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
        callables.one_thread(lambda: 1 / 0)()
    assert threads() == before
