"""Which layout a study's members get: as asked for, as decided before, or as measured."""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from prunejax.cluster import distributed, mesh
from prunejax.data import StreamedSet
from prunejax.errors import ConfigError
from prunejax.study import ahead, memory
from prunejax.study.decision import Decision as Decision
from prunejax.study.decision import Way as Way
from prunejax.study.decision import available as available
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
    known: Decision | None = None,
) -> tuple[Decision, Population]:
    """The layout for members that may all train together, and its compiled functions.

    Args:
      program, data, members, settings: of some arms.
      known: what was decided for such a network before; taken, if the members fit, not measured
        again. Measuring costs the compilation of every candidate.

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
    if auto and known:
        ways, last = [Way(known.layout, known.share)], None
    trials.fit(*ways, only=len(ways) == 1 and last is None)
    if auto and known and not trials.found:
        return decide(program, data, members, settings)
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
    if auto and known:
        why = "as before for such a network"
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
        self._members = members
        self._steps = program.epochs * program.steps_per_epoch
        self.limit = distributed.on_main(lambda: memory.bound(settings, devices[0]))
        self.found: dict[Way, tuple[Population, int]] = {}
        self.seconds: dict[Way, float] = {}  # per member and step, its share of HOST too
        self.refused: ConfigError | None = None  # what the last one that does not fit was told

    def fit(self, *ways: Way, only: bool = False) -> None:
        """Compiles layouts side by side and keeps those that can hold members.

        Args: only: there is no choice; what follows the first steps is compiled meanwhile.
        """

        def fitted(people: Population) -> tuple[Population, int] | ConfigError:
            if only:
                events = any(len(m.events) for m in self._members)
                replayed = any(m.twin for m in self._members)
                size = memory.most(people, len(self._members))
                ahead.prepare(people.soon(size, events=events and not replayed))
            try:
                return people, memory.fitting(people, len(self._members), self.limit, False)[0]
            except ConfigError as error:
                return error

        results = ahead.together([functools.partial(fitted, self._built(way)) for way in ways])
        for way, found in zip(ways, results, strict=True):  # the preferred one stays first
            if isinstance(found, ConfigError):
                self.refused = found
            else:
                self.found[way] = found

    def measure(self, way: Way) -> None:
        """Takes the time of a layout that fits."""
        if way not in self.found:
            return
        people, count = self.found[way]
        one = min((s for w, s in self.seconds.items() if w.layout == "sequential"), default=0.0)
        # Members that go one by one take as long each: a few tell as much as all.
        long = not people.vectorized and count // people.multiple * one > SECONDS
        together = 1 if way.layout == "sequential" else min(count, len(self._members))
        host = HOST / (together * people.program.steps_per_epoch)
        self.seconds[way] = _measure(people, people.multiple if long else count) + host

    def remaining(self) -> float:
        """Seconds that training all members takes in the fastest layout; infinite without one."""
        return min(self.seconds.values(), default=np.inf) * self._steps * len(self._members)


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
    # This call compiles, and is not timed.
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
