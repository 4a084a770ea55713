"""The caller's functions: as keys of compiled kernels, what they compute, where estimators may run.

A loss is `loss(params)` or `loss(params, batch)` and returns the mean over the batch. Compiled
kernels are kept per loss and what it refers to (`captured`).

An estimator (`on_host`) decides by values that it computed (when a pair has converged, how many
probes are enough) and returns NumPy. Under a transformation of the caller there are no values yet:
it says so in one sentence.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.tree_util import Partial

from prunejax import registry
from prunejax.curvature.captured import Captured, references

Tree = Any


def as_argument(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` as a pytree, so that one compiled kernel can take it as an argument.

    Kernels are compiled once per function, what it refers to, and shapes; not once per call. A
    `jax.tree_util.Partial(fn, statistics)` carries its arrays as *data*: a loss that closes over
    new BatchNorm statistics at every call should be given so, it is then compiled once.

    Raises TypeError: it is no function.
    """
    if not callable(fn):
        raise TypeError(f"a loss or model is a function, got {type(fn).__name__}")
    data = jax.Array | np.ndarray | np.generic | int | float | complex
    if all(isinstance(leaf, data) for leaf in jax.tree.leaves(fn)):
        return fn  # a Partial or another registered callable whose leaves are data
    return Partial(Captured(fn))


def call(loss: Callable[..., Any], params: Tree, batch: Tree) -> jax.Array:
    """The scalar `loss(params, batch)`, or `loss(params)` where there is no batch."""
    return loss(params) if batch is None else loss(params, batch)


def equations(fn: Callable[..., Any], *arguments: Any) -> Iterator[JaxprEqn]:
    """What a function computes, at any depth. One that is jitted is traced once for all its calls
    with the same shapes.
    """
    if hasattr(fn, "trace"):
        return _equations(fn.trace(*arguments).jaxpr.jaxpr)
    return _equations(jax.make_jaxpr(fn)(*arguments).jaxpr)


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from _equations(inner)


def primitives(fn: Callable[..., Any], *arguments: Any) -> set[str]:
    """The names of the primitives that a function uses, at any depth."""
    return {eqn.primitive.name for eqn in equations(fn, *arguments)}


def has_custom_vjp(fn: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a part of a function has a `jax.custom_vjp` rule, at any depth."""
    return any(name.startswith("custom_vjp") for name in primitives(fn, *arguments))


P = ParamSpec("P")
T = TypeVar("T")
# Arguments of estimators that are whole numbers, by name.
COUNTS = {
    *("k", "probes", "max_probes", "chunk", "memory_bytes", "max_products", "basis_size"),
    *("steps", "starts", "restarts", "samples", "batch_size", "ddof", "points", "draws"),
}
TRACEABLE = (
    "curvature.hvp, quadratic_form, ggn_product, fisher_product, and matvec and quadratic_forms of "
    "an operator such as curvature.Hessian"
)


def lenient(fn: Callable[P, T]) -> Callable[P, T]:
    """`fn` under JAX's standard promotion of ranks and dtypes, whatever the caller has set.

    Sums here run in float32 beside 16-bit parameters on purpose. The loss is traced so, too.
    """

    @functools.wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return fn(*args, **kwargs)

    return run


def on_host(
    options_of: Callable[..., Any] | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Marks an estimator: refuses traced values in one sentence, before anything is compiled.

    Args:
      options_of: the function whose keyword arguments stand for `**options`; they are spelled out
        in the signature, and an unknown one is refused by name.
    """

    def decorate(fn: Callable[P, T]) -> Callable[P, T]:
        signature = _spelled_out(fn, options_of)

        @functools.wraps(fn)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            given = _bound(fn.__name__, signature, args, kwargs)
            tracer = jax.core.Tracer
            inside = isinstance(jnp.zeros(()), tracer)
            traced = [n for n, x in given.items() if any(isinstance(y, tracer) for y in _leaves(x))]
            if inside or traced:
                what = f" ({', '.join(traced)} traced here)" if traced else ""
                raise TypeError(
                    f"{fn.__name__} gives numbers on the host and cannot run inside jit, vmap or "
                    f"grad{what}; call it outside, or use there: {TRACEABLE}"
                )
            return lenient(fn)(*args, **kwargs)

        checked.__signature__ = signature  # type: ignore[attr-defined]
        return checked

    return decorate


def _spelled_out(fn: Callable[..., Any], options_of: Callable[..., Any] | None) -> Any:
    """The signature with `**options` replaced by the keyword arguments that it takes."""
    own = inspect.signature(fn)
    if options_of is None:
        return own
    kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    more = [
        p
        for p in inspect.signature(options_of).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in own.parameters
    ]
    return own.replace(parameters=[*kept, *more])


def _bound(name: str, signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments by name; TypeError, with their order, where they are not such arguments."""
    named = list(signature.parameters.values())
    order = ", ".join(p.name for p in named if p.kind is not p.KEYWORD_ONLY)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        known = ", ".join(p.name for p in named if p.kind is p.KEYWORD_ONLY)
        raise TypeError(f"{name}: {error}; it takes ({order}), and by name {known}") from None
    first, value = next(iter(given.items()))
    if not callable(value) and not hasattr(value, "matvec"):
        raise TypeError(
            f"{name}: {first} is of type {type(value).__name__} and no function; the order is "
            f"({order})"
        )
    for count in COUNTS & set(given):
        if given[count] is not None and not registry.is_whole(given[count]):
            raise TypeError(
                f"{name}: {count} is of type {type(given[count]).__name__} and no integer; the "
                f"order is ({order})"
            )
    tolerance = given.get("tolerance", 0)
    if not isinstance(tolerance, str) and not tolerance >= 0:  # that of prunability is a word
        raise ValueError(f"{name}: tolerance must be at least 0, got {tolerance}")
    needed = signature.parameters["key"].default is inspect.Parameter.empty if "key" in given else 0
    if needed and not hasattr(given["key"], "dtype"):
        raise TypeError(f"{name}: key is {given['key']!r}; give a key, as of jax.random.key(0)")
    return given


def _leaves(value: Any) -> Iterator[Any]:
    """Leaves of an argument; of a function what it closes over, of an operator its parts."""
    if isinstance(value, Iterator):  # a stream of batches: looking would use it up
        return
    for leaf in jax.tree.leaves(value):
        if callable(leaf):
            for found in references(leaf):
                yield from jax.tree.leaves(found)
        elif hasattr(leaf, "like") and hasattr(leaf, "masks"):  # an operator
            stream = getattr(leaf, "_stream", None)
            yield from jax.tree.leaves((leaf.like, leaf.masks, getattr(stream, "single", None)))
        else:
            yield leaf


def check_positive(**numbers: float) -> None:
    """ValueError, with the name, for a number that is not positive and finite."""
    for name, number in numbers.items():
        if not (np.isfinite(number) and number > 0):
            raise ValueError(f"{name} must be positive and finite, got {number}")


# The number of threads is one of the process: who sets it must not meet another who restores it.
_LOCK = threading.Lock()


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


def one_thread(fn: Callable[P, T]) -> Callable[P, T]:
    """`fn` with one thread of NumPy's BLAS; not recursive, one call at a time in a process.

    OpenBLAS keeps its threads spinning for some milliseconds after each call, which on matrices of
    a search gain nothing; between its products they took a third of all CPU time.
    """

    @functools.wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with _LOCK, _blas().limit(limits=1):
            return fn(*args, **kwargs)

    return run
