"""Variants from the command line, and what a study is going to do, before it is done."""

import json
import re

import pytest

from prunejax import main, report
from prunejax.configs import before_training, default, digits, transfer
from prunejax.errors import ConfigError
from prunejax.study import preview
from prunejax.study.devices import arrangement
from prunejax.study.planning import plan
from prunejax.study.settings import sweep
from prunejax.study.settings.config import variants
from tests.studies import PRUNE, small, tiny


def swept(config, *texts):
    sweep.apply(config, texts)
    return config.variants.to_dict()


def test_arguments_are_taken_in_both_spellings():
    rest, found = sweep.split(["a", "--sweep", "x=1,2", "--sweep=y=3", "--b=--sweep"])
    assert (rest, found) == (["a", "--b=--sweep"], ["x=1,2", "y=3"])
    for words in (["--sweep"], ["--sweep="]):
        with pytest.raises(ConfigError, match="needs a field and values"):
            sweep.split(words)


def test_without_variants_the_values_are_the_arms():
    found = swept(default.get_config(), "prune.period=1,4", "optimizer.learning_rate=0.1")
    assert list(found) == ["period=1-learning_rate=0_1", "period=4-learning_rate=0_1"]
    assert found["period=4-learning_rate=0_1"] == {
        "prune": {"period": 4},
        "optimizer": {"learning_rate": 0.1},
    }


def test_every_variant_takes_every_value_and_twins_stay_twins():
    config = tiny(S={"prune": PRUNE}, Z={"prune": PRUNE, "intervention": {"twin": "S"}})
    found = swept(config, "prune.period=1,2")
    assert list(found) == ["S-period=1", "S-period=2", "Z-period=1", "Z-period=2"]
    assert found["Z-period=2"]["intervention"]["twin"] == "S-period=2"
    assert found["S-period=2"]["prune"] == PRUNE | {"period": 2}
    assert PRUNE["period"] == 1  # what was given is not changed


def test_what_a_study_says_of_its_variants_it_says_at_every_value():
    """README has a sweep of configs/digits.py, which was refused: claims of no variant."""
    config = digits.get_config()
    config.connect.pairs, config.report.tests = ("none", "none:L_large"), ("L_large:none",)
    config.report.claims = ("L_large < 0.9 in none", "L_large > none")
    found = swept(config, "prune.period=1,4")
    assert config.report.claims == (
        "L_large-period=1 < 0.9 in none", "L_large-period=4 < 0.9 in none",
        "L_large-period=1 > none-period=1", "L_large-period=4 > none-period=4",
    )  # fmt: skip
    assert config.connect.pairs[1:3] == ("none-period=4", "none-period=1:L_large-period=1")
    assert config.report.tests == (
        "L_large-period=1:none-period=1",
        "L_large-period=4:none-period=4",
    )
    assert "L_large-period=4" in found
    shipped = digits.get_config()
    swept(shipped, "prune.period=1,4")
    assert len(shipped.report.claims) == 2 * len(digits.get_config().report.claims)
    preview.lines(shipped, default.get_config())


def test_the_baseline_is_an_arm_before_the_sweep():
    """Studies whose unpruned arm is called "dense" could not be swept: it was no variant."""
    config = transfer.get_config()
    swept(config, "optimizer.learning_rate=0.05,0.1")
    assert config.report.baseline == "dense"  # the page takes each at the arm's own values
    report.check(config.report, list(config.variants))
    for other in ("dens", "target"):
        config.report.baseline = other
        with pytest.raises(ConfigError, match=f"report.baseline: '{other}' is no variant"):
            report.check(config.report, list(config.variants))


def test_values_have_the_fields_types():
    config = default.get_config()
    found = swept(config, "prune.fraction=0.25+0.5,0.5", "model.width=0.5", "data.name=digits")
    assert [f["prune"]["fraction"] for f in found.values()] == [(0.25, 0.5), (0.5,)]
    assert all(f["model"]["width"] == 0.5 for f in found.values())


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["prune.perod=1"], "unknown config field 'prune.perod'. Did you mean 'period'"),
        (["prune=1"], "name a field inside of prune"),
        (["prune.period"], "no values"),
        (["prune.period=a,b"], "of type int"),
        (["prune.period=1", "prune.period=2"], "swept twice"),
        (["prune.period=1,1"], "two arms are called"),
    ],
)
def test_sweeps_that_cannot_be(texts, message):
    with pytest.raises(ConfigError, match=message):
        sweep.apply(default.get_config(), texts)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("measures.examples=100000", "is more than the 382 examples"),
        ("measures.eigenpairs=1000000000", "is more than the model's 43018 parameters"),
        ("report.claims=('none > gone',)", "config.report.claims"),
        ("report.figures=('picture',)", "config.report.figures"),
        ("record.sinks=('paper',)", "unknown tracker 'paper'"),
        ("population.data_parallel=5", "does not divide config.batch_size"),
        ("population.shard_params=True", "needs config.population.data_parallel of 2"),
    ],
)
def test_the_plan_refuses_what_the_study_would_refuse(override, message, tmp_path, capsys):
    words = ["prunejax", "--config=prunejax:digits:quick", f"--config.{override}"]
    told = []
    for more in (["--plan"], [f"--workdir={tmp_path / 'run'}"]):
        assert main.main([*words, *more]) == 2
        told.append(capsys.readouterr().err)
    assert message in told[0]
    assert told[0] == told[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"population.microbatch": 5}, "microbatch = 5 has to divide config.batch_size = 32"),
        (
            {"model.name": "resnet20", "connect.pairs": ("a",), "connect.matching": True},
            "config.connect.matching = True: layer .* feeds a residual sum",
        ),
    ],
)
def test_what_no_device_and_no_training_can_mend_is_refused_by_the_plan(changes, message):
    """The second was refused after all runs were trained."""
    config = small(a={})
    config.seeds = 2
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        preview.lines(config, default.get_config())


def test_the_plan_tells_arms_events_and_work_and_trains_nothing(tmp_path, capsys):
    config = tiny(none={}, S={"prune": PRUNE})
    found = preview.lines(config, default.get_config())
    assert found[0] == "study     tiny: 2 arms, 4 runs"
    assert found[1] == "arm       none: 2 runs (seeds 0 to 1), no events"
    head = r"arm       S: 2 runs \(seeds 0 to 1\), \d events each, after epoch 0 to"
    assert re.match(head, found[2])
    assert "in dense2" in found[2]
    assert "4 epochs of 4 steps of 32, 4 runs" in found[3]
    # 3 passes of an example, each twice the weights of all matrices.
    (batch,) = plan.build(variants(config, default.get_config()))
    weights = sum(
        leaf.size
        for layer in arrangement.shapes(batch.program, batch.members[0]).params.values()
        for name, leaf in layer.items()
        if name == "kernel"
    )
    assert preview._work(batch) == 3 * 2 * weights
    assert f" {4 * 400:,} examples in training, {3 * 2 * weights * 4 * 400:.3g} " in found[-1]
    file = tmp_path / "c.py"
    file.write_text(
        "from prunejax.configs import default\n\n\ndef get_config():\n"
        "    c = default.get_config()\n    c.name = 'planned'\n    return c\n"
    )
    words = ["prunejax", f"--config={file}", "--plan", "--sweep", "batch_size=32,64"]
    assert main.main(words) == 0
    told = capsys.readouterr().out
    assert told.startswith("study     planned: 2 arms")
    assert "arm       batch_size=64" in told


def test_the_plan_tells_steps_of_events_and_runs_of_arms_in_several_programs():
    rows = {"granularity": "weight", "layers": ("kernel:.*",), "score": "magnitude"}
    by_step = {"schedule": "cubic", "unit": "step", "start": (2,), "end": (11,), "period": 3}
    config = tiny(
        rounds={"prune": rows | {"schedule": "scratch", "rounds": 4, "fraction": (0.5,)}},
        step={"prune": rows | by_step | {"fraction": (0.5,)}},
    )
    _, rounds, step, *_ = preview.lines(config, default.get_config())
    assert "rounds: 2 runs (seeds 0 to 1), 4 events each, before training: " in rounds
    assert "step: 2 runs (seeds 0 to 1), 4 events each, after step 2 to after step 11: " in step
    config = before_training.get_config("quick")  # each seed draws its data
    runs = config.seeds
    last = config.first_seed + runs - 1
    head, *arms = preview.lines(config, default.get_config())[: 1 + len(config.variants)]
    assert f"{len(arms) * runs} runs" in head
    for arm in arms:
        assert f": {runs} runs (seeds {config.first_seed} to {last}), " in arm


def test_the_plan_counts_what_is_gone_and_the_steps_that_are_left():
    """Swaps counted as losses, all layers under the first one, and runs that go on in full."""
    prune = {"schedule": "linear", "layers": (".*",), "fraction": (0.5,), "end": (3,)}
    swaps = {"grow": "random", "update_every": 2, "update_end": 0.5, "regrow": 0.25}
    swaps["update_score"] = "l2"
    config = tiny(
        swaps={"prune": prune | swaps},
        on={"start": {"run": "swaps", "at": "step:7", "take": ("step",)}},
        stops={"stop_loss": 1.0},
    )
    config.seeds = 1
    of = {line.split()[1]: line for line in preview.lines(config, default.get_config())}
    half = "8 of 16 in dense1, 8 of 16 in dense2, 8 of 16 in dense3"
    assert of["swaps:"].endswith(f"7 events each, after step 2 to after epoch 3: {half}")
    # 100 examples in 4 steps of 32 and fewer: after step 7 the 4 of epoch 1's last batch are left.
    (work,) = [x for x in preview.lines(config, default.get_config()) if x.startswith("work")]
    assert work.startswith(f"work      at most {400 + 204 + 400:,} examples in training")
    config = tiny(all={"prune": prune | {"scope": "global"}})
    _, told, *_ = preview.lines(config, default.get_config())
    assert told.endswith("4 events each, after epoch 0 to after epoch 3: 24 in all chosen layers")


def test_the_command_that_repeats_a_study_holds_its_sweeps(monkeypatch, tmp_path):
    asked = {}

    def ran(config, workdir, defaults, **options):
        asked.update(options, variants=list(config.variants))
        raise ConfigError("enough")

    monkeypatch.setattr("prunejax.study.run.run", ran)
    monkeypatch.setattr("prunejax.study.devices.host_devices.use", lambda *_: None)
    words = ["prunejax", "--config=prunejax:digits", f"--workdir={tmp_path}/a"]
    assert main.main([*words, "--sweep", "epochs=1,2"]) == 2
    assert asked["command"].endswith("--config=prunejax:digits --sweep=epochs=1,2")
    assert json.dumps(asked["variants"]).count("epochs=2") == 5
