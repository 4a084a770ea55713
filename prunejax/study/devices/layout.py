"""Which layout a study's members get: as asked for, as decided before, or as measured."""

import dataclasses
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from prunejax.cluster import distributed, mesh
from prunejax.data import StreamedSet
from prunejax.errors import ConfigError
from prunejax.study.devices import ahead, memory
from prunejax.study.devices.decision import Decision as Decision
from prunejax.study.devices.decision import Way as Way
from prunejax.study.devices.decision import available as available
from prunejax.study.devices.population import Population
from prunejax.study.devices.streamed_population import StreamedPopulation
from prunejax.study.planning.plan import Member
from prunejax.train.step import Data, Program

SECONDS = 0.2  # of measured steps, at least, per candidate
CALLS = 3  # that are measured, at least
HOST = 0.005  # seconds an epoch of a chunk takes the host, at least: small networks wait for it
# A layout that is first in its list has to lose by this factor: noise should not decide, because
# the layouts differ in the last bits of a result.
PREFERENCE = 1.15
LONG = 60.0  # seconds of training from which on it pays to compile one more candidate


def check(settings: ConfigDict) -> None:
    """Refuses what no devices can do, whichever there are.

    Raises:
      ConfigError: numbers that do not divide each other, or parameters split over one device.
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
    mesh.check_split(p.shard_params, p.data_parallel)


def check_devices(settings: ConfigDict) -> None:
    """Refuses what the devices here cannot do, before anything is written or compiled.

    Raises:
      ConfigError: see `available`, `mesh.make` and `population.Population`.
    """
    p = settings.population
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
    ways, last = [Way(settings.population.layout, program.data_parallel)], None
    if auto and known:
        ways = [Way(known.layout, known.share)]
    elif auto:
        ways = candidates(devices, program.data_parallel, len(members))
        last = sharing(devices, program, len(members))
    bound = distributed.on_main(lambda: memory.bound(settings, devices[0]))
    steps = program.epochs * program.steps_per_epoch * len(members)
    found: dict[Way, tuple[Population, int]] = {}  # those that hold members, and how many
    seconds: dict[Way, float] = {}  # per member and step, its share of HOST too
    refused = None
    for some in [ways, [last]] if last else [ways]:
        if some is not ways and min(seconds.values(), default=np.inf) * steps <= LONG:
            break
        people = [_population(program, data, way, devices, members[0], settings) for way in some]
        if len(ways) == 1 and not last:  # no choice: the rest is compiled beside the first steps
            events = any(len(m.events) for m in members) and not any(m.twin for m in members)
            ahead.prepare(people[0].soon(memory.most(people[0], len(members)), events=events))
        fits = memory.fitting(people, len(members), bound, evaluation=False)
        for way, made, (count, needed) in zip(some, people, fits, strict=True):
            if count:
                found[way] = made, count
            else:
                refused = memory.refused(made, needed, bound)
        del people, made  # their data, where they do not fit
        if len(found) > 1 or last:
            for way in [way for way in reversed(some) if way in found]:  # "sequential" first: it
                seconds[way] = per_step(way, *found[way], len(members), seconds)  # tells how long
    if not found:
        if auto and known:
            return decide(program, data, members, settings)
        raise refused or AssertionError("no layout was tried")
    chosen, why = next(iter(found)), "the only candidate" if auto else "as configured"
    if auto and known:
        why = "as before for such a network"
    if len(found) > 1:
        chosen, why = fastest({way: seconds[way] for way in found})
    taken = found[chosen][0]
    del found  # the others' data
    ((count, needed),) = memory.fitting([taken], len(members), bound)
    if not count:
        raise memory.refused(taken, needed, bound)
    many = f"{min(count, len(members))} at once" if count > 1 else "one at a time"
    decision = Decision(
        layout=chosen.layout,
        devices=taken.mesh.size,
        platform=devices[0].platform,
        fits=count,
        why=f"layout: {chosen} ({why}); {many}, {memory.text(needed)} of {memory.size(bound)}"
        + " beside the program itself" * (devices[0].platform == "cpu"),
        processes=jax.process_count(),
        share=chosen.share,
    )
    return decision, taken


def per_step(
    way: Way, people: Population, count: int, members: int, seconds: Mapping[Way, float]
) -> float:
    """Seconds per member and step of a layout that holds `count` of `members`, with those of HOST.

    Args: seconds: of the layouts before.
    """
    one = min((s for w, s in seconds.items() if w.layout == "sequential"), default=0.0)
    # Members that go one by one take as long each: a few tell as much as all.
    long = not people.vectorized and count // people.multiple * one > SECONDS
    together = 1 if way.layout == "sequential" else min(count, members)
    host = HOST / (together * people.program.steps_per_epoch)
    return _measure(people, people.multiple if long else count) + host


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
