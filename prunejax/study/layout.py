"""Which layout a study's members get: as asked for, as decided before, or as measured."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from prunejax.cluster import distributed, mesh
from prunejax.data import StreamedSet
from prunejax.errors import ConfigError
from prunejax.study import memory
from prunejax.study.plan import Member
from prunejax.study.population import Population
from prunejax.study.streamed_population import StreamedPopulation
from prunejax.train.step import Data, Program

SECONDS = 0.2  # of measured steps, at least, per candidate
CALLS = 3  # that are measured, at least
HOST = 0.005  # seconds an epoch of a chunk takes the host, at least: small networks wait for it
# A layout that is first in its list has to lose by this factor: noise should not decide, because
# the layouts differ in the last bits of a result.
PREFERENCE = 1.15
LONG = 60.0  # seconds of training from which on it pays to compile one more candidate


class Way(NamedTuple):
    """A layout, and how many devices share one member in it."""

    layout: str
    share: int = 1

    def __str__(self) -> str:
        return self.layout + f" (a run over {self.share} devices)" * (self.share > 1)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is remembered (`layout.json`), so that a study continues as it began."""

    layout: str
    devices: int  # that are used
    platform: str
    fits: int  # members that train at once, at most
    why: str
    processes: int = 1
    share: int = 1  # devices that train one member together


def available(settings: ConfigDict, decided: Decision | None = None) -> list[jax.Device]:
    """The devices a study may use; those of an earlier decision must still be there.

    A layout's results depend on its number of devices in their last bits (one device more or less
    changes what is computed together), so that a study continues on exactly as many: on one
    wherever it used one, and on the first ones of a larger machine.

    Raises:
      ConfigError: there are fewer devices than asked for or used before, or of another platform;
        devices that share a member are divided over another number of processes.
    """
    devices = jax.devices()
    wanted = settings.population.devices
    if wanted > len(devices):
        raise ConfigError(
            f"config.population.devices = {wanted} is more than the {len(devices)} devices of "
            f"platform {devices[0].platform!r} there are"
        )
    if decided is None:
        return devices[: wanted or None]
    if decided.platform != devices[0].platform:
        raise ConfigError(
            f"this study began on platform {decided.platform!r} and the devices here are "
            f"{devices[0].platform!r}: its runs would differ from those that are done. Continue "
            "there, or start it in a new workdir"
        )
    if decided.devices > len(devices):
        raise ConfigError(
            f"this study began in layout {decided.layout!r} on {decided.devices} devices and here "
            f"are {len(devices)}: what is computed together would change, and with it the last "
            f"bits of its results. Continue on {decided.devices} devices, or start it in a new "
            "workdir"
        )
    processes = jax.process_count()
    if decided.share > 1 and decided.processes != processes:
        raise ConfigError(
            f"this study began in {decided.processes} processes and here are {processes}: the "
            f"{decided.share} devices that share a member would add in another order, which "
            f"changes the last bits of its results. Continue in {decided.processes} processes, or "
            "start it in a new workdir"
        )
    return devices[: decided.devices]


def check(settings: ConfigDict) -> None:
    """Refuses what the devices cannot do, before anything is written or compiled.

    Raises:
      ConfigError: see `available`, `mesh.make` and `population.Population`.
    """
    p = settings.population
    if settings.batch_size % p.data_parallel:
        raise ConfigError(
            f"config.population.data_parallel = {p.data_parallel} does not divide "
            f"config.batch_size = {settings.batch_size}; choose multiples"
        )
    if p.microbatch and (settings.batch_size % p.microbatch or p.microbatch % p.data_parallel):
        raise ConfigError(
            f"config.population.microbatch = {p.microbatch} has to divide config.batch_size = "
            f"{settings.batch_size} and be a multiple of config.population.data_parallel = "
            f"{p.data_parallel}"
        )
    mesh.used_by(p.layout, available(settings), p.data_parallel, p.shard_params)


def build(
    program: Program,
    data: Data | StreamedSet,
    like: Member,
    settings: ConfigDict,
    decided: Decision,
) -> Population:
    """The compiled functions of an earlier decision.

    Raises:
      ConfigError: the devices of that decision are not there.
    """
    way = Way(decided.layout, decided.share)
    return _population(program, data, way, available(settings, decided), like, settings)


def _population(
    program: Program,
    data: Data | StreamedSet,
    way: Way,
    devices: Sequence[jax.Device],
    like: Member,
    settings: ConfigDict,
) -> Population:
    """The compiled functions of one layout, of data in memory or streamed."""
    program = dataclasses.replace(program, data_parallel=way.share)
    made = StreamedPopulation if isinstance(data, StreamedSet) else Population
    split = settings.population.shard_params
    return made(program, data, way.layout, devices, like, shard_params=split)  # type: ignore[arg-type]


def decide(
    program: Program,
    data: Data | StreamedSet,
    members: Sequence[Member],
    settings: ConfigDict,
) -> tuple[Decision, Population]:
    """The layout for members that may all train together, and its compiled functions.

    Raises:
      ConfigError: the layout, or every candidate of "auto", cannot hold the members or does not
        fit the devices.
    """
    devices = available(settings)
    auto = settings.population.layout == "auto"
    trials = _Trials(program, data, members, settings, devices)
    ways, last = [Way(settings.population.layout, program.data_parallel)], None
    if auto:
        ways = candidates(devices, program.data_parallel, len(members))
        last = sharing(devices, program, len(members))
    for way in ways:
        trials.fit(way)
    if len(trials.found) > 1 or last:
        for way in reversed(trials.found):  # "sequential" first: it tells how long a step takes
            trials.measure(way)
    if last and trials.remaining() > LONG:
        trials.fit(last)
        trials.measure(last)
    found = trials.found
    if not found:
        raise trials.refused or AssertionError("no layout was tried")
    chosen, why = next(iter(found)), "the only candidate" if auto else "as configured"
    if len(found) > 1:
        chosen, why = fastest({way: trials.seconds[way] for way in found})
    people, bound = found[chosen][0], trials.limit
    del trials, found  # the others' data
    fits, needed = memory.fitting(people, len(members), bound)
    many = f"{min(fits, len(members))} at once" if fits > 1 else "one at a time"
    decision = Decision(
        layout=chosen.layout,
        devices=people.mesh.size,
        platform=devices[0].platform,
        fits=fits,
        why=f"layout: {chosen} ({why}); {many}, {memory.text(needed)} of {memory.size(bound)}"
        + " beside the program itself" * (devices[0].platform == "cpu"),
        processes=jax.process_count(),
        share=chosen.share,
    )
    return decision, people


class _Trials:
    """The layouts that were compiled, with the members that fit, and the time of a step in each."""

    def __init__(
        self,
        program: Program,
        data: Data | StreamedSet,
        members: Sequence[Member],
        settings: ConfigDict,
        devices: Sequence[jax.Device],
    ) -> None:
        self._built = lambda way: _population(program, data, way, devices, members[0], settings)
        self._members = len(members)
        self._steps = program.epochs * program.steps_per_epoch
        self.limit = distributed.on_main(lambda: memory.bound(settings, devices[0]))
        self.found: dict[Way, tuple[Population, int]] = {}
        self.seconds: dict[Way, float] = {}  # per member and step, its share of HOST too
        self.refused: ConfigError | None = None  # what the last one that does not fit was told

    def fit(self, way: Way) -> None:
        """Compiles a layout and keeps it if it can hold members."""
        people = self._built(way)
        try:
            fits, _ = memory.fitting(people, self._members, self.limit, evaluation=False)
            self.found[way] = people, fits
        except ConfigError as error:
            self.refused = error

    def measure(self, way: Way) -> None:
        """Takes the time of a layout that fits."""
        if way not in self.found:
            return
        people, count = self.found[way]
        one = min((s for w, s in self.seconds.items() if w.layout == "sequential"), default=0.0)
        long = not people.vectorized and count // people.multiple * one > SECONDS
        together = 1 if way.layout == "sequential" else min(count, self._members)
        host = HOST / (together * people.program.steps_per_epoch)
        self.seconds[way] = _measure(people, people.multiple if long else count) + host

    def remaining(self) -> float:
        """Seconds that training all members takes in the fastest layout; infinite without one."""
        return min(self.seconds.values(), default=np.inf) * self._steps * self._members


def candidates(devices: Sequence[jax.Device], share: int, members: int) -> list[Way]:
    """What `auto` measures, the preferred one first.

    On a CPU `vmap` gains nothing over one after another, and devices (one per core) do; on
    accelerators a small network leaves most of a device idle unless members are vectorized.
    """
    names = ["vectorized", "sequential"]
    if jax.process_count() > 1:
        names = ["sharded"]
    elif members == 1 or devices[0].platform == "cpu":
        names = ["sequential"]
    several = jax.process_count() == 1 and members > 1 and len(devices) > share
    return [Way(name, share) for name in ["sharded"] * several + names]


def sharing(devices: Sequence[jax.Device], program: Program, members: int) -> Way | None:
    """The last candidate of `auto`: where members are fewer than devices, several share each.

    It is worth its compilation in long studies only, and left to the user
    (`config.population.data_parallel`) where processes share devices.
    """
    if program.data_parallel > 1 or jax.process_count() > 1:
        return None
    fitting = [
        n
        for n in range(2, len(devices) // members + 1)
        if len(devices) % n == 0 and (program.microbatch or program.batch_size) % n == 0
    ]
    return Way("sharded", max(fitting)) if fitting else None


def fastest(seconds: Mapping[Way, float]) -> tuple[Way, str]:
    """The layout with the fewest seconds per member and step, and the reason."""
    first = next(iter(seconds))
    best = min(seconds, key=lambda way: seconds[way] * (1 if way == first else PREFERENCE))
    text = ", ".join(f"{way} {1e3 * value:.3g} ms" for way, value in seconds.items())
    close = seconds[best] > min(seconds.values())
    return best, f"measured per run and step: {text}" + "; too close to call" * close


def _measure(people: Population, members: int) -> float:
    """Seconds per member and step in the fastest call (other work slows some) after the first."""
    states = people.train(people.zeros(members), people.data, np.int32(1))
    steps, per_epoch = 1, max(1, people.program.steps_per_epoch - 1)
    fastest, passed, calls = np.inf, 0.0, 0
    while passed < SECONDS or calls < CALLS:
        jax.block_until_ready(states)
        begin = time.perf_counter()
        states = jax.block_until_ready(people.train(states, people.data, np.int32(steps)))
        seconds = time.perf_counter() - begin
        if seconds >= SECONDS or steps >= per_epoch:
            fastest = min(fastest, seconds / (steps * members))
            passed, calls = passed + seconds, calls + 1
        else:
            more = max(2 * steps, int(1.2 * steps * SECONDS / max(seconds, 1e-6)))
            steps = min(per_epoch, more)
    return fastest
