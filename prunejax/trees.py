"""Leaf paths of any pytree ("block1/conv1/kernel") and rules that choose leaves by path."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

Tree = Any
_BOX = jax.tree_util.GetAttrKey("value")


def _found(tree: Tree) -> list[tuple[str, Any]]:
    """`(path, leaf)` in JAX's leaf order.

    The box of a leaf is no part of its path: the attribute `value`, all that variables of Flax NNX
    and boxed parameters of Linen hold, is left out, so that a state and its pure form agree. Beside
    others (of attention, of a critic) `value` is a name like theirs.
    """

    def box(node: Any) -> bool:
        children = jax.tree_util.default_registry.flatten_one_level_with_keys(node)
        return node is not tree and children is not None and [k for k, _ in children[0]] == [_BOX]

    joined = partial(jax.tree_util.keystr, simple=True, separator="/")  # a/0 of ["a"][0]
    return [
        (joined(outer if inner == (_BOX,) else outer + inner), leaf)
        for outer, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=box)
        for inner, leaf in jax.tree_util.tree_leaves_with_path(node)
    ]


def leaves_with_paths(tree: Tree) -> list[tuple[str, Any]]:
    """`(path, leaf)` for each leaf in JAX's leaf order. `None` is no leaf.

    Raises:
      ValueError: two leaves have one path, as "a/b" and "b" in "a": counts and rules go by paths.
    """
    # Keys of dicts in sorted order, however they were put in: that order decides ties.
    found = _found(tree)
    seen: set[str] = set()
    for path, _ in found:
        if path in seen:
            raise ValueError(
                f"two leaves have the path {path!r}, by which masks and counts are told apart; "
                "rename one of them (a key with a slash in it reads like two keys)"
            )
        seen.add(path)
    return found


def arrays(tree: Tree) -> list[tuple[str, Any]]:
    """As `leaves_with_paths`; ValueError where a leaf is no array: a function in a module, say."""
    found = leaves_with_paths(tree)
    for path, leaf in found:
        try:
            jax.numpy.result_type(leaf)
        except TypeError:
            raise ValueError(
                f"leaf {path!r} is no array but {type(leaf).__name__}; take the arrays only, e.g. "
                "equinox.filter(model, equinox.is_array) or nnx.state(model)"
            ) from None
    return found


def shown(names: Iterable[str], limit: int = 10) -> str:
    """Names for a message: the first ten, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# What norms and biases are called in Linen, NNX, Haiku and by hand. Where layers are stacked by a
# scan, or kept broadcastable as in Haiku, they have several axes like a kernel.
_NO_KERNELS = {"bias", "b", "scale", "offset", "beta", "gamma", "mean", "var"}
_GAIN = re.compile(r"(?i)(.*/)?(\w*norm\w*|[lb]n_?\d*)(/\d+)?/weight")  # of Equinox, of PyTorch


def kernels(tree: Tree) -> Tree:
    """A tree of Python bools: True at what is pruned unless rules say otherwise.

    Those are numbers with more than one axis that are not called like a norm's or a bias
    (bias, b, scale, offset, beta, gamma, mean, var; the weight of a layer called norm, ln or bn).
    """

    def is_kernel(path: str, leaf: Any) -> bool:
        dtype = getattr(leaf, "dtype", None)
        number = dtype is not None and jax.numpy.issubdtype(dtype, jax.numpy.number)
        gain = path.rpartition("/")[2] in _NO_KERNELS or _GAIN.fullmatch(path)
        return number and leaf.ndim > 1 and not gain

    return map_with_path(is_kernel, tree)


def paths(tree: Tree) -> list[str]:
    """The path of each leaf in JAX's leaf order."""
    return [path for path, _ in leaves_with_paths(tree)]


def map_with_path(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """`jax.tree.map` whose function gets the leaf's path first: `fn(path, leaf, *others)`."""
    names = (path for path, _ in _found(tree))
    return jax.tree.map(lambda *xs: fn(next(names), *xs), tree, *rest)


def map_alike(fn: Callable[..., Any], params: Tree, state: Tree, *rest: Tree) -> Tree:
    """`fn` of every part of `state` with the structure and shapes of `params`, as moments have.

    Args:
      fn: of such a part, and of what stands in its place in each of `rest`.
      params: the parameters.
      state: of an optimizer; what is no such part is taken from the last of `state` and `rest`.
    """
    structure: Any = jax.tree.structure(params)
    shapes = [np.shape(x) for x in jax.tree.leaves(params)]

    def alike(node: Any) -> bool:
        same = jax.tree.structure(node) == structure
        return same and [np.shape(x) for x in jax.tree.leaves(node)] == shapes

    def one(*nodes: Any) -> Any:
        return fn(*nodes) if alike(nodes[0]) else nodes[-1]

    return jax.tree.map(one, state, *rest, is_leaf=alike)


def aligned(tree: Tree, other: Tree, what: str) -> list[Any]:
    """What `other` has at the leaves of `tree`, in leaf order.

    Raises:
      ValueError: `other` (called `what`) lacks the structure of the tree.
    """
    structure: Any = jax.tree.structure(tree)
    try:
        return structure.flatten_up_to(other)
    except ValueError as error:
        ours, theirs = paths(tree), paths(other)
        if ours == theirs:  # in other containers: NNX's optimizer boxes the masks that it holds
            return jax.tree.leaves(other)
        known, given = set(ours), set(theirs)
        missing = [path for path in ours if path not in given]
        extra = [path for path in theirs if path not in known]
        parts = [f"missing {shown(missing)}"] if missing else []
        parts += [f"not in the tree {shown(extra)}"] if extra else []
        text = "; ".join(parts) or " ".join(str(error).split())[:300]
        raise ValueError(
            f"{what} must have the structure of the tree, {len(ours)} leaves: {text}"
        ) from None


def get(tree: Tree, path: str) -> Any:
    """The leaf at `path`; KeyError with the known paths if there is none."""
    node, parts = tree, path.split("/")
    while parts and type(node) is dict and parts[0] in node:  # planning asks for many of a tree
        if any("/".join(parts[:n]) in node for n in range(2, len(parts) + 1)):
            break  # a key with slashes: it may read like this path
        node = node[parts.pop(0)]
    if not parts and jax.tree_util.all_leaves([node]):
        return node
    for candidate, leaf in leaves_with_paths(tree):
        if candidate == path:
            return leaf
    raise KeyError(f"no leaf {path!r}; the tree has: {shown(paths(tree)) or 'no leaves'}")


def replace(tree: Tree, values: Mapping[str, Any]) -> Tree:
    """A copy of `tree` with the leaves named in `values` replaced; unknown paths raise KeyError."""
    known = set(paths(tree))
    unknown = [path for path in values if path not in known]
    if unknown:
        raise KeyError(f"no leaf {unknown[0]!r}; the tree has: {shown(sorted(known))}")
    return map_with_path(lambda path, leaf: values.get(path, leaf), tree)


def match(tree: Tree, rules: str | Iterable[str]) -> list[str]:
    """The paths that at least one rule matches, in leaf order.

    A rule is a regular expression that must match the whole path.

    Raises:
      ValueError: there is no rule, one is no regular expression, or one matches nothing; the
        message shows the paths there are.
    """
    rules = [rules] if isinstance(rules, str) else list(rules)
    if not rules:
        raise ValueError("no path rule: give a regular expression that matches whole paths")
    found = paths(tree)
    hits: set[str] = set()
    for rule in rules:
        try:
            pattern = re.compile(rule)
        except re.error as error:
            raise ValueError(f"path rule {rule!r} is no regular expression: {error}") from None
        matched = [path for path in found if pattern.fullmatch(path)]
        if not matched:
            raise ValueError(
                f"path rule {rule!r} matches none of the {len(found)} leaves: {shown(found)}"
            )
        hits.update(matched)
    return [path for path in found if path in hits]  # leaf order, not that of the rules


def select(tree: Tree, rules: str | Iterable[str]) -> Tree:
    """A tree of Python bools: True at the leaves that a rule of `match` chooses."""
    chosen = set(match(tree, rules))
    return map_with_path(lambda path, _: path in chosen, tree)


def prunable(tree: Tree, rules: str | Iterable[str] | None = None) -> Tree:
    """A tree of Python bools: what `rules` choose, or `kernels` where there are none."""
    return kernels(tree) if rules is None else select(tree, rules)


def none_pruned(tree: Tree) -> ValueError:
    """What is told where no leaf of a tree is pruned."""
    return ValueError(
        "no leaf is pruned: none has more than one axis; name leaves with rules=, of: "
        + shown(paths(tree))
    )


def fits(path: str, mask: Any, shape: tuple[int, ...], what: str) -> None:
    """Refuses a mask that is no array, or does not broadcast against `shape` (of `what`).

    Raises:
      ValueError: with the leaf's path and both shapes.
    """
    if not hasattr(mask, "shape") and not isinstance(mask, bool):
        raise ValueError(
            f"leaf {path!r}: its mask is {mask!r}; give a boolean array, the scalar True for a "
            "leaf that is never pruned"
        )
    try:
        fitting = np.broadcast_shapes(np.shape(mask), shape) == shape
    except ValueError:
        fitting = False
    if not fitting:
        raise ValueError(
            f"leaf {path!r}: a mask of shape {np.shape(mask)} does not broadcast against {what} "
            f"of shape {shape}"
        )


def whole(params: Tree, masks: Tree) -> dict[str, np.ndarray]:
    """Path -> the mask of a leaf in the leaf's shape, on the host.

    Raises:
      ValueError: the masks lack the structure of the parameters, or one does not broadcast.
    """
    shapes = {path: tuple(np.shape(x)) for path, x in leaves_with_paths(params)}
    found = {}
    for path, mask in zip(shapes, aligned(params, masks, "the masks"), strict=True):
        fits(path, mask, shapes[path], "its leaf")
        found[path] = np.broadcast_to(np.asarray(mask, bool), shapes[path])
    return found


def demand(tree: Tree, wanted: Iterable[str], of: str) -> None:
    """Refuses paths that no leaf of `tree` has; `of` says who names them.

    Raises:
      ValueError: with the first such path, and those that there are.
    """
    known = paths(tree)
    for path in wanted:
        if path not in known:
            raise ValueError(f"{of}: no leaf {path!r}; there are: {shown(known) or 'none'}")


def owners(state: Any, params: Tree) -> list[int | None]:
    """For each leaf of an optimizer's state the number of the parameter that it belongs to.

    A moment's path ends with its parameter's (the longest one that fits), inside `optax.masked` and
    `optax.partition` too; counters have others. A number is one only in a tree of parameters' names
    alone: beside "b1" of `optax.inject_hyperparams` is "eps". One bare array has no path: what has
    its shape, further axes in front aside, is a moment.
    """
    known = {path: i for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(params))}
    found = jax.tree_util.tree_leaves_with_path(state)
    mixed = {p[:i] for p, _ in found for i in range(len(p)) if p[i:] not in known}

    def owner(path: tuple[Any, ...], x: Any) -> int | None:
        if () in known:
            return 0 if ends_like(np.shape(x), np.shape(params)) else None
        cuts = (i for i in range(len(path)) if np.ndim(x) or path[:i] not in mixed)
        return next((known[path[i:]] for i in cuts if path[i:] in known), None)

    return [owner(path, x) for path, x in found]


def ends_like(shape: tuple[int, ...], flags: tuple[int, ...]) -> bool:
    """Whether `flags` broadcast against an array of `shape`, further axes in front of it aside."""
    tail = shape[len(shape) - len(flags) :] if len(shape) >= len(flags) else ()
    return len(tail) == len(flags) and all(f in (1, n) for f, n in zip(flags, tail, strict=True))
