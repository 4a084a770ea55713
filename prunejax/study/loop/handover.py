"""States that runs hand on to others: `states/RUN@STEP.npz`, and how a run begins with one.

A file holds a state by leaf path: "weights/...", "statistics/...", "optimizer/...", "masks/..."
(bool, True = live, of the layers that can be pruned), "scores/..." (by kernel, what training
gathers for a score: those that movement pruning learns, or running means of activations) and
"step". Masks pass between programs: a run takes those of the layers that it knows.
"""

import errno
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

import jax
import numpy as np

from prunejax import models, rng, trees
from prunejax.cluster import distributed
from prunejax.cluster import mesh as mesh_lib
from prunejax.errors import RecordError
from prunejax.interventions import FOREVER, PRUNE, ZERO
from prunejax.measures import statistics
from prunejax.record.directory import SharedDirectory
from prunejax.record.run_directory import RunDirectory
from prunejax.study.devices.population import Population
from prunejax.study.planning import ticket_file
from prunejax.study.planning.programs import Member
from prunejax.study.settings import lineage
from prunejax.study.settings.lineage import Source
from prunejax.system import files
from prunejax.train.step import TrainState

FOLDER = "states"
MOST = 2**28  # bytes of states that stay in memory beside their files
_FIELDS = {"weights": "params", "statistics": "batch_stats", "optimizer": "opt_state"}
_GATHERED = ("learnt", "activations")  # by layer; a program has one of them at most
Arrays = dict[str, np.ndarray]


def name(run: str, step: int) -> str:
    """The file of a state, in the run directory."""
    when = "end" if step == lineage.END else f"step{step}"
    return f"{FOLDER}/{files.plain_name(run)}@{when}.npz"


def read(path: Path) -> Arrays:
    """The arrays of a state by leaf path.
    Raises RecordError: there is no such file, or it is damaged.
    """

    def told(what: str) -> RecordError:
        return RecordError(
            errno.EIO,
            f"cannot read {path} ({what}), the state that a run starts from; restore it, or "
            "start over in a new workdir",
        )

    with files.arrays(path, told) as saved:
        return dict(saved)


class Recent:
    """States of a study that is running, as they were written: to read them back takes longer."""

    def __init__(self) -> None:
        """None yet."""
        self.arrays: dict[str, Arrays] = {}
        self._bytes = 0  # kept up to date: to add them all up for each state grows with the runs

    def add(self, file: str, arrays: Arrays) -> None:
        """Keeps a copy, and of all of them the latest that fit into MOST bytes."""
        self._bytes -= _size(self.arrays.pop(file, {}))
        self.arrays[file] = {path: np.array(x) for path, x in arrays.items()}
        self._bytes += _size(arrays)
        while self._bytes > MOST:
            self._bytes -= _size(self.arrays.pop(next(iter(self.arrays))))


def _size(arrays: Arrays) -> int:
    return sum(x.nbytes for x in arrays.values())


_RECENT: weakref.WeakKeyDictionary[SharedDirectory, Recent] = weakref.WeakKeyDictionary()


class Handover:
    """What the members of a chunk take from other runs, and leave for them."""

    def __init__(
        self, directory: SharedDirectory, real: Sequence[tuple[int, Member]], population: Population
    ) -> None:
        """Args: real: members, without padding, with their places in the stack."""
        self._directory, self._population = directory, population
        self._leaving: dict[int, list[tuple[int, Member]]] = {}  # step -> who leaves a state
        for i, m in real:
            for step in m.keep:
                self._leaving.setdefault(step, []).append((i, m))
        self.steps = sorted(step for step in self._leaving if step > 0)

    def leave(self, states: TrainState, step: int) -> None:
        """Writes the states that members have to leave at a step (`lineage.END`: after all).
        Raises RecordError: a file cannot be written.
        """
        if step not in self._leaving:
            return
        host = mesh_lib.fetch(states)  # at once: each run by itself would be a call, and fetches
        for i, m in self._leaving[step]:
            arrays = self._arrays(jax.tree.map(itemgetter(i), host))
            self._write(name(m.run, step), arrays, step in m.asked)

    def _write(self, file: str, arrays: Arrays, stays: bool) -> None:
        path = self._directory.path / file

        def write(held: RunDirectory) -> None:
            path.parent.mkdir(exist_ok=True)  # no parents: a removed directory stays removed
            files.replace(path, lambda opened: np.savez(opened, **arrays))  # type: ignore[arg-type]
            # Behind the write: what is handed on from memory is on disk as well.
            _RECENT.setdefault(self._directory, Recent()).add(file, arrays)
            if stays:  # others go when the study ends
                held.arrays.add(file)

        self._directory.on_main(write)

    def _arrays(self, state: TrainState) -> Arrays:
        found: Arrays = {"step": np.asarray(state.step)}
        for part, field in _FIELDS.items():
            for path, leaf in trees.leaves_with_paths(getattr(state, field)):
                found[f"{part}/{path}"] = np.asarray(leaf)
        for g in self._population.program.groups:
            live = np.asarray(state.windows.remaining[g.name]) == 0
            rank = trees.get(state.params, g.kernel).ndim
            found[f"masks/{g.kernel}"] = live.reshape((1,) * (rank - live.ndim) + live.shape)
            for gathered in (getattr(state, field) for field in _GATHERED):
                if g.name in gathered:
                    found[f"scores/{g.kernel}"] = np.asarray(gathered[g.name])
        return found

    def begin(self, states: TrainState, padded: Sequence[Member]) -> TrainState:
        """The states with what the members take from where they start.
        Raises RecordError: a state is missing or damaged.
        """
        changed = self._taken(states, padded, lambda m: m.start.source)
        if changed is None:
            return states
        for i, m in enumerate(padded):
            self._shuffle(changed, i, m)
        return self._put(changed)

    def rewind(self, states: TrainState, padded: Sequence[Member]) -> TrainState:
        """The states with what is put back after the events before training."""
        changed = self._taken(states, padded, lambda m: m.start.rewind)
        if any(m.start.redraw for m in padded):
            if changed is None:
                changed = jax.tree.map(np.array, mesh_lib.fetch(states))
            for i, m in enumerate(padded):
                self._redraw(changed, i, m)
        return states if changed is None else self._put(changed)

    def _redraw(self, host: TrainState, i: int, m: Member) -> None:
        """Draws some parameters anew, from the stream that fresh weights are drawn from."""
        if not m.start.redraw:
            return
        program = self._population.program
        # Of another seed: the run's own would give the first weights again.
        key = rng.stream(lineage.named_seed(m.seed, "ticket_reinit"), "init")
        drawn = models.init(program.module, key, program.image_shape)["params"]
        for path in trees.match(drawn, m.start.redraw):
            trees.get(host.params, path)[i] = np.asarray(trees.get(drawn, path))

    def _put(self, host: TrainState) -> TrainState:
        """Back on the devices, with the zeros that an event leaves (`interventions.act`)."""
        program, table = self._population.program, host.table
        # Under other rules dead weights are hidden, and keep their values.
        zeros = np.isin(table.kind, (PRUNE, ZERO)) & (program.forward == "masked")
        erased = zeros & table.mask_norm & ((table.kind == ZERO) | (table.duration >= FOREVER))
        for g in program.groups:
            dead = host.windows.remaining[g.name] > 0
            kernel = trees.get(host.params, g.kernel)
            of = dead
            if dead.ndim < kernel.ndim:
                of = dead.reshape(dead.shape[0], *(1,) * (kernel.ndim - 2), dead.shape[1])
            np.copyto(kernel, 0, where=of & zeros.reshape(-1, *(1,) * (of.ndim - 1)))
            for path in g.affine if dead.ndim == 2 else ():
                np.copyto(trees.get(host.params, path), 0, where=dead & erased[:, None])
        return self._population.put(host)

    def _taken(
        self,
        states: TrainState,
        padded: Sequence[Member],
        source_of: Callable[[Member], Source | None],
    ) -> TrainState | None:
        """The states on the host with what a source of each member gives; None: nothing does."""
        if not any(source_of(m) for m in padded):
            return None
        # Copies: fetched arrays cannot be written to.
        host = jax.tree.map(np.array, mesh_lib.fetch(states))
        known: dict[str, Arrays] = {}
        for i, m in enumerate(padded):
            source = source_of(m)
            if source is None:
                continue
            file = source.file or name(source.run, source.step)
            if file not in known:
                known[file] = distributed.on_main(partial(self._read, source, file))
            self._take(host, i, known[file], source, file)
        return host

    def _read(self, source: Source, file: str) -> Arrays:
        if source.file:
            return ticket_file.read(file)
        recent = _RECENT.get(self._directory)
        held = recent.arrays.get(file) if recent else None
        return read(self._directory.path / file) if held is None else held

    def _take(self, host: TrainState, i: int, saved: Arrays, source: Source, file: str) -> None:
        leaves = {
            part: trees.leaves_with_paths(getattr(host, field)) for part, field in _FIELDS.items()
        }
        kernels = {g.name: g.kernel for g in self._population.program.groups}
        gathered = [getattr(host, field) for field in _GATHERED]
        leaves["scores"] = [(kernels[n], x) for layers in gathered for n, x in layers.items()]
        for part in sorted(source.parts & set(leaves)):
            for path, leaf in leaves[part]:
                value = saved.get(f"{part}/{path}")
                if value is None or value.shape != leaf.shape[1:]:
                    shape = "no such leaf" if value is None else f"shape {value.shape}"
                    raise RecordError(
                        errno.EINVAL,
                        f"{file} has {shape} where {part}/{path} of shape {leaf.shape[1:]} is "
                        "needed: the runs do not fit each other (optimizer, or model)",
                    )
                leaf[i] = value
        if "step" in source.parts:
            host.step[i] = source.done  # its schedule goes on from there
        if "masks" in source.parts:
            self._masks(host, i, saved)

    def _masks(self, host: TrainState, i: int, saved: Mapping[str, np.ndarray]) -> None:
        for g in self._population.program.groups:
            if f"masks/{g.kernel}" in saved:
                dead = ~saved[f"masks/{g.kernel}"]
                _set_dead(host, g.name, i, dead.reshape(host.windows.remaining[g.name].shape[1:]))

    def _shuffle(self, host: TrainState, i: int, m: Member) -> None:
        """Permutes the dead units that were taken, within layers or over all of them."""
        if m.start.shuffle == "no":
            return
        # Of other layers in the program this run, which shares it with others, knows nothing.
        names = [g.name for g in self._population.program.groups if g.name in m.layers]
        flat = [(host.windows.remaining[n][i] > 0).ravel() for n in names]
        if not flat:  # the run whose masks are taken has none
            return
        if m.start.shuffle == "layer":
            mixed = [
                _stream(m.seed, n).permutation(dead) for n, dead in zip(names, flat, strict=True)
            ]
        else:
            together = _stream(m.seed, "").permutation(np.concatenate(flat))
            mixed = np.split(together, np.cumsum([dead.size for dead in flat])[:-1])
        for n, dead in zip(names, mixed, strict=True):
            _set_dead(host, n, i, dead.reshape(host.windows.remaining[n].shape[1:]))


def _stream(seed: int, layer: str) -> np.random.Generator:
    # The shuffle of a layer does not depend on which others there are.
    return statistics.random(seed, f"ticket_shuffle/{layer}")


def _set_dead(host: TrainState, layer: str, i: int, dead: np.ndarray) -> None:
    host.windows.targeted[layer][i] = dead
    # True, where windows never close and are bools.
    host.windows.remaining[layer][i] = np.where(dead, FOREVER, 0)


def clear(directory: SharedDirectory, members: Sequence[Member]) -> None:
    """Removes the states that no run needs any more and nobody asked for."""

    def remove() -> None:
        for m in members:
            for step in set(m.keep) - set(m.asked):
                (directory.path / name(m.run, step)).unlink(missing_ok=True)

    distributed.on_main(remove)
