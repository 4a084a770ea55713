"""The order in which a study's members are trained, and the layout of each batch of them."""

import dataclasses
import heapq
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from prunejax.data import Dataset, StreamedSet
from prunejax.errors import WorkdirError
from prunejax.record.directory import SharedDirectory
from prunejax.record.progress import Progress
from prunejax.study.devices import ahead, layout, lifting, memory, shared
from prunejax.study.devices.population import Population
from prunejax.study.planning.plan import Batch, Member
from prunejax.study.settings import lineage
from prunejax.train import step
from prunejax.train.step import Data, Program, TrainState

_Key = tuple[int, int, int]  # depth, batch, first step


def device_data(dataset: Dataset | StreamedSet) -> Data | StreamedSet:
    """The arrays of a data set as the programs take them; a streamed set stands for itself."""
    if isinstance(dataset, StreamedSet):
        return dataset
    # Targets as they are, int32 classes or float32 numbers: a cast would cut numbers to integers.
    return Data(
        *(dataset.train_images, dataset.train_labels),
        *(dataset.test_images, dataset.test_labels),
        *(dataset.validation_images, dataset.validation_labels),
    )


def shapes(program: Program, member: Member) -> TrainState:
    """Shapes and types of one run's state."""
    state: TrainState = jax.eval_shape(
        lambda: step.initial_state(program, jnp.uint32(member.seed), member.table, member.hyper)
    )
    return state


def waves(
    members: Sequence[Sequence[Member]],
) -> list[tuple[int, list[Member]]]:
    """(batch, members) in the order of training: nobody before a run that it needs.

    Members of one wave begin at the same step, and none needs another. A batch goes on as long as
    none of its waves has to wait for another batch, whose program would have to be compiled.

    Args:
      members: of each batch.
    """
    depth = lineage.depths({m.run: m.needs for part in members for m in part})
    found: dict[_Key, list[Member]] = {}
    for b, part in enumerate(members):
        for m in part:
            found.setdefault((depth[m.run], b, m.start.step), []).append(m)
    home = {m.run: key for key, wave in found.items() for m in wave}
    left, after = dict[_Key, int](), {key: set[_Key]() for key in found}
    for key, wave in found.items():
        first = {home[run] for m in wave for run in m.needs if run in home}
        left[key] = len(first)  # waves that have to come before
        for other in first:
            after[other].add(key)
    # By depth, so that parents come first: those that may begin, of all batches and of each.
    ready = [key for key in sorted(found) if not left[key]]
    of_batch: list[list[_Key]] = [[] for _ in members]
    for key in ready:
        of_batch[key[1]].append(key)
    taken, last = dict[_Key, int](), 0
    while len(taken) < len(found):
        queue = of_batch[last] or ready
        key = heapq.heappop(queue)
        if key in taken:  # by way of the other queue
            continue
        last = taken[key] = key[1]
        for other in after[key]:
            left[other] -= 1
            if not left[other]:
                heapq.heappush(ready, other)
                heapq.heappush(of_batch[other[1]], other)
    return [(b, found[key]) for key, b in taken.items()]


PADDING = 1.25  # times the members: padding that is cheaper than compiling for one more size
IDLE = 4  # the same where padding does nothing but lie in memory
FEW = 8  # further chunks instead of one more size: every epoch of each is evaluated and written


def chunks(
    members: Sequence[Member],
    layout: str,
    multiple: int,
    fits: int,
    sizes: Sequence[int] = (),
    alike: int = 1,
    idle: bool = False,
) -> list[tuple[list[Member], int]]:
    """Members that are trained together, and the size of their stack with padding.

    Chunks are as few as memory allows and as equal as possible.

    Args:
      members: to be trained.
      layout: one of LAYOUTS.
      multiple: the stack's size must be a multiple of this.
      fits: members whose states fit into memory at once, a multiple of `multiple`.
      sizes: for which there is a compiled program already; taken where little is lost.
      alike: how many waves of the study have this many members.
      idle: `lifting.padding_is_idle`, so that more of it is cheap.
    """
    if layout == "sequential":
        return [([m], 1) for m in members]
    least = -(-len(members) // multiple) * multiple
    count = -(-len(members) // fits)
    many = {size: -(-len(members) // size) for size in sizes if size <= fits}
    known = [
        (n * size, -size)
        for size, n in many.items()
        if (idle and n == count and size <= IDLE * len(members))
        or (n * size <= PADDING * least and (n - count) * alike <= FEW)
    ]
    if known:
        size = -min(known)[1]  # the least padding; of equal ones the larger stack
        return [(list(members[i : i + size]), size) for i in range(0, len(members), size)]
    size = -(-len(members) // count)
    size = -(-size // multiple) * multiple
    parts = [list(members[i : i + size]) for i in range(0, len(members), size)]
    return [(part, size) for part in parts]


def regrouped(directory: SharedDirectory, done: str, left: str) -> WorkdirError:
    """The refusal of a study of whose chunk some runs are done: to train it would double rows."""
    return WorkdirError(
        f"{directory.path} was begun by a version that trains other runs together ({done} is done, "
        f"{left} is not). Continue with that version, or start over in a new workdir"
    )


class Arrangement:
    """The layout and the compiled functions of each batch, decided and made when first needed."""

    def __init__(
        self,
        batches: Sequence[Batch],
        members: Sequence[Sequence[Member]],
        settings: ConfigDict,
        directory: SharedDirectory,
        progress: Progress,
    ) -> None:
        """Args: members: of each batch, those to be trained here."""
        shared.forget()
        self._batches, self._settings = batches, settings
        self._directory, self._progress = directory, progress
        self.order = waves(members)
        self._waves: list[list[list[Member]]] = [[] for _ in members]
        for b, wave in self.order:
            self._waves[b].append(wave)
        self._widest = [max(parts, key=len, default=[]) for parts in self._waves]
        self._parts: dict[int, dict[int, list[tuple[list[Member], int]]]] = {}
        self._next = 0  # in `order`: the first wave whose layout is not decided
        self._made: dict[int, Population] = {}
        self._efforts: dict[int, object] = {}
        self._soon: dict[int, Future[tuple[layout.Decision, Population]]] = {}
        decided = directory.load_json("layout.json")
        if not directory.on_main(lambda held: held.begun):
            decided = {}  # nothing depends on it yet
        own = {"share": settings.population.data_parallel}
        try:
            self._decided = {int(b): layout.Decision(**own | entry) for b, entry in decided.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise WorkdirError(
                f"{directory.path / 'layout.json'} is missing or not what this program writes "
                f"({error}). Restore it, or start over in a new workdir"
            ) from error

    def _like(self, b: int) -> int:
        """The first batch whose compiled functions serve `b`: only their data differ."""

        def shapes(i: int) -> object:
            data = device_data(self._batches[i].dataset)
            return isinstance(data, Data) and [(x.shape, x.dtype) for x in data]

        for i in range(b):
            same = self._batches[i].program is self._batches[b].program
            if same and len(self._widest[i]) == len(self._widest[b]) and shapes(i) == shapes(b):
                return i
        return b

    def chunks(self, b: int, wave: Sequence[Member]) -> list[tuple[list[Member], int]]:
        """Members of a wave that train together, and the size of their stack."""
        first = self._like(b)
        if b not in self._decided and first in self._decided:
            self._decided[b] = self._decided[first]  # follows: not written for each of them
        if b not in self._decided:
            memory.make_room()
            with self._progress.excluded("choosing a layout"):
                found, self._made[b] = self._foreseen(b) or layout.decide(
                    self._batches[b].program,
                    device_data(self._batches[b].dataset),
                    self._widest[b],
                    self._settings,
                    self._known(b),
                )
            self._progress.message(found.why)
            self._decide(b, found)
        if b not in self._parts:  # once for all waves of a batch: each depends on those before
            self._parts[b] = self._divided(b)
        return self._parts[b][id(wave)]

    def _divided(self, b: int) -> dict[int, list[tuple[list[Member], int]]]:
        """The chunks of each wave of a batch, by its identity."""
        found, waves = self._decided[b], self._waves[b]
        across, sizes = found.devices // found.share, list[int]()
        together = lifting.vectorizes(found.layout, found.platform == "cpu")
        idle = lifting.padding_is_idle(together, found.share)
        if idle:  # what is compiled first serves the smaller waves, too
            widest = chunks(self._widest[b], found.layout, across, found.fits)
            sizes += [size for _, size in widest[:1]]
        alike, divided = Counter(map(len, waves)), {}
        for wave in waves:
            parts = chunks(wave, found.layout, across, found.fits, sizes, alike[len(wave)], idle)
            divided[id(wave)] = parts
            sizes += [size for _, size in parts if size not in sizes]
        return divided

    def foresee(self, b: int) -> None:
        """While batch `b` trains, another thread compiles what comes next, if it can be told.

        That is the case where the network was decided on before and the data are the same and in
        memory (a population of a streamed set holds a few of its examples only).
        """
        while self._next < len(self.order) and self.order[self._next][0] in self._decided:
            self._next += 1
        after = self.order[self._next][0] if self._next < len(self.order) else None
        if after is None or after in self._soon or not ahead.threads():
            return
        known, dataset = self._known(after), self._batches[after].dataset
        same = isinstance(dataset, Dataset) and dataset is self._batches[b].dataset
        if known is not None and same and self._like(after) == after:
            arguments = self._batches[after].program, self.population(b).data, self._widest[after]
            self._soon[after] = ahead.apart(
                lambda: layout.decide(*arguments, self._settings, known)
            )

    def _foreseen(self, b: int) -> tuple[layout.Decision, Population] | None:
        """What `foresee` prepared, unless it would be decided otherwise now.

        It was decided beside the states of the batch before: members that did not fit then may now.
        """
        future = self._soon.pop(b, None)
        if future is None or future.exception() is not None:  # met again, and told, by the caller
            return None
        found, people = future.result()
        return (found, people) if found.fits >= memory.most(people, len(self._widest[b])) else None

    def _known(self, b: int) -> layout.Decision | None:
        """What was decided for a batch whose steps take as long: the same network and inputs."""
        own = self._effort(b)
        return next((d for i, d in self._decided.items() if self._effort(i) == own), None)

    def _effort(self, b: int) -> object:
        if b not in self._efforts:
            members, p = self._widest[b], self._batches[b].program
            params = jax.tree.leaves(shapes(p, members[0]).params)
            few = min(len(members), len(layout.available(self._settings)))
            sizes = [(x.shape, x.dtype) for x in params]
            self._efforts[b] = p.batch_size, p.image_shape, p.microbatch, few, sizes
        return self._efforts[b]

    def _decide(self, b: int, found: layout.Decision) -> None:
        self._decided[b] = found
        entries = {str(i): dataclasses.asdict(d) for i, d in self._decided.items()}
        self._directory.save_json("layout.json", entries)

    def population(self, b: int) -> Population:
        """The compiled functions of a batch."""
        first = self._like(b)
        for made in [i for i in self._made if i != b and self._like(i) == first]:
            data = device_data(self._batches[b].dataset)
            assert isinstance(data, Data)
            self._made = {b: self._made[made].on(data)}
        for other in [i for i in self._made if i != b]:
            del self._made[other]  # its data would stay in memory
        if b not in self._made:
            self._made[b] = layout.build(
                self._batches[b].program,
                device_data(self._batches[b].dataset),
                self._widest[b][0],
                self._settings,
                self._decided[b],
            )
        return self._made[b]
