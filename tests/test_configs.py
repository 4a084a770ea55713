"""Every file in configs/: it loads with all its arguments, validates, plans, and trains a step.

Planned events are compared with those that the released run table comes to by our arithmetic
(epochs from 0, filters per event).
"""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from prunejax import interventions, models
from prunejax.configs import default
from prunejax.errors import ConfigError
from prunejax.study.devices import arrangement
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from prunejax.train import step
from tests import fake_tfds, mechanics

ROOT = Path(__file__).parents[1]
SHARED = (  # not studies, or without arguments
    *("default", "fields", "paper.common", "recipes", "shipped", "variants"),
)
STUDIES = [
    ".".join(path.relative_to(ROOT / "configs").with_suffix("").parts)
    for path in sorted((ROOT / "configs").rglob("*.py"))
    if path.stem != "__init__"
]
STUDIES = [name for name in STUDIES if name not in SHARED]
PAPER = [name for name in STUDIES if name.startswith("paper.")]


def load(name, arg=""):
    return importlib.import_module(f"prunejax.configs.{name}").get_config(arg)


def arguments(name):
    """The arguments that a study's own message lists."""
    with pytest.raises(ValueError, match="no-such-argument") as caught:
        load(name, "no-such-argument")
    return re.findall(r"(?:; |: )(\w+) \(", str(caught.value))


# Of a paper's figures the first two choose a data set; those of connectivity begin at steps that
# tiny sets do not reach.
FAR = ("cifar10", "fashion_mnist", "tickets", "batchnorm")


def combinations(name):
    """ "" and every argument, alone and with "small"."""
    names = arguments(name)
    found = ["", *(n for n in names if n not in FAR)]
    return found + [f"small,{n}" for n in names if n != "small" and "small" in names]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Prepared sets with 160 training and 40 test examples."""
    path = tmp_path_factory.mktemp("tfds")
    for name in ("cifar10", "cifar100", "fashion_mnist", "mnist"):
        fake_tfds.write(path, name, train=160, test=40)
    splits = {"train": 160, "validation": 40}
    made = {s: fake_tfds.random_split(n, (8, 8, 3), 10, 0) for s, n in splits.items()}
    fake_tfds.write(path, "imagenet2012", version="5.1.0", splits=made, num_classes=10)
    return path


def arms_of(config, data_dir):
    """The checked arms of a study with its data replaced by the tiny sets."""
    config.data.data_dir = str(data_dir)
    if config.data.name != "digits":
        config.data.train_examples = config.data.test_examples = 0
        config.data.validation_examples = 0
    if config.data.name == "imagenet2012":
        config.batch_size = config.prune.saliency_examples = 16
    return config_lib.variants(config, default.get_config())


def planned(config, data_dir):
    return plan.build(arms_of(config, data_dir))


@pytest.fixture(scope="module")
def built(data_dir):
    """Arms and plan by study name and argument, each made once."""
    made = {}

    def get(name, arg=""):
        if (name, arg) not in made:
            arms = arms_of(load(name, arg), data_dir)
            made[name, arg] = arms, plan.build(arms)
        return made[name, arg]

    return get


@pytest.fixture(scope="module")
def plans(built):
    return lambda *study: built(*study)[1]


@pytest.mark.parametrize("name", STUDIES)
def test_loads_and_validates_with_every_argument(name):
    for arg in combinations(name):
        arms = config_lib.variants(load(name, arg), default.get_config())
        labels = [arm.label for arm in arms]
        assert len(set(labels)) == len(labels)
        assert all(re.fullmatch(r"[\w=+-]+", label) for label in labels), labels


@pytest.mark.parametrize("name", [*PAPER, "review"])
def test_is_a_run_card(name):
    text = importlib.import_module(f"prunejax.configs.{name}").__doc__
    for part in ("Claim:", "Cost (", "Run here:", "python -m prunejax.main --config=configs/"):
        assert part in text, part
    path = f"configs/{name.replace('.', '/')}.py"
    assert f"{path} " in text
    assert f"{path}:small " in text


@pytest.mark.parametrize("name", PAPER)
def test_small_form_is_small_and_needs_no_download(name):
    full, small = load(name), load(name, "small")
    assert small.data.name == "digits"
    assert small.seeds <= 3
    assert small.epochs <= 60
    assert small.model.width < 1
    assert full.data.name in ("cifar10", "cifar100")
    assert load(name, "small,cifar10").data.name == "cifar10"


def test_bad_arguments_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"fig5\.py:smal: unknown argument 'smal'; there are"):
        load("paper.fig5", "smal")
    with pytest.raises(ValueError, match="'cifar10' goes with 'small'"):
        load("paper.fig5", "cifar10")
    with pytest.raises(ValueError, match="name one data set"):
        load("paper.fig5", "small,cifar10,fashion_mnist")


# Their schedules count training steps of the whole data set, of which a part is here.
WHOLE_SETS = {("methods.fashion", form) for form in ("vgg16", "wrn22", "resnet50")}


@pytest.mark.parametrize("name", STUDIES)
def test_plans_and_every_arm_has_events_or_none(name, built):
    for arg in ("", "small") if "small" in arguments(name) else combinations(name):
        if (name, arg) in WHOLE_SETS:
            continue
        arms, batches = built(name, arg)
        members = [m for b in batches for m in b.members]
        assert len(members) == sum(arm.settings.seeds for arm in arms)
        unpruned = {arm.label for arm in arms if arm.settings.prune.schedule == "none"}
        if unpruned:
            assert arms[0].settings.report.baseline in unpruned
        for arm in arms:
            events = next(m for m in members if m.variant == arm.label).events
            assert bool(len(events)) == (arm.settings.prune.schedule != "none"), arm.label


# -- events as the released run table has them ---------------------------------------------------


def events(batches, variant):
    """Layer -> {epoch: filters} of a variant's first run."""
    batch, member = next((b, m) for b in batches for m in b.members if m.variant == variant)
    counts = np.asarray(member.table.counts)
    return {
        g.name: {int(row) - 1: int(counts[row, i]) for row in np.flatnonzero(counts[:, i])}
        for i, g in enumerate(batch.program.groups)
        if counts[:, i].any()
    }


def kept(batches, variant, layer):
    batch = next(b for b in batches if variant in {m.variant for m in b.members})
    units = {g.name: g.units for g in batch.program.groups}
    return units[layer] - sum(events(batches, variant)[layer].values())


def test_figure_2_vgg11(plans):
    batches = plans("paper.fig2_vgg11")
    for variant in ("S_13", "R_13", "L_13"):
        found = events(batches, variant)
        assert list(found) == ["conv5", "conv6", "conv7", "conv8"]
        for first, layer in zip((3, 4, 5), found, strict=False):
            assert list(found[layer]) == [first, first + 40, first + 80, first + 120]
            assert set(found[layer].values()) <= {38, 39}
            assert kept(batches, variant, layer) == 359
        assert list(found["conv8"]) == [6, 46, 86, 126, 166, 206, 246]
        assert list(found["conv8"].values()) == [65, 66, 66, 65, 66, 66, 66]
        assert kept(batches, variant, "conv8") == 52
    found = events(batches, "S_1")
    assert len(found["conv5"]) == 37
    assert len(found["conv8"]) == 68
    assert set(found["conv5"].values()) <= {4, 5}
    assert set(found["conv8"].values()) <= {6, 7}
    assert kept(batches, "S_1", "conv8") == 52
    assert [list(e) for e in events(batches, "scratch").values()] == [[-1]] * 4
    assert kept(batches, "scratch", "conv8") == 52
    assert events(batches, "none") == {}
    assert {
        t for b in batches for m in b.members if m.variant == "R_13" for t in m.table.target
    } == {1}


def test_figure_2_resnet18_and_table_c1(plans):
    names = [f"stage4_block{b}_conv{c}" for b in (1, 2) for c in (1, 2)]
    found = events(plans("paper.fig2_resnet18"), "L_14")
    assert list(found) == names
    assert list(found[names[3]]) == [10, 50, 90, 130, 170, 210, 250]
    assert set(found[names[3]].values()) <= {69, 70}
    assert list(found[names[0]]) == [7, 47, 87, 127]
    assert list(found[names[2]]) == [9, 49, 89, 129, 169]
    assert kept(plans("paper.fig2_resnet18"), "S_1", names[3]) == 26
    assert kept(plans("paper.fig2_resnet18"), "S_14", names[1]) == 308
    assert kept(plans("paper.tableC1"), "S_14", names[1]) == 103
    assert next(iter(events(plans("paper.figB2"), "resnet18-L_14")[names[3]])) == 6
    assert next(iter(events(plans("paper.figB2"), "vgg11-L_13")["conv8"])) == 6


def test_figure_3_rates(plans):
    rates = {4: (68, 1.3), 20: (14, 6.4), 40: (7, 12.9), 60: (5, 18), 100: (3, 30), 200: (2, 45)}
    for period, (count, percent) in (rates | {300: (1, 90)}).items():
        for target in "SRL":
            found = events(plans("paper.fig3"), f"{target}_{period}")["conv8"]
            assert len(found) == count
            assert 90 / count == pytest.approx(percent, abs=0.05)
            assert sum(found.values()) == 460
            assert all(epoch <= 275 for epoch in found)
    assert len({m.run for b in plans("paper.fig3") for m in b.members}) == 5 * 22


def test_figures_4_and_c3(plans):
    batches = plans("paper.fig4")
    for name, layers in (("resnet18", 16), ("resnet20", 18), ("resnet56", 54)):
        three, two = events(batches, f"{name}-S_3"), events(batches, f"{name}-S_5")
        assert len(three) == len(two) == layers
        assert {tuple(e) for n, e in two.items() if not n.startswith("stage1") or layers == 16} == {
            (40, 100)
        }
        assert max(len(e) for e in three.values()) == 3
        if layers > 16:  # 16 filters: one goes, in the last event
            assert two["stage1_block1_conv1"] == three["stage1_block1_conv1"] == {100: 1}
    gradual = events(plans("paper.figC3"), "S_total10")
    assert len(gradual) == 16
    last = gradual["stage4_block2_conv2"]
    assert sum(last.values()) == 51
    assert min(last) >= 24
    assert max(last) == 100
    assert {k for e in gradual.values() for k in e.values()} == {1}
    assert sum(events(plans("paper.figC3"), "S_total6")["stage4_block2_conv2"].values()) == 30
    config = load("paper.figC3").variants.S_total10.prune
    assert len(range(config.start[0], config.end[0] + 1, config.period)) == 77


def test_table_f1(plans):
    batches = plans("paper.tableF1")
    layer = "stage4_block2_conv2"
    for variant in ("S_15", "L_15"):
        assert events(batches, variant) == {layer: {2500: 179, 3250: 179}}
        assert kept(batches, variant, layer) == 154
    assert events(batches, "scratch") == {layer: {-1: 358}}
    by_arm = {m.variant: (m, b.program) for b in batches for m in b.members}
    (scratch, program), (small, _) = by_arm["scratch"], by_arm["S_15"]
    assert scratch.table.target[0] == 2  # largest, as the release leaves it
    assert program.scores[scratch.table.score[0]] == "l2"
    rates, shifted = small.hyper.learning_rate, scratch.hyper.learning_rate
    assert len(rates) == 4000
    assert len(shifted) == 3999
    for rate in (rates, shifted):
        np.testing.assert_allclose(rate[[0, 1999, 2000]], [1e-4, 1e-4, 1e-5], rtol=1e-5)


def test_noise_windows(plans):
    for arg, expected in (("", (1, 50, 1105)), ("released", (0, 129, 1500))):
        batches = plans("paper.fig5", arg)
        tables = {m.variant: m.table for b in batches for m in b.members}
        assert len(batches) == 1
        assert batches[0].program.features.released == (arg == "released")
        for kind, number in (("zero", interventions.ZERO), ("gauss", interventions.GAUSSIAN)):
            for name, duration in zip((1, 50, 1105), expected, strict=True):
                table = tables[f"{kind}_{name}"]
                assert (table.kind, table.duration) == (number, duration)
                assert not table.cumulative
        assert not any(table.mask_norm for table in tables.values())
        assert tables["L_13"].kind == interventions.PRUNE
        assert events(batches, "zero_50") == events(plans("paper.fig2_vgg11"), "L_13")
    for arg, expected in (("", (89, 630, 1220, 2480)), ("released", (129, 750, 1500, 3000))):
        batches = plans("paper.figD2", arg)
        tables = {m.variant: m.table for b in batches for m in b.members}
        for name, duration in zip((89, 630, 1220, 2480), expected, strict=True):
            table = tables[f"restore_{name}"]
            assert (table.kind, table.duration) == (interventions.ZERO, duration)
            assert table.cumulative
            assert table.mask_norm
            assert table.restore == interventions.RESTORE_ALL
    (batch,) = plans("paper.fig5", "twins")
    twins = {m.run: m.twin for m in batch.members}
    assert twins["zero_50-3"] == "L_13-3"
    assert twins["L_13-3"] == ""


@pytest.mark.parametrize(("name", "test_batch"), [("fig5", 128), ("figD2", 256)])
@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_released_passes_of_the_small_forms_come_to_their_steps(name, test_batch, data):
    module = importlib.import_module(f"prunejax.configs.paper.{name}")
    config = module.get_config("small" if data == "digits" else "small,cifar10")
    assert config.eval_batch_size == test_batch
    examples = 382 if data == "digits" else config.data.test_examples
    steps = -(-config.data.train_examples // config.batch_size)
    size = "digits" if data == "digits" else "images"
    for window, passes in zip(module.STEPS[size], module.PASSES[size], strict=True):
        if passes:
            batches = -(-examples // test_batch)
            assert mechanics.window_steps(passes, steps, batches) == window
        assert window < 5 * steps  # closed before the next event of its layer


# -- a step ---------------------------------------------------------------------------------------


def _kind(program):
    """What makes programs differ in what has to be traced."""
    return (
        str(program.module.clone(width=1.0, num_classes=10)),
        program.features,
        program.needs_activations,
        program.augment,
        program.optimizer.transform.update.__qualname__,
    )


@pytest.mark.slow
def test_every_kind_of_program_trains_a_step(data_dir):
    """Traces a step of each kind of program in the studies; runs two of them."""
    done, executed = set(), {"VGG", "MLP"}
    for name in [*PAPER, "review"]:
        for arg in arguments(name):
            if arg in ("cifar10", "fashion_mnist", "resnet56"):
                continue
            config = load(name, "small" if arg == "small" else f"small,{arg}")
            # eleven steps an epoch: activations are averaged every tenth, events come after
            config.seeds, config.batch_size, config.data.train_examples = 1, 16, 176
            config.data.test_examples = 32
            for batch in planned(config, data_dir):
                if _kind(batch.program) in done:
                    continue
                done.add(_kind(batch.program))
                model = type(batch.program.module).__name__
                _train_one_step(batch, execute=model in executed)
                executed.discard(model)
    assert len(done) >= 15
    assert not executed


def _train_one_step(batch, execute):
    member, program = batch.members[-1], batch.program
    data = arrangement.device_data(batch.dataset)

    def run(table, hyper):
        state = step.initial_state(program, jnp.uint32(member.seed), table, hyper)
        return step.train_steps(program, state, data, jnp.int32(1))

    if not execute:
        shapes = jax.eval_shape(run, member.table, member.hyper)
        assert shapes.totals.loss.shape == ()
        return
    state = jax.jit(run)(member.table, member.hyper)
    assert int(state.step) == 1
    assert int(state.bad_step) == -1
    assert np.isfinite(float(state.totals.loss))


@pytest.mark.parametrize("arg", ["", "vit"])
def test_imagenet_events(arg, plans):
    batches = plans("imagenet", arg)
    found = events(batches, "L")
    if arg:
        assert list(found) == [f"block{b}_dense1" for b in (9, 10, 11, 12)]
    else:
        assert list(found) == [f"stage4_block{b}_conv{c}" for b in (1, 2, 3) for c in (1, 2, 3)]
    for layer, few in events(batches, "S").items():
        assert list(found[layer]) == [5, 30, 55]
        assert list(few) == list(range(5, 56, 2))
        assert kept(batches, "S", layer) == kept(batches, "L", layer) == sum(few.values())


@pytest.mark.parametrize(
    ("arg", "name", "changes"),
    [("", "resnet50", {"stages": (64, 128), "blocks": (1, 1)}), ("vit", "vit_s16", {"depth": 2})],
)
def test_imagenet_trains_a_step_on_streamed_images(arg, name, changes, data_dir, monkeypatch):
    """With few, thin layers, on small images, which cost less to compile."""
    kind, fixed = models.MODELS[name]
    monkeypatch.setitem(models.MODELS, name, (kind, fixed | changes))
    config = load("imagenet", arg)
    config.data.image_size, config.model.width = 32, 1 / 16
    for variant in ("S", "L"):
        config.variants[variant].prune.layers = (".*",)
    (batch,) = planned(config, data_dir)
    stream = batch.dataset.training(0, batch.program.batch_size, augment=True)
    member, read = batch.members[-1], stream[0]

    def run(table, hyper):
        state = step.initial_state(batch.program, jnp.uint32(0), table, hyper)
        return step.train_step(batch.program, state, read["image"], read["label"])

    state = jax.jit(run)(member.table, member.hyper)
    assert int(state.totals.examples) == 16
    assert int(state.bad_step) == -1
    assert np.isfinite(float(state.totals.loss))


def test_a_config_with_an_unknown_field_is_refused():
    config = load("paper.fig5", "small")
    config.variants.none = ConfigDict({"intervention": {"durations": 3}})
    with pytest.raises(ConfigError, match="durations"):
        config_lib.variants(config, default.get_config())
