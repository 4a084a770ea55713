"""Runs that start from runs: tickets, fine-tuning, copies; refused graphs; kills within a chain."""

import numpy as np
import pytest

from prunejax.configs import default
from prunejax.errors import ConfigError, Interrupted
from prunejax.study import run
from prunejax.study.loop import handover
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from prunejax.study.settings import lineage
from tests.studies import PRUNE, go, rows, small, tiny

MAGNITUDE = {
    "schedule": "scratch",
    "granularity": "weight",
    "score": "magnitude",
    "scope": "global",
    "of": "live",
    "fraction": (0.2,),
}
LATER = PRUNE | {"score": "activations", "start": (2,), "end": (3,)}
WEIGHT = {"prune": {"granularity": "weight", "scope": "global"}}


def level(of, **start):
    """One level of iterative magnitude pruning: from the end of a run, rewound to step 2."""
    begin = {"run": of, "rewind_run": "dense", "rewind_at": "step:2"} | start
    return {"prune": MAGNITUDE, "start": begin}


CHAIN = {
    "dense": WEIGHT,
    "level1": level("dense"),
    "level2": level("level1"),
    "fresh": WEIGHT | {"start": {"run": "level2", "take": ("masks",), "fresh": True}},
    "shuffled": WEIGHT | {"start": {"run": "level2", "take": ("masks",), "shuffle": "layer"}},
    "tuned": WEIGHT | {"start": {"run": "level2", "take": ("weights", "statistics", "masks")}},
}


pytestmark = pytest.mark.usefixtures("quick_report")


def whole_batches(**arms):
    """One program less."""
    config = tiny(**arms)
    config.data.train_examples = 128
    return config


def planned(**arms):
    return plan.build(config_lib.variants(tiny(**arms), default.get_config()))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    path = tmp_path_factory.mktemp("chain") / "run"
    config = tiny(**CHAIN)
    config.keep = ("end", "step:2")
    go(config, path, page=False)
    return path


def state(path, name):
    with np.load(path / "states" / f"{name}.npz") as saved:
        return dict(saved)


def masks_of(saved):
    return {k: v for k, v in saved.items() if k.startswith("masks/")}


def test_every_level_keeps_exactly_four_fifths(chain):
    sizes = [512, 256, 256]  # of the hidden layers
    live, expected = {}, sum(m.size for m in masks_of(state(chain, "level1-0@end")).values())
    for name in ("level1", "level2"):
        expected -= -(-expected // 5)  # ceil(0.2 n) go
        masks = masks_of(state(chain, f"{name}-0@end"))
        live[name] = sum(int(m.sum()) for m in masks.values())
        assert live[name] == expected
    assert len(sizes) == len(masks)
    first, second = (masks_of(state(chain, f"{n}-0@end")) for n in live)
    for path in first:  # what is pruned stays pruned
        assert not (second[path] & ~first[path]).any()


def test_the_ticket_is_what_the_smallest_final_weights_leave(chain):
    dense, ticket = state(chain, "dense-0@end"), state(chain, "level1-0@end")
    masks = masks_of(ticket)
    sizes = np.concatenate(
        [np.abs(dense[path.replace("masks", "weights")]).ravel() for path in masks]
    )
    live = np.concatenate([m.ravel() for m in masks.values()])
    order = np.argsort(sizes, kind="stable")  # of equal ones the later would go
    count = int((~live).sum())
    assert set(order[:count]) == set(np.flatnonzero(~live))


def test_survivors_begin_with_the_weights_of_the_step_they_are_rewound_to(tmp_path):
    config = tiny(dense=WEIGHT, level1=level("dense") | {"optimizer": {"learning_rate": 0.0}})
    config.keep = ("end", "step:2")
    go(config, tmp_path / "run")
    ticket, early = (state(tmp_path / "run", n) for n in ("level1-1@end", "dense-1@step2"))
    for path, live in masks_of(ticket).items():
        weights = path.replace("masks", "weights")
        np.testing.assert_array_equal(ticket[weights], np.where(live, early[weights], 0))
    epochs = [e for e in rows(tmp_path / "run", "epochs") if e["run"] == "level1-1"]
    assert [int(e["step"]) for e in epochs] == [4, 8, 12, 16]


@pytest.mark.parametrize(
    ("parent", "child"),
    [  # scale and bias of dead filters; weights that are hidden
        ({"prune": PRUNE, "intervention": {"mask_norm": False}}, {"prune": {"schedule": "none"}}),
        ({"prune": {"method": "ste", "fraction": (0.9,)}}, {"prune": {"of": "live"}}),
    ],
)
def test_a_child_begins_with_what_its_parent_ended_with(parent, child, tmp_path):
    take = ("weights", "statistics", "masks")
    child = parent | {
        "prune": parent["prune"] | child["prune"],
        "start": {"run": "a", "take": take},
    }
    config = whole_batches(a=parent, b=child)
    config.seeds, config.keep = 1, ("start", "end")
    go(config, tmp_path / "run")
    ended, begun = (state(tmp_path / "run", n) for n in ("a-0@end", "b-0@step0"))
    assert not all(live.all() for live in masks_of(ended).values())
    for path in ended:
        if path.split("/")[0] in take:
            np.testing.assert_array_equal(begun[path], ended[path], err_msg=path)
    if "of" in child["prune"]:  # hidden weights: 0.9 of what was live, besides what was dead
        for when, share in (("a-0@end", 0.1), ("b-0@end", 0.1 * 0.1)):
            masks = np.concatenate(
                [m.ravel() for m in masks_of(state(tmp_path / "run", when)).values()]
            )
            assert masks.mean() == pytest.approx(share, abs=1 / 100)


def test_controls_have_the_ticket_s_counts(chain):
    ticket = masks_of(state(chain, "level2-0@end"))
    for name in ("fresh", "tuned"):
        for path, live in masks_of(state(chain, f"{name}-0@end")).items():
            np.testing.assert_array_equal(live, ticket[path])
    shuffled = masks_of(state(chain, "shuffled-0@end"))
    for path, live in shuffled.items():
        assert live.sum() == ticket[path].sum()
        assert (live != ticket[path]).any()
    for name in ("fresh", "shuffled", "tuned"):
        saved = state(chain, f"{name}-0@end")
        for path, live in masks_of(saved).items():
            assert (saved[path.replace("masks", "weights")][~live] == 0).all()


def test_before_and_after_accuracy_come_with_the_event(chain):
    (event, *_) = [e for e in rows(chain, "events") if e["run"] == "level1-0"]
    last = [e for e in rows(chain, "epochs") if e["run"] == "dense-0"][-1]
    assert event["pre_accuracy"] == last["test_accuracy"]


def test_parents_are_trained_once_and_children_after_them(chain):
    runs = [r["run"] for r in rows(chain, "runs")]
    assert sorted(runs) == sorted(f"{arm}-{seed}" for arm in CHAIN for seed in (0, 1))
    assert runs.index("dense-0") < runs.index("level1-0") < runs.index("level2-0")
    assert runs.index("level2-0") < min(runs.index("fresh-0"), runs.index("tuned-0"))


@pytest.mark.parametrize("stops", [2, 9])
def test_a_chain_that_is_stopped_continues_to_the_same_bytes(chain, tmp_path, stops):
    config = tiny(**CHAIN)
    config.keep = ("end", "step:2")
    path, asked, count = tmp_path / "cut", iter(range(1000)), 0
    while True:
        try:
            go(config, path, stop_requested=lambda: next(asked) % (5 + stops) == stops)
            break
        except Interrupted:
            count += 1
    assert count > 2
    for table in ("epochs", "events", "runs"):
        assert (path / f"{table}.csv").read_bytes() == (chain / f"{table}.csv").read_bytes()
    for file in (chain / "states").iterdir():
        ours, theirs = (state(p, file.stem) for p in (path, chain))
        for key, value in theirs.items():
            np.testing.assert_array_equal(ours[key], value, err_msg=f"{file.stem} {key}")


ALL = ("weights", "statistics", "optimizer", "masks", "scores", "step")


@pytest.mark.parametrize(
    "now",
    [
        {"method": "movement", "fraction": (0.5,), "refresh_every": 0},
        {"schedule": "one_shot", "score": "activations", "layers": ("dense2",)}
        | {"target": "largest"},
    ],
)
def test_scores_that_training_gathers_go_on_in_a_child(tmp_path, now):
    """A child that takes all is its parent from there on; one may prune at once by its scores."""
    event = now | {"unit": "step", "start": (21,), "end": (21,)}
    on = {"prune": event, "start": {"run": "whole", "at": "step:10", "take": ALL}}
    new = {"prune": event, "start": on["start"] | {"take": tuple(p for p in ALL if p != "scores")}}
    at_once = event | {"start": (0,), "end": (0,)}
    config = tiny(
        whole={"prune": event},
        on=on,
        new=new,
        at_once={"prune": at_once, "start": {"run": "whole", "take": ("weights", "scores")}},
    )
    config.seeds, config.keep, config.model.name = 1, ("end",), "mlp64_64"
    config.epochs = 6  # so that who begins at step 10 has an update of activations, too
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 0.05
    go(config, tmp_path / "run")
    end = {name: state(tmp_path / "run", f"{name}-0@end") for name in config.variants}
    for path, value in end["whole"].items():
        np.testing.assert_array_equal(end["on"][path], value, err_msg=path)
    same = [np.array_equal(end["new"][p], m) for p, m in masks_of(end["whole"]).items()]
    assert not all(same)  # what was gathered before step 10 counts
    learnt = {p: end["whole"][p.replace("masks", "scores")] for p in masks_of(end["whole"])}
    sign = 1 if now.get("target") == "largest" else -1  # what stays comes first
    order = np.argsort(sign * np.concatenate([s.ravel() for s in learnt.values()]), kind="stable")
    live = np.concatenate([m.ravel() for m in masks_of(end["at_once"]).values()])
    assert set(np.flatnonzero(live)) == set(order[: live.sum()])
    assert live.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("begins", [5, 6])
def test_a_child_goes_on_with_the_updates_of_its_parent(tmp_path, begins):
    """Those before its training begins do not count; draws are by number, and numbers stay."""
    swaps = {"grow": "random", "update_every": 2, "update_score": "l2", "update_end": 1.0}
    by_step = {"unit": "step", "start": (6,), "end": (11,), "period": 5, "score": "l2"}
    prune = PRUNE | by_step | swaps | {"layers": ("dense1", "dense2")}
    parts, at = tuple(p for p in ALL if p != "scores"), f"step:{begins}"
    all_of = lambda run: {"start": {"run": run, "at": at, "take": parts}}  # noqa: E731
    whole = {"prune": prune}
    # The second takes the state with which the first begins, which was never left.
    arms = {"whole": whole, "on": whole | all_of("whole"), "again": whole | all_of("on")}
    config = whole_batches(**arms)
    config.seeds, config.keep, config.model.name = 1, ("end", at), "mlp64_64"
    go(config, tmp_path / "run")
    points = (f"step{begins}", "end")
    wanted = [state(tmp_path / "run", f"whole-0@{when}") for when in points]
    for child in ("on-0", "again-0"):
        for one, when in zip(wanted, points, strict=True):
            other = state(tmp_path / "run", f"{child}@{when}")
            assert one.keys() == other.keys()
            for path, value in one.items():
                np.testing.assert_array_equal(other[path], value, err_msg=f"{child} {when} {path}")
    columns = ("step", "layer", "dropped", "grown", "live")
    found = {"whole-0": [], "on-0": [], "again-0": []}
    for row in rows(tmp_path / "run", "updates"):
        found[row["run"]].append(tuple(row[c] for c in columns))
    later = [cells for cells in found["whole-0"] if int(cells[0]) >= begins]
    assert found["on-0"] == found["again-0"] == later != []
    assert any(int(grown) for *_, grown, _ in later)


def test_copies_differ_in_their_order_alone(tmp_path):
    begin = {"run": "dense", "at": "step:2", "take": ("weights", "statistics", "optimizer", "step")}
    arms = {n: WEIGHT | {"start": begin | {"copy": c}} for n, c in (("same", ""), ("a", "copy_a"))}
    config = tiny(dense=WEIGHT, **arms)
    config.seeds = 1
    go(config, tmp_path / "run")
    found = {n: [] for n in ("dense", "same", "a")}
    for e in rows(tmp_path / "run", "epochs"):
        found[e["variant"]].append((e["test_loss"], e["learning_rate"]))
    assert found["same"] == found["dense"]
    assert found["a"] != found["dense"]
    assert not (tmp_path / "run" / "states").exists() or not list(
        (tmp_path / "run" / "states").iterdir()
    )  # nobody asked for them


@pytest.mark.parametrize("kind", ["none", "prune", "zero"])
def test_children_count_what_the_masks_of_their_parent_leave(kind):
    """Targets that only were told, or whose windows end, counted as gone."""
    prune = PRUNE | {"fraction": (0.75,), "start": (0,), "end": (2,), "score": "l2"}
    own = {"prune": prune | {"of": "live", "fraction": (0.5,)}, "start": {"run": "p"}}
    window = {"kind": kind, "mask_norm": False} | ({} if kind == "none" else {"duration": 2})
    arms = {"p": {"prune": prune, "intervention": window}, "c": own}
    if kind != "none":  # closed at its end, but not everywhere
        with pytest.raises(ConfigError, match="windows that end"):
            planned(**arms)
        arms["c"]["start"]["take"] = ("weights",)
    (batch,) = planned(**arms)
    sums = {m.variant: np.asarray(m.table.counts).sum(axis=0).tolist() for m in batch.members}
    assert sums == {"p": [12, 12], "c": [8, 8]}  # of 16 each
    planned(**(arms | {"c": {"start": {"run": "p"}}}))  # without events of its own
    small_ = {"start": {"run": "p"}, "prune": {"shrink_every": 1}}
    if kind == "none":
        (_, batch) = planned(**(arms | {"c": small_}))
        assert not batch.program.cuts
        return
    with pytest.raises(ConfigError, match="known only in training"):  # it would cut live units
        planned(**(arms | {"c": small_}))


def test_shards_keep_families_together():
    batches = planned(**CHAIN)
    parts = [run.shard([b.members for b in batches], i, 2) for i in range(2)]
    for part in parts:
        mine = {m.run for members in part for m in members}
        assert all(m.needs <= mine for members in part for m in members)
    assert sum(len(members) for part in parts for members in part) == 12


def test_shards_keep_the_ends_of_lines_together():
    """Lines between runs of different shards were left out, untold."""
    members = [b.members for b in planned(a={}, b={}, c={})]  # two seeds
    for lines, families in (
        ((), 6),
        (("a:b",), 4),
        (("a",), 5),
        (("a", "a:b"), 3),  # all of a and b, and each of c
    ):
        parts = [run.shard(members, i, 6, lines) for i in range(6)]
        runs = [{m.run for members in part for m in members} for part in parts]
        assert sum(map(bool, runs)) == families
        assert sorted(run for some in runs for run in some) == sorted(m.run for m in members[0])
        for line in lines:
            ends = line.split(":")
            for part in runs:
                of = [{int(x[2:]) for x in part if x[0] == end} for end in ends]
                assert of[0] == of[-1]
                assert len(ends) == 2 or of[0] in ({0, 1}, set())


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"a": {"start": {"run": "b"}}, "b": {"start": {"run": "a"}}}, "circle: a -> b -> a"),
        ({"a": {"start": {"run": "x"}}}, "'x' is no variant"),
        ({"a": {}, "b": {"start": {"run": "a", "at": "step:99"}}}, "ends after 16"),
        ({"a": {}, "b": {"start": {"run": "a", "at": "end+1"}}}, "none of: start, end"),
        ({"a": {}, "b": {"start": {"run": "a", "take": ("mask",)}}}, "Did you mean 'masks'"),
        ({"a": {}, "b": {"start": {"run": "a", "take": ("step",)}}}, "where its training ends"),
        ({"a": {}, "b": {"start": {"run": "a"}, "model": {"width": 0.5}}}, "differs in 'model'"),
        (
            {"a": {}}
            | {"b": {"optimizer": {"name": "sgd"}, "start": {"run": "a", "take": ("optimizer",)}}},
            "start.take .* that of 'a' is 'adam', this one's 'sgd'",
        ),
        (
            {"a": {}}
            | {"b": {"optimizer": {"name": "sgd"}}}
            | {"c": {"start": {"rewind_run": "b", "rewind": ("optimizer",)}}},
            "start.rewind .* that of 'b' is 'sgd', this one's 'adam'",
        ),
        (
            {"a": WEIGHT, "b": {"start": {"run": "a"}}},
            "granularity = 'filter' .* differs from that of 'a'",
        ),
        ({"a": {}, "b": {"start": {"shuffle": "layer"}}}, "no masks are taken"),
        ({"a": {}, "b": {"start": {"run": "a", "take": ("scores",)}}}, "its own are none, those"),
        (
            {"a": {}, "b": {"start": {"ticket": "x.npz", "take": ("scores",)}}},
            "no optimizer, no scores and no step",
        ),
        (
            {"a": {"prune": {"schedule": "scratch", "score": "activations"}}},
            "'activations' .* would choose by place alone",
        ),
        (
            {
                "a": {
                    "prune": PRUNE
                    | {"unit": "step", "start": (9,), "end": (11,), "score": "activations"}
                }
            },
            "before 10 training steps are done",
        ),
        (  # 4 steps an epoch: the first update of the mean is in the third
            {"a": {"prune": LATER | {"start": (1,)}}},
            "event after step 8: before 10 training steps are done",
        ),
        (  # the last update was at step 10, before it begins
            {
                "a": {},
                "b": {"prune": LATER | {"unit": "step", "start": (15,), "end": (15,)}}
                | {"start": {"run": "a", "at": "epoch:3", "take": ("weights", "step")}},
            },
            "event after step 15: before 20 training steps are done",
        ),
        (  # those of its parent are 0 at that step
            {
                "a": {"prune": LATER},
                "b": {"prune": LATER | {"schedule": "scratch"}}
                | {"start": {"run": "a", "at": "epoch:2", "take": ("weights", "scores")}},
            },
            "event after step 0: before 10",
        ),
        (
            {
                "a": {
                    "prune": PRUNE
                    | {"schedule": "scratch", "grow": "gradient", "update_every": 5, "score": "l2"}
                    | {"update_score": "activations"}
                }
            },
            "prune.update_score = 'activations' .* event after step 5",
        ),
        (
            {
                "a": {"prune": MAGNITUDE},
                "b": {"prune": MAGNITUDE | {"scope": "layer"}} | {"start": {"run": "a"}},
            },
            "prunes globally",
        ),
        (
            {"a": {"prune": MAGNITUDE | {"of": "all", "fraction": (0.7,)}}}
            | {
                "b": {"prune": MAGNITUDE | {"of": "all", "fraction": (0.6,)}}
                | {"start": {"run": "a"}}
            },
            "of which .* are live",
        ),
    ],
)
def test_refused_before_compilation(arms, message):
    with pytest.raises(ConfigError, match=message):
        planned(**arms)


def test_depths_and_families():
    needs = {"a": [], "b": ["a"], "c": ["b", "a"], "x": [], "y": ["x"]}
    assert lineage.depths(needs) == {"a": 0, "b": 1, "c": 2, "x": 0, "y": 1}
    assert lineage.families(needs) == {"a": "a", "b": "a", "c": "a", "x": "x", "y": "x"}


def test_states_pass_in_memory_as_they_do_by_files(tmp_path, monkeypatch):
    config = small(dense=WEIGHT, level1=level("dense"))

    def study(folder):
        go(config, folder)
        return [(folder / f"{table}.csv").read_bytes() for table in ("epochs", "events", "runs")]

    def unread(path):
        raise AssertionError(f"{path} was read")

    with monkeypatch.context() as patch:
        patch.setattr(handover, "MOST", 0)
        by_files = study(tmp_path / "files")
    monkeypatch.setattr(handover, "read", unread)
    assert study(tmp_path / "memory") == by_files


def test_the_latest_states_stay_in_memory(monkeypatch):
    monkeypatch.setattr(handover, "MOST", 100)
    recent, given = handover.Recent(), {"weights/w": np.zeros(12, np.float32)}  # 48 bytes
    for name in ("a", "b", "b", "c"):
        recent.add(name, given)
    assert list(recent.arrays) == ["b", "c"]
    given["weights/w"][:] = 1  # what is kept is a copy
    assert not recent.arrays["c"]["weights/w"].any()
    recent.add("large", {"weights/w": np.zeros(100)})
    assert not recent.arrays


def test_a_state_is_measured_as_often_however_many_are_kept(monkeypatch):
    measured, size = [], handover._size
    monkeypatch.setattr(handover, "_size", lambda arrays: measured.append(1) or size(arrays))
    recent = handover.Recent()
    for number in range(100):
        recent.add(f"{number}", {"weights/w": np.zeros(12, np.float32)})
    assert len(recent.arrays) == 100
    assert len(measured) == 200  # what a name had before, and what it has now


def test_scores_that_training_gathers_are_there_from_their_first_update_on():
    # 4 steps an epoch, an update at step 10: in time for the event after the third epoch,
    # for a child from there on, and for twins, which choose nothing.
    early = LATER | {"start": (0,)}
    planned(
        a={"prune": LATER},
        b={"prune": early, "start": {"run": "a", "at": "epoch:3", "take": ("weights", "scores")}},
        c={"prune": early | {"target": "random"}},
        d={
            "prune": early,
            "intervention": {"twin": "c", "kind": "zero", "duration": 3, "mask_norm": False},
        },
    )
