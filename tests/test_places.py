"""Runs stand anywhere in a stack, among copies that fill it up: each is read at its own place."""

import types

import jax
import numpy as np
import pytest

from prunejax.errors import Interrupted, RecordError, WorkdirError
from prunejax.study import final
from prunejax.study.devices import arrangement, lifting
from prunejax.study.devices.population import Population
from prunejax.study.loop.saving import Saving
from tests.studies import PRUNE, go, plain_checkpoints, rows, small, tables

pytestmark = pytest.mark.usefixtures("quick_report")
_chunks, _pad = arrangement.chunks, lifting.pad


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
@pytest.mark.parametrize("many", [1, 2, 5, 11])
def test_each_device_has_as_many_runs(devices, many):
    size = 12
    stack, places = _pad(list(range(many)), size, devices)
    assert [stack[i] for i in places] == list(range(many))
    assert len(stack) == size
    on = np.array(places) // (size // devices)
    for d in range(devices):  # on each in their order
        own = [p for p in places if p // (size // devices) == d]
        assert own == sorted(own)
    each = np.bincount(on, minlength=devices)
    assert each.max() - each.min() <= 1
    # Of runs that follow each other, as the seeds of an arm do, every device has as many.
    for first in range(many - devices + 1):
        assert sorted(on[first : first + devices]) == list(range(devices))


def test_smaller_waves_take_the_size_that_is_compiled_where_padding_is_idle():
    def sizes(many, *, idle, alike=1):
        parts = arrangement.chunks(list(range(many)), "sharded", 2, 32, [16], alike, idle)
        assert [m for part, _ in parts for m in part] == list(range(many))
        return [size for _, size in parts]

    assert sizes(5, idle=True) == [16]
    assert sizes(5, idle=False) == [6]
    assert sizes(3, idle=True) == [4]  # 13 copies cost more than they save
    assert sizes(40, idle=True, alike=9) == [20, 20]  # not three of 16


def _study():
    """Events, a twin, a chain, probes, a measure, an early stop, a validation split."""
    late = {"duration": 3, "kind": "gaussian", "restore": "weights"}
    prune = PRUNE | {"layers": ("dense1", "dense2"), "score": "l2"}
    config = small(
        dense={},
        S={"prune": prune},
        tuned={"start": {"run": "S", "take": ("weights", "statistics", "masks")}},
        twin={"prune": prune | {"target": "random"}, "intervention": late | {"twin": "S"}},
    )
    config.seeds, config.evaluate_train, config.stop_loss = 2, True, 1.9
    config.probes.names = ("loss", "classes")
    config.measures.names, config.measures.examples = ("predictions",), 0
    config.data.validation_examples = 30
    config.population.layout, config.population.devices = "sharded", 1
    return config


def test_a_study_has_the_same_bytes_wherever_its_runs_stand(tmp_path, monkeypatch):
    def apart(members, size, devices=1):
        """Every run after a copy of the last one."""
        places = range(1, 2 * len(members), 2)
        stack = [members[-1]] * size
        for place, m in zip(places, members, strict=True):
            stack[place] = m
        return stack, list(places)

    def larger(*args):
        return [(part, 2 * size) for part, size in _chunks(*args)]

    def ended(path):
        found = final.states(path, final.programs(path))
        return {m.run: jax.tree.leaves(state().params) for _, m, state in found}

    real, tested = Population.evaluate_test, []

    def seen(self, states, after_event, only=None):
        tested.append(only)
        return real(self, states, after_event, only)

    plain_checkpoints(monkeypatch)
    monkeypatch.setattr(Population, "evaluate_test", seen)
    go(_study(), tmp_path / "plain")
    few = [only for only in tested if only is not None and only.sum() < len(only)]
    assert few  # of an event's test those that it left as they were are left out
    assert all(only.any() for only in few)
    monkeypatch.setattr(Population, "evaluate_test", lambda *a, only=None: real(*a[:3]))
    monkeypatch.setattr(lifting, "pad", apart)
    monkeypatch.setattr(arrangement, "chunks", larger)
    go(_study(), tmp_path / "apart")
    plain, other = tables(tmp_path / "plain"), tables(tmp_path / "apart")
    assert {"epochs.csv", "events.csv", "runs.csv", "classes.csv"} <= plain.keys()
    assert plain == other
    for run, leaves in ended(tmp_path / "plain").items():
        for a, b in zip(leaves, ended(tmp_path / "apart")[run], strict=True):
            np.testing.assert_array_equal(a, b)
    targets = {p.name: p.read_bytes() for p in (tmp_path / "plain" / "targets").iterdir()}
    assert targets == {p.name: p.read_bytes() for p in (tmp_path / "apart" / "targets").iterdir()}


def test_states_that_a_version_stacked_otherwise_are_refused(tmp_path, monkeypatch):
    """A run that stood where now a copy stands would never train again."""
    config = small(dense={})
    config.seeds, config.population.layout, config.population.devices = 2, "sharded", 1
    monkeypatch.setattr(arrangement, "chunks", lambda *args: [(m, 3) for m, _ in _chunks(*args)])
    with monkeypatch.context() as patch:  # an earlier version: the copy in front
        patch.setattr(lifting, "pad", lambda m, *_: ([m[0], *m], [1, 2]))
        with pytest.raises(Interrupted):
            go(config, tmp_path, stop_requested=lambda: len(rows(tmp_path, "epochs")) == 2)
    with pytest.raises(RecordError, match=r"stacks runs otherwise.*Continue with that version"):
        go(config, tmp_path)


@pytest.mark.parametrize(
    ("own", "told", "refused"),
    [
        ([0, 3, 1, 4], [0, 3, 1, 4], False),
        ([0, 3, 1, 4], [0, 1, 3, 4], True),
        ([0, 3, 1, 4], None, True),  # of a version that did not tell: device after device
        ([0, 1, 2], None, False),
    ],
)
def test_a_checkpoint_tells_where_its_runs_stand(own, told, refused):
    """At another's place a run would go on with the other's weights."""
    nothing = types.SimpleNamespace(
        require=lambda: None, on_main=lambda fn: None, directory="chunk-0"
    )
    saving = types.SimpleNamespace(
        places=own, targets=nothing, directory=nothing, checkpoints=nothing
    )
    states = types.SimpleNamespace(stopped=np.full(6, -1, np.int32))
    facts = {"epoch": 3, "measured": {}} | ({} if told is None else {"places": told})
    if refused:
        with pytest.raises(RecordError, match="stacks runs otherwise"):
            Saving.resume(saving, states, facts)
    else:
        assert Saving.resume(saving, states, facts) == 3


def test_rows_are_never_doubled_where_a_version_stacked_other_runs_together(tmp_path, monkeypatch):
    config = small(dense={})
    config.seeds, config.population.layout, config.population.devices = 3, "sharded", 1
    with monkeypatch.context() as patch:  # an earlier version: two runs, then one
        patch.setattr(arrangement, "chunks", lambda m, *_: [(m[:2], 2), (m[2:], 2)])
        with pytest.raises(Interrupted):
            go(config, tmp_path, stop_requested=lambda: len(rows(tmp_path, "runs")) == 2)
    with pytest.raises(WorkdirError, match=r"dense-0 is done, dense-2 is not.*that version"):
        go(config, tmp_path)
    assert len(rows(tmp_path, "runs")) == 2
