"""Bad requests of the command line: one line, exit code 2, nothing written, nothing compiled."""

import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from prunejax import __main__, main, measure, report
from prunejax.configs import default
from prunejax.errors import ConfigError
from prunejax.groups import Group
from prunejax.report import __main__ as report_command
from prunejax.report import gallery
from prunejax.study import run as study
from prunejax.study.devices import host_devices
from prunejax.study.planning import event_plan, plan
from prunejax.study.settings import config as config_lib
from prunejax.study.settings import overrides
from prunejax.system import readable
from tests.studies import PRUNE, tiny


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs the command in this process; training must not be reached."""
    monkeypatch.setattr(study, "_train", lambda *_: pytest.fail("training began"))
    monkeypatch.setattr(host_devices, "use", lambda *_: None)
    monkeypatch.setattr("prunejax.cluster.distributed.leave", lambda code: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)

    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # an earlier test's file

    def run(*arguments, workdir=tmp_path / "run"):
        code = main.main(["prunejax", *arguments, f"--workdir={workdir}"])
        assert not (tmp_path / "run").exists()
        text = capsys.readouterr().err
        assert text.startswith("prunejax: ")
        assert text.count("\n") == 1
        return code, text

    return run


DIGITS = "--config=configs/digits.py"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", "unknown config field 'config.epoch'. Did you mean 'epochs'?"),
        ("foo.bar=3", "unknown config field 'config.foo.bar'"),
        ("variants.S_smal.prune.period=3", "Did you mean 'S_small'?"),
        ("variants.none.prune.perod=3", "Did you mean 'period'"),
        ("variants.none.prune.period=x", "not a whole number"),
        ("variants.none.seeds=3", "which is of the whole study"),
        ("variants.S_small.prune.target=foo", "not one of: smallest, random, largest"),
        ("epochs=3.5", "--config.epochs=3.5: not a whole number"),
        ("optimizer.learning_rate=fast", "not a number"),
        ("optimizer.nesterov=maybe", "neither true nor false"),
        ("optimizer.learning_rate=nan", "must be a finite number"),
        ("optimizer.learning_rate=1e300", "must be a finite number"),
        ("epochs=1000000000000", "between 1 and 1000000"),
        ("seeds=100000000", "between 1 and 100000"),
        ("prune=3", "name a field inside"),
        ("measures.names=tic,hessian_trace", r"Several are written ('a', 'b')"),
        ("report.baseline=S_smal", "Did you mean 'S_small'?"),
        ("optimizer.weight_decay_rule=foo", "config.optimizer.weight_decay_rule: path rule 'foo'"),
    ],
)
def test_overrides(command, override, message):
    code, text = command(DIGITS, f"--config.{override}")
    assert code == main.BAD_REQUEST
    assert message in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(arg=''):\n    return (\n", "file.py, line 2: SyntaxError"),
        ("import nosuchmodule\n", "line 1: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def get_config(arg=''):\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
        ("x = 1\n", "defines no get_config()"),
        ("x = 1\0\n", "the file is no Python: source code string cannot contain null bytes"),
        ("def get_config(arg=''):\n    assert not 1\n", "line 2: AssertionError\n"),
        (
            "def get_config(arg=''):\n    return {}\n",
            "not dict; start from prunejax.configs.default",
        ),
        ("def get_config(arg=''):\n    raise ValueError('only :small')\n", "prunejax: only :small"),
    ],
)
def test_config_files(command, tmp_path, content, message):
    file = tmp_path / "file.py"
    file.write_text(content)
    code, text = command(f"--config={file}")
    assert code == main.BAD_REQUEST
    assert message in text


def test_what_is_no_file_or_no_directory(command, tmp_path):
    assert "no such file" in command("--config=configs")[1]
    assert "no such file" in command("--config=configs/nothing.py")[1]
    assert "--workdir is missing" in command(DIGITS, workdir="")[1]
    assert "Protocol not known: nowhere" in command(DIGITS, workdir="nowhere://bucket/run")[1]
    assert "File name too long" in command(DIGITS, workdir=tmp_path / ("x" * 300))[1]
    (file := tmp_path / "file").write_text("")
    (link := tmp_path / "link").symlink_to(tmp_path / "nothing")
    broken, taken = f"{link}: a link that leads nowhere", f"{file}: a file, not a directory"
    assert broken.partition(": ")[2] in command(DIGITS, workdir=link)[1]
    assert broken in command(DIGITS, workdir=link / "run")[1]
    assert taken in command(DIGITS, workdir=file / "run")[1]
    for shard in ("-1/-1", "0/2", "3/2"):
        for words in ((), ("--plan",)):  # which trains no shard, and tells of one all the same
            assert f"--shard={shard}: write i/n" in command(DIGITS, f"--shard={shard}", *words)[1]
    for seconds in ("nan", "inf"):
        told = command(DIGITS, f"--connect_seconds={seconds}")[1]
        assert f"--connect_seconds={seconds}: must be a finite" in told


def test_a_config_without_an_argument_is_given_none(command, tmp_path):
    (file := tmp_path / "file.py").write_text("def get_config():\n    pass\n")
    code, text = command(f"--config={file}:small")
    assert code == main.BAD_REQUEST
    assert text.startswith("prunejax: --config: TypeError: get_config() takes 0 positional")


@pytest.mark.parametrize("command", __main__.COMMANDS)
def test_every_command_answers_help(capsys, command):
    assert __main__.main([command, "--help"]) == 0
    told = capsys.readouterr()
    assert command in told.out
    assert not told.err


def test_help_says_what_there_is(capsys):
    assert main.main(["prunejax", "--help"]) == 0
    text = capsys.readouterr().out
    for part in ("--config", "--workdir", "--shard", "configs/default.py"):
        assert part in text
    assert measure.main(["measure", "-h"]) == 0
    assert "--names" in capsys.readouterr().out


def refusal(config):
    with pytest.raises(ConfigError) as caught:
        config_lib.variants(config, default.get_config())
    return str(caught.value)


@pytest.mark.parametrize("label", ["", " a", "a b", "a/b", "..x", "a,b", "<b>", "-a", "x" * 81])
def test_labels_that_cannot_name_files(label):
    config = tiny()
    config.variants = ConfigDict({label: {}}, allow_dotted_keys=True)
    assert "the label" in refusal(config)


@pytest.mark.parametrize(
    ("label", "offered"), [("S 13 %", "'S_13'"), ("a.b", "'a_b'"), ("..", "'arm'"), ("-x", "'x'")]
)
def test_labels_with_dots_and_spaces_are_told_a_name_that_is_fine(label, offered):
    config = tiny()
    config.variants = default.arms({label: {}})
    said = refusal(config)
    assert f"the label {label!r} names files" in said
    assert said.rstrip().endswith(f"e.g. {offered}")
    config.variants = default.arms({offered.strip("'"): {}})
    config_lib.variants(config, default.get_config())


@pytest.mark.parametrize(("one", "other"), [("s", "S"), ("STRASSE", "straße")])
def test_labels_that_some_file_systems_take_for_one(one, other):
    config = tiny()
    config.variants = default.arms({one: {}, "b": {}})
    assert len(config_lib.variants(config, default.get_config())) == 2
    config.variants = default.arms({one: {}, other: {}})
    assert f"the labels {one!r} and {other!r} name the same files" in refusal(config)


def test_labels_in_other_alphabets_are_fine():
    labels = ["größe", "平均", "S_13", "a-1", "1"]
    arms = config_lib.variants(tiny(**{label: {} for label in labels}), default.get_config())
    assert [arm.label for arm in arms] == labels


@pytest.mark.parametrize("overrides", [None, "hello", 3])
def test_variants_that_are_no_dicts(overrides):
    assert "give a dict of overrides" in refusal(tiny(a=overrides))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "mlp"}, "model = 'mlp' is a group of fields; give a dict of some of: "),
        ({"prune": {"layers": (1, 2)}}, "regular expressions only, not 1"),
        ({"prune": {"start": (0.5,)}}, "whole epochs only, not 0.5"),
        ({"prune": {"fraction": (True,)}}, "numbers only, not True"),
        ({"prune": {"fraction": (float("nan"),)}}, "finite number"),
        ({"optimizer": {"milestones": ("a",)}}, "whole epochs only, not 'a'"),
        ({"optimizer": {"milestones": (3, 1)}}, "rising order"),
        ({"optimizer": {"milestones": (-1,)}}, "rising order"),
        ({"optimizer": {"learning_rate": float("inf")}}, "finite number"),
        ({"optimizer": {"learning_rate": 10**400}}, "finite number"),
        ({"optimizer": {"nesterov": True}}, "'sgd'"),
        ({"intervention": {"twin": "S"}}, "a twin of itself"),
        ({"intervention": {"duration": 0}}, "duration = 0 (variant 'S'): 1 or more steps"),
        ({"intervention": {"noise_scale": -1.0}}, "must be at least 0 (multiple of a"),
        (
            {
                "prune": {"granularity": "weight", "score": "magnitude"},
                "intervention": {"duration": 3, "restore": "weights+norm"},
            },
            "a single weight has no BatchNorm of its own; use restore='weights'",
        ),
        ({"seeds": 3}, "which is of the whole study"),
    ],
)
def test_settings_of_variants(change, message):
    prune = PRUNE | change.get("prune", {})
    assert message in refusal(
        tiny(S=change | {"prune": prune} if "model" not in change else change)
    )


def test_single_weights_are_zeroed_without_a_word_about_batch_norm():
    prune = PRUNE | {"granularity": "weight", "score": "magnitude"}
    zero = {"kind": "zero", "duration": 3}
    (arm,) = config_lib.variants(
        tiny(a={"prune": prune, "intervention": zero}), default.get_config()
    )
    assert arm.settings.intervention.mask_norm  # the default; it concerns filters


HUGE = (10**7, 10**9, 2**31, 2**63 - 1, 2**63, 10**31, 10**5000)


@pytest.mark.parametrize("value", HUGE, ids=lambda n: f"{n.bit_length()}bits")
@pytest.mark.parametrize("schedule", ["linear", "cubic", "geometric"])
def test_an_end_that_cannot_be_is_told_at_once(tmp_path, value, schedule):
    """Its events are not listed: there would be billions of them."""
    config = tiny(S={"prune": PRUNE | {"end": (value,), "schedule": schedule}})
    with pytest.raises(ConfigError, match=r"config\.prune\.end") as error:
        study.run(config, tmp_path / "run", default.get_config())
    assert "width" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({"end": (10**15,), "period": 10**15 + 1}, [[1], [2]]),  # one event each
        ({"period": 2**63 - 1}, [[1], [2]]),
        ({"schedule": "one_shot", "end": (10**15,)}, [[1], [2]]),
        ({"schedule": "scratch", "end": (10**15,)}, [[0], [0]]),
    ],
)
def test_huge_numbers_that_can_be(change, rows):
    arms = config_lib.variants(tiny(S={"prune": PRUNE | change}), default.get_config())
    layers = ("dense2", "dense3")
    groups = [Group(n, f"{n}/kernel", norm=(), stats=(), gate=None, units=8) for n in layers]
    counts = event_plan.event_counts(event_plan.Arm(arms[0].settings, "S", groups, {}))
    assert [np.flatnonzero(counts[g.name]).tolist() for g in groups] == rows


@pytest.mark.parametrize(
    "field",
    [
        *("epochs", "seeds", "batch_size", "eval_batch_size", "first_seed", "data.seed"),
        *("data.train_examples", "data.image_size", "prune.period", "prune.saliency_examples"),
        *("measures.probes", "measures.eigenpairs", "measures.examples", "checkpoint.keep"),
        *("intervention.duration", "population.devices", "population.microbatch"),
    ],
)
def test_whole_numbers_beyond_64_bits_name_their_field(field):
    for value in (10**31, 10**5000):
        config, node = tiny(), None
        *parents, leaf = field.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[leaf] = value
        text = refusal(config)
        assert f"config.{field}" in text
        assert len(text) < 200


@pytest.mark.parametrize("name", ["prunability", "prunability_forms", "rivals"])
def test_predictors_of_generalization_are_of_the_training_set(name):
    config = tiny(a={})
    config.measures.names, config.measures.examples = (name, "hessian_trace"), 50
    assert config.measures.split == "test"  # the default
    with pytest.raises(ConfigError, match=rf"config\.measures\.split = 'test': {name} predict"):
        study.judged(config, default.get_config())
    config.measures.split = "train"
    study.judged(config, default.get_config())


def test_more_examples_than_there_are(tmp_path):
    """None is cut in silence: both numbers are told."""
    for field, value, numbers in (
        ("measures.examples", 91, ("= 91 is", "the 90 examples of config.measures.split = 'test'")),
        ("prune.saliency_examples", 101, ("= 101 ", "100 training examples")),
        ("data.train_examples", 1416, ("=1416", "1415")),
        ("data.test_examples", 383, ("=383", "382")),
        ("data.validation_examples", 1416, ("=1416", "1415")),
        ("batch_size", 101, ("= 101 ", "100 training examples")),
        ("measures.eigenpairs", 10_000, ("= 10000 ", "1802 parameters")),
    ):
        config = tiny(S={"prune": PRUNE | {"score": "saliency"}})
        config.measures.names, config.measures.examples = ("tic",), 0
        config.prune.saliency_examples = 100
        *parents, leaf = field.split(".")
        (config[parents[0]] if parents else config)[leaf] = value
        with pytest.raises(ConfigError) as error:
            study.run(config, tmp_path / "run", default.get_config())
        assert all(number in str(error.value) for number in (leaf, *numbers)), field


def test_twins_of_twins():
    arms = {a: {"prune": PRUNE, "intervention": {"twin": b}} for a, b in ("RL", "LR")}
    assert "itself a twin of 'R'; name a variant without a twin" in refusal(tiny(**arms))


@pytest.mark.parametrize(
    ("prune", "other", "message"),
    [
        # Updates between its events: a twin took their targets for those of its own events.
        (
            {"unit": "step", "grow": "random", "update_every": 3},
            {"grow": "none", "update_every": 0},
            "differs in event 2: ",
        ),
        ({"of": "live", "times": 2}, {"times": 1}, "differs in event 1: "),
        ({"times": 1}, {"ratio_of": "all"}, "differs in event 1: "),
        ({"nm": (1, 2), "layers": ("dense2",)}, {"nm": ()}, "differs in event 1: "),
    ],
)
def test_twins_with_other_events(prune, other, message):
    """They ran, and replayed some of the events of the other arm at some of their own."""
    prune = PRUNE | {"granularity": "weight", "score": "magnitude", "layers": (".*",)} | prune
    prune |= {"fraction": (0.25,), "start": (2,), "end": (8,), "period": 2}
    if "unit" not in prune:
        prune |= {"start": (0,), "end": (2,)}
    twin = {"prune": prune | other, "intervention": {"kind": "none", "twin": "S"}}
    config = tiny(S={"prune": prune}, T=twin)
    with pytest.raises(ConfigError) as caught:
        plan.build(config_lib.variants(config, default.get_config()))
    assert "variant 'T' is a twin of 'S' but " + message in str(caught.value)
    assert "\n" not in str(caught.value)
    config.variants.T.prune = prune if "grow" not in prune else prune | {"grow": "none"}
    if "grow" in prune:
        config.variants.S.prune.grow = "none"
    plan.build(config_lib.variants(config, default.get_config()))


def test_seeds_stay_below_32_bits():
    config = tiny()
    config.first_seed = 2**32 - 1
    assert "the last seed would be 4294967296" in refusal(config)


def test_learning_rates_stay_finite(tmp_path):
    config = tiny()
    config.epochs, config.optimizer.decay = 120, 1000.0
    config.optimizer.milestones = tuple(range(110))
    with pytest.raises(ConfigError, match="beyond single precision"):
        study.run(config, tmp_path / "run", default.get_config())


def test_an_empty_override_of_a_tuple_is_empty():
    config = tiny()
    config.measures.names = ("",)
    assert config_lib.variants(config, default.get_config())[0].settings.measures.names == ()


def test_report_options_are_checked_before_training():
    gallery.check([*gallery.FIGURES, "table"])
    with pytest.raises(ValueError, match="Did you mean 'table'"):
        gallery.check(["dynamics", "tables"])
    good = tiny().report
    report.check(good, ["a", "b"])
    for name, value, message in (
        ("figures", ("dynamcs",), "Did you mean 'dynamics'"),
        ("baseline", "c", "'c' is no variant; there are: a, b"),
        ("correlate", ("c",), "'c' is no variant"),
        ("tests", ("a:c",), "'c' is no variant"),
        ("tests", ("ab",), "no pair like 'a:b'"),
    ):
        bad = tiny().report
        bad[name] = value
        with pytest.raises(ConfigError if name != "figures" else ValueError, match=message):
            report.check(bad, ["a", "b"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import sys\ndef get_config(arg=''):\n    sys.exit(0)\n", "line 3: SystemExit"),
        ("def get_config(arg=''):\n    raise KeyboardInterrupt\n", "line 2: KeyboardInterrupt"),
        ("def get_config(arg=''):\n    pass\n", "get_config() returns None"),
        ("def get_config(arg=''):\n    return 3\n", "get_config() "),
        (
            "from prunejax.configs import default\ndef get_config(arg=''):\n"
            "    c = default.get_config()\n    c.prune.period = 'x'\n    return c\n",
            "file.py, line 4: c.prune.period = 'x': TypeError",
        ),
    ],
)
@pytest.mark.parametrize("override", [(), ("--config.epochs=3",)], ids=["plain", "override"])
def test_config_files_that_return_nothing_exit_or_set_other_types(
    command, tmp_path, content, message, override
):
    file = tmp_path / "file.py"
    file.write_text(content)
    code, text = command(f"--config={file}", *override)
    assert code == main.BAD_REQUEST
    assert message in text


def test_arguments_that_are_no_text_and_homes_of_nobody(command):
    for argument in ("--config.name=a\0b", "--config.name=\udcff"):
        assert "no NUL and nothing but UTF-8" in command(DIGITS, argument)[1]
    assert "~nouser/x: no such user" in command(DIGITS, workdir="~nouser/x")[1]
    assert "no such user" in command(DIGITS, "--config.data.data_dir=~nouser/x")[1]


def test_variants_of_any_label_are_overridden():
    config = tiny(**{"L-large": {"prune": dict(PRUNE)}, "a=1": {}})
    texts = ["L-large.prune.period=7", "a=1.prune.fraction=0.5,", "a=1.optimizer.nesterov=true"]
    overrides.apply(config, texts)
    assert config.variants["L-large"].prune.period == 7
    assert config.variants["a=1"].prune.fraction == (0.5,)
    assert config.variants["a=1"].optimizer.nesterov is True


def test_overrides_of_variants_in_two_words():
    """As of all flags: `--config.epochs 3` is `--config.epochs=3`."""
    words = ["--config.variants.a.epochs", "3", "--config.variants.a.optimizer.nesterov", "--quiet"]
    rest, found = overrides.split([*words, "--config.variants.b=1.epochs=4"])
    assert rest == ["--quiet"]
    assert found == ["a.epochs=3", "a.optimizer.nesterov=true", "b=1.epochs=4"]
    words = ["--config.variants.lr=0_1-width=1.epochs", "3"]  # a label of `default.product`
    assert overrides.split(words) == ([], ["lr=0_1-width=1.epochs=3"])
    assert overrides.split(["--config.variants.a=0.5"]) == ([], ["a=0.5"])  # refused below
    for word, message in (("a.epochs", "Missing value"), ("a.epoch", "unknown config field")):
        with pytest.raises(ConfigError, match=message):
            overrides.split([f"--config.variants.{word}"])
    with pytest.raises(ConfigError, match="name a field inside of 'a'"):
        overrides.apply(tiny(a={}), ["a=3"])
    with pytest.raises(ConfigError, match="name a field inside of 'a'"):
        overrides.apply(tiny(a={}), overrides.split(["--config.variants.a"])[1])


@pytest.mark.parametrize("content", ["[]", "null", "3", '"x"', "{", "\xff"])
def test_json_files_of_another_type(tmp_path, content, capsys):
    for name in ("config.json", "study.json", "status.json"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        columns = "run,variant,seed,epoch,step,train_loss,train_accuracy,test_loss,test_accuracy"
        rows = f"{columns},learning_rate,sparsity\na-0,a,0,0,1,1,0.5,1,0.5,0.1,0\n"
        (folder / "epochs.csv").write_text(rows)
        (folder / name).write_bytes(content.encode("latin-1"))
        if name != "status.json":
            assert report_command.main([str(folder)]) == main.BAD_REQUEST
            assert f"{name} is no JSON" in capsys.readouterr().err
        if name in ("config.json", "status.json"):
            assert measure.main(["measure", f"--workdir={folder}"]) == main.BAD_REQUEST
            error = capsys.readouterr().err
            assert f"{name} is no JSON" in error or "not finished" in error
            assert error.count("\n") == 1


def _of_python():
    return dict(zip([1, 2], [3], strict=True))


def _of_numpy():
    return np.ones(2) + np.ones(3)


def _of_the_library():
    return np.linalg.solve(np.ones((2, 3)), np.ones(2))  # raised by NumPy's own Python


def _judged():
    raise ValueError("prune.period = 0: at least 1")


@pytest.mark.parametrize("fault", [_of_python, _of_numpy, _of_the_library])
@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_a_fault_while_a_study_is_planned_is_no_bad_request(
    monkeypatch, capsys, tmp_path, fault, plan
):
    monkeypatch.setattr("prunejax.study.planning.plan.build", lambda arms: fault())
    monkeypatch.setattr(host_devices, "use", lambda *_: None)
    monkeypatch.setattr("prunejax.cluster.distributed.leave", lambda code: None)
    assert main.main(["prunejax", DIGITS, f"--workdir={tmp_path / 'run'}", *plan]) == 1
    text = capsys.readouterr().err
    assert fault.__name__ in text  # the trace names the place
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("prunejax.study.planning.plan.build", lambda arms: _judged())
    assert main.main(["prunejax", DIGITS, f"--workdir={tmp_path / 'run'}", *plan]) == 2
    assert capsys.readouterr().err == "prunejax: prune.period = 0: at least 1\n"


@pytest.mark.parametrize("fault", [_of_python, _of_numpy, _of_the_library])
def test_a_fault_in_a_report_or_a_measure_is_no_bad_request(monkeypatch, capsys, tmp_path, fault):
    monkeypatch.setattr(report_command, "build", lambda *_: fault())
    monkeypatch.setattr(measure, "measure", lambda *_, **__: fault())
    for call in (
        lambda: report_command.main([str(tmp_path)]),
        lambda: measure.main(["prunejax measure", f"--workdir={tmp_path}", "--names=tic"]),
    ):
        assert call() == 1
        text = capsys.readouterr().err
        assert fault.__name__ in text
        assert text.splitlines()[-1].startswith("prunejax: this is a fault of the program")


def test_what_is_raised_in_so_many_words_is_meant():
    def caught(act):
        try:
            act()
        except ValueError as error:
            return error
        raise AssertionError

    def again():
        try:
            _judged()
        except ValueError:
            raise

    def kept():
        try:
            _judged()
        finally:
            ""

    defaults = default.get_config()
    unknown = ConfigDict({"epoch": 1})
    for act in (_judged, again, kept, lambda: config_lib.variants(unknown, defaults)):
        assert readable.meant(caught(act)), act
    for act in (_of_python, _of_numpy, _of_the_library, lambda: int("x"), lambda: [].index(1)):
        assert not readable.meant(caught(act)), act
    assert not readable.meant(ValueError("never raised"))
