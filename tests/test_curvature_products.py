"""Curvature products against dense float64 matrices, on any kind of loss and parameter tree."""

import functools
import itertools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from prunejax import curvature
from prunejax.curvature import adjoint, kernels
from tests import curvature_cases as cases


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def operators(case: cases.Case, masks: Any = None) -> dict[str, tuple[Any, np.ndarray]]:
    """Each kind of operator of a case with its dense matrix."""
    split = (case.model, case.output_loss, case.params, case.data)
    ggn = cases.dense_ggn(case)
    return {
        "hessian": (
            curvature.Hessian(case.loss, case.params, case.data, masks=masks),
            cases.dense_hessian_of(case),
        ),
        "ggn": (curvature.GaussNewton(*split, masks=masks), ggn),
        "exact fisher": (curvature.Fisher(*split, masks=masks), ggn),
        "empirical fisher": (
            curvature.Fisher(*split, kind="empirical", masks=masks),
            cases.dense_fisher(case),
        ),
    }


@pytest.mark.parametrize(
    ("name", "masked"), [("mlp", False), *((name, True) for name in cases.CASES)]
)
def test_products_and_forms_equal_the_dense_matrix(name: str, masked: bool):
    case = cases.CASES[name]()
    masks = cases.masks_for(case.params) if masked else None
    alive = cases.live(case.params, masks) if masked else np.ones(cases.flat(case.params).size)
    v = cases.random_like(case.params)
    many = [cases.random_like(case.params, seed) for seed in range(5)]
    for kind, (operator, dense) in operators(case, masks).items():
        matrix = cases.restricted(dense, alive)
        np.testing.assert_allclose(
            cases.flat(operator.matvec(v)), matrix @ cases.flat(v), atol=1e-12, err_msg=kind
        )
        forms = [cases.flat(u) @ matrix @ cases.flat(u) for u in many]
        np.testing.assert_allclose(operator.quadratic_forms(cases.stack(many)), forms, rtol=1e-10)
        assert operator.live_dim == alive.sum()
        assert operator.examples == len(case.data["y"])


def test_exact_fisher_of_softmax_is_the_expectation_over_the_models_labels():
    case = cases.mlp()
    probabilities = np.asarray(
        jax.jit(lambda p, b: jax.nn.softmax(case.model(p, b)))(case.params, case.data)
    )
    gradient, total = jax.jit(jax.grad(case.loss)), 0.0
    for i, example in enumerate(cases.examples(case)):
        for label in range(3):
            own = {**example, "y": np.array([label])}
            g = cases.flat(gradient(case.params, own))
            total = total + probabilities[i, label] * np.outer(g, g)
    total = np.asarray(total) / (i + 1)
    v = cases.random_like(case.params)
    found = curvature.fisher_product(case.model, case.output_loss, case.params, v, case.batches)
    np.testing.assert_allclose(cases.flat(found), total @ cases.flat(v), atol=1e-12)


def test_the_split_into_batches_does_not_matter():
    case = cases.mlp(sizes=(5, 2, 4))
    v = cases.random_like(case.params)
    whole = cases.flat(curvature.hvp(case.loss, case.params, v, case.data))
    form = float(curvature.quadratic_form(case.loss, case.params, v, case.data))
    streams = {
        "list": case.batches,
        "factory": lambda: iter(case.batches),
        "iterator": iter(case.batches),
        "closed over": None,
    }
    for name, batches in streams.items():
        loss = functools.partial(case.loss, batch=case.data) if batches is None else case.loss
        operator = curvature.Hessian(loss, case.params, batches)
        np.testing.assert_allclose(cases.flat(operator.matvec(v)), whole, atol=1e-13, err_msg=name)
        np.testing.assert_allclose(operator.quadratic_form(v), form, rtol=1e-12)
        assert operator.examples == (None if batches is None else 11)


def test_batch_weights_replace_the_sizes():
    case = cases.mlp(sizes=(5, 2))
    v = cases.random_like(case.params)
    one, two = (cases.flat(curvature.hvp(case.loss, case.params, v, b)) for b in case.batches)
    found = curvature.hvp(case.loss, case.params, v, case.batches, weights=[1.0, 3.0])
    np.testing.assert_allclose(cases.flat(found), (one + 3 * two) / 4, atol=1e-13)
    with pytest.raises(ValueError, match="3 weights for 2 batches"):
        curvature.hvp(case.loss, case.params, v, case.batches, weights=[1, 1, 1])
    with pytest.raises(ValueError, match="weights must be >= 0"):
        curvature.hvp(case.loss, case.params, v, case.batches, weights=[1, -1])


def test_linearized_products_are_the_same():
    case = cases.conv_net()
    v, masks = cases.random_like(case.params), cases.masks_for(case.params)
    plain = curvature.Hessian(case.loss, case.params, case.data, masks=masks)
    kept = curvature.Hessian(case.loss, case.params, case.data, masks=masks, linearize=True)
    np.testing.assert_allclose(cases.flat(kept.matvec(v)), cases.flat(plain.matvec(v)), atol=1e-13)
    with pytest.raises(ValueError, match="one batch"):
        curvature.Hessian(case.loss, case.params, case.batches, linearize=True)


def test_estimators_keep_the_linear_map_of_a_small_network(monkeypatch: Any):
    case = cases.mlp()
    kept, plain = (curvature.Hessian(case.loss, case.params, case.data) for _ in range(2))
    assert kept.inside()[0].core is kernels.linear_product
    monkeypatch.setattr("prunejax.curvature.operators.KEPT", 0)
    assert plain.inside()[0].core is kernels.hessian_product
    found = [curvature.top_eigenpairs(o, k=3, key=jax.random.key(0)).values for o in (kept, plain)]
    np.testing.assert_allclose(*found, rtol=1e-9)


def test_a_quadratic_form_takes_at_most_seventy_percent_of_a_products_operations():
    case = cases.conv_net()
    v = cases.random_like(case.params)

    def flops(f: Any, u: Any) -> float:
        return jax.jit(f).lower(case.params, u, case.data).compile().cost_analysis()["flops"]

    def all_at_once(p: Any, u: Any, b: Any) -> jax.Array:
        return curvature.Hessian(case.loss, p, b).quadratic_forms(u, vectorize=True)

    product = flops(lambda p, u, b: curvature.hvp(case.loss, p, u, b), v)
    form = flops(lambda p, u, b: curvature.quadratic_form(case.loss, p, u, b), v)
    gradient = flops(lambda p, u, b: jax.grad(case.loss)(p, b), v)
    shared = flops(all_at_once, cases.stack([v] * 32))
    assert form <= 0.70 * product
    assert shared / 32 <= 0.50 * product
    assert product <= 3.2 * gradient


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_narrow_parameters_accumulate_in_float32(dtype: Any):
    case = cases.mlp(sizes=(3, 3))
    to = functools.partial(jax.tree.map, lambda x: x.astype(dtype))
    params = to(case.params)
    exact = cases.dense_hessian(
        lambda p: case.loss(p, case.data), jax.tree.map(lambda x: x.astype("float64"), params)
    )

    def loss(p: Any, batch: Any) -> jax.Array:
        return case.loss(p, {**batch, "x": batch["x"].astype(dtype)})

    v = cases.random_like(case.params)
    product = curvature.hvp(loss, params, v, case.batches)
    assert {x.dtype for x in jax.tree.leaves(product)} == {jnp.dtype(jnp.float32)}
    form = curvature.quadratic_form(loss, params, v, case.batches)
    assert form.dtype == jnp.float32
    wanted = exact @ cases.flat(v)
    error = np.linalg.norm(cases.flat(product) - wanted) / np.linalg.norm(wanted)
    assert error < (1e-5 if dtype == jnp.float32 else 0.03)
    assert abs(form - cases.flat(v) @ wanted) < (1e-4 if dtype == jnp.float32 else 0.3)


def test_many_bfloat16_batches_are_summed_in_float32():
    # 1 + 1/300 is 1 in bfloat16: a sum kept in bfloat16 would stop growing.
    params = jnp.ones(1, jnp.bfloat16)
    batches = iter([jnp.full((1, 1), 2.0, jnp.bfloat16)] * 300)
    found = curvature.hvp(lambda p, x: jnp.sum(x * p**2) / 2, params, params, batches)
    np.testing.assert_allclose(found, [2.0], rtol=1e-6)


def test_nnx_state():
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.one = nnx.Linear(4, 5, rngs=rngs, param_dtype=jnp.float64)
            self.two = nnx.Linear(5, 3, rngs=rngs, param_dtype=jnp.float64)

    graph, state = nnx.split(Net(nnx.Rngs(0)), nnx.Param)
    data = cases.mlp().data

    def loss(s: Any, batch: Any) -> jax.Array:
        net = nnx.merge(graph, s)
        return cases.cross_entropy(net.two(jnp.tanh(net.one(batch["x"]))), batch)

    check_tree(loss, state, data)


def test_equinox_module():
    eqx = pytest.importorskip("equinox")
    net = eqx.nn.MLP(4, 3, 5, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, rest = eqx.partition(net, eqx.is_inexact_array)

    def loss(p: Any, batch: Any) -> jax.Array:
        return cases.cross_entropy(jax.vmap(eqx.combine(p, rest))(batch["x"]), batch)

    check_tree(loss, params, cases.mlp().data)


def check_tree(loss: Any, params: Any, data: Any) -> None:
    dense = cases.dense_hessian(lambda p: loss(p, data), params)
    masks = cases.masks_for(params)
    matrix = cases.restricted(dense, cases.live(params, masks))
    v = cases.random_like(params)
    product = curvature.hvp(loss, params, v, data, masks=masks)
    assert jax.tree.structure(product) == jax.tree.structure(params)
    np.testing.assert_allclose(cases.flat(product), matrix @ cases.flat(v), atol=1e-6)
    many = cases.stack([cases.random_like(params, seed) for seed in range(4)])
    operator = curvature.Hessian(loss, params, data, masks=masks)
    wanted = [cases.flat(cases.random_like(params, s)) for s in range(4)]
    wanted = [u @ matrix @ u for u in wanted]
    np.testing.assert_allclose(operator.quadratic_forms(many), wanted, rtol=1e-5)


def test_a_nan_in_a_dead_coordinate_of_the_vector_does_not_leak():
    case = cases.mlp()
    masks = cases.masks_for(case.params)
    alive = cases.live(case.params, masks)
    clean = cases.random_like(case.params)
    vector, unravel = ravel_pytree(clean)
    dirty = unravel(jnp.where(jnp.asarray(alive), vector, jnp.nan))
    found = cases.flat(curvature.hvp(case.loss, case.params, dirty, case.data, masks=masks))
    wanted = cases.restricted(cases.dense_hessian_of(case), alive) @ cases.flat(clean)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_functions_work_inside_jit_vmap_and_grad():
    case = cases.mlp()
    v = cases.random_like(case.params)
    dense = cases.dense_hessian_of(case)
    jitted = jax.jit(lambda p, u, b: curvature.hvp(case.loss, p, u, b))
    np.testing.assert_allclose(
        cases.flat(jitted(case.params, v, case.data)), dense @ cases.flat(v), atol=1e-12
    )
    many = cases.stack([v, case.params])
    forms = jax.vmap(lambda u: curvature.quadratic_form(case.loss, case.params, u, case.data))(many)
    flat = [cases.flat(v), cases.flat(case.params)]
    np.testing.assert_allclose(forms, [u @ dense @ u for u in flat], rtol=1e-10)
    slope = jax.grad(lambda u: curvature.quadratic_form(case.loss, case.params, u, case.data))(v)
    np.testing.assert_allclose(cases.flat(slope), 2 * dense @ cases.flat(v), atol=1e-12)


def test_forms_of_a_stack_compile_nothing_else():
    operator = curvature.Hessian(lambda p: jnp.sum(jnp.cos(p) ** 3), cases.normal(0, "forms", 7))
    stack, compiled = cases.normal(1, "forms", 3, 7), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        operator.quadratic_forms(stack)
    finally:
        jax.monitoring.clear_event_listeners()
    assert len(compiled) == 1


def test_one_trace_per_function_and_shapes():
    traced = itertools.count()

    def loss(p: Any, x: jax.Array) -> jax.Array:
        next(traced)
        return jnp.mean((x @ p) ** 2)

    x, p = jnp.ones((6, 3)), jnp.ones(3)
    curvature.hvp(loss, p, p, x[:2])
    first = next(traced)
    operator = curvature.Hessian(loss, p, iter([x[:2], x[2:4], x[4:]]))
    for _ in range(3):
        operator.matvec(p)
        curvature.hvp(loss, p + 1, p, x[1:3])
    assert next(traced) == first + 1


def test_a_loss_that_refers_to_something_else_now_is_traced_again():
    box = {"x": jnp.array([1.0, 2.0])}
    buffer = np.array([1.0, 2.0])
    x = jnp.array([1.0, 2.0])

    def by_cell(p: Any) -> jax.Array:
        return jnp.sum(x * p**2) / 2

    def by_container(p: Any) -> jax.Array:
        return jnp.sum(box["x"] * p**2) / 2

    def by_buffer(p: Any) -> jax.Array:
        return jnp.sum(buffer * p**2) / 2

    def through_another(p: Any) -> jax.Array:
        return by_cell(p) + 0.0

    p = jnp.ones(2)
    losses = (by_cell, by_container, by_buffer, through_another)
    for loss in losses:
        np.testing.assert_allclose(curvature.hvp(loss, p, p), [1, 2])
    x, box["x"], buffer[:] = x + 5, x + 5, [6, 7]
    for loss in losses:
        np.testing.assert_allclose(curvature.hvp(loss, p, p), [6, 7], err_msg=loss.__name__)


class Trainer:
    """Reads what it holds by its methods, as training loops in classes do."""

    offset = 0.0

    def __init__(self, part: Any) -> None:
        self.part = part

    @property
    def factor(self) -> Any:
        return self.part.scale

    def inner(self, p: Any) -> jax.Array:
        return jnp.sum(self.factor * p**2) / 2 + self.offset

    def loss(self, p: Any) -> jax.Array:
        return self.inner(p)

    def __call__(self, p: Any) -> jax.Array:
        return self.inner(p)


def scaled(p: Any, holder: Any) -> jax.Array:
    return jnp.sum(holder.scale * p**2) / 2


class Slots:
    __slots__ = ("scale",)

    def __init__(self, scale: Any) -> None:
        self.scale = scale


class Settings(dict):
    """A dict whose keys are attributes, by itself or as what another object holds."""

    def __init__(self, scale: Any) -> None:
        self.scale = scale

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # type: ignore[assignment]


class Wrapped:
    def __init__(self, scale: Any) -> None:
        self.__dict__["_fields"] = {"scale": scale}

    def __getattr__(self, name: str) -> Any:
        if name not in self._fields:
            raise AttributeError(name)
        return self._fields[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self._fields[name] = value


class Scale(nnx.Module):
    def __init__(self, scale: Any) -> None:
        self.number, self.held = scale, nnx.Variable(jnp.float64(scale))


def of_state(state: Any, p: Any) -> jax.Array:
    return jnp.sum(state["held"][...] * p**2) / 2


def closed_over(held: Any, of: Any) -> Any:
    return lambda p: of(held, p)


SETTINGS = types.ModuleType("settings")


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda o: Trainer(o).loss, Slots),
        (lambda o: Trainer(o), Slots),
        (lambda o: closed_over(Trainer(o), lambda t, p: t.loss(p)), Slots),
        (lambda o: functools.partial(scaled, holder=o), Slots),
        (lambda o: lambda p: scaled(p, o), Slots),
        (lambda o: lambda p: scaled(p, o), Settings),
        (lambda o: lambda p: scaled(p, o), Wrapped),
        (lambda o: lambda p: scaled(p, SETTINGS), Slots),
        (lambda o: lambda p: jnp.sum(o.held[...] * p**2) / 2, Scale),
        (lambda o: lambda p: jnp.sum(o.number * p**2) / 2, Scale),
        (lambda o: closed_over(nnx.state(o), of_state), Scale),
    ],
    ids=["method", "callable", "closed over", "partial", "handed on", "keys", "wrapped", "module",
         "nnx variable", "nnx attribute", "nnx state"],
)  # fmt: skip
def test_objects_are_what_they_hold_now(make: Any, change: Any):
    """The second and third call, with another number in the same object, see that number."""
    held = change(1.0)
    SETTINGS.scale = 1.0  # type: ignore[attr-defined]
    loss, p = make(held), jnp.ones(2)
    np.testing.assert_allclose(curvature.hvp(loss, p, p), [1, 1])
    for scale in (2.0, 3.0):
        SETTINGS.scale = scale  # type: ignore[attr-defined]
        if change is Scale:
            held.number, held.held[...] = scale, jnp.float64(scale)
        else:
            held.scale = scale
        np.testing.assert_allclose(curvature.hvp(loss, p, p), [scale, scale])


def test_an_object_that_holds_the_same_is_traced_once():
    """A module that is split anew for each call; counters that the loss does not read, or sets."""
    traced = itertools.count()
    model, trainer, p = Scale(2.0), Trainer(Slots(2.0)), jnp.ones(2)

    def of_state() -> Any:
        graph, state = nnx.split(model)

        def loss(p: Any) -> jax.Array:
            next(traced)
            return jnp.sum(nnx.merge(graph, state).held[...] * p**2) / 2

        return loss

    def of_trainer() -> Any:
        def loss(p: Any) -> jax.Array:
            next(traced)
            trainer.traces = getattr(trainer, "traces", 0) + 1  # type: ignore[attr-defined]
            return trainer.loss(p)

        return loss

    for make in (of_state, of_trainer):
        counts = []
        for i in range(3):
            trainer.calls = i  # type: ignore[attr-defined]
            np.testing.assert_allclose(curvature.hvp(make(), p, p), [2, 2])
            counts.append(next(traced))
        assert counts[2] - counts[1] == counts[1] - counts[0] == 1


def test_arrays_of_a_partial_are_data_and_do_not_recompile():
    traced = itertools.count()

    def loss(scale: jax.Array, p: Any, x: jax.Array) -> jax.Array:
        next(traced)
        return jnp.mean(scale * (x @ p) ** 2)

    x, p = jnp.ones((4, 2)), jnp.ones(2)
    found = []
    for s in (1.0, 3.0):
        found.append(curvature.quadratic_form(Partial(loss, jnp.array(s)), p, p, x))
        found.append(next(traced))
    np.testing.assert_allclose(found[::2], [8.0, 24.0])
    assert found[3] == found[1] + 1  # the first call traced, the second did not


def test_a_callable_object_can_be_the_loss():
    class Loss:
        def __call__(self, p: Any, x: jax.Array) -> jax.Array:
            return jnp.mean((x @ p) ** 2)

        __hash__ = None  # type: ignore[assignment]

    x, p = jnp.ones((4, 2)), jnp.ones(2)
    np.testing.assert_allclose(curvature.quadratic_form(Loss(), p, p, x), 8.0)


# Losses of a vector p [6] that use every kind of operation; x is data [6].
def _scan(p: Any, x: Any) -> jax.Array:
    step = lambda h, a: (jnp.tanh(h * a + p[0]), h)  # noqa: E731
    last, seen = jax.lax.scan(step, p[1], x * p)
    return last + jnp.sum(seen**2)


def _forward_loop(p: Any, x: Any) -> jax.Array:
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * p[0]), (0, p[1]))[1]


@jax.custom_vjp
def _square(p: Any) -> jax.Array:
    return jnp.sum(p**2)


@jax.custom_vjp
def _square_by_itself(p: Any) -> jax.Array:
    return jnp.sum(p**2)


_square.defvjp(lambda p: (jnp.sum(p**2), p), lambda p, g: (2 * g * p,))
_square_by_itself.defvjp(lambda p: (_square_by_itself(p), p), lambda p, g: (2 * g * p,))


@jax.custom_jvp
def _cube(p: Any) -> jax.Array:
    return p**3


_cube.defjvp(lambda p, u: (_cube(p[0]), 3 * p[0] ** 2 * u[0]))

ZOO = {
    "polynomial": lambda p, x: jnp.sum(p**2 * p[::-1] * x),
    "division": lambda p, x: jnp.sum(x / (2 + p**2)),
    "logsumexp": lambda p, x: jax.nn.logsumexp(x * p),
    "maximum": lambda p, x: jnp.max(p * x) ** 2 + jnp.sum(jax.nn.relu(p - x) ** 3),
    "sort": lambda p, x: jnp.sum(jnp.sort(p * x) ** 2 * x),
    "gather": lambda p, x: jnp.sum(p[jnp.array([0, 2, 2])] ** 2) * p[jnp.argmax(x)],
    "cumulative": lambda p, x: jnp.prod(1 + p * x) + jnp.sum(jnp.cumsum(p) ** 2),
    "same operand twice": lambda p, x: jnp.dot(p, p) * jnp.vdot(p, jnp.outer(p, p) @ x),
    "normalized": lambda p, x: jnp.sum(x * (p - p.mean()) * jax.lax.rsqrt(p.var() + 0.1)),
    "jit inside": lambda p, x: jax.jit(lambda q: jnp.sum(jnp.sin(q) ** 2))(p * x),
    "checkpoint": lambda p, x: jax.checkpoint(lambda q: jnp.sum(jnp.exp(q * x)))(p),
    "vmap": lambda p, x: jnp.sum(jax.vmap(lambda a, b: jnp.sin(a * b) * a)(p, x)),
    "cond": lambda p, x: jax.lax.cond(x[0] > 0, lambda q: q[0] * q[1] ** 2, jnp.sum, p),
    "scan": _scan,
    "fori": lambda p, x: jax.lax.fori_loop(0, 3, lambda i, h: h * jnp.sin(p[i]) + x[i], p[3]),
    "custom_jvp": lambda p, x: jnp.sum(_cube(p) * x),
    "stop_gradient": lambda p, x: jnp.sum(jax.lax.stop_gradient(p) * p**2),
    "integers": lambda p, x: jnp.sum(p**2) * jnp.sum(jnp.arange(6) > jnp.sum(p > 0)),
    "complex numbers": lambda p, x: (
        jnp.sum(jnp.abs(jnp.fft.rfft(p * x)) ** 4) + jnp.real(jnp.sum(jnp.exp(1j * p) * x) ** 3)
    ),
    "linear": lambda p, x: jnp.dot(p, x),
    "ignored": lambda p, x: jnp.sum(x) * 2.0,
}


@pytest.mark.parametrize("name", list(ZOO))
def test_shared_reverse_pass_on_every_kind_of_operation(name: str):
    rng = np.random.default_rng(0)
    p, x, v = (jnp.asarray(rng.normal(size=6)) for _ in range(3))

    @jax.jit
    def both(p: Any, v: Any) -> tuple[jax.Array, jax.Array]:
        form = adjoint.quadratic_forms(lambda q: ZOO[name](q, x), p)
        return form(v), jax.hessian(ZOO[name])(p, x)

    found, dense = both(p, v)
    np.testing.assert_allclose(found, v @ dense @ v, rtol=1e-9, atol=1e-12)


def test_a_loss_without_reverse_mode_still_has_forms():
    rng = np.random.default_rng(0)
    p, many = jnp.asarray(rng.normal(size=6)), jnp.asarray(rng.normal(size=(5, 6)))
    loss = functools.partial(_forward_loop, x=None)
    dense = jax.jit(jax.jacfwd(jax.jacfwd(loss)))(p)
    np.testing.assert_allclose(
        curvature.Hessian(loss, p).quadratic_forms(many),
        np.einsum("ki,ij,kj->k", many, dense, many),
        rtol=1e-10,
    )


@pytest.mark.parametrize("square", [_square, _square_by_itself])
def test_custom_vjp_functions_have_products_and_forms(square: Any):
    rng = np.random.default_rng(0)
    p, many = jnp.asarray(rng.normal(size=6)), rng.normal(size=(5, 6))
    dense = np.asarray(jax.jit(jax.hessian(lambda p: jnp.sum(jnp.sin(p) ** 2) * p[0]))(p))
    operator = curvature.Hessian(lambda p: square(jnp.sin(p)) * p[0], p)
    np.testing.assert_allclose(operator.matvec(many[0]), dense @ many[0], rtol=1e-10)
    np.testing.assert_allclose(
        operator.quadratic_forms(many), np.einsum("ki,ij,kj->k", many, dense, many), rtol=1e-10
    )
    # Outputs with a custom_vjp: their Jacobian along a vector, for one and for many vectors.
    outputs = lambda p: jnp.stack([square(p), square(jnp.cos(p)) * p[0]])  # noqa: E731
    jacobian = np.asarray(jax.jit(jax.jacrev(outputs))(p))
    ggn = curvature.GaussNewton(outputs, lambda z: jnp.sum(z**2), p)
    np.testing.assert_allclose(ggn.matvec(many[0]), 2 * jacobian.T @ jacobian @ many[0], rtol=1e-10)
    np.testing.assert_allclose(
        ggn.quadratic_forms(many), 2 * np.sum((many @ jacobian.T) ** 2, 1), rtol=1e-10
    )
    slope = np.asarray(jax.jit(jax.grad(lambda p: square(jnp.sin(p)) * p[0]))(p)) @ many[0]
    found = curvature.forecast(lambda p: square(jnp.sin(p)) * p[0], p, many[0])
    np.testing.assert_allclose(found.first_order, slope, rtol=1e-10)


def test_bad_arguments_are_refused_with_the_way_out():
    case = cases.mlp()
    v = cases.random_like(case.params)
    hvp = functools.partial(curvature.hvp, case.loss, case.params)
    with pytest.raises(ValueError, match="'steps' has dtype int"):
        curvature.hvp(lambda p: p["w"] ** 2, {"w": jnp.ones(()), "steps": jnp.ones((), int)}, v)
    with pytest.raises(ValueError, match="no leaves"):
        curvature.hvp(lambda p: 0.0, {}, {})
    with pytest.raises(ValueError, match="the vector has structure"):
        hvp({"w": 1.0}, case.data)
    with pytest.raises(ValueError, match=r"'0/b' has shape \(1, 1, 5\)"):
        hvp(jax.tree.map(lambda x: x[None], v), case.data)
    with pytest.raises(ValueError, match="one scalar, the mean over the batch"):
        curvature.hvp(case.model, case.params, v, case.data)
    with pytest.raises(ValueError, match="True = live"):
        hvp(v, case.data, masks=v)
    with pytest.raises(ValueError, match="empty"):
        hvp(v, [])
    with pytest.raises(ValueError, match="empty"):
        hvp(v, lambda: iter([]))
    with pytest.raises(ValueError, match="no examples; leave it out"):
        hvp(v, [case.data, jax.tree.map(lambda x: x[:0], case.data)])
    with pytest.raises(ValueError, match="needs examples"):
        curvature.Fisher(case.model, case.output_loss, case.params, kind="empirical")
    with pytest.raises(ValueError, match=r"kind of Fisher matrix 'empiricl'.*Did you mean"):
        curvature.Fisher(case.model, case.output_loss, case.params, case.data, kind="empiricl")


def test_a_function_that_gives_one_iterator_again_is_refused():
    case = cases.mlp(sizes=(5, 2, 4))
    v = cases.random_like(case.params)

    class Loader:
        """Its passes share one iterator, as those of some data loaders do."""

        def __init__(self):
            self.left = iter(case.batches)

        def __iter__(self):
            return self.left

    for given in (iter(case.batches), Loader()):
        operator = curvature.Hessian(case.loss, case.params, lambda given=given: given)
        operator.form_bytes(1)  # takes the first batch
        with pytest.raises(ValueError, match="one iterator twice"):
            operator.matvec(v)
    left = iter(case.batches * 2)  # a new iterator each time, of the same batches
    taken = curvature.Hessian(case.loss, case.params, lambda: (b for b in left))
    with pytest.raises(ValueError, match="stream of batches is empty"):
        [taken.matvec(v) for _ in range(2)]
    sizes = iter((3, 2))
    fewer = curvature.Hessian(case.loss, case.params, lambda: iter(case.batches[: next(sizes)]))
    fewer.matvec(v)
    with pytest.raises(ValueError, match="had 7 examples, one before it 11"):
        fewer.matvec(v)
    whole = cases.flat(curvature.hvp(case.loss, case.params, v, case.data))
    fresh = curvature.Hessian(case.loss, case.params, lambda: Loader())
    for _ in range(2):
        np.testing.assert_allclose(cases.flat(fresh.matvec(v)), whole, atol=1e-13)
