"""What callers bring: custom rules, lists of batches, transformations, strict promotion, order."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from prunejax import curvature
from tests import curvature_cases as cases

KEY = jax.random.key(0)
R = np.random.default_rng(0)
PARAMS = {"a": jnp.asarray(R.normal(size=(3, 4)), "float32"), "b": jnp.ones((4, 2)) / 3}
BATCH = (jnp.asarray(R.normal(size=(6, 3)), "float32"), jnp.ones((6, 2)))


def rule(value, backward, residual=True):
    """A function with a custom reverse rule."""
    fn = jax.custom_vjp(lambda x: value(x))  # rules count arguments; jnp.round has two
    fn.defvjp(lambda x: (value(x), x if residual else None), lambda x, g: (backward(x, g),))
    return fn


RULES = {
    "straight-through": rule(jnp.round, lambda _, g: g, residual=False),
    "clipped straight-through": rule(jnp.sign, lambda x, g: g * (jnp.abs(x) <= 1)),
    "scaling": rule(lambda x: x, lambda _, g: 0.5 * g, residual=False),
    "reversal": rule(lambda x: x, lambda _, g: -g, residual=False),
    "reversal with residual": rule(jnp.tanh, lambda x, g: -g * (1 - jnp.tanh(x) ** 2)),
}


def of_hidden(act):
    def loss(params, batch):
        return jnp.mean((jnp.sin(act(batch[0] @ params["a"]) @ params["b"]) - batch[1]) ** 2)

    return loss


def of_params(act):
    """The rule stands at the parameters, so the matrix may still be symmetric."""
    plain = of_hidden(jnp.tanh)
    return lambda params, batch: plain(jax.tree.map(act, params), batch)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("where", [of_hidden, of_params])
def test_forms_of_custom_rules_at_every_number_of_probes(name, where):
    loss = where(RULES[name])
    flat, back = ravel_pytree(PARAMS)

    @jax.jit
    def rows(x):
        gradient = lambda x: ravel_pytree(jax.grad(loss)(back(x), BATCH))[0]  # noqa: E731
        return jax.vmap(lambda v: jax.vjp(gradient, x)[1](v)[0])(jnp.eye(len(flat)))

    dense = np.asarray(rows(flat), np.float64)
    for count in (1, 3, 4, 8):
        a, b = (cases.normal(count, k, count, *PARAMS[k].shape) for k in "ab")
        stack = np.concatenate([np.reshape(x, (count, -1)) for x in (a, b)], 1)
        forms = curvature.Hessian(loss, PARAMS, BATCH).quadratic_forms({"a": a, "b": b})
        expected = np.einsum("mi,ij,mj->m", stack, dense, stack)
        np.testing.assert_allclose(forms, expected, rtol=1e-3, atol=1e-4)
        if count in (1, 8):  # drawn in the program, these are computed as 3 and 4 are
            continue
        found = curvature.hessian_trace(loss, PARAMS, BATCH, key=KEY, probes=count)
        assert np.isfinite(found.value)


@pytest.mark.parametrize("name", ["scaling", "reversal"])
def test_asymmetric_rules_have_no_eigenpairs(name):
    loss = of_hidden(RULES[name])
    for call in (
        lambda: curvature.top_eigenpairs(loss, PARAMS, 1, BATCH, key=KEY),
        lambda: curvature.deflated_power_iteration(loss, PARAMS, 1, BATCH, key=KEY),
        lambda: curvature.spectral_density(loss, PARAMS, BATCH, key=KEY, steps=3),
    ):
        with pytest.raises(ValueError, match=r"custom_vjp rule .* asymmetric"):
            call()


def test_symmetric_rules_have_eigenpairs():
    loss = of_params(rule(jnp.sin, lambda x, g: g * jnp.cos(x)))
    plain = of_params(jnp.sin)
    found = [curvature.top_eigenpairs(f, PARAMS, 2, BATCH, key=KEY).values for f in (loss, plain)]
    np.testing.assert_allclose(*found, rtol=1e-4)


LOSS = of_hidden(jnp.tanh)


def per_example(params, batch):
    return jnp.mean((jnp.tanh(batch[0] @ params["a"]) @ params["b"] - batch[1]) ** 2, -1)


HOST = {
    "hessian_trace": lambda p, b: curvature.hessian_trace(LOSS, p, b, key=KEY),
    "top_eigenpairs": lambda p, b: curvature.top_eigenpairs(LOSS, p, 1, b, key=KEY),
    "spectral_density": lambda p, b: curvature.spectral_density(LOSS, p, b, key=KEY),
    "gradient_second_moment": lambda p, b: curvature.gradient_second_moment(per_example, p, b),
    "tic": lambda p, b: curvature.tic(per_example, p, b, key=KEY),
    "sharpness": lambda p, b: curvature.sharpness(LOSS, p, b, radius=0.1, key=KEY),
    "forecast": lambda p, b: curvature.forecast(LOSS, p, p, b),
    "line": lambda p, b: curvature.line(LOSS, p, jax.tree.map(lambda x: x[None], p), [0.1], b),
}


@pytest.mark.parametrize("name", HOST)
def test_estimators_refuse_transformations_in_one_sentence(name):
    message = rf"^{name} gives numbers on the host .*hvp[^\n]*(\n-----|$)"
    with pytest.raises(TypeError, match=message):
        jax.jit(lambda p: HOST[name](p, BATCH))(PARAMS)
    with pytest.raises(TypeError, match=message):
        jax.vmap(lambda x: HOST[name](PARAMS, (x, BATCH[1])))(BATCH[0][None])


def test_closed_over_values_may_be_traced_no_more_than_given_ones():
    def run(x):
        return curvature.hessian_trace(lambda p: LOSS(p, (x, BATCH[1])), PARAMS, key=KEY).value

    with pytest.raises(TypeError, match="loss traced here"):
        jax.vmap(run)(BATCH[0][None])


TABLE = {1: 0.5, "one": 2.0}  # keys without an order, so no tree
MIXED = [TABLE, (TABLE, 3)]
stopped = jax.lax.stop_gradient  # in whose module there are tables by type


def of_globals(params, batch):
    hidden = jnp.tanh(batch[0] @ params["a"]) * TABLE[1] + stopped(jnp.sum(params["b"]))
    return jnp.mean((hidden @ params["b"] * MIXED[1][0]["one"] - batch[1]) ** 2)


def test_what_a_loss_names_may_be_any_container():
    def plain(params, batch):
        hidden = jnp.tanh(batch[0] @ params["a"]) * 0.5 + jax.lax.stop_gradient(
            jnp.sum(params["b"])
        )
        return jnp.mean((hidden @ params["b"] * scale - batch[1]) ** 2)

    for scale in (2.0, 5.0):  # and what is in them now decides, not what was at the first call
        TABLE["one"] = scale
        found = curvature.hvp(of_globals, PARAMS, PARAMS, BATCH)
        expected = jax.jvp(jax.grad(lambda p: plain(p, BATCH)), (PARAMS,), (PARAMS,))[1]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected)


def test_products_work_under_transformations():
    v = jax.tree.map(jnp.ones_like, PARAMS)
    plain = curvature.quadratic_form(LOSS, PARAMS, v, BATCH)
    found = jax.jit(lambda p: curvature.quadratic_form(LOSS, p, v, BATCH))(PARAMS)
    np.testing.assert_allclose(found, plain, rtol=1e-5)


X, Y = BATCH


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([X, Y], "bare array"),
        ([X], "bare array"),
        ([(X, Y), X], "bare array"),
        ([(X, Y), [X, Y]], "structure"),
        ([(X, Y), (X, Y[:, :1])], r"at '1' has float32 entries of shape \(1,\)"),
        ([(X, Y), (X.astype("int32"), Y)], "at '0' has int32"),
        (lambda: [(X, Y), (X, Y[:, :1])], "at '1'"),
    ],
)
def test_batches_of_a_list_differ_in_size_only(batches, message):
    with pytest.raises(ValueError, match=message):
        curvature.hessian_trace(LOSS, PARAMS, batches, key=KEY, probes=1)


def test_lists_of_batches_are_weighted_by_size():
    v = jax.tree.map(jnp.ones_like, PARAMS)
    whole = curvature.quadratic_form(LOSS, PARAMS, v, (X, Y))
    for cut in ([(X[:4], Y[:4]), (X[4:], Y[4:])], [[X[:4], Y[:4]], [X[4:], Y[4:]]]):
        found = curvature.quadratic_form(LOSS, PARAMS, v, cut)
        np.testing.assert_allclose(found, whole, rtol=1e-5)


@pytest.mark.parametrize("name", HOST)
def test_estimators_run_under_strict_promotion(name):
    narrow = jax.tree.map(lambda x: x.astype("bfloat16"), (PARAMS, BATCH))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        HOST[name](*narrow)


def test_options_are_spelled_out_and_unknown_ones_named():
    for fn in (curvature.hessian_trace, curvature.hessian_diagonal):
        assert "probes" in inspect.signature(fn).parameters
    assert "tolerance" in inspect.signature(curvature.top_eigenpairs).parameters
    with pytest.raises(TypeError, match=r"hessian_trace: .*'probs'; it takes \(loss, params"):
        curvature.hessian_trace(LOSS, PARAMS, BATCH, key=KEY, probs=3)


def test_wrong_orders_are_named():
    with pytest.raises(TypeError, match=r"k is of type tuple .* \(loss, params, k, batches\)"):
        curvature.top_eigenpairs(LOSS, PARAMS, BATCH, 2, key=KEY)
    with pytest.raises(TypeError, match="loss is of type dict and no function"):
        curvature.hessian_trace(PARAMS, LOSS, BATCH, key=KEY)
    with pytest.raises(ValueError, match=r"before .*batches"):
        curvature.hvp(LOSS, PARAMS, BATCH, PARAMS)


W = {"w": jnp.array([[1.0, 2.0], [0.5, -1.0]])}
XY = (jnp.arange(10.0).reshape(5, 2) / 10, jnp.ones((5, 2)))
KEY = jax.random.key(0)


def _each(p, batch):
    return jnp.mean((jnp.tanh(batch[0] @ p["w"]) - batch[1]) ** 2, -1)


def _mean(p, batch):
    return jnp.mean(_each(p, batch))


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (
            lambda: curvature.hessian_trace(_mean, W, XY, key=KEY, probes=1.5),
            "probes is of type float",
        ),
        (lambda: curvature.hessian_trace(_mean, W, XY, key=KEY, chunk="2"), "chunk is of type str"),
        (lambda: curvature.hessian_trace(_mean, W, XY, key=0), "key is 0; give a key"),
        (lambda: curvature.hessian_trace(_mean, W, XY, key=None), "key is None; give a key"),
        (lambda: curvature.hessian_diagonal(_mean, W, XY, key=KEY, probes=2.5), "no integer"),
        (
            lambda: curvature.top_eigenpairs(_mean, W, 1, XY, key=KEY, max_products=9.5),
            "max_products",
        ),
        (
            lambda: curvature.deflated_power_iteration(_mean, W, 1, XY, key=KEY, steps=1.5),
            "steps is",
        ),
        (lambda: curvature.spectral_density(_mean, W, XY, key=KEY, starts=1.5), "starts is"),
        (lambda: curvature.sharpness(_mean, W, XY, key=KEY, radius=1, restarts=1.5), "restarts is"),
        (
            lambda: curvature.average_sharpness(_mean, W, XY, key=KEY, sigma=1, samples=2.5),
            "samples is",
        ),
        (lambda: curvature.tic(_each, W, XY, key=KEY, probes=2.5), "probes is"),
        (lambda: curvature.hvp(3, W, W, XY), "a loss or model is a function, got int"),
        (lambda: curvature.ggn_product(_mean, 3, W, W, XY), "is a function, got int"),
    ],
)
def test_arguments_of_another_kind_are_told_in_a_line(ask, text):
    with pytest.raises(TypeError, match=text) as error:
        ask()
    assert "\n" not in str(error.value)


def _grid(grid):
    return lambda: curvature.spectral_density(_mean, W, XY, key=KEY, steps=2, grid=grid)


def _first(n):
    return jax.tree.map(lambda x: x[:n], XY)


def _weighted(weights):
    return lambda: curvature.hvp(_mean, W, W, [XY, XY], weights=weights)


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (_weighted([1.0, np.nan]), "weights must be >= 0 with a positive, finite sum"),
        (_weighted([1.0, np.inf]), "weights must be"),
        (_weighted([]), "weights must be"),
        (_weighted(2.0), "1 weights for 2 batches"),
        (_grid(0), "grid must be finite numbers"),
        (_grid(-1), "grid must be"),
        (_grid([0.0, np.nan]), "grid must be"),
        (_grid(np.zeros((2, 2))), "grid must be"),
        (
            lambda: curvature.spectral_density(_mean, W, XY, key=KEY, sigma=np.inf),
            "sigma must be positive and finite",
        ),
        (
            lambda: curvature.top_eigenpairs(_mean, W, 1, XY, key=KEY, tolerance=np.nan),
            "tolerance must be at least 0, got nan",
        ),
        (
            lambda: curvature.deflated_power_iteration(_mean, W, 1, XY, key=KEY, tolerance=-1),
            "tolerance must be at least 0",
        ),
        (lambda: curvature.tic(_each, W, XY, eigenpairs=[]), "has no eigenvalue"),
        (
            lambda: curvature.tic(
                _each, W, XY, key=KEY, probes=2,
                moment=curvature.gradient_second_moment(_each, W, _first(3)),
            ),
            "moment= is of 3 examples, the batches have 5",
        ),
        (
            lambda: curvature.from_matvec(lambda v: v["w"], W).matvec(W),
            "what matvec returns has structure",
        ),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_told_in_a_line(ask, text):
    with pytest.raises(ValueError, match=text) as error:
        ask()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda p, b: _mean(p, b) * 1j, "a real number; got complex64"),
        (lambda p, b: jnp.sum(_each(p, b) > 0), "a real number; got int32"),
        (lambda p, b: None, "must return one scalar"),
        (lambda p, b: {"loss": _mean(p, b)}, "must return one scalar"),
    ],
)
def test_a_loss_that_is_no_real_number_has_no_curvature(loss, text):
    # Traces of the first two were 0 without a word: imaginary parts fell away.
    for ask in (curvature.hessian_trace, curvature.spectral_density):
        with pytest.raises(ValueError, match=text):
            ask(loss, W, XY, key=KEY)
    with pytest.raises(ValueError, match=text):
        curvature.quadratic_form(loss, W, W, XY)
    with pytest.raises(ValueError, match=text):
        curvature.average_sharpness(loss, W, XY, key=KEY, sigma=0.1, samples=2)


def test_a_grid_of_numpys_integers():
    at = {"steps": 2, "starts": 2}
    ours, theirs = (
        curvature.spectral_density(_mean, W, XY, key=KEY, grid=n, **at) for n in (7, np.int64(7))
    )
    np.testing.assert_array_equal(ours.density, theirs.density)
