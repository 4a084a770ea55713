import dataclasses
import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from prunejax import report
from prunejax.errors import ReportError
from prunejax.measures import claims, statistics
from prunejax.record import remote
from prunejax.record.columns import EPOCHS, EVENTS, RUNS
from prunejax.record.run_directory import RunDirectory
from prunejax.report import __main__ as cli
from prunejax.report import (
    attributes,
    figures,
    figures_arrays,
    figures_flatness,
    figures_paper,
    gallery,
    results,
    shards,
    style,
    tables,
)
from prunejax.report.curves import accuracy_curves
from tests import fake_study


@pytest.fixture(autouse=True, scope="module")
def quick():
    """No waiting for the disk: the directories here are thrown away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture
def blank(monkeypatch):
    """Figures are composed but not drawn, for tests about the rest of the report."""
    monkeypatch.setattr("prunejax.report.style.render", lambda panels, name: (b"png", b"svg", []))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small study with measures, and its report."""
    path = tmp_path_factory.mktemp("study") / "run"
    fake_study.write(path, seeds=range(3), epochs=30)
    report.build([path])
    return path


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def page(path):
    return Page((path / "report.html").read_text())


def test_the_page_stands_alone(study):
    found = page(study)
    assert found.sources
    here = {name for name in found.sources if (study / name).exists()}
    assert here >= {"runs.csv", "epochs.csv", "events.csv"}
    assert all(source.startswith("#") for source in set(found.sources) - here)
    assert "script" not in found.tags
    assert "link" not in found.tags
    assert "@import" not in (study / "report.html").read_text()


def test_every_figure_is_a_png_and_an_svg_and_on_the_page(study):
    names = {file.stem for file in (study / "figures").glob("*.png")}
    assert names == {file.stem for file in (study / "figures").glob("*.svg")}
    assert names == {
        *("dynamics", "stability", "scatter", "gap", "flatness", "tic", "epsilon"),
        *("eigenvalues", "perturbation", "measures", "forecast"),
    }
    text = (study / "report.html").read_text()
    assert all(f'id="figure-{name}"' in text for name in names)
    assert page(study).tags.count("svg") > len(names)
    assert "<text" in text  # that can be selected


def test_tables_say_what_the_rows_say(study):
    summary = json.loads((study / "summary.json").read_text())
    rows = tables.read_csv(study / "runs.csv")
    values = [float(r["best_test_accuracy"]) for r in rows if r["variant"] == "Prune_L 13%"]
    base = [float(r["best_test_accuracy"]) for r in rows if r["variant"] == "none"]
    mean = statistics.mean(values)
    found = summary["variants"]["Prune_L 13%"]["columns"]["best_test_accuracy"]
    assert found["mean"] == mean.mean
    assert found["low"] == mean.low
    paired = summary["paired"]["variants"]["Prune_L 13%"]["best_test_accuracy"]
    assert paired["difference"] == pytest.approx(np.mean(values) - np.mean(base))
    text = " ".join(page(study).text)
    assert f"{100 * mean.mean:.2f} ± {100 * mean.std:.2f}" in text
    assert f"{100 * paired['difference']:+.2f}" in text
    arm = [float(row["hessian_trace"]) for row in rows if row["variant"] == "none"]
    assert f"{np.mean(arm):.4g} ± {np.std(arm, ddof=1):.4g}" in text
    r = summary["correlations"]["runs_with_events"]["mean_stability"]["best_test_accuracy"]
    value = f"{r['pearson']['value']:.2f}".replace("-", "\N{MINUS SIGN}")
    assert f"r = {value}" in text
    for section in ("Arms", "Pruning events", "Config", "Environment"):
        assert section in text
    assert "0.10.2" in text  # the environment
    assert 'prune.target = "largest"' in re.sub(r"\s+", " ", text)
    # Both tables of correlations name the method as it is named where it is computed.
    assert text.count(statistics.METHODS["clustered"]) == 2
    assert "resample" not in text


def test_the_same_records_give_the_same_bytes(tmp_path):
    write(tmp_path / "run")
    first, second = (report.build([tmp_path / "run"], tmp_path / out).parent for out in "ab")
    names = sorted(f.relative_to(first) for f in first.rglob("*") if f.is_file())
    assert len(names) == 2 + 2 * 4
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_axes_of_a_panel_fit_as_matplotlib_fits_them():
    def place(title, size, engine):
        made, axes = style.panel()
        axes.set_title(title)
        axes.set_yscale("log")
        axes.plot([0, 1], [1, size])
        axes.set_ylabel("a label")
        if engine:
            made.set_layout_engine(engine)
        FigureCanvasAgg(made).draw()
        return axes.get_position().extents

    for title, size in (("", 10), ("two\nlines", 1e9), ("much\n\n\n\nroom", 1e99)):
        ours, theirs = (place(title, size, engine) for engine in (None, "constrained"))
        np.testing.assert_allclose(ours, theirs, atol=0.005)  # of the panel: 3 pixels


def test_the_report_needs_no_jax(tmp_path):
    write(tmp_path)
    code = (
        "import sys; from prunejax.report.__main__ import main; "
        f"assert main([{str(tmp_path)!r}, '--output', {str(tmp_path / 'out')!r}]) == 0; "
        "print([m for m in ('jax', 'flax', 'tensorflow', 'ml_collections') if m in sys.modules])"
    )
    # As a notebook leaves it behind, here without the package that it names.
    environment = os.environ | {"MPLBACKEND": "module://no_such_package.backend_inline"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "out" / "report.html").exists()


def test_the_command_line(tmp_path, capsys):
    assert cli.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no run directory" in error
    assert cli.main([str(tmp_path / "nothing")]) == 2
    assert "is no directory" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{")
    assert cli.main([str(tmp_path)]) == 2
    assert "no JSON" in capsys.readouterr().err


SMALL = {"none": (None, 0, 0.0), "L": ("largest", 10, 0.7)}


def write(path, seeds=range(2), arms=SMALL, epochs=12, **changes):
    return fake_study.write(
        path, arms, seeds=seeds, epochs=epochs, measures=False, forecast=False, **changes
    )


def in_shards(path, present, count):
    for index in present:
        write(path / "shards" / f"{index}-of-{count}", seeds=[index])


@pytest.mark.usefixtures("blank")
def test_shards_merge_to_the_whole_and_a_missing_one_is_named(tmp_path):
    in_shards(tmp_path / "split", [1, 2, 3], 3)
    write(tmp_path / "whole", seeds=[1, 2, 3])
    report.build([tmp_path / "split"])
    report.build([tmp_path / "whole"])
    split, whole = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("split", "whole")
    )
    assert split["missing_shards"] == []
    for part in ("runs", "variants", "paired"):
        assert split[part] == whole[part], part

    shutil.rmtree(tmp_path / "split" / "shards" / "2-of-3")
    report.build([tmp_path / "split"])
    assert "Shard " in " ".join(page(tmp_path / "split").text)
    summary = json.loads((tmp_path / "split" / "summary.json").read_text())
    assert [name[-6:] for name in summary["missing_shards"]] == ["2-of-3"]


def test_a_merged_study_says_what_the_whole_one_says(tmp_path):
    """Of seeds that lie in turn in three shards, halves were others: so were intervals and p."""
    arms = {"none": (None, 0, 0.0)} | {f"S{i}": ("smallest", 9 + i, 0.1 * i) for i in range(1, 9)}
    for shard in range(3):
        seeds = range(shard, 12, 3)
        path = tmp_path / "split" / "shards" / f"{shard + 1}-of-3"
        write(path, arms=arms, seeds=seeds, epochs=20)
    write(tmp_path / "whole", arms=arms, seeds=range(12), epochs=20)
    split, whole = (results.summary(tables.load([tmp_path / name])) for name in ("split", "whole"))
    assert np.isfinite(whole["relations"][0]["arms_in_general"]["value"])
    assert whole["relations"][0]["n_seeds"] == 12
    for part in whole.keys() - {"directories"}:
        assert split[part] == whole[part], part


def test_missing_shards_count_from_one_wherever_they_lie():
    def missing(*names, studies=None):
        return shards.missing_shards([Path(n) for n in names], studies or [0] * len(names))

    assert missing("1-of-2", "2-of-2") == []
    assert missing("1-of-3", "2-of-3") == ["3-of-3"]
    assert missing("a/3-of-3") == ["a/1-of-3", "a/2-of-3"]
    assert missing("run") == []
    assert missing("a/1-of-2", "b/2-of-2") == []
    assert missing("a/1-of-3", "b/2-of-3") == ["3-of-3"]
    assert missing("a/1-of-2", "b/2-of-2", studies=["one", "two"]) == ["a/2-of-2", "b/1-of-2"]


def test_a_run_that_appears_twice_is_refused(tmp_path):
    write(tmp_path / "a", seeds=[0, 1])
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    with pytest.raises(ReportError, match=r"run none-0 is in .*a and in .*c"):
        report.build([tmp_path / "a", tmp_path / "c"])
    assert remote.find([tmp_path / "a", tmp_path / "a"]) == [tmp_path / "a"]


def test_seeds_in_two_directories_are_one_study(tmp_path):
    write(tmp_path / "a", seeds=[0, 1], first_seed=0)
    write(tmp_path / "b", seeds=[2, 3], first_seed=2)
    found = tables.load([tmp_path / "a", tmp_path / "b"])
    assert len(found.runs) == 8
    assert found.variants == ["none", "L"]
    assert not found.notes


def test_arms_with_other_data_have_a_baseline_of_their_own_or_none(tmp_path):
    """Accuracies on MNIST less those on Fashion-MNIST were told as differences (`transfer`)."""
    arms = ["none", "L, every 4", "S, every 4", "S, every 16"]
    sets = ["fashion", "fashion", "mnist", "mnist"]
    write(tmp_path, arms={k: fake_study.RATE_ARMS[k] for k in arms}, epochs=20)
    found = tables.load([tmp_path])
    for label, name in zip(arms, sets, strict=True):
        found.attributes[label]["data"] = name
    assert found.groups == {"fashion": arms[:2], "mnist": arms[2:]}
    assert found.baselines == dict.fromkeys(arms[:2], "none")
    assert results.summary(found)["paired"]["baselines"] == {"L, every 4": "none"}
    del found.groups, found.baselines
    found.attributes["S, every 16"]["target"] = None  # not pruned
    assert found.baselines == dict.fromkeys(arms[:2], "none") | dict.fromkeys(arms[2:], arms[3])


def test_an_arm_alone_with_a_setting_is_no_group(tmp_path):
    """Of a study with two arms with weight decay (`before_training`) each was its own baseline,
    and had an empty panel of every figure that shows groups."""
    arms = ["none", "L, every 4", "S, every 4", "S, every 16"]
    write(tmp_path, arms={k: fake_study.RATE_ARMS[k] for k in arms}, epochs=20)
    for decays, groups in (((0, 0, 0.1, 0.03), 1), ((0, 0, 0.1, 0.1), 2)):
        found = tables.load([tmp_path])
        for label, decay in zip(arms, decays, strict=True):
            found.attributes[label]["weight_decay"] = decay
        assert len(found.groups) == groups
        assert set(found.baselines.values()) == {"none"}


def test_swept_arms_are_compared_with_the_unpruned_one_at_their_values(tmp_path):
    """All were with the first one: a rate with another rate."""
    L = fake_study.RATE_ARMS["L, every 4"]
    arms = {
        "L-rate=1": L,
        "none-rate=0_1": fake_study.RATE_ARMS["none"],
        "none-rate=1": fake_study.RATE_ARMS["none"],
        "L-rate=0_1": L,
    }
    write(tmp_path, arms=arms, epochs=20)
    found = tables.load([tmp_path])
    assert found.baselines == {
        "L-rate=1": "none-rate=1", "none-rate=1": "none-rate=0_1",
        "L-rate=0_1": "none-rate=0_1", "none-rate=0_1": "none-rate=0_1",
    }  # fmt: skip
    none = fake_study.RATE_ARMS["none"]  # a control without events is no baseline, either
    pruned = {"fresh-rate=1": none, "fresh-rate=0_1": none}
    pruned |= {"S-rate=1": L, "S-rate=0_1": L, "L-rate=0_1": L, "L-rate=1": L}
    write(tmp_path / "other", arms=pruned, epochs=20, report={"baseline": "S"})
    found = tables.load([tmp_path / "other"]).baselines
    for arm in ("L", "fresh"):
        at = (found[f"{arm}-rate=1"], found[f"{arm}-rate=0_1"])
        assert at == ("S-rate=1", "S-rate=0_1"), arm


def test_an_arm_alone_leaves_the_groups_of_others(tmp_path):
    """It put arms of two weight decays beside one unpruned arm, of the first."""
    arms = list(fake_study.RATE_ARMS)[:6]
    write(tmp_path, arms={k: fake_study.RATE_ARMS[k] for k in arms}, epochs=20)
    found = tables.load([tmp_path])
    for label, decay in zip(arms, (0, 0, 0.1, 0.1, 0.1, 0.5), strict=True):
        found.attributes[label]["weight_decay"] = decay
    for label in (arms[2], arms[5]):
        found.attributes[label]["target"] = None  # not pruned
    assert list(found.groups.values()) == [arms[:2], arms[2:5], arms[5:]]
    assert found.baselines == dict.fromkeys([*arms[:2], arms[5]], "none") | dict.fromkeys(
        arms[2:5], arms[2]
    )


@pytest.mark.usefixtures("blank")
def test_directories_with_other_configs_become_groups(tmp_path):
    for model in ("resnet18", "resnet20"):
        write(tmp_path / model, model={"name": model})
    out = report.build([tmp_path / "resnet18", tmp_path / "resnet20"], tmp_path / "out").parent
    found = tables.load([tmp_path / "resnet18", tmp_path / "resnet20"])
    assert found.groups == {
        "resnet18": ["resnet18/none", "resnet18/L"],
        "resnet20": ["resnet20/none", "resnet20/L"],
    }
    assert found.baselines["resnet20/L"] == "resnet20/none"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["paired"]["baselines"] == {
        "resnet18/L": "resnet18/none",
        "resnet20/L": "resnet20/none",
    }
    assert "group: resnet20" in summary["correlations"]
    text = " ".join(page(out).text)
    assert "different configs" in text
    assert "model.name: 'resnet18' -> 'resnet20'" in text
    assert {"corners", "group_scatter"} <= {f.stem for f in (out / "figures").glob("*.png")}


def test_rate_figures(tmp_path):
    arms = {k: v for k, v in fake_study.RATE_ARMS.items() if v[1] in (0, 4, 16, 60)}
    write(tmp_path, arms=arms, epochs=50, report={"figures": ["rate"]})
    report.build([tmp_path])
    names = {file.stem for file in (tmp_path / "figures").glob("*.svg")}
    assert {"rate", "rate_scatter"} <= names
    found = tables.load([tmp_path])
    # 80 % of the last layer (26 of 128 units stay) in 11, 3 and 1 events.
    rates = [found.attribute(f"S, every {p}", "iterative_rate") for p in (4, 16, 60)]
    assert rates == pytest.approx([102 / 128 / 11, 102 / 128 / 3, 102 / 128])
    assert found.attribute("none", "iterative_rate") is None
    assert found.attribute("none", "target") is None
    assert found.attribute("L, every 4", "target") == "L"


@pytest.mark.usefixtures("blank")
def test_noise_figure_and_welch_tests(tmp_path):
    write(
        tmp_path,
        seeds=range(3),
        arms=fake_study.NOISE_ARMS,
        epochs=20,
        variants=fake_study.noise_variants(),
        report={"figures": ["noise", "table"], "tests": ["Prune_L:none"]},
    )
    report.build([tmp_path])
    assert (tmp_path / "figures" / "noise.svg").exists()
    assert not (tmp_path / "figures" / "rate.svg").exists()
    summary = json.loads((tmp_path / "summary.json").read_text())
    rows = tables.read_csv(tmp_path / "runs.csv")
    a, b = (
        [float(r["best_test_accuracy"]) for r in rows if r["variant"] == v]
        for v in ("Prune_L", "none")
    )
    assert summary["welch"][0]["columns"]["best_test_accuracy"]["p"] == pytest.approx(
        statistics.welch(a, b).p
    )
    assert "Welch" in " ".join(page(tmp_path).text)


@pytest.mark.usefixtures("blank")
def test_corners_compare_with_the_unpruned_arm_of_their_own(tmp_path):
    write(tmp_path, arms=fake_study.CORNER_ARMS, epochs=15, variants=fake_study.corner_variants())
    report.build([tmp_path])
    found = tables.load([tmp_path])
    assert list(found.groups) == [
        "adam, no weight decay",
        "sgd, no weight decay",
        "sgd, weight decay 0.0005",
    ]
    assert found.baselines["sgd 0.0005 L"] == "sgd 0.0005 none"
    assert (tmp_path / "figures" / "corners.svg").exists()


@pytest.mark.usefixtures("blank")
def test_corners_tell_unpruned_arms_apart_and_follow_the_claims(tmp_path):
    arms = {**fake_study.CORNER_ARMS, "sgd 0 long": (None, 0, 0.0), "sgd 0 restart": (None, 0, 0.0)}
    variants = fake_study.corner_variants()
    for label in ("sgd 0 long", "sgd 0 restart"):
        variants[label] = dict(variants["sgd 0 none"])
    write(tmp_path, arms=arms, epochs=15, variants=variants)
    found = tables.load([tmp_path])
    drawn = figures_paper.corners(found, None)
    words = [text.get_text() for text in drawn.panels[-1].legends[0].get_texts()]
    assert words == ["target: smallest", "target: largest", "unpruned: long", "unpruned: restart"]
    assert drawn.alt.startswith("Gain in best accuracy")
    found.claims = [claims.Claim("", "sgd 0 L", ">", "sgd 0 S", "final_test_accuracy")]
    drawn = figures_paper.corners(found, None)
    assert drawn.alt.startswith("Gain in final accuracy")
    axes = drawn.panels[1].axes[0]
    assert axes.get_xlabel().startswith("final accuracy")
    shown = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    gain = found.gain("adam 0 S", "final_test_accuracy").difference
    assert shown[0] == pytest.approx(100 * gain)
    assert len({line.get_marker() for line in axes.lines} - {"None", "o", "s"}) == 2
    assert (
        figures.listed([("a-4", -0.61), ("b", 2.0)], " points")
        == "a-4 \u22120.6 points, b 2.0 points"
    )


def test_normality_and_spectrum_figures(tmp_path):
    write(tmp_path)
    edges = np.linspace(-4, 4, 41)
    density = np.ones((2, 40)) / 8
    (tmp_path / "measures").mkdir()
    np.savez(
        tmp_path / "measures" / "L-1.npz",
        normality_edges=edges,
        normality_layers=np.array(["bn1", "bn2"]),
        normality_trained=density,
        normality_untrained=density,
        spectral_grid=edges,
        spectral_density=np.exp(-(edges**2)),
        spectral_stderr=0.1 * np.exp(-(edges**2)),
    )
    report.build([tmp_path])
    assert (tmp_path / "figures" / "normality.svg").exists()
    assert (tmp_path / "figures" / "spectrum.svg").exists()


def test_a_run_without_numbers_is_drawn_as_if_it_were_not_there(tmp_path):
    path = fake_study.write(tmp_path, arms=SMALL, seeds=range(3), epochs=12)
    look = style.Look(list(SMALL), {"none"})
    drawn = (figures_arrays.eigenvalues, figures_arrays.perturbation)
    whole, fewer = tables.load([path]), tables.load([path])
    for arm in ("L", "none"):
        del fewer.arrays[f"{arm}-1"]
        file = path / "measures" / f"{arm}-1.npz"
        with np.load(file) as saved:
            kept = {k: np.full_like(v, np.nan if arm == "L" else np.inf) for k, v in saved.items()}
            kept["epsilons"] = saved["epsilons"]
        np.savez(file, **kept)
    for draw in drawn:
        assert draw(whole, look).alt == draw(fewer, look).alt
    grid = np.linspace(0, 1, 5)
    names = ("spectral_grid", "spectral_density", "spectral_stderr")
    for run, value in (("L-0", np.nan), ("L-1", 1.0), ("none-0", np.nan)):
        values = dict(zip(names, (grid * value, grid + value, 0 * grid), strict=True))
        np.savez(path / "measures" / f"{run}.npz", **values)
    assert figures_arrays.spectrum(whole, look).alt == "The spectra reach, in nats: L 1."
    events = [row for row in whole.events if row["run"] != "L-2"]
    for row in whole.events:
        row["post_loss"] = "inf" if row["run"] == "L-2" else row["post_loss"]
    fewer.events = events
    assert figures_arrays.forecast(whole, look).alt == figures_arrays.forecast(fewer, look).alt
    for row in whole.events:
        row["post_loss"] = "nan"
    assert figures_arrays.forecast(whole, look) is None


def test_arms_are_as_hollow_in_the_legend_as_in_the_panel(study):
    loaded = tables.load([study])
    panel, *_, key = figures.scatter(loaded, style.Look(loaded.variants, {"none"})).panels
    (axes,), (told,) = panel.axes, key.legends
    points = [container.lines[0].get_markerfacecolor() for container in axes.containers]
    assert [handle.get_markerfacecolor() for handle in told.legend_handles] == points
    assert points.count("none") == 1


@pytest.mark.parametrize("make", [figures.scatter, figures.gap, figures_flatness.flatness])
def test_points_of_more_arms_than_can_be_told_apart_are_by_target(make, tmp_path):
    """A legend of 500 arms was 108 inches long, each marker in it ten times."""
    arms = {"none": (None, 0, 0.0)}
    arms |= {f"{t[0]}{i}": (t, 20, 0.1) for t in ("smallest", "largest") for i in range(30)}
    few = dict(list(arms.items())[:49])
    for kind, own in (("few", few), ("many", arms)):
        fake_study.write(tmp_path / kind, arms=own, seeds=range(1), epochs=30)
        loaded = tables.load([tmp_path / kind])
        panel, *_, key = make(loaded, style.Look(loaded.variants, {"none"})).panels
        (axes,), (told,) = panel.axes, key.legends
        points = [container.lines[0] for container in axes.containers]
        looks = {(line.get_color(), line.get_marker()) for line in points}
        assert looks == {(h.get_color(), h.get_marker()) for h in told.legend_handles}
        labels = [text.get_text() for text in told.texts]
        if kind == "few":
            assert len(looks) == len(points) == len(labels) == 49
    assert len(points) == 3  # not an artist for each arm
    assert sum(line.get_xdata().size for line in points) == 61
    assert labels == ["none (1 arm)", "smallest (30 arms)", "largest (30 arms)"]
    assert key.get_figheight() < 2


def test_what_the_settings_of_an_arm_decide_is_no_measure(study):
    loaded = tables.load([study])
    for row in loaded.good:
        row["dead_units"] = "0" if row["variant"] == "none" else "66"
    assert figures_flatness.columns_of(loaded, "measures") == ["top_eigenvalue"]
    loaded.good[0]["dead_units"] = "1"
    assert "dead_units" in figures_flatness.columns_of(loaded, "measures")
    assert "dead_units" in figures_flatness.columns_of(one_seed(loaded), "measures")


def one_seed(loaded):
    return dataclasses.replace(loaded, runs=[r for r in loaded.runs if str(r["seed"]) == "0"])


def test_unknown_figures_and_bad_pairs_are_refused(tmp_path):
    write(tmp_path / "a", report={"figures": ["dynamic"]})
    with pytest.raises(ValueError, match="Did you mean 'dynamics'"):
        report.build([tmp_path / "a"])
    write(tmp_path / "b", report={"tests": ["L"]})
    with pytest.raises(ValueError, match="'a:b'"):
        report.build([tmp_path / "b"])
    assert set(gallery.FIGURES) >= {
        *("dynamics", "scatter", "rate", "noise", "gap", "flatness"),
        *("eigenvalues", "epsilon", "tic", "normality"),
    }


def test_a_figure_that_fails_leaves_the_page_and_is_told(tmp_path, blank, monkeypatch, capsys):
    write(tmp_path, seeds=[0])

    def broken(study, look):
        raise KeyError("classifier/kernel")

    monkeypatch.setitem(gallery.FIGURES, "stability", broken)
    assert cli.main([str(tmp_path)]) == 1
    said = "Figure 'stability' could not be drawn: KeyError: 'classifier/kernel'."
    line = capsys.readouterr().err.strip()
    assert said in line
    assert "\n" not in line
    assert said in " ".join(page(tmp_path).text)
    assert (tmp_path / "figures" / "dynamics.svg").exists()
    assert not (tmp_path / "figures" / "stability.svg").exists()


def test_event_drops_are_two_points_of_the_curve(tmp_path):
    write(tmp_path, seeds=[0])
    found = tables.load([tmp_path])
    epochs, curves = accuracy_curves(found, "L")
    events = [row for row in found.events if row["layer"] == "conv8"]
    first = int(events[0]["epoch"])
    at = np.flatnonzero(epochs == first)
    assert len(at) == 2
    assert curves[0, at[0]] == float(events[0]["pre_accuracy"])
    assert curves[0, at[1]] == float(events[0]["post_accuracy"])
    assert accuracy_curves(found, "none")[1].shape == (1, 12)


def open_study(path, config=None):
    columns = {"epochs": EPOCHS, "events": EVENTS, "runs": RUNS}
    return RunDirectory.open(path, config or {"name": "x"}, {}, columns)


def epoch_rows(run, count):
    base = dict.fromkeys(EPOCHS, 0.5) | {"run": run, "variant": run[:-2], "seed": run[-1]}
    return [base | {"epoch": e, "step": e} for e in range(count)]


@pytest.mark.usefixtures("blank")
def test_a_study_without_events_or_with_one_run_or_stopped_runs(tmp_path):
    with open_study(tmp_path) as directory:
        with pytest.raises(ReportError, match="no results yet"):
            report.build([tmp_path])
        directory.append("epochs", epoch_rows("none-0", 3))
        report.build([tmp_path])  # nothing has ended yet
        text = " ".join(page(tmp_path).text)
        assert "not finished" in text
        assert re.search(r"So far.*none\s+1\s+0\s+3\s+0.5\s+50.00", text, re.DOTALL)
        row = dict.fromkeys(RUNS) | {"run": "none-0", "variant": "none", "seed": 0, "events": 0}
        row["mean_stability"] = 1.0
        ended = {"status": "done", "best_epoch": 0, "generalization_gap": 0.0, "sparsity": 0.5}
        ended |= dict.fromkeys(("final_test_accuracy", "best_test_accuracy"), 0.5)
        directory.append("runs", [row | ended])
        report.build([tmp_path])
        directory.append("runs", [row | {"run": "none-1", "seed": 1, "status": "non-finite"}])
        directory.finish()
    report.build([tmp_path])
    text = " ".join(page(tmp_path).text)
    assert "Run none-1 stopped: non-finite." in text
    assert "1 of 2" in text
    assert "stability" not in text.lower()  # no arm has an event: 100 % says nothing
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["variants"]["none"]["columns"]["mean_stability"]["mean"] == 1
    assert summary["stopped"] == [{"run": "none-1", "status": "non-finite"}]


def test_a_page_without_events_says_nothing_of_stability(tmp_path):
    """Nor does a figure: all runs would lie on one line at 100 %."""
    arms = {"none": (None, 0, 0.0), "decay": (None, 0, 0.02)}
    fake_study.write(tmp_path, arms=arms, seeds=range(3), epochs=12, report={"baseline": "none"})
    report.build([tmp_path])
    shown = page(tmp_path)
    assert "Curvature and gradient noise" in " ".join(shown.text)
    assert "stability" not in " ".join(shown.text).lower()


def test_runs_that_have_not_ended_are_counted(tmp_path):
    with open_study(tmp_path) as directory:
        directory.append("epochs", epoch_rows("none-0", 3))
        directory.save_json("study.json", {"runs": ["none-0", "none-1"], "variants": {}})
    assert tables.load([tmp_path]).notes == [
        "2 of 2 runs have not ended or are not here; numbers of runs are without them."
    ]


def test_half_a_row_of_a_running_study_is_left_out(tmp_path):
    with open_study(tmp_path) as directory:
        directory.append("epochs", epoch_rows("none-0", 2))
    with (tmp_path / "epochs.csv").open("a") as file:
        file.write("none-0,none,0,2,2,0.")
    assert len(tables.load([tmp_path]).epochs) == 2


@pytest.mark.usefixtures("blank")
def test_text_from_a_config_is_escaped(tmp_path):
    write(tmp_path, name="a < b & <script>alert(1)</script>")
    report.build([tmp_path])
    found = page(tmp_path)
    assert "script" not in found.tags
    assert "a < b & <script>alert(1)</script>" in found.text


def test_iterative_rate_is_of_the_most_pruned_layer():
    def event(run, layer, targeted, live):
        return {"run": run, "layer": layer, "targeted": str(targeted), "live": str(live)}

    rows = [event("a", "x", 10, 90), event("a", "x", 10, 80)]
    rows += [event("a", "y", 20, 80), event("a", "y", 20, 60), event("b", "y", 1, 0)]
    assert attributes.iterative_rate(rows) == pytest.approx(0.2)
    assert attributes.iterative_rate([]) is None


@pytest.mark.parametrize(
    ("limits", "labels"),
    [
        ((2e-5, 100), ["0.0001", "0.001", "0.01", "0.1", "1", "10", "100"]),
        ((1, 60), ["1", "2", "5", "10", "20", "50"]),
        ((3, 8), ["3", "4", "5", "6", "7", "8"]),
    ],
)
def test_labels_of_logarithmic_axes_stand_apart(limits, labels):
    axis = style.panel()[1].yaxis
    axis.axes.set(yscale="log", ylim=limits)
    style.plain_numbers(axis)
    ticks = [(t.get_loc(), t.label1.get_text()) for t in axis._update_ticks()]
    assert [text for _, text in sorted(ticks) if text] == labels
