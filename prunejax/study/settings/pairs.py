"""Which runs `config.connect` draws lines between."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from prunejax import registry
from prunejax.errors import ConfigError

Row = dict[str, Any]


class Pair(NamedTuple):
    """Two runs and the entry of `connect.pairs` that asks for their line."""

    name: str
    a: str
    b: str
    seed_a: int
    seed_b: int

    @property
    def keys(self) -> Row:
        """The first columns of both tables."""
        about = {"pair": self.name, "run_a": self.a, "run_b": self.b}
        return about | {"seed_a": self.seed_a, "seed_b": self.seed_b}


def check(arms: Mapping[str, ConfigDict]) -> None:
    """Refuses pairs that there are not, or whose networks do not fit each other.
    Raises ConfigError: names the pair and what is allowed.
    """
    for pair in next(iter(arms.values())).connect.pairs:
        labels = pair.split(":")
        if len(labels) > 2 or not all(labels):
            raise ConfigError(
                f"config.connect.pairs: {pair!r} is neither a variant nor two like 'a:b'"
            )
        registry.known("connect.pairs", labels, arms)
        first, last = (arms[label] for label in (labels[0], labels[-1]))
        if len(labels) == 2 and labels[0] == labels[1]:
            raise ConfigError(f"config.connect.pairs: {pair!r}: for pairs of seeds write 'a'")
        if len(labels) == 1 and first.seeds < 2:
            raise ConfigError(f"config.connect.pairs: {pair!r} has one seed; a line has two ends")
        if len(labels) == 1 and first.data.by_seed:
            raise ConfigError(
                f"config.connect.pairs: {pair!r}: each of its seeds has data of its own "
                "(data.by_seed), and a line is between networks on one data set; name two arms"
            )
        for field in ("model", "data", "loss"):
            if first[field] != last[field]:
                raise ConfigError(
                    f"config.connect.pairs: {pair!r} differ in {field!r}; a line is between "
                    "networks of one kind on one data set"
                )


def pairs(names: Sequence[str], runs: Sequence[tuple[str, int, str]]) -> Iterator[Pair]:
    """The pairs of runs, in the order of the config, then of seeds.

    Args: names: entries of `connect.pairs`. runs: (variant, seed, run) of those that are here.
    """
    by_arm: dict[str, dict[int, str]] = {}
    for label, s, run in runs:
        by_arm.setdefault(label, {})[s] = run
    for name in names:
        of = [by_arm.get(own, {}) for own in name.split(":")]
        if len(of) == 1:
            for x, y in itertools.combinations(of[0], 2):
                yield Pair(name, of[0][x], of[0][y], x, y)
        else:
            for seed in (s for s in of[0] if s in of[1]):
                yield Pair(name, of[0][seed], of[1][seed], seed, seed)
