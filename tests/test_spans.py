"""What one call trains: several epochs of one step each; a copy that fills a stack up nothing."""

import jax
import numpy as np
import pytest

from prunejax import report
from prunejax.study.devices import arrangement, lifting
from prunejax.study.devices.population import Population
from prunejax.study.loop import chunk
from tests.studies import go, planned, small, tables

pytestmark = pytest.mark.usefixtures("quick_report")


def full_batch():
    """Ten epochs of one step, tested after every fourth, after events and at the end."""
    prune = {"layers": ("dense1",), "fraction": (0.5,), "start": (4,), "end": (5,), "period": 1}
    linear = prune | {"schedule": "linear", "score": "l2"}
    rigl = {"method": "rigl", "fraction": (0.5,), "update_every": 3}
    config = small(none={}, S={"prune": linear}, rigl={"prune": rigl})
    config.epochs, config.evaluate_every = 10, 4
    config.data.train_examples = config.batch_size = 64
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tables of the study when nothing breaks it."""
    path = tmp_path_factory.mktemp("spans") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "build", lambda paths: paths[0] / "report.html")
        go(full_batch(), path)
    return tables(path)


def test_epochs_of_one_step_train_in_one_call_with_the_same_bytes(tmp_path, monkeypatch):
    calls, real = [], chunk.Chunk._train_epochs

    def counted(self, states, epoch, last):
        calls.append((epoch, last))
        return real(self, states, epoch, last)

    monkeypatch.setattr(chunk.Chunk, "_train_epochs", counted)
    found = {}
    for spans in (True, False):
        calls.clear()
        if not spans:
            monkeypatch.setattr(Population, "spans", False)
        path = tmp_path / str(spans)
        go(full_batch(), path)
        found[spans] = tables(path)
        alone = {(0, 3), (4, 7), (8, 9)}  # of arms whose events fall on steps, or that have none
        tested = {(0, 3), (4, 4), (5, 5), (6, 7), (8, 9)}
        assert set(calls) == (alone | tested if spans else {(e, e) for e in range(10)})
    assert found[True] == found[False]


@pytest.mark.parametrize("broken", ["_arrived", "_end_epoch", "_finish"])
def test_broken_inside_several_epochs_and_continued(tmp_path, monkeypatch, whole, broken):
    real, left = getattr(chunk.Chunk, broken), iter(range(100))

    def breaks(self, states, *rest):
        if next(left) == 2:
            raise KeyboardInterrupt
        return real(self, states, *rest)

    monkeypatch.setattr(chunk.Chunk, broken, breaks)
    with pytest.raises(KeyboardInterrupt):
        go(full_batch(), tmp_path / "parts")
    go(full_batch(), tmp_path / "parts")
    assert tables(tmp_path / "parts") == whole


def test_copies_that_fill_a_stack_up_do_not_train():
    (batch,) = planned(small(none={}, other={"optimizer": {"learning_rate": 0.01}}))
    data = arrangement.device_data(batch.dataset)
    people = Population(batch.program, data, "sharded", jax.devices()[:1], batch.members[0])
    members, _ = lifting.pad(batch.members, 3)
    filled, whole = (people.initial(members, range(real)) for real in (2, 3))
    begun = jax.device_get(filled)
    after, every = (
        jax.device_get(people.train(s, people.data, np.int32(2))) for s in (filled, whole)
    )
    for a, b, c in zip(*(jax.tree.leaves(s.params) for s in (after, every, begun)), strict=True):
        np.testing.assert_array_equal(a[:2], b[:2])  # as without
        np.testing.assert_array_equal(a[2], c[2])
    assert after.step.tolist() == [2, 2, 0]
    assert every.step.tolist() == [2, 2, 2]
    assert any(
        (x[0] != y[0]).any()
        for x, y in zip(*map(jax.tree.leaves, (after.params, begun.params)), strict=True)
    )
