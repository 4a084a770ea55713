"""Eigenpairs on parameter trees: Lanczos with restarts, and the paper's power iteration.

Thick restart (Wu and Simon 2000): a full basis is rotated to its leading Ritz vectors and grown
again, so memory is bounded. Fresh directions: one start vector can not see the second copy of a
multiple eigenvalue; when all wanted pairs have converged, a random direction is added and the
search goes on for some steps, also where the space reached so far is invariant (breakdown).

Deflated power iteration is that of Bartoldson et al. (2020), written after their released code, to
compare numbers: twenty products a pair leave some unconverged, Lanczos takes fewer for all.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.curvature import splits, vectors
from prunejax.curvature.callables import on_host
from prunejax.curvature.krylov import Krylov, measured, row_bytes
from prunejax.curvature.operators import Operator, as_operator
from prunejax.registry import lookup

Tree = Any
MEMORY = 2**33  # bytes that a basis may take where nothing else is said


@dataclasses.dataclass(frozen=True)
class Eigenpairs:
    """Eigenpairs of a symmetric operator on its live space.

    Attributes:
      values: [k] eigenvalues in float64, in the order of `which`.
      vectors: stack of k orthonormal eigenvectors (trees like the parameters, 0 where dead).
      residuals: [k] measured |A v - value v|; every eigenvalue of A is this close to a true one.
      converged: [k] whether the residual is at most `tolerance * norm`.
      norm: the largest absolute Ritz value met, an estimate of |A| from below.
      tolerance, which: what was asked for.
      products: matrix-vector products spent to find the pairs.
      checks: further products, one per pair, spent to measure the residuals.
      restarts: how often the basis was rotated and grown again.
      examples, live_dim: as in `Trace`.
    """

    values: np.ndarray
    vectors: Tree
    residuals: np.ndarray
    converged: np.ndarray
    norm: float
    tolerance: float
    which: str
    products: int
    checks: int
    restarts: int
    examples: int | None
    live_dim: int

    def at(self, places: np.ndarray) -> "Eigenpairs":
        """The pairs at these places [n], in this order."""
        names = "values", "residuals", "converged"
        chosen = {name: getattr(self, name)[places] for name in names}
        return dataclasses.replace(self, vectors=vectors.take(self.vectors, places), **chosen)


# Which Ritz values are wanted: a key by which the first k in ascending order are taken.
ORDERS = {
    "top": lambda values: -values,
    "bottom": lambda values: values,
    "magnitude": lambda values: -np.abs(values),
}


@on_host()
def eigenpairs(
    operator: Operator,
    k: int,
    *,
    key: jax.Array,
    which: str = "top",
    tolerance: float = 1e-4,
    max_products: int | None = None,
    basis_size: int | None = None,
    memory_bytes: int = MEMORY,
) -> Eigenpairs:
    """The k extreme eigenpairs of an operator.

    Args:
      operator: `Hessian(...)`, `GaussNewton(...)`, `Fisher(...)` or `from_matvec(...)`.
      k: how many pairs.
      key: PRNG key of the start vector and of fresh directions.
      which: "top" (largest, descending), "bottom" (smallest, ascending) or "magnitude" (largest
        absolute value, descending).
      tolerance: a pair has converged when |A v - value v| <= tolerance * |A|, with |A| estimated
        by the largest absolute Ritz value. float32 products carry an error of about 1e-6 |A|.
      max_products: products after which the search ends, converged or not; default 20 k + 200.
      basis_size: vectors kept at once, at least k + 6; default 3 k + 40, or what `memory_bytes`
        allows. A full basis is restarted.
      memory_bytes: bound on the memory of a basis whose size is not given, default 8 GiB.

    Raises:
      ValueError: k, basis_size or memory_bytes are impossible; the message says what is possible.
    """
    order = lookup(ORDERS, which, "part of the spectrum")
    dim = operator.nonempty_dim(k)
    capacity = _capacity(operator, k, basis_size, memory_bytes)
    operator.check_symmetric()
    limit = 20 * k + 200 if max_products is None else max_products
    if limit < k:
        raise ValueError(f"max_products is {limit}; {k} pairs need at least {k}")
    space = Krylov(operator, capacity, vectors.named_key(key, "lanczos"))
    restarts = _search(space, k, order, tolerance, limit)
    values, rows, _ = space.ritz()
    wanted = np.argsort(order(values), kind="stable")[:k]  # stable: of equal ones the earlier
    stack = space.basis.rotated(rows[wanted])
    values, residuals = measured(operator, stack)
    found = Eigenpairs(
        values, stack, residuals, residuals <= tolerance * space.norm, norm=space.norm,
        tolerance=tolerance, which=which, products=space.products, checks=k, restarts=restarts,
        examples=operator.examples, live_dim=dim,
    )  # fmt: skip
    return found.at(np.argsort(order(values), kind="stable"))  # measured ones may change places


def _capacity(operator: Operator, k: int, basis_size: int | None, memory_bytes: int) -> int:
    """Rows of the basis."""
    dim, room, row = operator.live_dim, k + 6, row_bytes(operator)
    wanted = 3 * k + 40 if basis_size is None else basis_size
    if wanted < min(room, dim):
        raise ValueError(f"basis_size is {wanted}; {k} pairs need at least {min(room, dim)}")
    if basis_size is None:
        wanted = min(wanted, memory_bytes // row)
        if wanted < min(room, dim):
            raise ValueError(
                f"a basis for {k} pairs takes {min(room, dim) * row} bytes or more, memory_bytes "
                f"is {memory_bytes}; ask for fewer pairs or give more memory"
            )
    return min(wanted, dim)


def _search(space: Krylov, k: int, order: Any, tolerance: float, limit: int) -> int:
    """Grows and restarts the space until k pairs have converged and stayed; counts restarts."""
    restarts, confirm_until, every, check = 0, 0, max(1, k // 10), k
    while space.products < limit and space.done < space.operator.live_dim:
        restarts += _make_room(space, k, order)
        if space.done == space.basis.size:  # it needs a row beside those of its products
            space.fresh()
            restarts += _make_room(space, k, order)
        upto = min(check + -check % every, limit, space.products + space.room)
        space.steps(upto - space.products)
        # A space that is invariant is looked at before its time.
        if space.done < k or (space.products < check and space.done < space.basis.size):
            continue
        values, _, left = space.ritz()
        worst = np.max(left[np.argsort(order(values), kind="stable")[:k]])
        if worst <= (allowed := tolerance * space.norm):
            if not confirm_until:
                # Time for a second copy of an eigenvalue to grow out of the fresh direction.
                confirm_until = space.products + max(10, space.products // 5)
                restarts += _make_room(space, k, order)
                space.fresh()
            elif space.products >= confirm_until:
                break
        # A residual seldom falls more than fourfold a product.
        wait = 1 + (worst > 4 * allowed) + (worst > 16 * allowed)
        check = max(space.products + wait, confirm_until)
    return restarts


def _make_room(space: Krylov, k: int, order: Any) -> int:
    """Restarts a full basis that does not span everything; 1 if it did."""
    if space.room:
        return 0
    capacity, pending = space.basis.capacity, space.basis.size - space.done
    # More than k: what converges next is kept as well.
    count = min(k + (capacity - k) // 3, space.done, capacity - pending - 2)
    space.restart(np.argsort(order(space.ritz()[0]), kind="stable")[:count])
    return 1


@on_host(eigenpairs)
def top_eigenpairs(
    loss: Any, params: Tree = None, k: int = 1, batches: splits.Batches = None, *,
    key: jax.Array, masks: vectors.Masks = None, weights: Any = None, **options: Any,
) -> Eigenpairs:  # fmt: skip
    """Extreme eigenpairs of P H P; `which="bottom"` or "magnitude" for the other ends.

    `loss`, `params`, `batches`, `masks`, `weights` are those of `Hessian`, or `loss` is an
    `Operator` and stands alone; `k`, `key` and the options (which, tolerance, max_products,
    basis_size, memory_bytes) are those of `eigenpairs`.
    """
    return eigenpairs(as_operator(loss, params, batches, masks, weights), k, key=key, **options)


@jax.jit
def _deflate(product: Tree, vector: Tree, stack: Tree, values: jax.Array) -> Tree:
    """A x - Σ_i λ_i (v_i'x) v_i; rows that are not filled yet are 0."""
    parts = values * vectors.stack_dot(stack, vector)
    return jax.tree.map(jnp.subtract, product, vectors.combine(parts, stack))


@jax.jit
def _advance(product: Tree, vector: Tree) -> tuple[Tree, jax.Array]:
    """The next unit vector, and the estimate x'(Ax)."""
    length = vectors.norm(product)
    inverse = jnp.where(length > 0, 1 / length, 0.0)  # 0 where A x = 0
    return vectors.scale(inverse, product), vectors.dot(vector, product)


def _apart(vector: Tree, stack: Tree) -> Tree:
    """The unit vector that is left of one without its parts along a stack, whose rows may be 0."""
    ones = jnp.ones(len(jax.tree.leaves(stack)[0]))
    once = _advance(_deflate(vector, vector, stack, ones), vector)[0]
    return _advance(_deflate(once, once, stack, ones), once)[0]  # less what rounding left


_store = jax.jit(
    lambda stack, i, v: jax.tree.map(lambda rows, x: rows.at[i].set(x), stack, v),
    donate_argnums=0,
)


@on_host()
def power_iteration(
    operator: Operator, k: int, *, key: jax.Array, steps: int = 20, tolerance: float = 1e-4
) -> Eigenpairs:
    """The k eigenpairs of largest magnitude by power iteration on the deflated operator.

    A pair takes at most `steps` products and ends when the estimate λ = x'Ax changes by less than
    `tolerance` relative to itself. The first start is uniform on [0, 1) and not normalized, each
    later one the eigenvector before. No momentum. Deflation subtracts λ v v'. A product of 0 is
    followed by a random start orthogonal to the pairs before; if it gives 0, too, it is a vector of
    the eigenvalue 0, the only one left. The result is sorted by signed value, descending.

    Returns:
      `Eigenpairs` of `which="power"`; `converged`: the stopping rule was met within `steps` (the
      released code does not say); `residuals` are measured afterwards (`checks`).
    """
    dim = operator.nonempty_dim(k)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    operator.check_symmetric()
    key = vectors.named_key(key, "power")
    vector = operator.draw(key, 0, "uniform")
    stack = jax.tree.map(lambda x: jnp.zeros((k, *x.shape), x.dtype), vector)
    values, converged, products = np.zeros(k), np.zeros(k, bool), 0  # 0: deflates nothing yet
    for i in range(k):
        before, known, drawn = 0.0, jnp.asarray(values, operator.dtype), False
        for _ in range(steps):
            product = _deflate(operator.matvec(vector), vector, stack, known)
            # of the very first x, which has no unit length, no Rayleigh quotient
            following, found = _advance(product, vector)
            estimate, products = float(found), products + 1
            if estimate == 0.0 and not float(vectors.norm(following)):
                converged[i] = drawn
                if drawn:
                    break
                vector, drawn = _apart(operator.draw(key, i + 1, "gaussian"), stack), True
                continue
            vector = following
            # with 0 before, the first estimate never ends it: its relative change is 1
            converged[i] = estimate != 0.0 and abs((estimate - before) / estimate) < tolerance
            if converged[i]:
                break
            before = estimate
        values[i], stack = estimate, _store(stack, i, vector)
    rayleigh, left = measured(operator, stack)
    # |Av - μv|² = |Av - θv|² + (θ - μ)² for a unit vector v with Rayleigh quotient θ.
    pairs = Eigenpairs(
        values, stack, np.hypot(left, rayleigh - values), converged, float(np.max(np.abs(values))),
        tolerance, "power", products, k, 0, examples=operator.examples, live_dim=dim,
    )  # fmt: skip
    # by signed value, as released: the "first ten" are the ten most positive
    return pairs.at(np.argsort(values)[::-1])


@on_host(power_iteration)
def deflated_power_iteration(
    loss: Any, params: Tree = None, k: int = 1, batches: splits.Batches = None, *,
    key: jax.Array, masks: vectors.Masks = None, weights: Any = None, **options: Any,
) -> Eigenpairs:  # fmt: skip
    """The eigenpairs of P H P as the released code finds them; arguments as in `top_eigenpairs`,
    options (steps, tolerance) as in `power_iteration`.
    """
    operator = as_operator(loss, params, batches, masks, weights)
    return power_iteration(operator, k, key=key, **options)
