"""Lines between the ends of a study's runs: `config.connect`, into barriers.csv and paths.csv.

Both tables follow from the states that the runs leave; they are written whole, after the last run.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from prunejax import interventions, losses, models, trees
from prunejax import masks as masks_lib
from prunejax.cluster import distributed
from prunejax.configs import default
from prunejax.data import StreamedSet
from prunejax.errors import ConfigError
from prunejax.measures import connectivity, matching
from prunejax.record.directory import SharedDirectory
from prunejax.study.loop import handover, measured_functions
from prunejax.study.loop.measuring import on_device
from prunejax.study.planning.programs import Batch, Member
from prunejax.study.settings import lineage
from prunejax.study.settings.pairs import pairs
from prunejax.system import files
from prunejax.train import step
from prunejax.train.step import Program

Tree = Any
Row = dict[str, Any]
BARRIERS, PATHS = "barriers.csv", "paths.csv"


class Network(NamedTuple):
    """What a run tested at its end: masked weights, statistics and gates ({} where it has none)."""

    params: Tree
    stats: Tree
    gates: dict[str, jax.Array]


def close(
    batches: Sequence[Batch],
    mine: Sequence[Sequence[Member]],
    settings: ConfigDict,
    directory: SharedDirectory,
    tell: Callable[[str], None],
) -> None:
    """What follows the last run: lines that `config.connect` asks for between runs that are here,
    then states that nobody asked for go.

    Args:
      mine: of each batch, the members that were trained here (a shard has some of them).
      directory: holds their states, gets the tables.
    """
    here = [m for part in mine for m in part]
    home = {m.run: (b, m) for b, part in zip(batches, mine, strict=True) for m in part}

    def work() -> None:
        if (directory.path / PATHS).exists():  # the last thing written: a start after that
            return
        barriers: list[Row] = []
        paths: list[Row] = []
        lines: dict[int, Lines] = {}
        for pair in pairs(settings.connect.pairs, [(m.variant, m.seed, m.run) for m in here]):
            batch, _ = home[pair.a]
            if id(batch) not in lines:
                tell(f"lines between runs: {pair.name} ...")
                lines[id(batch)] = Lines(batch, settings)
            drawn = lines[id(batch)]
            ends = (
                drawn.network(
                    handover.read(directory.path / handover.name(run, lineage.END)), *home[run]
                )
                for run in (pair.a, pair.b)
            )
            for row, path in drawn.between(*ends):
                barriers.append(pair.keys | row)
                paths += [pair.keys | point for point in path]
        for name, rows in ((BARRIERS, barriers), (PATHS, paths)):
            if rows:
                files.save_rows(directory.path / name, rows)

    if settings.connect.pairs:
        distributed.on_main(work)
    handover.clear(directory, here)


def check(settings: ConfigDict, batches: Sequence[Batch]) -> None:
    """Refuses lines that cannot be drawn, before the runs that they connect are trained.

    Raises ConfigError: all examples of a streamed set, more than there are, or units that cannot be
    permuted.
    """
    c = settings.connect
    ends = {label for pair in settings.connect.pairs for label in pair.split(":")}
    for batch in batches:
        if not ends & {m.variant for m in batch.members}:
            continue
        if isinstance(batch.dataset, StreamedSet) and not c.examples:
            raise ConfigError("config.connect.examples = 0 (all) of a streamed set; give a number")
        train, test = batch.dataset.train_examples, batch.dataset.test_examples
        if c.examples > min(train, test):
            raise ConfigError(
                f"config.connect.examples = {c.examples}: there are {train} training and {test} "
                f"test examples, and a line is drawn of as many of both; at most {min(train, test)}"
            )
        # What nobody asked for is of as many as there are.
        asked = c.statistics_examples != default.FIELDS["connect"]["statistics_examples"].default
        if c.batch_norm == "recompute" and asked and c.statistics_examples > train:
            raise ConfigError(
                f"config.connect.statistics_examples = {c.statistics_examples}: there are {train} "
                "training examples; at most as many"
            )
        if c.matching:
            _chain(batch.program)


def _chain(program: Program) -> tuple[matching.Permutation, ...]:
    variables = models.shapes(program.module, program.image_shape)
    try:
        groups = models.groups(program.module, variables)
        return tuple(matching.permutations(groups, variables["params"]))
    except ValueError as error:
        raise ConfigError(f"config.connect.matching = True: {error}") from None


class Lines:
    """Draws lines between networks of one program."""

    def __init__(self, batch: Batch, settings: ConfigDict) -> None:
        """Reads the examples; compiles nothing yet."""
        self._program, self._chosen = batch.program, settings.connect
        program, dataset, count = batch.program, batch.dataset, settings.connect.examples
        size = program.eval_batch_size
        self._splits = {s: on_device(*dataset.first(s, count), size) for s in ("train", "test")}
        # BatchNorm's statistics are of training examples, whichever split is tested.
        self._pool = on_device(*dataset.first("train", self._chosen.statistics_examples), size)
        variables = models.shapes(program.module, program.image_shape)
        self._like = {k: variables[k] for k in ("params", "batch_stats") if k in variables}
        self._has_norm = "batch_stats" in self._like
        self._chain = _chain(program) if self._chosen.matching else ()
        self._evaluate = Partial(partial(_evaluate, program))
        self._predict = jax.jit(
            lambda net, images: losses.predicted(_outputs(program, net, images))
        )
        self._statistics = None
        if self._has_norm and self._chosen.batch_norm == "recompute":
            self._statistics = connectivity.linen_statistics(
                program.module, lambda batch: step.inputs(program, batch[0]), dict
            )

    def network(self, saved: handover.Arrays, batch: Batch, member: Member) -> Network:
        """The network of a run's end state, by the masks and the table of its own program."""
        params, stats = (
            trees.map_with_path(lambda p, _, part=part: jnp.asarray(saved[f"{part}/{p}"]), like)
            for part, like in (
                ("weights", self._like["params"]),
                ("statistics", self._like.get("batch_stats", {})),
            )
        )
        groups = batch.program.groups
        gone = {g.name: jnp.asarray(~saved[f"masks/{g.kernel}"]) for g in groups}
        if not batch.program.weights:
            gone = {layer: dead.reshape(-1) for layer, dead in gone.items()}
        windows = interventions.Windows(gone, gone, {}, {}, {})
        masks = interventions.mask_tree(groups, params, windows, member.table)
        gates = interventions.gates(groups, windows, member.table)
        return Network(masks_lib.apply(masks, params), stats, gates)

    def between(self, a: Network, b: Network) -> Iterator[tuple[Row, list[Row]]]:
        """The row of barriers.csv and the points of paths.csv of each line between two networks."""
        yield from self._lines(a, b, matched=False)
        if self._chain:
            stats = b.stats if self._has_norm else None
            found = matching.weight_matching(a.params, b.params, self._chain, stats=stats)
            params, stats = (jax.tree.map(jnp.asarray, t) for t in (found.params, found.stats))
            yield from self._lines(a, b._replace(params=params, stats=stats), matched=True)

    def _ends(self, a: Network, b: Network) -> tuple[Any, Any]:
        """Both as `connectivity.path` takes them: variables, in a State where they have norms.

        Gates that are shut somewhere are numbers, which go along the line as weights do.
        """
        shut = any(not np.all(gate) for n in (a, b) for gate in n.gates.values())
        found = []
        for n in (a, b):
            variables = {"params": n.params}
            if shut:
                variables["gates"] = {
                    name: jnp.asarray(n.gates.get(name, np.ones(other.shape)), jnp.float32)
                    for name, other in (a.gates | b.gates).items()
                }
            found.append(connectivity.State(variables, n.stats) if self._has_norm else variables)
        return found[0], found[1]

    def _lines(self, a: Network, b: Network, *, matched: bool) -> Iterator[tuple[Row, list[Row]]]:
        c, ends, classes = self._chosen, self._ends(a, b), self._program.has_classes
        answers = [
            # The ends with their own statistics, also where the points of a line get new ones.
            np.concatenate(
                [np.asarray(self._predict(n, images)) for images, _ in self._splits["test"]]
            )
            for n in ends
        ]
        apart: Row = {
            "disagreement": connectivity.disagreement(*answers) if classes else math.nan,
            "distance": connectivity.distance(a.params, b.params),
            "cosine": connectivity.cosine(a.params, b.params),
        }
        for split, batches in self._splits.items():
            line = connectivity.path(
                self._evaluate, *ends, batches, points=c.points, policy=c.batch_norm,
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


def _outputs(program: Program, network: Any, images: jax.Array) -> jax.Array:
    variables = network
    if isinstance(network, connectivity.State):
        variables = network.params | {"batch_stats": network.stats}
    module = program.module.clone(dropout=0.0)
    return jnp.asarray(module.apply(variables, step.inputs(program, images), train=False))


def _evaluate(program: Program, *given: Any) -> dict[str, jax.Array]:
    """`(variables, batch)` or `(variables, stats, batch)` -> means over the batch."""
    *parts, batch = given
    network = connectivity.State(*parts) if len(parts) == 2 else parts[0]
    z = _outputs(program, network, batch[0])
    return measured_functions.means(program.loss, z, batch[1], program.has_classes)
