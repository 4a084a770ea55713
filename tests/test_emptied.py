"""Arms that do nothing are refused; layers that an event empties are named on console and page."""

import pytest

from prunejax import report
from prunejax.configs import default
from prunejax.errors import ConfigError
from prunejax.measures import emptied
from prunejax.report import tables
from prunejax.study import run as study
from prunejax.study.planning import plan
from prunejax.study.settings import config
from tests.studies import PRUNE, tiny

ALL = PRUNE | {"fraction": (1.0,)}
NOISE = {"kind": "gaussian", "duration": 3}


def build(**arm):
    return plan.build(config.variants(tiny(A=arm), default.get_config()))


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"prune": PRUNE | {"fraction": (0.0,)}}, r"'A'\) removes no unit of any layer \(dense2"),
        ({"prune": PRUNE | {"fraction": (0.05, 0.01)}}, "dense2 of 16, dense3 of 16"),
        (
            {"prune": PRUNE | {"fraction": (0.001,), "granularity": "weight", "score": "l2"}},
            "dense2 of 256",
        ),
        (
            {"prune": PRUNE | {"fraction": (0.01,), "schedule": "scratch", "scope": "global"}},
            "removes no unit",
        ),
        ({"prune": ALL, "intervention": NOISE}, "leaves 0 untargeted in dense2"),
        ({"prune": ALL | {"scope": "global"}, "intervention": NOISE}, "leaves 0 .*in all layers"),
        (
            {
                "prune": PRUNE | {"fraction": (0.999,), "granularity": "weight", "score": "l2"},
                "intervention": NOISE,
            },
            "leaves 1 untargeted",
        ),
        ({"prune": PRUNE, "intervention": NOISE | {"noise_scale": 0.0}}, "adds no noise"),
    ],
)
def test_an_arm_that_does_nothing_is_refused(arm, said):
    with pytest.raises(ConfigError, match=said):
        build(**arm)


def test_layers_in_which_nothing_is_targeted_are_noted():
    (batch,) = build(prune=PRUNE | {"fraction": (0.05, 0.5)})
    assert batch.notes == ("Arm A: no unit is targeted in dense2 (0.05 of 16).",)
    (batch,) = build(prune=PRUNE | {"fraction": (0.0, 0.5)})  # as asked for
    assert batch.notes == ()


def test_milestones_that_training_does_not_reach_are_told():
    def notes(arms, **optimizer):
        config_ = tiny(**arms)
        config_.optimizer.milestones = (2, 4, 9)  # of 4 epochs
        config_.optimizer.update(optimizer)
        arms = config.variants(config_, default.get_config())
        return [note for batch in plan.build(arms) for note in batch.notes]

    two = {"none": {}, "A": {"prune": PRUNE}}
    (note,) = notes(two)
    assert note == (
        "config.optimizer.milestones: training ends before epoch 4, 9 (config.epochs = 4, from 0); "
        "the learning rate does not fall there."
    )
    assert notes(two, milestones=(2, 3)) == []
    assert notes(two, schedule="cosine") == []
    (note,) = notes(two | {"A": {"prune": PRUNE, "optimizer": {"milestones": (2,)}}})
    assert note.startswith("Arm none: config.optimizer.milestones")


def test_a_warm_up_that_training_does_not_end_is_told():
    def notes(steps, **own):
        config_ = tiny(none={}, A={"optimizer": own})
        config_.optimizer.warmup_steps = steps
        arms = config.variants(config_, default.get_config())
        return [note for batch in plan.build(arms) for note in batch.notes]

    assert notes(16) == []  # 4 epochs of 4 steps: the last has the whole rate
    (note,) = notes(64)
    assert note == (
        "config.optimizer.warmup_steps = 64: training ends after step 16, at 0.25 of the learning "
        "rate."
    )
    (note,) = notes(64, warmup_steps=3)
    assert note.startswith("Arm none: config.optimizer.warmup_steps = 64")


def test_emptied_layers_are_named_by_the_run_and_by_its_report(monkeypatch, tmp_path, capfd):
    prune = PRUNE | {"fraction": (1.0, 0.05), "score": "l2"}
    c = tiny(cut={"prune": prune})
    c.seeds, c.data.train_examples = 1, 128  # whole batches: one program less
    c.report.figures = ("table",)
    monkeypatch.setattr(report, "build", lambda paths: paths[0] / "report.html")
    study.run(c, tmp_path / "run", default.get_config())
    console = capfd.readouterr().err
    assert "cut-0: layer dense2 is empty after epoch 2: all of it is pruned" in console
    assert "Arm cut: no unit is targeted in dense3 (0.05 of 16)." in console
    notes = tables.load([tmp_path / "run"]).notes
    assert "Arm cut: no unit is targeted in dense3 (0.05 of 16)." in notes
    assert "Layer dense2 is emptied in 1 run of cut, first after epoch 2: all of it is pruned." in (
        notes
    )


def row(run, targeted, live, epoch=0, layer="dense2"):
    given = {"targeted": str(targeted), "live": str(live), "epoch": str(epoch)}
    return {"run": run, "variant": run.rpartition("-")[0], "layer": layer} | given


def test_noise_of_a_layer_that_is_all_targets_is_told():
    rows = [row("G-0", 3, 1), row("G-1", 3, 1), row("G-0", 1, 3, 2), row("G-0", 4, 0, 2, "other")]
    first, second = emptied.notes(rows, {"G": "gaussian"})
    assert first.startswith("Layer dense2 gets no noise in 1 run of G, first after epoch 2")
    assert second.startswith("Layer other gets no noise in 1 run of G")
    assert emptied.notes(rows, {"G": "none"}) == []
    assert emptied.notes(rows[:2], {"G": "gaussian"}) == []


def test_an_event_before_training_that_zeroes_a_layer_is_told():
    rows = [row("Z-0", 4, 0, -1), row("Z-1", 4, 0, -1), row("Z-0", 2, 2, 0, "other")]
    assert emptied.at_event(rows, {"Z": "zero"})[0] == (
        "Z-0: layer dense2 is empty before training: all of it is set to zero"
    )
    (note,) = emptied.notes(rows, {"Z": "zero"})
    assert note.startswith("Layer dense2 is emptied in 2 runs of Z, first before training")
