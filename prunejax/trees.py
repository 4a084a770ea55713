"""Leaf paths of any pytree ("block1/conv1/kernel") and rules that choose leaves by path."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

Tree = Any


def _name(entry: Any) -> str:
    """One key-path entry as text: a dict key, an attribute, or an index."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def path_string(key_path: tuple[Any, ...]) -> str:
    """Joins a JAX key path with slashes: `(DictKey("a"), SequenceKey(0))` gives "a/0"."""
    return "/".join(_name(entry) for entry in key_path)


def leaves_with_paths(tree: Tree) -> list[tuple[str, Any]]:
    """`(path, leaf)` for each leaf in JAX's leaf order. `None` is no leaf."""
    return [(path_string(p), x) for p, x in jax.tree_util.tree_leaves_with_path(tree)]


def paths(tree: Tree) -> list[str]:
    """The path of each leaf in JAX's leaf order."""
    return [path for path, _ in leaves_with_paths(tree)]


def map_with_path(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """`jax.tree.map` whose function gets the leaf's path first: `fn(path, leaf, *others)`."""
    return jax.tree_util.tree_map_with_path(lambda p, *xs: fn(path_string(p), *xs), tree, *rest)


def aligned(tree: Tree, other: Tree, what: str) -> list[Any]:
    """What `other` has at the leaves of `tree`, in leaf order.

    Raises:
      ValueError: `other` (called `what`) lacks the structure of the tree.
    """
    structure: Any = jax.tree.structure(tree)
    try:
        return structure.flatten_up_to(other)
    except ValueError as error:
        raise ValueError(
            f"{what} must have the structure of the tree with leaves {', '.join(paths(tree))}: "
            + " ".join(str(error).split())
        ) from None


def get(tree: Tree, path: str) -> Any:
    """The leaf at `path`; KeyError with the known paths if there is none."""
    for candidate, leaf in leaves_with_paths(tree):
        if candidate == path:
            return leaf
    raise KeyError(f"no leaf {path!r}; the tree has: {', '.join(paths(tree)) or 'no leaves'}")


def replace(tree: Tree, values: Mapping[str, Any]) -> Tree:
    """A copy of `tree` with the leaves named in `values` replaced; unknown paths raise KeyError."""
    known = set(paths(tree))
    unknown = [path for path in values if path not in known]
    if unknown:
        raise KeyError(f"no leaf {unknown[0]!r}; the tree has: {', '.join(sorted(known))}")
    return map_with_path(lambda path, leaf: values.get(path, leaf), tree)


def match(tree: Tree, rules: str | Iterable[str]) -> list[str]:
    """The paths that at least one rule matches, in leaf order.

    A rule is a regular expression that must match the whole path.

    Raises:
      ValueError: a rule is no regular expression, or matches nothing; the message lists the
        paths there are.
    """
    rules = [rules] if isinstance(rules, str) else list(rules)
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
                f"path rule {rule!r} matches none of the {len(found)} leaves: {', '.join(found)}"
            )
        hits.update(matched)
    return [path for path in found if path in hits]


def select(tree: Tree, rules: str | Iterable[str]) -> Tree:
    """A tree of Python bools: True at the leaves that a rule of `match` chooses."""
    chosen = set(match(tree, rules))
    return map_with_path(lambda path, _: path in chosen, tree)
