"""Layouts on one device: the same members, the same science; chunks and memory; `auto`."""

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from prunejax.configs import default
from prunejax.errors import ConfigError
from prunejax.study.devices import arrangement, layout, lifting, memory
from prunejax.study.planning import plan
from prunejax.study.planning.plan import Member
from prunejax.study.settings import config, lineage
from tests import layouts
from tests.studies import PRUNE, tiny

pytestmark = pytest.mark.usefixtures("few_layers")


@pytest.fixture(scope="module")
def vectorized(few_layers):
    return layouts.make("vectorized", jax.devices()[:1])


@pytest.fixture(scope="module")
def sequential(few_layers):
    return layouts.make("sequential", jax.devices()[:1])


@pytest.fixture(scope="module")
def alone(sequential):
    return layouts.trace(*sequential)


def test_the_members_differ(alone):
    assert not alone[0][0][1][-1].any() or alone[0][0][3][-1] == 0
    losses = np.array([losses for _, losses in alone])
    assert len(np.unique(losses[:, 0, 0])) == len(alone)


@pytest.mark.slow
def test_vectorized_members_do_what_they_do_alone(alone, vectorized):
    layouts.compare(layouts.trace(*vectorized), alone)


def test_the_estimate_of_memory_is_that_of_the_compiled_program(vectorized):
    people, _ = vectorized
    ((count, needed),) = memory.fitting([people], 4, np.inf)
    assert count == 4
    compiled = people.train.lower(people.abstract(4), people.data, np.int32(1)).compile()
    used = compiled.memory_analysis()
    arguments = needed.states + sum(
        leaf.nbytes for leaf in (people.data.train_images, people.data.train_labels)
    )
    # What a program does not read (the test split) is no argument of it.
    assert used.argument_size_in_bytes == pytest.approx(arguments, rel=0.02)
    assert needed.work >= used.temp_size_in_bytes
    assert needed.saving == needed.states  # a copy of each while a checkpoint is written
    assert needed.total == needed.states + needed.data + needed.work + needed.saving


@pytest.mark.parametrize("alike", [None, 1])
def test_members_in_place_take_no_second_stack_and_give_the_same(alike):
    """`alike`: as where several devices share a member. A map fills another stack and copies it."""

    def grow(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: jax.tree.map(lambda y: 3 * y + 1, x), x)

    shape = {"member": 2, "data": 2} if alike else {"member": 1, "data": 4}
    lift = lifting.Lift(SimpleNamespace(shape=shape, size=1), vectorized=False)
    ways = [
        lambda stack, x=loops: lift.stacked(grow, loops=x)(stack, ()) for loops in (True, False)
    ]
    stack = {"a": np.arange(16 * 4096.0, dtype=np.float32).reshape(16, 4096), "b": np.arange(16)}
    results, extra = [], []
    for way in ways:
        compiled = jax.jit(way, donate_argnums=0).lower(stack).compile()
        extra.append(compiled.memory_analysis().temp_size_in_bytes)
        results.append(compiled(jax.tree.map(jax.numpy.array, stack)))
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert extra[0] < stack["a"].nbytes / 2 < extra[1]


@pytest.mark.parametrize(("share", "kept"), [(0.49, True), (0.51, False)])
def test_programs_go_where_a_process_has_half_the_mappings_it_may_have(monkeypatch, share, kept):
    monkeypatch.setattr(memory.limits, "mapped", lambda: share)
    cleared: list[bool] = []
    monkeypatch.setattr(memory.jax, "clear_caches", lambda: cleared.append(True))
    memory.make_room()
    assert cleared == ([] if kept else [True])


def test_the_program_itself_is_left_room(monkeypatch):
    """In a job of 1.5 GB of which it holds 345 MiB, before compilation, checkpoints and report."""
    settings, own = default.get_config(), 345 * 2**20
    monkeypatch.setattr(memory.limits, "resident", lambda: own)
    monkeypatch.setattr(memory.limits, "free_host_memory", lambda: 1.5e9 - own)
    bound = memory.bound(settings, jax.devices("cpu")[0])
    assert 0.3e9 < bound < 0.9 * 1.5e9 - own - 180 * 2**20
    monkeypatch.setattr(memory.limits, "free_host_memory", lambda: 1e6)
    assert memory.bound(settings, jax.devices("cpu")[0]) == 0
    settings.population.memory_gib = 2.0
    assert memory.bound(settings, jax.devices("cpu")[0]) == 2 * 2**30


def test_members_are_chunked_to_fit(vectorized):
    people, _ = vectorized
    limit = memory.fitting([people], 2, np.inf)[0][1].total
    ((count, needed),) = memory.fitting([people], 4, limit)
    assert count == 2
    assert needed.total <= limit
    ((count, needed),) = memory.fitting([people], 4, 1000.0)
    assert count == 0
    told = str(memory.refused(people, needed, 1000.0))
    assert "'vectorized' cannot hold even 1 member: estimated peak" in told


@pytest.mark.parametrize(
    ("members", "multiple", "fits", "sizes"),
    [(5, 1, 8, [5]), (5, 1, 3, [3, 2]), (9, 2, 4, [4, 4, 1]), (3, 4, 4, [3])],
)
def test_chunks_are_few_and_equal(members, multiple, fits, sizes):
    everyone = [Member(str(i), "v", i, None, None) for i in range(members)]
    parts = arrangement.chunks(everyone, "sharded", multiple, fits)
    assert [len(part) for part, _ in parts] == sizes
    assert [m for part, _ in parts for m in part] == everyone
    for part, size in parts:
        assert size % multiple == 0
        assert size <= fits
        padded, places = lifting.pad(part, size, multiple)
        assert len(padded) == size
        assert [padded[i] for i in places] == part


@pytest.mark.parametrize(
    ("members", "sizes", "expected"),
    [
        (10, (5,), [5, 5]),
        (20, (6,), [6, 6, 6, 6]),
        (9, (16,), [9]),
        (4, (6, 5), [5]),
        (3, (5,), [3]),
    ],
)
def test_sizes_that_are_compiled_are_taken_where_padding_is_cheap(members, sizes, expected):
    everyone = [Member(str(i), "v", i, None, None) for i in range(members)]
    parts = arrangement.chunks(everyone, "vectorized", 1, 32, sizes)
    assert [size for _, size in parts] == expected
    assert [m for part, _ in parts for m in part] == everyone


def test_a_wave_that_comes_often_has_its_own_size():
    """Three chunks instead of one, eleven times: a program more is cheaper."""
    everyone = [Member(str(i), "v", i, None, None) for i in range(15)]
    often = arrangement.chunks(everyone, "sharded", 2, 26, [6], alike=11)
    assert [(len(part), size) for part, size in often] == [(15, 16)]
    once = arrangement.chunks(everyone, "sharded", 2, 26, [6], alike=1)
    assert [size for _, size in once] == [6, 6, 6]


def test_waves_stay_with_a_program_as_long_as_they_can():
    def member(run, *needs):
        sources = [lineage.Source(n, 0, 0, frozenset()) for n in needs]
        return Member(run, run, 0, None, None, start=lineage.Start(*sources))

    chain = [member("a"), member("b", "a"), member("c", "b", "y")]
    other = [member("x"), member("y", "b"), member("z", "c")]
    order = [(b, [m.run for m in wave]) for b, wave in arrangement.waves([chain, other])]
    assert order == [(0, ["a"]), (0, ["b"]), (1, ["x"]), (1, ["y"]), (0, ["c"]), (1, ["z"])]


def test_other_architectures_and_batch_sizes_are_other_groups():
    c = tiny(a={}, b={"prune": PRUNE}, wide={"model": {"width": 0.25}}, small={"batch_size": 16})
    batches = plan.build(config.variants(c, default.get_config()))
    groups = [sorted({m.variant for m in b.members}) for b in batches]
    assert groups == [["a", "b"], ["wide"], ["small"]]


@pytest.mark.parametrize(
    ("seconds", "chosen", "why"),
    [
        ({"sharded": 1.0, "sequential": 2.0}, "sharded", "sharded 1e+03 ms"),
        ({"sharded": 1.1, "sequential": 1.0}, "sharded", "too close to call"),
        ({"sharded": 2.0, "sequential": 1.0}, "sequential", "measured per run and step"),
    ],
)
def test_auto_prefers_the_first_unless_it_is_clearly_slower(seconds, chosen, why):
    best, reason = layout.fastest(seconds)
    assert best == chosen
    assert why in reason


@pytest.mark.parametrize(
    ("devices", "members", "size", "share"),
    [(2, 1, 128, 2), (8, 3, 128, 2), (6, 2, 128, 2), (6, 2, 96, 3), (4, 3, 128, 0), (1, 1, 128, 0)],
)
def test_devices_that_members_leave_idle_may_share_them(devices, members, size, share):
    program, _, _ = layouts.batch()
    program = dataclasses.replace(program, batch_size=size)
    found = layout.sharing([None] * devices, program, members)
    assert found == (layout.Way("sharded", share) if share else None)
    configured = dataclasses.replace(program, data_parallel=2)
    assert layout.sharing([None] * devices, configured, members) is None


def test_shared_members_continue_in_as_many_processes():
    settings = default.get_config()
    began = layout.Decision("sharded", 1, "cpu", fits=1, why="", processes=4)
    assert len(layout.available(settings, began)) == 1  # members of their own do not care
    with pytest.raises(ConfigError, match="began in 4 processes and here are 1: the 2 devices"):
        layout.available(settings, dataclasses.replace(began, share=2))


def _effortless(monkeypatch, fits):
    """Populations that compile nothing; `fits(layout)` says whether members fit."""

    def population(program, data, way, devices, like, settings):
        multiple = 2 if way.layout == "sharded" else 1
        return SimpleNamespace(
            layout=way.layout, multiple=multiple, mesh=SimpleNamespace(size=multiple),
            program=program, vectorized=False,
            soon=lambda size, events: prepared.append((size, events)) or (),
        )  # fmt: skip

    def fitting(people, members, limit, evaluation=True):
        return [(members * fits(p.layout), memory.Memory(0, 0, 0, 0)) for p in people]

    prepared = []
    monkeypatch.setattr(layout, "_population", population)
    monkeypatch.setattr(layout.memory, "fitting", fitting)
    monkeypatch.setattr(layout, "available", lambda settings: [SimpleNamespace(platform="cpu")] * 2)
    monkeypatch.setattr(layout.memory, "bound", lambda settings, device: 1e9)
    monkeypatch.setattr(layout, "_measure", lambda people, members: measured.append(people) or 1.0)
    measured = []
    return prepared, measured


def test_a_known_layout_is_taken_unmeasured_if_the_members_fit(monkeypatch):
    prepared, measured = _effortless(monkeypatch, lambda name: True)
    (batch,) = plan.build(config.variants(tiny(), default.get_config()))
    settings = default.get_config()
    known = layout.Decision("sharded", 2, "cpu", fits=4, why="")
    found, _ = layout.decide(batch.program, None, batch.members[:5], settings, known)
    assert (found.layout, found.share, measured) == ("sharded", 1, [])
    assert "as before for such a network" in found.why
    events = any(len(m.events) for m in batch.members[:5])
    assert prepared == [(6, events)] == [(6, True)]  # 5 members and padding
    layout.decide(batch.program, None, batch.members[:5], settings)
    assert [people.layout for people in measured] == ["sequential", "sharded"]
    assert len(prepared) == 1  # nothing is compiled in advance while there is a choice
    prepared, measured = _effortless(monkeypatch, lambda name: name != "sharded")
    found, _ = layout.decide(batch.program, None, batch.members[:5], settings, known)
    assert (found.layout, measured) == ("sequential", [])
    _effortless(monkeypatch, lambda name: False)
    with pytest.raises(ConfigError, match="cannot hold even 1 member"):
        layout.decide(batch.program, None, batch.members[:5], settings, known)


def test_a_layout_is_measured_once_for_programs_of_one_network(monkeypatch, tmp_path):
    arms = {"a": {}, "crops": {"data": {"augment": True}}, "few": {"batch_size": 16}}
    arms |= {"wide": {"model": {"width": 0.25}}, "sgd": {"optimizer": {"name": "sgd"}}}
    batches = plan.build(config.variants(tiny(**arms), default.get_config()))
    known = {}

    def decide(program, data, members, settings, before):
        known[members[0].variant] = before and before.why
        return layout.Decision("sequential", 1, "cpu", 1, members[0].variant), None

    monkeypatch.setattr(layout, "decide", decide)
    directory = SimpleNamespace(
        load_json=lambda name: {}, save_json=lambda *file: None, on_main=lambda fn: False
    )
    quiet = SimpleNamespace(excluded=lambda text: nullcontext(), message=lambda text: None)
    members = [b.members for b in batches]
    people = arrangement.Arrangement(batches, members, default.get_config(), directory, quiet)
    for b, wave in people.order:
        people.chunks(b, wave)
    assert known == {"a": None, "crops": "a", "few": None, "wide": None, "sgd": "a"}


class _Clocked:
    """A population whose calls take known times: 1 ms a member and step, now and then ten times."""

    multiple, vectorized = 2, False

    def __init__(self, clock, steps_per_epoch=15):
        self.program = SimpleNamespace(steps_per_epoch=steps_per_epoch, epochs=1)
        self.clock, self.calls, self.data = clock, 0, None

    def zeros(self, members):
        return np.zeros(members)

    def train(self, states, data, steps):
        self.calls += 1
        self.clock[0] += 1e-3 * steps * len(states) * (10 if self.calls % 2 else 1)
        return states


@pytest.mark.parametrize("members", [1, 4])
def test_the_time_of_a_layout_is_that_of_its_fastest_call(members, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(layout.time, "perf_counter", lambda: clock[0])
    people = _Clocked(clock)
    assert layout._measure(people, members) == pytest.approx(1e-3)
    assert people.calls >= 1 + layout.CALLS


def test_the_host_has_its_share_in_the_time_of_a_layout(monkeypatch):
    monkeypatch.setattr(layout, "_measure", lambda people, members: 1e-4)
    found = {}
    for way in (layout.Way("sequential"), layout.Way("sharded")):
        found[way] = layout.per_step(way, _Clocked([0.0]), 26, 16, found)
    extra = {way.layout: seconds - 1e-4 for way, seconds in found.items()}
    assert extra["sequential"] == pytest.approx(layout.HOST / 15)
    assert extra["sharded"] == pytest.approx(layout.HOST / 15 / 16)
