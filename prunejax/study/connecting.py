"""Lines between the ends of a study's runs: `config.connect`, into barriers.csv and paths.csv.

Both tables follow from the states that the runs leave; they are written whole, after the last run.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from prunejax import losses, models, trees
from prunejax.cluster import distributed
from prunejax.data import StreamedSet
from prunejax.errors import ConfigError
from prunejax.measures import connectivity, matching
from prunejax.record.directory import SharedDirectory
from prunejax.study import handover, lineage
from prunejax.study.pairs import pairs
from prunejax.study.programs import Batch, Member
from prunejax.system import files
from prunejax.train import step
from prunejax.train.step import Program

Tree = Any
Row = dict[str, Any]
BARRIERS, PATHS = "barriers.csv", "paths.csv"


def close(
    batches: Sequence[Batch],
    mine: Sequence[Sequence[Member]],
    settings: ConfigDict,
    directory: SharedDirectory,
    tell: Callable[[str], None],
) -> None:
    """What follows the last run: `write`, then states that nobody asked for go."""
    write(batches, mine, settings, directory, tell)
    handover.clear(directory, [m for members in mine for m in members])


def write(
    batches: Sequence[Batch],
    mine: Sequence[Sequence[Member]],
    settings: ConfigDict,
    directory: SharedDirectory,
    tell: Callable[[str], None],
) -> None:
    """Draws the lines that `config.connect` asks for between runs that are here.

    Args:
      batches: of the study.
      mine: of each batch, the members that were trained here (a shard has some of them).
      settings: of the study.
      directory: holds their states, gets the tables.
      tell: is told how it goes.
    """
    chosen = settings.connect
    if not chosen.pairs:
        return
    here = [m for part in mine for m in part]
    home = {m.run: b for b, part in zip(batches, mine, strict=True) for m in part}

    def work() -> None:
        if (directory.path / PATHS).exists():  # the last thing written: a start after that
            return
        barriers: list[Row] = []
        paths: list[Row] = []
        lines: dict[int, Lines] = {}
        for pair in pairs(chosen.pairs, [(m.variant, m.seed, m.run) for m in here]):
            batch = home[pair.a]
            if id(batch) not in lines:
                tell(f"lines between runs: {pair.name} ...")
                lines[id(batch)] = Lines(batch, settings)
            states = [_state(directory.path, run) for run in (pair.a, pair.b)]
            for row, path in lines[id(batch)].between(*states):
                barriers.append(pair.keys | row)
                paths += [pair.keys | point for point in path]
        for name, rows in ((BARRIERS, barriers), (PATHS, paths)):
            if rows:
                files.save_rows(directory.path / name, rows)

    distributed.on_main(work)


def _state(folder: Path, run: str) -> handover.Arrays:
    return handover.read(folder / handover.name(run, lineage.END))


class Lines:
    """Draws lines between networks of one program."""

    def __init__(self, batch: Batch, settings: ConfigDict) -> None:
        """Reads the examples; compiles nothing yet.

        Raises:
          ConfigError: fewer examples than asked for, or units that cannot be permuted.
        """
        self._program, self._chosen = batch.program, settings.connect
        program, dataset, count = batch.program, batch.dataset, settings.connect.examples
        size = program.eval_batch_size
        if isinstance(dataset, StreamedSet) and not count:
            raise ConfigError("config.connect.examples = 0 (all) of a streamed set; give a number")
        self._splits = {s: _cut(*dataset.first(s, count), size) for s in ("train", "test")}
        # BatchNorm's statistics are of training examples, whichever split is tested.
        self._pool = _cut(*dataset.first("train", self._chosen.statistics_examples), size)
        variables = jax.eval_shape(
            lambda key: models.init(program.module, key, program.image_shape), jax.random.key(0)
        )
        self._like = {k: variables[k] for k in ("params", "batch_stats") if k in variables}
        self._has_norm = "batch_stats" in self._like
        self._chain: tuple[matching.Permutation, ...] = ()
        if self._chosen.matching:
            groups = models.groups(program.module, variables)
            try:
                self._chain = matching.permutations(groups, variables["params"])
            except ValueError as error:
                raise ConfigError(f"config.connect.matching = True: {error}") from None
        self._evaluate = Partial(partial(_evaluate, program))
        self._predict = jax.jit(
            lambda net, images: losses.predicted(_outputs(program, net, images))
        )
        self._statistics = None
        if self._has_norm and self._chosen.batch_norm == "recompute":
            self._statistics = connectivity.linen_statistics(
                program.module, lambda batch: step.inputs(program, batch[0])
            )

    def _network(self, saved: handover.Arrays) -> Any:
        params, stats = (
            trees.map_with_path(lambda p, _, part=part: jnp.asarray(saved[f"{part}/{p}"]), like)
            for part, like in (
                ("weights", self._like["params"]),
                ("statistics", self._like.get("batch_stats", {})),
            )
        )
        return connectivity.State(params, stats) if self._has_norm else params

    def between(
        self, first: handover.Arrays, second: handover.Arrays
    ) -> Iterator[tuple[Row, list[Row]]]:
        """The row of barriers.csv and the points of paths.csv of each line between two states."""
        a, b = self._network(first), self._network(second)
        yield from self._lines(a, b, matched=False)
        if self._chain:
            x, y = ((n.params, n.stats) if self._has_norm else (n, None) for n in (a, b))
            found = matching.weight_matching(x[0], y[0], self._chain, stats=y[1])
            turned = jax.tree.map(jnp.asarray, found.params)
            if self._has_norm:
                turned = connectivity.State(turned, jax.tree.map(jnp.asarray, found.stats))
            yield from self._lines(a, turned, matched=True)

    def _lines(self, a: Any, b: Any, *, matched: bool) -> Iterator[tuple[Row, list[Row]]]:
        c = self._chosen
        x, y = (n.params if self._has_norm else n for n in (a, b))
        answers = [
            # The ends with their own statistics, also where the points of a line get new ones.
            np.concatenate([np.asarray(self._predict(n, images)) for images, _ in self._test])
            for n in (a, b)
        ]
        apart: Row = {
            "disagreement": connectivity.disagreement(*answers),
            "distance": connectivity.distance(x, y),
            "cosine": connectivity.cosine(x, y),
        }
        for split, batches in self._splits.items():
            line = connectivity.path(
                self._evaluate, a, b, batches, points=c.points, policy=c.batch_norm,
                statistics=self._statistics, statistics_batches=self._pool,
            )  # fmt: skip
            about: Row = {"split": split, "matched": int(matched)}
            error, loss = line.values["error"], line.values["loss"]
            row = about | {
                "points": c.points, "batch_norm": line.policy, "examples": line.examples,
                "statistics_examples": line.statistics_examples,
                "barrier_error": line.barrier("error"), "barrier_loss": line.barrier("loss"),
                "peak": line.peak("error"), "error_a": error[0], "error_b": error[-1],
                "loss_a": loss[0], "loss_b": loss[-1],
            }  # fmt: skip
            points = [
                about | {"t": t, "error": e, "loss": v}
                for t, e, v in zip(line.grid, error, loss, strict=True)
            ]
            yield row | apart, points

    @property
    def _test(self) -> list[tuple[jax.Array, jax.Array]]:
        return self._splits["test"]


def _cut(images: np.ndarray, labels: np.ndarray, size: int) -> list[tuple[jax.Array, jax.Array]]:
    return [
        (jnp.asarray(images[i : i + size]), jnp.asarray(labels[i : i + size]))
        for i in range(0, len(labels), size)
    ]


def _outputs(program: Program, network: Any, images: jax.Array) -> jax.Array:
    variables = {"params": network}
    if isinstance(network, connectivity.State):
        variables = {"params": network.params, "batch_stats": network.stats}
    module = program.module.clone(dropout=0.0)
    return jnp.asarray(module.apply(variables, step.inputs(program, images), train=False))


def _evaluate(program: Program, *given: Any) -> dict[str, jax.Array]:
    """`(params, batch)` or `(params, stats, batch)` -> means over the batch."""
    *parts, batch = given
    network = connectivity.State(*parts) if len(parts) == 2 else parts[0]
    z = _outputs(program, network, batch[0])
    loss = losses.objective(program.loss, z, batch[1])
    # Means of a batch: the line weighs the last, smaller one by its examples.
    accuracy = jnp.mean(losses.hits(z, batch[1]).astype(loss.dtype))
    return {"loss": jnp.mean(loss), "accuracy": accuracy}
