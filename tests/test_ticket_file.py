"""Tickets as files: what is exported, begun with, refused; the output layer drawn anew."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from prunejax import __main__ as command
from prunejax.configs import default, recipes
from prunejax.errors import ConfigError
from prunejax.study import run
from prunejax.study.planning import plan, ticket_file
from prunejax.study.settings import config as config_lib
from tests.studies import tiny

HEAD = "classifier/.*"


def base(**arms):
    config = tiny(**arms)
    config.prune.granularity, config.prune.scope = "weight", "global"
    config.model.name, config.model.width = "mlp64_64", 0.25
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 0.05
    return config


def go(config, path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.report, "build", lambda paths: paths[0] / "report.html")
        run.run(config, path, default.get_config(), quiet=True)
    return path


def state(path, name):
    with np.load(path / "states" / f"{name}.npz") as saved:
        return dict(saved)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    config = base()
    config.seeds, config.keep = 2, ("step:2", "end")
    config.variants = default.arms(recipes.lottery(config, levels=2, fraction=0.4, rewind="step:2"))
    return go(config, tmp_path_factory.mktemp("source") / "run")


@pytest.fixture(scope="module")
def ticket(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "ticket.npz"
    words = ["--ticket=ticket2-{seed}", f"--workdir={study}", f"--output={path}"]
    for seed in (0, 1):
        own = [w.replace("{seed}", str(seed)) for w in words]
        own[2] = own[2].replace(".npz", f"-{seed}.npz")
        assert command.main(["export", *own]) == 0
    return path.with_name("ticket-{seed}.npz")


@pytest.fixture(scope="module")
def begun(ticket, tmp_path_factory):
    """Runs that begin with the file and do not learn."""
    still = {"optimizer": {"learning_rate": 0.0}}
    config = base(
        dense=still,
        whole={"start": {"ticket": str(ticket)}} | still,
        head={"start": {"ticket": str(ticket), "redraw": HEAD}} | still,
        mask={"start": {"ticket": str(ticket), "take": ("masks",), "shuffle": "layer"}} | still,
    )
    config.keep, config.epochs = ("end",), 1
    return go(config, tmp_path_factory.mktemp("target") / "run")


def test_the_file_has_masks_start_state_and_where_they_come_from(study, ticket):
    path = str(ticket).replace("{seed}", "0")
    found, told = ticket_file.read(path), ticket_file.about(path)
    end, early = state(study, "ticket2-0@end"), state(study, "dense-0@step2")
    for name, value in found.items():
        if name != "about":
            np.testing.assert_array_equal(value, (end if name[:5] == "masks" else early)[name])
    live = sum(int(m.sum()) for n, m in found.items() if n.startswith("masks/"))
    assert told["live_total"] == live == sum(told["live"].values())
    assert (told["level"], told["seed"], told["rewound_to"]) == (2, 0, "dense-0@step2")
    assert told["data"]["name"] == "digits"
    content = (study / "config.json").read_bytes()
    assert told["config_sha256"] == hashlib.sha256(content).hexdigest()


def test_tickets_of_a_study_in_shards(study, ticket, tmp_path, capsys):
    (shards := tmp_path / "shards").mkdir()
    for index in (1, 2):  # the second has the run
        shutil.copytree(study, shards / f"{index}-of-2", symlinks=True)
    (shards / "1-of-2" / "states" / "ticket2-0@end.npz").unlink()
    output = tmp_path / "ticket.npz"
    words = ["--ticket=ticket2-0", f"--workdir={tmp_path}", f"--output={output}"]
    assert command.main(["export", *words]) == 0
    assert "weights live" in capsys.readouterr().out
    assert output.read_bytes() == ticket.with_name("ticket-0.npz").read_bytes()


def test_what_the_whole_study_sets_counts_as_what_an_arm_sets(study, ticket, tmp_path):
    """The same config, `rewind_run` and `run` of arms moved to the base."""
    copy = tmp_path / "run"
    shutil.copytree(study, copy)
    content = json.loads((copy / "config.json").read_text())
    arms = content["variants"]
    content["start"] |= {
        f: arms["ticket2"]["start"].pop(f) for f in ("run", "rewind_run", "rewind_at")
    }
    arms["dense"]["start"] = {"run": "", "rewind_run": ""}
    (copy / "config.json").write_text(json.dumps(content))
    told = ticket_file.export(copy, "ticket2-0", tmp_path / "ticket.npz")
    expected = ticket_file.about(str(ticket).replace("{seed}", "0"))
    same = ("level", "rewound_to", "live", "layers", "model", "data")
    assert {k: told[k] for k in same} == {k: expected[k] for k in same}


def test_what_a_method_sets_is_told(study, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(study, copy)
    content = json.loads((copy / "config.json").read_text())
    content["variants"]["ticket2"]["prune"] = {"method": "snip", "of": "live", "fraction": [0.4]}
    (copy / "config.json").write_text(json.dumps(content))
    told = ticket_file.export(copy, "ticket2-0", tmp_path / "ticket.npz")
    expected = {"layers": ["kernel:.*"], "allocation": "rules", "scope": "global", "score": "snip"}
    assert {k: told[k] for k in expected} == expected


def test_runs_begin_with_masks_and_weights_of_the_file(ticket, begun):
    for seed in (0, 1):
        saved = ticket_file.read(str(ticket).replace("{seed}", str(seed)))
        end = state(begun, f"whole-{seed}@end")
        for name, value in saved.items():
            if name.startswith("weights/"):
                mask = saved.get(name.replace("weights", "masks"), True)
                np.testing.assert_array_equal(end[name], np.where(mask, value, 0))


def test_the_output_layer_is_drawn_anew_and_nothing_else(begun):
    whole, head, dense = (state(begun, f"{name}-0@end") for name in ("whole", "head", "dense"))
    for name in whole:
        if name.startswith("weights/"):
            same = np.array_equal(whole[name], head[name])
            assert same == (not name.startswith("weights/classifier"))
    assert not np.array_equal(head["weights/classifier/kernel"], dense["weights/classifier/kernel"])
    assert np.std(head["weights/classifier/kernel"]) == pytest.approx(
        np.std(dense["weights/classifier/kernel"]), rel=0.3
    )


def test_masks_alone_keep_the_run_s_own_weights_and_may_be_shuffled(ticket, begun):
    end, dense = (state(begun, f"{name}-0@end") for name in ("mask", "dense"))
    saved = ticket_file.read(str(ticket).replace("{seed}", "0"))
    for name, mask in saved.items():
        if name.startswith("masks/"):
            assert end[name].sum() == mask.sum()
            assert (end[name] != mask).any()
            weights = name.replace("masks", "weights")
            np.testing.assert_array_equal(end[weights], np.where(end[name], dense[weights], 0))


def planned(path, **start):
    arm = {"start": {"ticket": str(path)} | start}
    return plan.build(config_lib.variants(base(dense={}, t=arm), default.get_config()))


def test_masks_of_other_tools_do_where_the_tree_matches(tmp_path):
    rng = np.random.default_rng(0)
    kernel = rng.integers(0, 2, (64, 16)).astype(np.uint8)
    np.savez(tmp_path / "other.npz", **{"dense1/kernel": kernel})
    (batch,) = planned(tmp_path / "other.npz", take=("masks",))
    assert [g.name for g in batch.program.groups] == ["dense1"]
    assert ticket_file.about(tmp_path / "other.npz") == {}


@pytest.mark.parametrize(
    ("arrays", "start", "message"),
    [
        ({"dense1/kernel": np.ones((16, 64), bool)}, {}, r"shape \(16, 64\), the leaf of \(64, 16"),
        ({"dense9/kernel": np.ones((64, 16), bool)}, {}, "has a mask of 'dense9/kernel'"),
        ({"dense1/kernel": np.full((64, 16), 0.5)}, {}, "not of 0 and 1"),
        ({"masks/dense1/kernel": np.ones((64, 16), bool)}, {"take": ("weights",)}, "no weights"),
        ({"masks/dense1/kernel": np.ones((64, 16), bool)}, {"take": ("step",)}, "no step"),
        ({"masks/dense1/kernel": np.ones((64, 16), bool)}, {"run": "dense"}, "from one of them"),
        ({"masks/dense1/kernel": np.ones((64, 16), bool)}, {"redraw": "head"}, "redraw"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, arrays, start, message):
    np.savez(tmp_path / "mask.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        planned(tmp_path / "mask.npz", **{"take": ("masks",)} | start)


@pytest.mark.parametrize("shape", [(64, 16), (16,), (1, 16)])
def test_filters_take_masks_of_filters(tmp_path, shape):
    np.savez(tmp_path / "mask.npz", **{"dense1/kernel": np.ones(shape, bool)})
    arm = {"start": {"ticket": str(tmp_path / "mask.npz"), "take": ("masks",)}}
    config = base(dense={}, t=arm)
    config.prune.granularity = "filter"
    arms = config_lib.variants(config, default.get_config())
    if shape == (64, 16):  # it was a trace, where the runs began
        with pytest.raises(
            ConfigError, match=r"of single weights it goes with config\.prune\.gran"
        ):
            plan.build(arms)
    else:
        (batch,) = plan.build(arms)
        assert [g.name for g in batch.program.groups] == ["dense1"]


def test_what_is_not_there_is_told_in_a_line(study, tmp_path, capsys):
    with pytest.raises(ConfigError, match="cannot read"):
        planned(tmp_path / "none.npz")
    go_on = [f"--workdir={study}", f"--output={tmp_path / 'x.npz'}"]
    for words, message in (
        (["--ticket=nobody-0", *go_on], "no such run"),
        (["--ticket=ticket2-7", *go_on], "was not kept"),
        (["--ticket=ticket2-0", "--workdir=/nowhere", go_on[1]], "no directory"),
        (["--ticket=ticket2-0", f"--workdir={tmp_path}", go_on[1]], "no run directory"),
        (["--ticket=ticket2-0"], "or --ticket=RUN"),
    ):
        assert command.main(["export", *words]) == 2
        assert message in capsys.readouterr().err
    assert json.loads((study / "status.json").read_text())["finished"]
