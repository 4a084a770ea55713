"""Programs compiled by other threads, members measured side by side: the same results."""

import dataclasses
import json
import threading
import types
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax.configs import default
from prunejax.data import StreamedSet
from prunejax.study import run
from prunejax.study.devices import ahead, arrangement, layout, population
from prunejax.study.loop import watching
from prunejax.study.planning import plan
from prunejax.study.settings import config
from tests import streamed_case
from tests.studies import plain_checkpoints, small, tables, tiny

COMPILED = []


def _count(name, seconds, **facts):
    del seconds
    if name.endswith("backend_compile_duration"):
        COMPILED.append(facts.get("fun_name"))


@pytest.fixture(scope="module", autouse=True)
def counted():
    jax.monitoring.register_event_duration_secs_listener(_count)
    with pytest.MonkeyPatch.context() as patch:
        plain_checkpoints(patch)
        yield
    jax.monitoring.unregister_event_duration_listener(_count)


def test_a_call_waits_for_the_thread_that_compiles_and_compiles_nothing():
    gate, pool = threading.Event(), ThreadPoolExecutor(1)
    x = jax.device_put(jnp.arange(6.0), jax.devices()[0])
    fn = ahead.Compiled(jax.jit(lambda x, n: jnp.cumsum(x) * n))
    COMPILED.clear()
    pool.submit(gate.wait)
    fn.compile(pool, x, np.int32(1))
    fn.compile(pool, x, np.int32(1))  # asked for twice, compiled once
    threading.Timer(0.05, gate.set).start()
    np.testing.assert_array_equal(fn(x, np.int32(3)), 3 * np.cumsum(np.arange(6.0)))
    assert len(COMPILED) == 1


def test_what_fails_in_a_thread_is_told_by_the_call():
    def wrong(x):
        raise ZeroDivisionError("in the loss")

    fn = ahead.Compiled(jax.jit(wrong))
    with ThreadPoolExecutor(1) as pool:
        fn.compile(pool, 1.0)
    with pytest.raises(ZeroDivisionError, match="in the loss"):
        fn(1.0)


def test_tasks_side_by_side_keep_their_order_and_raise_the_first_error(monkeypatch):
    for threads in (0, 2):
        monkeypatch.setattr(ahead, "threads", lambda n=threads: n)
        assert ahead.together([lambda i=i: i for i in range(5)]) == list(range(5))
        with pytest.raises(ZeroDivisionError):
            ahead.together([lambda: 1, lambda: 1 / 0, lambda: [][0]])


def test_several_processes_compile_in_step(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert ahead.threads() == 0


def test_training_compiles_no_program_that_was_prepared(monkeypatch):
    monkeypatch.setattr(ahead, "threads", lambda: 1)
    (found,) = plan.build(config.variants(tiny(), default.get_config()))
    data = arrangement.device_data(found.dataset)
    member = next(m for m in found.members if len(m.events))
    people = population.Population(found.program, data, "sequential", jax.devices()[:1], member)
    ahead.prepare(people.soon(1, events=True))
    common = [people.train_last, people._summary, people._evaluate]
    wait([p for fn in (*common, people._event) for p in fn.pending])
    states = people.initial([member])
    jax.block_until_ready(states)
    COMPILED.clear()
    people.summary(states)
    people.evaluate_test(states, after_event=False)
    states, _ = people.event(states, 1)
    people.train_last(states, people.data)
    assert not COMPILED


class Measuring:
    """Stands for `measuring.Hook`: the states are numbers."""

    def __init__(self, compiled):
        self.compiled, self.alone, self.begun, self.recorded = compiled, [], [], []

    def compute(self, state):
        self.compiled = True
        self.alone.append(state)
        return {"x": 10 * state}

    def begin(self, state):
        self.begun.append(state)
        found = Future()
        found.set_result({"x": 10 * state})
        return found

    def record(self, found, member, epoch):
        self.recorded.append((member.run, epoch))
        return found


@pytest.mark.parametrize(("devices", "compiled"), [(1, True), (2, False), (3, True)])
def test_members_are_measured_side_by_side_once_and_recorded_in_order(
    devices, compiled, monkeypatch
):
    members = [types.SimpleNamespace(run=f"a-{i}") for i in range(6)]
    monkeypatch.setattr(watching, "side_by_side", lambda people: devices)
    people = types.SimpleNamespace(member=lambda states, i: states[i])
    saving = types.SimpleNamespace(measured={"a-4/9": {"x": 1.0}}, long=lambda *_: nullcontext())
    measure = Measuring(compiled)
    watch = watching.Watch(members, members, range(6), people, None, saving, measure)
    bad = np.array([-1, -1, 7, -1, -1, -1, -1])  # and padding
    whole = [0, 1, 3, 4, 5]
    for epoch in (3, 9):
        states = [i + epoch for i in range(6)]
        found = [watch.measures(states, i, epoch, bad)["x"] for i in whole]
        wanted = [10.0 * states[i] for i in whole]
        assert found == (wanted if epoch == 3 else [*wanted[:3], 1.0, wanted[4]])
    assert measure.recorded == [(f"a-{i}", e) for e in (3, 9) for i in whole if (i, e) != (4, 9)]
    looked = measure.alone + measure.begun
    assert len(looked) == len(set(looked)) == 9
    assert len(measure.alone) == {1: 9, 2: 1, 3: 0}[devices]


def _three_arms():
    """Three programs of one network: they differ in their events."""
    some = {"snip": {"per_class": 1}, "static": {}, "rigl": {"update_every": 3}}
    return small(
        **{m: {"prune": {"method": m, "fraction": (0.5,)} | more} for m, more in some.items()}
    )


def test_the_next_program_is_compiled_while_one_trains(tmp_path, monkeypatch, quick_report):
    real, by = layout.decide, []

    def watched(*args):
        by.append(threading.current_thread() is threading.main_thread())
        return real(*args)

    monkeypatch.setattr(layout, "decide", watched)
    found = {}
    for count in (0, 1):
        by.clear()
        monkeypatch.setattr(ahead, "threads", lambda n=count: n)
        run.run(_three_arms(), tmp_path / str(count), default.get_config(), quiet=True)
        found[count] = tables(tmp_path / str(count))
        assert by == ([True] * 3 if count == 0 else [True, False, False])
    assert found[0] == found[1]


def test_nothing_is_foreseen_of_streamed_sets(few_layers, tmp_path, monkeypatch, quick_report):
    """Their populations hold a few examples: one made from these would train on nothing else."""
    real, sources = layout.decide, []

    def watched(program, source, *rest):
        sources.append(source)
        return real(program, source, *rest)

    monkeypatch.setattr(layout, "decide", watched)
    monkeypatch.setattr(ahead, "threads", lambda: 1)
    streamed_case.write(tmp_path / "sets")
    gradual = {"method": "gradual", "start": (2,), "end": (10,), "period": 4}
    arms = {"gradual": gradual, "static": {"method": "static"}}
    variants = {name: {"prune": {"fraction": (0.5,)} | how} for name, how in arms.items()}
    config = streamed_case.study(tmp_path / "sets", **variants)
    config.measures.forecast, config.seeds = False, 1
    run.run(config, tmp_path / "run", default.get_config(), quiet=True)
    assert [type(source) for source in sources] == [StreamedSet] * 2


def test_what_was_foreseen_counts_only_if_everybody_fits(tmp_path, monkeypatch, quick_report):
    """Members that did not fit beside the batch before may fit now: it is decided again."""
    real, by = layout.decide, []

    def tight(*args):
        by.append(threading.current_thread() is threading.main_thread())
        if not by[-1] and len(by) == 2:
            raise MemoryError("beside the batch before")
        decision, people = real(*args)
        return (decision if by[-1] else dataclasses.replace(decision, fits=0)), people

    monkeypatch.setattr(layout, "decide", tight)
    monkeypatch.setattr(ahead, "threads", lambda: 1)
    run.run(_three_arms(), tmp_path / "run", default.get_config(), quiet=True)
    assert by == [True, False, True, False, True]
    assert all(
        d["fits"] for d in json.loads((tmp_path / "run" / "layout.json").read_text()).values()
    )
