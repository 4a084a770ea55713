"""Many quadratic forms v'Hv at one point: one reverse pass, then a forward pass for each v.

For a program that applies operations y_k = g_k(x_k) one after another, the chain rule gives

    v' ∇²L v = Σ_k ⟨λ_k, g_k''[u_k, u_k]⟩,      λ_k = ∂L/∂y_k,   u_k = the change of x_k along v.

The adjoints λ_k do not depend on v. They are computed once, by one gradient; a quadratic form then
costs the forward pass of first derivatives u_k and, at operations that are curved (a product of two
things that both change, an exponential, ...), one local second derivative. For a convolutional
network these are 3 convolutions per layer and v, against 5 for a jvp of a jvp and 9 for a
Hessian-vector product. Memory is that of one gradient's intermediates, about twice over.

The loss is read as a jaxpr, operation by operation. Any primitive is handled, through its own JVP
rule; loops and conditionals count as one operation each.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from prunejax.curvature import vectors

Tree = Any
_INLINED = {"jit", "pjit", "closed_call"}  # calls whose body is walked through


def quadratic_forms(f: Callable[[Tree], jax.Array], params: Tree) -> Callable[[Tree], jax.Array]:
    """`v -> v' ∇²f(params) v`, a scalar, with everything that does not depend on v computed here.

    Args: f: a scalar function. params: where; a pytree of floating-point arrays.

    Raises TypeError, NotImplementedError, ValueError: f has a part without forward or reverse mode.
    """
    closed = jax.make_jaxpr(f)(params)
    leaves = jax.tree.leaves(params)
    plan = _Plan()
    _walk(closed.jaxpr, closed.consts, leaves, [True] * len(leaves), plan)

    def forward(shifts: Sequence[jax.Array]) -> tuple[jax.Array, list[Any]]:
        primal = _Primal(plan, shifts)
        (value,), _ = _walk(closed.jaxpr, closed.consts, leaves, [None] * len(leaves), primal)
        return value, primal.outputs

    zeros = [jnp.zeros(shape, dtype) for shape, dtype in plan.shifts]
    value, pullback, outputs = jax.vjp(forward, zeros, has_aux=True)
    (adjoints,) = pullback(jnp.ones_like(value))

    def form(v: Tree) -> jax.Array:
        tangent = _Tangent(plan, outputs, adjoints)
        _walk(closed.jaxpr, closed.consts, leaves, jax.tree.leaves(v), tangent)
        return tangent.total

    return form


def inlined(fn: Callable[..., Any], *arguments: Any) -> ClosedJaxpr:
    """The traced program of `fn`, its calls in line."""
    closed, flat = jax.make_jaxpr(fn)(*arguments), jax.tree.leaves(arguments)
    if all(eqn.primitive.name not in _INLINED for eqn in closed.jaxpr.eqns):
        return closed

    def apply(operation: _Operation, xs: Sequence[Any], marks: Sequence[Any]) -> Any:
        out = operation.apply(xs)
        return out, [None] * len(out)

    def run(*values: Any) -> list[Any]:
        return _walk(closed.jaxpr, closed.consts, values, [None] * len(values), apply)[0]

    return jax.make_jaxpr(run)(*flat)


def _walk(
    jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Any], marks: Sequence[Any], visit: Any
) -> tuple[list[Any], list[Any]]:
    """Runs `visit(operation, values, marks) -> (values, marks)` over the equations, calls inlined.

    A mark goes along with each value: whether it changes, or its tangent (None: it does not).
    """
    env: dict[Any, tuple[Any, Any]] = {}

    def read(atom: Any) -> tuple[Any, Any]:
        return (atom.val, None) if isinstance(atom, Literal) else env[atom]

    def write(variables: Sequence[Any], values: Sequence[Any], marks: Sequence[Any]) -> None:
        for var, value, mark in zip(variables, values, marks, strict=True):
            env[var] = value, mark

    write(jaxpr.constvars, consts, [None] * len(consts))
    write(jaxpr.invars, values, marks)
    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        xs, us = [x for x, _ in inputs], [u for _, u in inputs]
        if eqn.primitive.name in _INLINED:
            inner = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
            write(eqn.outvars, *_walk(inner.jaxpr, inner.consts, xs, us, visit))
        else:
            # One equation as a program of its own, so that its rules can be used by jax.jvp.
            used = list(dict.fromkeys(a for a in eqn.invars if not isinstance(a, Literal)))
            alone = jaxpr.replace(constvars=[], invars=used, outvars=eqn.outvars, eqns=[eqn])
            write(eqn.outvars, *visit(_Operation(eqn, ClosedJaxpr(alone, ())), xs, us))
    found = [read(atom) for atom in jaxpr.outvars]
    return [x for x, _ in found], [u for _, u in found]


class _Operation(NamedTuple):
    """One equation of the loss and the program that consists of it alone."""

    eqn: JaxprEqn
    program: ClosedJaxpr

    def apply(self, xs: Sequence[Any]) -> list[Any]:
        """The outputs."""
        named = {
            a: x for a, x in zip(self.eqn.invars, xs, strict=True) if not isinstance(a, Literal)
        }
        return list(jaxpr_as_fun(self.program)(*(named[var] for var in self.program.jaxpr.invars)))

    def inexact(self) -> list[int]:
        """Which outputs can change: real and complex ones."""
        avals: list[Any] = [var.aval for var in self.eqn.outvars]
        return [i for i, aval in enumerate(avals) if jnp.issubdtype(aval.dtype, jnp.inexact)]

    def local(self, xs: Sequence[Any], changing: Sequence[int]) -> Callable[..., list[Any]]:
        """The outputs that can change as a function of the inputs that do."""

        def g(*moved: Any) -> list[Any]:
            full = list(xs)
            for i, x in zip(changing, moved, strict=True):
                full[i] = x
            out = self.apply(full)
            return [out[i] for i in self.inexact()]

        return g

    def second(
        self, xs: Sequence[Any], changing: Sequence[int], us: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """First derivative g'[u] and second derivative g''[u, u]."""
        at, along = tuple(xs[i] for i in changing), tuple(us)
        g = self.local(xs, changing)
        return jax.jvp(lambda *moved: jax.jvp(g, moved, along)[1], at, along)


class _Plan:
    """First walk: which values change with the parameters, and which equations are curved."""

    def __init__(self) -> None:
        self.changing: list[list[int]] = []  # per equation: inputs that change
        self.curved: list[list[int]] = []  # per equation: positions in `shifts`, or empty
        self.shifts: list[tuple[Any, Any]] = []
        self._known: dict[Any, bool] = {}

    def __call__(
        self, operation: _Operation, xs: Sequence[Any], marks: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        changing = [i for i, mark in enumerate(marks) if mark]
        moving = operation.inexact() if changing else []
        self.changing.append(changing if moving else [])
        slots: list[int] = []
        if moving and self._is_curved(operation, changing):
            for i in moving:
                slots.append(len(self.shifts))
                aval: Any = operation.eqn.outvars[i].aval
                self.shifts.append((aval.shape, aval.dtype))
        self.curved.append(slots)
        marks = [True if i in moving else None for i in range(len(operation.eqn.outvars))]
        return [None] * len(operation.eqn.outvars), marks

    def _is_curved(self, operation: _Operation, changing: Sequence[int]) -> bool:
        """Whether the second derivative depends on anything, so is not identically 0."""
        key = (id(operation.eqn), tuple(changing))
        if key not in self._known:
            inputs: list[Any] = [atom.aval for atom in operation.eqn.invars]
            structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in inputs]
            along = [structs[i] for i in changing]
            traced = jax.make_jaxpr(lambda xs, us: operation.second(xs, changing, us)[1])(
                structs, along
            )
            self._known[key] = _depends(traced.jaxpr)
        return self._known[key]


def _depends(jaxpr: Jaxpr) -> bool:
    """Whether any output is reached from an input."""
    reached = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        if any(not isinstance(atom, Literal) and atom in reached for atom in eqn.invars):
            reached.update(eqn.outvars)
    return any(not isinstance(atom, Literal) and atom in reached for atom in jaxpr.outvars)


class _Primal:
    """Second walk: the values themselves, curved ones shifted (by zero) to get their adjoints."""

    def __init__(self, plan: _Plan, shifts: Sequence[jax.Array]) -> None:
        self.plan, self.shifts, self.outputs = plan, shifts, []  # type: ignore[var-annotated]

    def __call__(
        self, operation: _Operation, xs: Sequence[Any], marks: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        out = operation.apply(xs)
        slots = self.plan.curved[len(self.outputs)]
        for i, slot in zip(operation.inexact(), slots, strict=False):
            out[i] = out[i] + self.shifts[slot]
        self.outputs.append(out)
        return out, [None] * len(out)


class _Tangent:
    """Third walk: the changes along v, and Σ ⟨adjoint, second derivative⟩."""

    def __init__(self, plan: _Plan, outputs: list[Any], adjoints: Sequence[jax.Array]) -> None:
        self.plan, self.outputs, self.adjoints = plan, outputs, adjoints
        self.count = 0
        self.total: jax.Array = jnp.zeros(())

    def __call__(
        self, operation: _Operation, xs: Sequence[Any], us: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        step, self.count = self.count, self.count + 1
        changing, slots = self.plan.changing[step], self.plan.curved[step]
        marks: list[Any] = [None] * len(operation.eqn.outvars)
        if changing:
            along = [us[i] for i in changing]
            if slots:
                first, second = operation.second(xs, changing, along)
                for slot, value in zip(slots, second, strict=True):
                    # Of complex numbers the cotangent is such that Re(λ u) is the change.
                    self.total = self.total + jnp.real(vectors.dot(self.adjoints[slot], value))
            else:
                at = tuple(xs[i] for i in changing)
                first = jax.jvp(operation.local(xs, changing), at, tuple(along))[1]
            for i, u in zip(operation.inexact(), first, strict=True):
                marks[i] = u
        return self.outputs[step], marks
