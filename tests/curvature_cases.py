"""Small networks in float64 with dense oracles, shared by the curvature tests."""

import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


class Case(NamedTuple):
    """A network, its loss split in two, parameters and data."""

    params: Any
    model: Callable[[Any, Any], jax.Array]
    output_loss: Callable[[jax.Array, Any], jax.Array]
    batches: list[Any]

    def loss(self, params: Any, batch: Any) -> jax.Array:
        return self.output_loss(self.model(params, batch), batch)

    @property
    def data(self) -> Any:
        return jax.tree.map(lambda *xs: put(np.concatenate(xs)), *self.batches)


def put(values: Any, dtype: Any = None) -> jax.Array:
    """On the device as they are: `jnp.asarray` compiles a program for each shape."""
    return jax.device_put(np.asarray(values, dtype))


def normal(seed: int, name: Any, *shape: int) -> jax.Array:
    """Standard normals of a stream of this name, by NumPy, which compiles nothing."""
    stream = np.random.default_rng([seed, zlib.crc32(str(name).encode())])
    return put(stream.normal(size=shape))


def cross_entropy(logits: jax.Array, batch: Any) -> jax.Array:
    logs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(logs, batch["y"][:, None], axis=1))


def squared_error(outputs: jax.Array, batch: Any) -> jax.Array:
    return jnp.mean(jnp.sum((outputs - batch["t"]) ** 2, axis=-1))


def _data(rng: np.random.Generator, sizes: tuple[int, ...], shape: tuple[int, ...]) -> list[Any]:
    return [
        {
            "x": put(rng.normal(size=(n, *shape))),
            "y": put(rng.integers(0, 3, n)),
            "t": put(rng.normal(size=(n, 3))),
        }
        for n in sizes
    ]


def made_once(make: Callable[..., Case]) -> Callable[..., Case]:
    """The same case for all tests, which then share what is compiled for its loss."""

    @functools.cache
    def known(kind: Any, *args: Any, **options: Any) -> Case:
        return make(*args, **options)

    @functools.wraps(make)
    def get(*args: Any, **options: Any) -> Case:
        return known(jnp.result_type(float), *args, **options)

    return get


@made_once
def mlp(seed: int = 0, sizes: tuple[int, ...] = (4, 4, 3), loss: Any = cross_entropy) -> Case:
    """4-5-3 tanh network, parameters in nested tuples and dicts."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        return put(rng.normal(size=shape) * 0.7)

    params = ({"w": draw(4, 5), "b": draw(1, 5)}, (draw(5, 3), draw(1, 3)))

    def model(p: Any, batch: Any) -> jax.Array:
        hidden = jnp.tanh(batch["x"] @ p[0]["w"] + p[0]["b"])
        return hidden @ p[1][0] + p[1][1]

    return Case(params, model, loss, _data(rng, sizes, (4,)))


@made_once
def conv_net(seed: int = 0, sizes: tuple[int, ...] = (3, 4)) -> Case:
    """Convolution, eval-mode BatchNorm with frozen statistics, relu, residual, pooling, dense."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        return put(rng.normal(size=shape) * 0.5)

    params = {
        "conv1": draw(3, 3, 2, 3),
        "conv2": draw(3, 3, 3, 3),
        "scale": 1 + draw(1, 1, 1, 3),
        "bias": draw(1, 1, 1, 3),
        "dense": draw(3, 3),
    }
    mean, variance = draw(1, 1, 1, 3), 1 + draw(1, 1, 1, 3) ** 2

    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def model(p: Any, batch: Any) -> jax.Array:
        x = convolve(batch["x"], p["conv1"])
        x = (x - mean) * jax.lax.rsqrt(variance + 1e-5) * p["scale"] + p["bias"]
        x = jax.nn.relu(x)
        y = convolve(x, p["conv2"])
        # Of a convolution itself: XLA computes sums anew where their maximum is compared with them.
        y = jnp.max(y.reshape(y.shape[0], 2, 2, 2, 2, 3), axis=(2, 4))
        x = jnp.mean(x, axis=(1, 2)) + jnp.mean(jax.nn.softplus(y), axis=(1, 2))
        return x @ p["dense"]

    return Case(params, model, cross_entropy, _data(rng, sizes, (4, 4, 2)))


CASES = {
    "mlp": mlp,
    "regression": lambda: mlp(1, (3, 4), squared_error),
    "conv": conv_net,
}


def masks_for(params: Any, seed: int = 3, density: float = 0.6) -> Any:
    """Random masks; the first leaf a filter mask that broadcasts, the last leaf never pruned."""
    rng = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(params)
    masks: list[Any] = [put(rng.random(leaf.shape) < density) for leaf in leaves]
    shape = (1,) * (leaves[0].ndim - 1) + leaves[0].shape[-1:]
    masks[0] = put(np.arange(leaves[0].shape[-1]).reshape(shape) % 2 == 0)
    masks[-1] = True
    return jax.tree.unflatten(structure, masks)


def live(params: Any, masks: Any) -> np.ndarray:
    """[d] flat boolean vector of live coordinates."""
    full = jax.tree.map(lambda m, p: np.broadcast_to(m, p.shape).ravel(), masks, params)
    return np.concatenate(jax.tree.leaves(full))


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def dense_hessian(f: Callable[[Any], jax.Array], params: Any) -> np.ndarray:
    vector, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda x: f(unravel(x))))(vector))


def of_case(compute: Callable[[Case], np.ndarray]) -> Callable[[Case], np.ndarray]:
    """A matrix of a case, computed once."""
    known: dict[int, tuple[Case, np.ndarray]] = {}  # (keeps the case, so that its id is its own)

    @functools.wraps(compute)
    def get(case: Case) -> np.ndarray:
        if id(case) not in known:
            known[id(case)] = case, compute(case)
        return known[id(case)][1].copy()

    return get


@of_case
def dense_hessian_of(case: Case) -> np.ndarray:
    return dense_hessian(lambda p: case.loss(p, case.data), case.params)


@of_case
def dense_ggn(case: Case) -> np.ndarray:
    """(1/n) Σ_i J_i' H_i J_i, example by example."""
    vector, unravel = ravel_pytree(case.params)

    def term(example: Any) -> jax.Array:
        one = jax.tree.map(lambda x: x[None], example)
        outputs = case.model(case.params, one)[0]
        jacobian = jax.jacobian(lambda x: case.model(unravel(x), one)[0])(vector)
        bend = jax.hessian(lambda z: case.output_loss(z[None], one))(outputs)
        return jacobian.T @ bend @ jacobian

    return np.mean(jax.jit(jax.vmap(term))(case.data), axis=0)


@of_case
def dense_fisher(case: Case) -> np.ndarray:
    """(1/n) Σ_i g_i g_i' at the labels given, gradient by gradient."""
    gradient = jax.jit(jax.grad(case.loss))
    gradients = [flat(gradient(case.params, e)) for e in examples(case)]
    return np.mean([np.outer(g, g) for g in gradients], axis=0)


def examples(case: Case) -> Iterator[Any]:
    data = jax.tree.map(np.asarray, case.data)
    for i in range(len(data["y"])):
        yield jax.tree.map(lambda x, i=i: x[i : i + 1], data)


def restricted(matrix: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """P M P."""
    return matrix * np.outer(alive, alive)


def random_like(params: Any, seed: int = 5) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: put(rng.normal(size=p.shape), p.dtype), params)


def stack(vectors: list[Any]) -> Any:
    return jax.tree.map(lambda *xs: put(np.stack(xs)), *vectors)


def with_spectrum(values: Any, seed: int = 0) -> tuple[np.ndarray, Any, Callable[[Any], Any]]:
    """A symmetric matrix of given eigenvalues, a tree its size, and its product on such trees."""
    rng = np.random.default_rng(seed)
    values = np.asarray(values, np.float64)
    n = len(values)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    matrix = (q * values) @ q.T
    a, b = np.zeros(n - n // 3), np.zeros((1, n // 3))
    like: dict[str, Any] = {"a": put(a), "b": (put(b),)}
    unravel = ravel_pytree(like)[1]
    on_device = put(matrix, like["a"].dtype)

    @jax.jit  # one program, where it is called by itself
    def matvec(v: Any) -> Any:
        return unravel(jnp.matmul(on_device, ravel_pytree(v)[0], precision="highest"))

    return matrix, like, matvec
