"""A study's measures: from the state of a run to columns of `runs.csv` and `measures/NAME.npz`.

What depends on the run (parameters, statistics, masks) is data of the compiled kernels, and the
loss is one function per program: all runs of a program share one compilation.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from prunejax import data as data_lib
from prunejax import interventions, losses, models, rng
from prunejax import masks as masks_lib
from prunejax.cluster import distributed, mesh
from prunejax.measures import normality, predictors, suite
from prunejax.measures.prunability import INSTEAD, VOID
from prunejax.record.directory import SharedDirectory
from prunejax.study.devices import ahead
from prunejax.study.loop import measured_functions, reduced
from prunejax.study.planning.plan import Batch, Member
from prunejax.train import step
from prunejax.train.smaller import Smaller
from prunejax.train.step import Program, TrainState

Tree = Any
REHEARSED = 8  # runs from which on measuring one more, for compilation, is little
# Columns, arrays, and why a measure failed.
Found = tuple[dict[str, float], dict[str, np.ndarray], dict[str, str]]


class Measurer:
    """Measures runs of one program."""

    def __init__(self, batch: Batch, settings: ConfigDict, tell: Callable[[str], None]) -> None:
        """Reads the examples; compiles nothing yet.

        Args:
          batch: the program and its data set.
          settings: of the study; `measures` says what is measured, on what.
          tell: is told where a model fails to be made smaller.
        """
        self.program, self.settings = batch.program, settings.measures
        chosen, dataset, program = settings.measures, batch.dataset, batch.program
        images, labels = dataset.first(chosen.split, chosen.examples)
        running = chosen.batch_norm == "eval"
        # With statistics of a batch all examples are one batch: else values would depend on its
        # size.
        self._batches = on_device(
            images, labels, program.eval_batch_size if running else len(labels)
        )
        # Of a streamed set there are only so many in memory.
        tests = chosen.examples if isinstance(dataset, data_lib.StreamedSet) else 0
        self._test = on_device(*dataset.first("test", tests), program.eval_batch_size)
        self._prepare = jax.jit(lambda *state: _effective(program, *state))
        self._initial = jax.jit(lambda *begin: step.initial_state(program, *begin).params)
        self._kernels = _kernels(program) if "ticket" in chosen.names else None
        self._inputs = jax.jit(lambda images: step.inputs(program, images))
        self._untrained = jax.jit(
            lambda *run: step.variables(program, step.initial_state(program, *run))
        )
        self._functions = partial(
            measured_functions.functions, program.module.clone(dropout=0.0), program.loss,
            program.prepare, program.mean, program.std, program.has_classes, running,
        )  # fmt: skip
        per_example, self._mean, self._evaluate, self._logits = self._functions()
        self._per_example = per_example if running else None
        # Where dead weights may vary as well, no unit is 0 for good.
        self.smaller = reduced.networks(batch, len(labels), tell) if chosen.live_only else []
        self._of_smaller = {id(cut): self._functions(cut)[:2] for cut in self.smaller}
        ways = [None, *(mean for _, mean in self._of_smaller.values())]
        self._uncompiled = {way: threading.Lock() for way in ways}

    def _live(
        self, masks: Tree, statistics: dict[str, Tree], cut: Smaller | None
    ) -> tuple[Any, Any]:
        """Mean loss and loss per example on the smallest network that has all live units."""
        if cut is not None:
            found = cut, {name: np.arange(kept) for name, (_, kept) in cut.units.items()}
        elif _spread(masks):
            found = None
        else:
            found = reduced.fitting(self.smaller, self.program.groups, masks, statistics["gates"])
        if found is None:
            return None, None
        per_example, mean = self._of_smaller[id(found[0])]
        given = statistics | {"units": found[1]}
        return Partial(mean, given), self._per_example and Partial(per_example, given)

    def context(self, state: TrainState, cut: Smaller | None = None) -> suite.Context:
        """What measures see of a run.

        Args:
          state: of one member, host arrays.
          cut: a network of `smaller` that is taken although more units are live: to compile for it.
        """
        chosen = self.settings
        # Masked here, outside of what is differentiated: gates and statistics are constants.
        params, masks, statistics = self._prepare(
            state.params, state.batch_stats, state.windows, state.table
        )

        live_loss, live_per_example = self._live(masks, statistics, cut)
        begin, loss = (state.seed, state.table, state.hyper, state.seeds), self.program.loss

        def network() -> suite.Network:
            module = self.program.module.clone(dropout=0.0)
            inputs = [(self._inputs(images), labels) for images, labels in self._batches]
            variables = {"params": params, **statistics}
            mean, std = np.array(self.program.mean or (0.0,)), np.array(self.program.std or (1.0,))
            low, high = -mean / std, (1 - mean) / std  # where pixels end: 0 and 1, normalized
            if self.program.prepare is not None:
                low, high = np.array(-np.inf), np.array(np.inf)
            return suite.Network(
                module, variables, self._untrained(*begin), inputs, 1 / std, low, high
            )

        def activations(trained: bool) -> Mapping[str, Any]:
            images = jnp.concatenate([images for images, _ in self._batches])
            x = step.inputs(self.program, images)
            variables = {"params": params, **statistics} if trained else self._untrained(*begin)
            return normality.normalized_activations(self.program.module, variables, x)

        return suite.Context(
            loss=Partial(self._mean, statistics),
            per_example=self._per_example and Partial(self._per_example, statistics),
            live_loss=live_loss,
            live_per_example=live_per_example,
            evaluate=Partial(self._evaluate, statistics),
            params=params,
            masks=masks if chosen.live_only else None,  # None: dead weights may vary, too
            batches=self._batches,
            test=self._test,
            # By seed alone: arms are compared with the same probes.
            key=rng.at(state.seed, "probe"),
            probes=chosen.probes,
            eigenpairs=chosen.eigenpairs,
            radius=chosen.radius,
            activations=activations,
            outputs=Partial(self._logits, statistics),
            initial=partial(self._initial, *begin),
            kernels=self._kernels,
            network=network,
            loss_of=None if loss == "cross_entropy" else partial(losses.objective, loss),
            options=chosen.to_dict(),
        )

    def measure(self, state: TrainState, cut: Smaller | None = None) -> Found:
        """Columns, arrays (with what they were computed on), and per failed measure why.

        Arguments as of `context`.
        """
        context, chosen = self.context(state, cut), self.settings
        way = getattr(context.live_loss, "func", None)  # None: on the whole network
        with self._uncompiled.get(way, nullcontext()):  # lest two threads compile the same
            columns, arrays, failed = suite.measure(context, chosen.names)
        self._uncompiled.pop(way, None)
        scalars = columns | {
            "step": int(state.step),
            "split": chosen.split,
            "batch_norm": chosen.batch_norm,
            "examples": context.examples,
            "live_dim": context.live_dim,
        }
        return columns, arrays | {k: np.array(v) for k, v in scalars.items()}, failed


class Hook:
    """What a study asks after an epoch: of a member's state the columns of `runs.csv`.

    Writes `measures/RUN.npz` after the last epoch, `measures/RUN-epochE.npz` after others. With
    several processes each of them computes the same, and the first one's numbers are kept.
    """

    def __init__(
        self,
        batch: Batch,
        settings: ConfigDict,
        directory: SharedDirectory,
        tell: Callable[[str], None],
    ) -> None:
        """Compiles nothing yet.

        Args: directory: gets the arrays. tell: is told of measures that failed.
        """
        self._measurer, self._last = Measurer(batch, settings, tell), batch.program.epochs - 1
        self._directory, self._tell = directory, tell
        self._pool = ThreadPoolExecutor(ahead.MOST)
        self._worth = ahead.threads() > 0 and len(batch.members) >= REHEARSED
        self._first: Future[Found] | None = None
        self._others: list[Future[None]] = []

    def rehearse(self, state: Callable[[], TrainState]) -> None:
        """Measures a state for the sake of compilation, in another thread, once in a study."""
        if self._worth and self._first is None:
            begun = state()
            self._first = self.begin(begun)
            self._others = [self._pool.submit(self._compile_smaller, self._first, begun)]

    def _compile_smaller(self, first: Future[Found], state: TrainState) -> None:
        wait([first])  # they share programs with it
        for cut in self._measurer.smaller:
            self._measurer.measure(_unplaced(state), cut)

    @property
    def compiled(self) -> bool:
        """Whether a state was measured, so that more can be at once; waits for a rehearsal."""
        if self._first is not None:
            wait([self._first])  # what failed in it will fail again
            wait(self._others)
        return self._first is not None

    def begin(self, state: TrainState) -> "Future[Found]":
        """Measures in another thread."""
        return self._pool.submit(self.compute, state)

    def compute(self, state: TrainState) -> Found:
        """As `Measurer.measure`."""
        found = self._measurer.measure(_unplaced(state))
        if self._first is None:
            self._first = Future()
            self._first.set_result(found)
        return found

    def record(self, found: Found, member: Member, epoch: int) -> dict[str, float]:
        """Tells what failed, writes the arrays, and gives the columns."""
        columns, arrays, failed = found
        name = member.run if epoch == self._last else f"{member.run}-epoch{epoch}"
        for measure, reason in failed.items():
            self._tell(f"{name}: no {measure}: {reason}")
        if bool(arrays.get(predictors.SWITCHED, False)):
            self._tell(
                f"{name}: the training loss is below {VOID:g}: prunability allows {INSTEAD:g} nats "
                "more instead of a share of it"
            )
        self._directory.save_arrays(name, **arrays)
        return distributed.on_main(lambda: columns)


def _unplaced(state: TrainState) -> TrainState:
    """On the host, unless devices split it: beside arrays that are bound to no device, others that
    are bound to one would have every program compiled twice.
    """
    return state if _spread(state) and jax.process_count() == 1 else mesh.fetch(state)


def _spread(tree: Tree) -> bool:
    """Whether some leaf lies on several devices."""
    return any(len(x.devices()) > 1 for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))


def on_device(
    images: np.ndarray, labels: np.ndarray, size: int
) -> list[tuple[jax.Array, jax.Array]]:
    """Batches of `size` examples, the last one what is left, on the device."""
    return [
        (jnp.asarray(images[i : i + size]), jnp.asarray(labels[i : i + size]))
        for i in range(0, len(labels), size)
    ]


def _effective(
    program: Program, params: Tree, batch_stats: Tree, windows: Any, table: Any
) -> tuple[Tree, Tree, dict[str, Tree]]:
    """Masked parameters, their masks, and the collections that are held fixed."""
    masks = interventions.mask_tree(program.groups, params, windows, table)
    fixed = {"gates": interventions.gates(program.groups, windows, table)}
    if batch_stats:
        fixed["batch_stats"] = batch_stats
    return masks_lib.apply(masks, params), masks, fixed


def _kernels(program: Program) -> tuple[str, ...]:
    """Paths of the kernels of all prunable layers."""
    variables = models.shapes(program.module, program.image_shape)
    return tuple(g.kernel for g in models.groups(program.module, variables))
