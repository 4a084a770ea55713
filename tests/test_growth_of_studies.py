"""What a study costs besides training grows with its runs, chains, events and layers, not faster.

By counts of work, of the same thing at one size and at four times that.
"""

import dataclasses
import itertools
import json
import re
import sys
import types
import weakref
from contextlib import nullcontext

import jax
import numpy as np
import pytest

from prunejax import interventions, measure
from prunejax.errors import ConfigError
from prunejax.measures import columns as columns_lib
from prunejax.measures import correlation
from prunejax.record import directory as directory_lib
from prunejax.record import scalars, sinks
from prunejax.report import tables, words
from prunejax.report.curves import accuracy_curves, by_seed
from prunejax.study import final, preview
from prunejax.study.devices import arrangement
from prunejax.study.devices.decision import Decision
from prunejax.study.loop import chunk, endings, events, handover, watching
from prunejax.study.loop import targets as targets_lib
from prunejax.study.loop.pacing import Pace
from prunejax.study.planning import live, step_plan
from prunejax.study.planning.live import Live
from prunejax.study.planning.step_plan import Row
from prunejax.study.settings import lineage, pairs
from prunejax.system import files
from tests import fake_study


def bytecodes(fn):
    """How many of Python's instructions run inside `fn`: the same every time."""
    count, before = 0, sys.gettrace()

    def follow(frame, event, arg):
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return follow

    sys.settrace(follow)
    try:
        fn()
    finally:
        sys.settrace(before)
    return count


def linear(work, small, times=4, slack=1.1):
    """Asserts that `work(times * small)` is at most that many times `work(small)`, nearly."""
    one, many = work(small), work(times * small)
    assert one > 0
    assert many <= slack * times * one, (one, many)


def run_of(name, *needs, step=0):
    start = types.SimpleNamespace(step=step)
    return types.SimpleNamespace(run=name, needs=set(needs), start=start)


def a_chain(size, backwards):
    """Runs of which each needs the one before; declared in that order, or the other way round."""
    names = [f"r{i:05d}" for i in range(size)]
    pairs = list(zip(names, [(), *((n,) for n in names)], strict=False))
    return dict(reversed(pairs) if backwards else pairs)


@pytest.mark.parametrize("backwards", [False, True])
def test_chains_are_ordered_in_linear_work_however_long(backwards):
    def work(size):
        needs = a_chain(size, backwards)
        members = [run_of(run, *others) for run, others in needs.items()]

        def all_of_it():
            depth = lineage.depths(needs)
            family = lineage.families(needs)
            order = arrangement.waves([members])
            assert depth == {f"r{i:05d}": i for i in range(size)}
            assert set(family.values()) == {"r00000"}
            assert [m.run for _, wave in order for m in wave] == sorted(needs)

        return bytecodes(all_of_it)

    linear(work, 100)
    assert max(lineage.depths(a_chain(3000, backwards)).values()) == 2999  # deeper than a stack


def test_waves_begin_as_soon_as_what_they_need_is_done_and_stay_with_a_program():
    """Against a search through all that is left."""
    random = np.random.default_rng(0)
    for _ in range(100):
        parts = [[] for _ in range(random.integers(1, 4))]
        for i in range(random.integers(1, 12)):
            needs = [f"r{j}" for j in range(i) if random.random() < 0.3]
            needs += ["elsewhere"] * (random.random() < 0.2)
            member = run_of(f"r{i}", *needs, step=int(random.choice([0, 0, 3])))
            parts[random.integers(len(parts))].append(member)
        depth = lineage.depths({m.run: m.needs for part in parts for m in part})
        left = {}
        for b, part in enumerate(parts):
            for m in part:
                left.setdefault((depth[m.run], b, m.start.step), []).append(m)
        missing, last, wanted = set(depth), 0, []
        while left:
            ready = [k for k in sorted(left) if not any(missing & m.needs for m in left[k])]
            key = next((k for k in ready if k[1] == last), ready[0])
            last, wave = key[1], left.pop(key)
            missing -= {m.run for m in wave}
            wanted.append((last, [m.run for m in wave]))
        found = arrangement.waves(parts)
        assert [(b, [m.run for m in wave]) for b, wave in found] == wanted


def arranged(members):
    decision = dataclasses.asdict(Decision("vectorized", 1, "cpu", 8, ""))
    directory: object = types.SimpleNamespace(
        load_json=lambda name: {"0": decision}, on_main=lambda call: True
    )
    settings = types.SimpleNamespace(population=types.SimpleNamespace(data_parallel=1))
    batch = types.SimpleNamespace(members=members)
    return arrangement.Arrangement([batch], [members], settings, directory, None)  # type: ignore[arg-type, list-item]


def test_what_comes_next_is_not_sought_from_the_start(monkeypatch):
    def work(size):
        members = [run_of(run, *others) for run, others in a_chain(size, False).items()]
        people = arranged(members)
        return bytecodes(lambda: [people.foresee(0) for _ in members])  # type: ignore[func-returns-value]

    linear(work, 50)


def test_data_of_each_seed_adds_nothing_to_the_layouts_on_record(monkeypatch):
    """Batches that differ in their data alone follow the first one's layout."""
    written, shape = [], types.SimpleNamespace(shape=(2,), dtype="float32")
    monkeypatch.setattr(arrangement, "device_data", lambda dataset: arrangement.Data(*[shape] * 6))
    program = object()
    decision = Decision("sequential", 1, "cpu", 1, "")
    monkeypatch.setattr(arrangement.layout, "decide", lambda *args: (decision, None))
    parts = [[run_of(f"a-{i}")] for i in range(5)]
    monkeypatch.setattr(arrangement.Arrangement, "_foreseen", lambda self, b: None)
    monkeypatch.setattr(arrangement.Arrangement, "_known", lambda self, b: None)
    directory: object = types.SimpleNamespace(
        load_json=lambda name: {},
        on_main=lambda call: False,
        save_json=lambda name, content: written.append(content),
    )
    progress: object = types.SimpleNamespace(
        excluded=lambda text: nullcontext(), message=lambda text: None
    )
    settings = types.SimpleNamespace(population=types.SimpleNamespace(data_parallel=1))
    batches: object = [
        types.SimpleNamespace(program=program, members=part, dataset=i)
        for i, part in enumerate(parts)
    ]
    people = arrangement.Arrangement(batches, parts, settings, directory, progress)  # type: ignore[arg-type]
    for b, wave in people.order:
        assert [[m.run for m in part] for part, _ in people.chunks(b, wave)] == [[f"a-{b}"]]
    assert written == [{"0": dataclasses.asdict(decision)}]


@pytest.mark.parametrize("beside", [1, 3])
def test_members_are_measured_without_looking_at_all_that_follow(monkeypatch, beside):
    monkeypatch.setattr(watching, "side_by_side", lambda people: beside)

    def work(size):
        begun, recorded = [], []

        def begin(state):
            begun.append(state)
            return types.SimpleNamespace(result=lambda: state)

        made = object.__new__(watching.Watch)
        made.measure = types.SimpleNamespace(  # type: ignore[assignment]
            compiled=True, begin=begin, compute=lambda state: begun.append(state) or state,
            record=lambda found, member, epoch: recorded.append(found) or {"tic": 1.0},
        )  # fmt: skip
        made.members = [types.SimpleNamespace(run=f"a-{i}") for i in range(size)]  # type: ignore[misc]
        made.places, made._running = range(size), {}
        made.population = types.SimpleNamespace(member=lambda states, place: place)  # type: ignore[assignment]
        made.saving = types.SimpleNamespace(measured={}, long=lambda *a: nullcontext())  # type: ignore[assignment]
        bad = np.full(size, -1)
        bad[2] = 5  # not asked for

        def all_of_it():
            for i in range(size):
                if bad[i] < 0:
                    made.measures(None, i, 0, bad)  # type: ignore[arg-type]

        code = bytecodes(all_of_it)
        assert begun == recorded == [i for i in range(size) if i != 2]
        return code

    linear(work, 20)


def test_each_wave_of_a_chain_is_divided_once(monkeypatch):
    divided, real = [], arrangement.chunks

    def counted(members, *rest):
        divided.append(len(members))
        return real(members, *rest)

    monkeypatch.setattr(arrangement, "chunks", counted)
    members = [run_of(run, *others) for run, others in a_chain(30, False).items()]
    people = arranged(members)
    found = [people.chunks(b, wave) for b, wave in people.order]
    assert [[[m.run for m in part] for part, _ in parts] for parts in found] == [
        [[m.run]] for m in members
    ]
    assert len(divided) <= len(members) + 1  # one more for the widest


class Counted:
    """A name or a step that counts how often it is compared."""

    compared = 0

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        Counted.compared += 1
        return self.value == getattr(other, "value", other)

    def __gt__(self, other):
        return self.value > other

    def __lt__(self, other):
        return self.value < other.value

    def __hash__(self):
        return hash(self.value)


@pytest.mark.parametrize("axis", ["events", "layers"])
def test_plans_of_step_events_are_linear(axis):
    def work(size):
        layers, many = (3, size) if axis == "events" else (size, 10)
        names = [f"layer{i}" for i in range(layers)]
        start = Live(tuple(names), dict.fromkeys(names, 10_000), ())
        rows = [Row(i, dict.fromkeys(names, 2), dict.fromkeys(names, 1)) for i in range(many)]
        rows += [Row(7 * e, dict.fromkeys(names, n), {}, place=e) for e, n in ((1, 3), (3, 4))]

        def all_of_it():
            found = live.with_events(start, "arm", rows)
            for step in range(-1, many):
                gone = step + 1 + 3 * (step >= 7) + 4 * (step >= 21)
                assert found.at(step)["layer0"] == 10_000 - gone
            assert found.at(-0.5) == start.counts
            step_plan.fill(rows, range(many), own, 4, 7)

        own = [Counted(name) for name in names]
        Counted.compared = 0
        return bytecodes(all_of_it) + Counted.compared

    linear(work, 30)


def test_a_call_of_steps_ends_at_the_next_stop(monkeypatch):
    """And finds it without going through all the others."""
    monkeypatch.setattr(chunk.smaller, "sizes", lambda program, epoch: None)
    monkeypatch.setattr(jax, "block_until_ready", lambda states: states)
    none = types.SimpleNamespace(
        advance=lambda *a, **k: None, reached=lambda *a: None, due=lambda states, *a: states
    )

    def trained(stops, per_epoch, pace):
        """The chunk, and where its calls end."""
        made, ends = object.__new__(chunk.Chunk), []

        def train(states, data, count):
            ends.append((ends[-1] if ends else 0) + int(count))
            return states

        program = types.SimpleNamespace(steps_per_epoch=per_epoch, last_batch=1, batch_size=1)
        made.population = types.SimpleNamespace(
            program=program, data=None, training=lambda epoch: (train, train)
        )
        made.members, made.progress, made._saving, made._warm = [None], none, none, {"training"}
        made._pace, made._stops = Pace(), sorted(stops)
        made._pace.steps = pace
        for name in ("_done", "_text", "_stand", "_reached", "_maybe_save"):
            monkeypatch.setattr(chunk.Chunk, name, lambda self, *a, **k: 0)
        monkeypatch.setattr(chunk.Chunk, "_arrived", lambda self, states, step: states)
        monkeypatch.setattr(Pace, "took", lambda self, *a: None)
        made._warm.add("how it goes")
        made.population.summary = lambda states: (types.SimpleNamespace(loss=0, accuracy=0),)
        return made, ends

    made, ends = trained({0, 3, 4, 20, 25}, 20, pace=8)
    made._train_epochs(None, 0, 0)
    assert ends == [3, 4, 12, 20]

    def work(size):
        made, _ = trained(range(size), size, pace=8)
        return bytecodes(lambda: made._train_epochs(None, 0, 0))

    linear(work, 50)


def test_a_chunk_has_no_events_of_other_arms():
    """A run's calls do not grow with the arms that share its program."""
    steps = np.arange(40)
    own = types.SimpleNamespace(
        events={2: None, 14: None, 33: None}, is_between=lambda row: row > 5,
        table=types.SimpleNamespace(steps=steps),
    )  # fmt: skip
    nothing: object = types.SimpleNamespace()
    made = events.Events([(0, own)], [own], *[nothing] * 6)  # type: ignore[list-item, arg-type]
    assert made.between == {14: [14], 33: [33]}


def test_states_are_left_at_their_steps():
    members = [types.SimpleNamespace(run=f"r{i}", keep=(0, 5 + i, -1)) for i in range(2)]
    made = handover.Handover(None, list(enumerate(members)), None)  # type: ignore[arg-type]
    assert made.steps == [5, 6]

    def work(size):
        member = types.SimpleNamespace(run="r", keep=tuple(Counted(n) for n in range(-size, 0)))
        made = handover.Handover(None, [(0, member)], None)  # type: ignore[arg-type, list-item]
        Counted.compared = 0
        code = bytecodes(lambda: [made.leave(None, step) for step in range(size)])  # type: ignore[func-returns-value, arg-type]
        return code + Counted.compared

    linear(work, 100)


def test_a_checkpoint_looks_at_the_new_events_only(tmp_path, monkeypatch):
    monkeypatch.setattr(targets_lib.Targets, "_write", lambda *a: None)
    monkeypatch.setattr(targets_lib.Targets, "_parts", lambda self, run: [])
    flags = {"layer": np.ones((1, 3), bool)}

    def work(size):
        rows = dict.fromkeys(range(size))
        table = types.SimpleNamespace(ids=np.arange(size) + 1)
        member = types.SimpleNamespace(run="a-0", twin="", events=rows, table=table)
        held = targets_lib.Targets(tmp_path, [member])  # type: ignore[list-item]

        def all_of_it():
            for row in rows:
                held.add(row, flags)
                held.save()

        return bytecodes(all_of_it)

    linear(work, 20)


def test_rows_of_a_page_are_grouped_a_few_times_not_for_each_arm(tmp_path, monkeypatch):
    handled, real = 0, columns_lib.grouped

    def counted(rows, column):
        nonlocal handled
        rows = list(rows)
        handled += len(rows)
        return real(rows, column)

    monkeypatch.setattr(columns_lib, "grouped", counted)

    def work(size):
        nonlocal handled
        arms = {"none": (None, 0, 0.0)} | {f"S{i}": ("smallest", 10, 0.1) for i in range(size)}
        path = tmp_path / str(size)
        fake_study.write(path, arms=arms, seeds=range(1), epochs=12)
        study = tables.load([path])
        handled = 0

        def all_of_it():
            words.arms(study)
            for variant in study.variants:
                accuracy_curves(study, variant)
                by_seed(study, variant)
                study.mean_stability(variant)
                study.gain(variant, "final_test_accuracy")

        return bytecodes(all_of_it) + 20 * handled

    linear(work, 6, slack=1.3)  # (words tell arms apart that differ in their labels alone)


@pytest.mark.parametrize("axis", ["seeds", "arms"])
def test_correlations_of_runs_do_not_compare_all_with_all_for_each_seed(axis, monkeypatch):
    """A page of two arms of 500 seeds took a minute: counts numbers compared or sorted."""
    handled, below, signs = 0, correlation._below, correlation.signs

    def sorting(x, y):
        nonlocal handled
        handled += x.size
        return below(x, y)

    def comparing(x):
        nonlocal handled
        handled += x.size**2
        return signs(x)

    monkeypatch.setattr(correlation, "_below", sorting)
    monkeypatch.setattr(correlation, "signs", comparing)
    draws = np.random.default_rng(0)

    def work(size):
        nonlocal handled
        arms, runs = (2, size) if axis == "seeds" else (size, 3)
        x, y, handled = draws.normal(size=arms * runs), draws.normal(size=arms * runs), 0
        found = correlation.clustered(x, y, np.tile(np.arange(runs), arms), "kendall")
        assert found.n == x.size
        return handled

    linear(work, 400)


def measured(index):
    keys = {"run": f"a-{index}", "variant": "a", "seed": index}
    member = types.SimpleNamespace(**keys, keys=keys)
    values = {"tic": index / 7} | ({"late": 1.0} if index == 3 else {})
    context = {k: np.array(1) for k in columns_lib.CONTEXT}
    return member, values, context | {k: np.array(v) for k, v in values.items()}


def test_a_table_of_measures_grows_by_its_rows(tmp_path, monkeypatch):
    """Bytes read and written; what comes out is as if all were written at once."""
    replace, append, opened = files.replace, files.append, measure.Path.open
    work = 0

    def counting(path, write):
        nonlocal work
        replace(path, write)
        work += path.stat().st_size if path.name == measure.TABLE else 0

    def adding(path, content):
        nonlocal work
        append(path, content)
        work += len(content)

    def reading(self, *args, **options):
        nonlocal work
        work += self.stat().st_size if self.name == measure.TABLE else 0
        return opened(self, *args, **options)

    monkeypatch.setattr(files, "replace", counting)
    monkeypatch.setattr(files, "append", adding)
    monkeypatch.setattr(measure.Path, "open", reading)

    def of(size):
        nonlocal work
        path = tmp_path / str(size)
        path.mkdir()
        results, work = measure.Results(path), 0
        for i in range(size):
            results.add(*measured(i))
        return work

    linear(of, 20)
    table = tmp_path / "80" / measure.TABLE
    text = table.read_text()
    results = measure.Results(table.parent)
    results.add(*measured(79))  # the whole table again
    assert table.read_text() == text
    assert text.splitlines()[0].endswith("tic,late")
    assert text.count("\n") == 81
    other = measure.Results(table.parent)  # another process, in between
    other.add(*measured(80))
    results.add(*measured(81))
    assert [row["run"] for row in tables.read_csv(table)] == [f"a-{i}" for i in range(82)]


def test_one_stack_of_final_states_is_in_memory_at_a_time(tmp_path, monkeypatch):
    read: list[weakref.ref] = []

    def stack(checkpoints, size, batch, member):
        assert not [old for old in read if old() is not None]
        state = np.full((size, 2), int(member.run[2:]))
        read.append(weakref.ref(state))
        return {"x": state}

    monkeypatch.setattr(final, "_stack", stack)
    runs = [f"a-{i}" for i in range(6)]
    lines = [
        "run,variant,seed,status,mean_stability,events",
        *(f"{r},a,0,done,1.0,0" for r in runs),
    ]
    (tmp_path / "runs.csv").write_text("\n".join([*lines, ""]))
    for k in range(3):
        facts = {"runs": runs[2 * k : 2 * k + 2], "places": [1, 0], "size": 2}
        folder = tmp_path / "checkpoints" / f"final-{k}" / "1"
        folder.mkdir(parents=True)
        (folder / "facts.json").write_text(json.dumps(facts))
    batch: object = types.SimpleNamespace(members=[types.SimpleNamespace(run=r) for r in runs])
    entries = final.states(tmp_path, [batch])  # type: ignore[list-item]
    for k, (_, member, state) in enumerate(entries):
        assert member.run == runs[k]
        assert int(state()["x"][0]) == k // 2 * 2  # type: ignore[index, call-overload]
    assert len(read) == 3
    (tmp_path / "checkpoints/final-2/1/facts.json").unlink()
    (tmp_path / "checkpoints/final-2/1").rmdir()
    for wanted in ("a-[0-3]", "b.*"):  # nothing is lost of these
        assert len(final.states(tmp_path, [batch], re.compile(wanted))) == 4  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"no final states \(checkpoints/final-\*\) of a-4, a-5:"):
        final.states(tmp_path, [batch], re.compile(".*"))  # type: ignore[list-item]


def test_a_tracker_is_given_what_is_new(tmp_path, monkeypatch):
    given, count = [], 0
    monkeypatch.setitem(sinks.SINKS, "mine", lambda run: given.append(run.run))
    real, settings = files.read_object, scalars.hyperparameters

    def reading(path):
        nonlocal count
        count += 1
        return real(path)

    def asking(*args):
        nonlocal count
        count += 1
        return settings(*args)

    monkeypatch.setattr(files, "read_object", reading)
    monkeypatch.setattr(scalars, "hyperparameters", asking)
    (tmp_path / "config.json").write_text('{"name": "n", "variants": {"a": {}}}')
    runs = tmp_path / "runs.csv"
    runs.write_text("run,variant,seed,final_test_accuracy,status\n")
    tracking = sinks.Tracking(tmp_path, ["mine"], print)

    def work(size):
        def all_of_it():
            for _ in range(size):
                with runs.open("a") as file:
                    file.write(f"a-{len(given)},a,{len(given)},0.5,done\n")
                tracking.send()

        return bytecodes(all_of_it)

    tracking.send()
    monkeypatch.setattr(files, "save_json", lambda path, content: None)  # a name more each time
    one = work(10)
    assert work(40) <= 1.2 * 4 * one
    assert given == [f"a-{i}" for i in range(50)]
    assert count <= 2


def test_short_chunks_are_not_sent_one_by_one(tmp_path, monkeypatch):
    """Each time all files there are so far are listed: so many chunks that are done."""
    clock = 0.0
    monkeypatch.setattr(directory_lib.time, "monotonic", lambda: clock)

    def sent(size, seconds):
        nonlocal clock
        made, at = directory_lib.SharedDirectory(tmp_path, {}), []
        made.mirror = types.SimpleNamespace(push=lambda: at.append(done))  # type: ignore[assignment]
        for done in range(1, size + 1):
            clock += seconds
            made.publish(done)
        made.publish()
        return at

    linear(lambda size: sum(sent(size, 0.1)), 200, slack=1.15)
    assert sent(31, 0.1) == [*range(1, 32), 31]
    assert sent(500, 61) == [*range(1, 501), 500]  # nothing that took long is at risk
    often = sent(500, 0.1)
    assert max(b - a for a, b in itertools.pairwise(often)) <= 500 // directory_lib.SHARE
    assert often[-1] == 500


@pytest.mark.parametrize("axis", ["runs", "layers"])
def test_costs_of_runs_that_update_are_counted_from_their_own_rows(monkeypatch, axis):
    monkeypatch.setattr(endings.groups_lib, "wiring", lambda module: ())
    monkeypatch.setattr(endings, "live_paths", lambda *a: ({}, []))
    numbers = {"targeted": 1, "dropped": 1, "grown": 1}

    def work(size):
        runs, layers = (size, 2) if axis == "runs" else (2, size)
        names = [f"l{i}" for i in range(layers)]
        known = {f"{name}/kernel": 6 for name in names}
        monkeypatch.setattr(endings.costs, "work", lambda program: known)
        groups = [
            types.SimpleNamespace(name=n, layer=n, kernel=f"{n}/kernel", units=3) for n in names
        ]
        program = types.SimpleNamespace(
            groups=groups, weights=True, epochs=1, steps_per_epoch=10, forward="masked", module=None
        )
        rows = [
            {
                "run": f"a-{i}",
                "layer": name,
                "step": str(step),
                "live": str(3 + step % 2),
                **numbers,
            }
            for step in (2, 4, 6)
            for i in range(runs)
            for name in names
        ]
        left = np.tile([[0, 1, 0], [0, 1, 1]], (runs, 1, 1))
        none: dict = {}
        windows = interventions.Windows(none, dict.fromkeys(names, left), none, none, none)
        directory: object = types.SimpleNamespace(
            tables=("costs", "updates"), rows=lambda table, since: rows
        )
        states: object = types.SimpleNamespace(params={}, windows=windows, table=())
        population: object = types.SimpleNamespace(program=program)
        start = types.SimpleNamespace(step=0)
        found = []

        def all_of_it():
            ends = endings.Endings(population, directory, states, {})  # type: ignore[arg-type]
            for i in range(runs):
                keys = {"run": f"a-{i}", "variant": "a", "seed": i}
                member: object = types.SimpleNamespace(
                    run=f"a-{i}", keys=keys, start=start, gradient_updates=0,
                    layers=names, table=types.SimpleNamespace(grow=np.zeros(1)),
                )  # fmt: skip
                ends.of(i, member, [])  # type: ignore[arg-type]
            found.extend(ends._tables["costs"])

        code = bytecodes(all_of_it)
        assert [(row["run"], row["layer"]) for row in found] == [
            (f"a-{i}", name) for i in range(runs) for name in names
        ]
        assert {row["mean_live"] for row in found} == {3.0}
        return code

    linear(work, 40 if axis == "runs" else 10)


def test_arms_and_pairs_of_runs_are_found_without_a_search(monkeypatch):
    def work(size):
        runs = [(f"a{i}", seed, f"a{i}-{seed}") for i in range(size) for seed in (0, 1)]
        names = [*(f"a{i}:a{i + 1}" for i in range(size - 1)), "a0", "a1:elsewhere"]
        batch: object = types.SimpleNamespace(
            members=[types.SimpleNamespace(variant=label, seed=s) for label, s, _ in runs]
        )
        found = []

        def all_of_it():
            found.extend(pairs.pairs(names, runs))
            of = preview._by_arm([batch])  # type: ignore[list-item]
            assert [(k, [m.seed for m in own]) for k, (_, own) in of.items()] == [
                (f"a{i}", [0, 1]) for i in range(size)
            ]

        code = bytecodes(all_of_it)
        wanted = [(f"a{i}-{s}", f"a{i + 1}-{s}") for i in range(size - 1) for s in (0, 1)]
        assert [(p.a, p.b) for p in found] == [*wanted, ("a0-0", "a0-1")]
        return code

    linear(work, 20)
