"""Runs that stop early: what is recorded of them does not depend on the runs they train with."""

import numpy as np
import pytest

from prunejax.errors import Interrupted
from tests.studies import go, rows, small, tables

pytestmark = pytest.mark.usefixtures("quick_report")
LAST = 16  # steps of a run that does not stop: 4 epochs of 4


def config(layout):
    """One run stops after its first epoch, one diverges there; both are started from at step 14."""
    begin = {"take": ("weights", "statistics"), "at": "step:14"}
    c = small(
        stops={"stop_loss": 100.0},
        goes={},
        diverges={"optimizer": {"learning_rate": 1e30}},
        child={"start": begin | {"run": "stops"}},
        lost={"start": begin | {"run": "diverges"}},
    )
    c.optimizer.name = "sgd"
    c.population.layout, c.population.devices = layout, 1
    c.probes.names = ("loss", "accuracy", "classes", "predictions")
    c.probes.at = ("epochs", "end")
    c.measures.names, c.measures.epochs = ("gradient_second_moment",), (2,)
    c.measures.examples, c.keep = 32, ("step:14", "end")
    return c


@pytest.fixture(scope="module", params=["sequential", "vectorized"])
def study(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("stopping") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunejax.report.build", lambda paths: paths[0] / "report.html")
        go(config(request.param), path)
    return path


def test_every_run_has_rows_up_to_its_end_and_one_end(study):
    ended = {row["run"]: row for row in rows(study, "runs")}
    assert ended["stops-0"]["stopped_step"] == "4"
    assert ended["goes-0"]["stopped_step"] == ended["child-0"]["stopped_step"] == ""
    for run, steps in {"stops-0": [4], "goes-0": [4, 8, 12, LAST]}.items():
        seen = [row for row in rows(study, "classes") if row["run"] == run]
        whens = list(dict.fromkeys((row["when"], int(row["step"])) for row in seen))
        assert whens == [*(("epoch", step) for step in steps), ("end", steps[-1])]
        last = [row for row in rows(study, "epochs") if row["run"] == run][-1]
        right = sum(float(row["correct"]) for row in seen if row["when"] == "end")
        assert right / 90 == pytest.approx(float(last["test_accuracy"]), abs=1e-6)
        names = {file.name for file in (study / "measures").glob(f"{run}*.npz")}
        assert names == {
            *(f"{run}-epoch-step{step}.npz" for step in steps),
            *(f"{run}-end.npz", f"{run}.npz"),
            *([f"{run}-epoch2.npz"] if run == "goes-0" else []),
        }
    assert not [row for row in rows(study, "classes") if row["run"] == "diverges-0"]


def test_states_of_later_steps_are_those_it_ended_with(study):
    """What others take of a run that stopped, or diverged, is what that one was left with."""
    ended = {row["run"]: row["status"] for row in rows(study, "runs")}
    assert ended["child-0"] == "done"
    assert ended["diverges-0"].startswith("non-finite")
    assert ended["lost-0"].startswith("non-finite")
    with (
        np.load(study / "states" / "stops-0@step14.npz") as at,
        np.load(study / "states" / "stops-0@end.npz") as end,
    ):
        assert at["step"] == 14
        for name in set(at.files) - {"step"}:
            np.testing.assert_array_equal(at[name], end[name])


def test_stopped_from_outside_it_leaves_the_same_bytes(study, tmp_path):
    """Asked to end again and again, from the first evaluation on."""
    path, asked = tmp_path / "run", 0
    while True:
        asked += 1
        calls = iter(range(2 * asked))
        try:
            go(config(study.name), path, stop_requested=lambda c=calls: next(c, None) is None)
            break
        except Interrupted:
            continue
    assert asked > 2
    assert tables(path) == tables(study)
    for file in (study / "measures").iterdir():
        with np.load(file) as one, np.load(path / "measures" / file.name) as other:
            for name in one.files:
                np.testing.assert_array_equal(one[name], other[name])
