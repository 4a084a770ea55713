"""What the page says first, how it is built, and what it does with damaged directories."""

import html.parser
import io
import itertools
import json
import re
import shutil
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from PIL import Image

from prunejax import report
from prunejax.errors import ConfigError
from prunejax.report import __main__ as cli
from prunejax.report import contrast, gallery, headline, panels, provenance, style, tables, words
from prunejax.report.attributes import attributes_of
from tests import fake_study
from tests.studies import tiny
from tests.test_report import SMALL, in_shards, write

ARMS = {"none": (None, 0, 0.0), "S": ("smallest", 4, 0.1), "L": ("largest", 10, 0.7)}


@pytest.fixture(autouse=True, scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture
def blank(monkeypatch):
    monkeypatch.setattr("prunejax.report.style.render", lambda panels, name: (b"png", b"svg", []))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "run"
    options = {"baseline": "none", "figures": ["gap", "dynamics", "noise", "table"]}
    claims = ["L < S in mean_stability", "S < L in final_test_accuracy"]
    write(path, seeds=range(5), arms=ARMS, report=options | {"claims": claims},
          data={"name": "digits", "data_dir": "/home/someone/sets"})  # fmt: skip
    report.build([path])
    return path


class Page(html.parser.HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.links = [], [], []
        self.source = (path / "report.html").read_text()
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []


def text_of(path):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (path / "report.html").read_text()))


def test_links_lead_somewhere_and_ids_are_there_once(study):
    found = Page(study)
    assert len(set(found.ids)) == len(found.ids)
    inside = {link[1:] for link in found.links if link.startswith("#")}
    assert inside <= set(found.ids)
    assert {"figure-gap", "more", "arms", "facts", "config"} <= inside
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', found.source))
    assert references <= set(found.ids)


def test_the_page_has_what_readers_by_ear_need(study):
    tags = Page(study).tags
    assert [tag for tag, _ in tags].count("main") == 1
    cells = [attrs for tag, attrs in tags if tag == "th"]
    assert all(attrs.get("scope") in ("row", "col") for attrs in cells)
    drawings = [attrs for tag, attrs in tags if tag == "svg"]
    assert drawings
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawings)
    figures = [attrs["aria-label"] for tag, attrs in tags if tag == "figure"]
    assert all(re.search(r"\d", label) for label in figures)  # numbers: what was found
    # On phones its rows are no rows of a table to the browser: roles say that they are.
    forests = re.findall(r'<table[^>]*class="forest.*?</table>', Page(study).source, re.DOTALL)
    assert forests
    for tag, role in re.findall(r'<(table|thead|tbody|tr|th|td)\b(?: role="(\w+)")?', *forests[:1]):
        assert role in {
            **dict.fromkeys(("thead", "tbody"), ("rowgroup",)), "tr": ("row",), "td": ("cell",),
            "table": ("table",), "th": ("columnheader", "rowheader"),
        }[tag]  # fmt: skip


def test_figures_that_a_new_page_has_not_leave_with_the_old_one(tmp_path, blank, monkeypatch):
    path = write(tmp_path / "run", seeds=range(3), arms=ARMS)
    report.build([path])
    own = path / "figures" / "mine.png"
    own.write_bytes(b"a user's")
    drawn = {file.stem for file in own.parent.glob("*.svg")}
    assert {"gap", "stability"} <= drawn
    monkeypatch.setitem(gallery.FIGURES, "gap", lambda *_: None)
    report.build([path])
    assert {file.stem for file in own.parent.glob("*.svg")} == drawn - {"gap"}
    assert {file.stem for file in own.parent.glob("*.png")} == drawn - {"gap"} | {"mine"}


def test_text_can_be_read_upon_its_colour():
    """Contrasts of WCAG 2.2, of which #767676 is the palest grey on white."""
    on = lambda a, b: (contrast.luminance(a) + 0.05) / (contrast.luminance(b) + 0.05)  # noqa: E731
    assert on("white", "black") == 21
    assert on("white", "#767676") == pytest.approx(4.54, abs=0.01)
    assert on("white", "#777777") == pytest.approx(4.48, abs=0.01)
    assert contrast.on_white("#767676") == "#767676"
    _, axes = style.panel()
    style.label_ends(axes, [(i, color, color) for i, color in enumerate(style.COLORS)])
    inks = [text.get_color() for text in axes.texts]
    assert len(inks) == len(set(inks)) == len(style.COLORS)
    assert all(on("white", ink) >= 4.5 for ink in inks)
    for name in ("viridis", "RdBu_r"):  # of cells with a number in them
        for color in matplotlib.colormaps[name](np.linspace(0, 1, 64)):
            assert max(on(contrast.upon(color), color), on(color, contrast.upon(color))) >= 4.5
    assert contrast.upon((0, 0, 0, 0)) == "black"  # of a cell without a number nothing is drawn


def test_figures_come_as_asked_for_and_the_others_are_folded(study):
    source = (study / "report.html").read_text()
    places = [source.index(f'id="{name}"') for name in (
        "result", "figure-gap", "figure-dynamics", "more", "figure-stability", "arms", "facts"
    )]  # fmt: skip
    assert places == sorted(places)
    folded = source[source.index("<details>") : source.index("</details>")]
    assert 'id="figure-stability"' in folded
    assert 'id="figure-gap"' not in folded
    assert "nothing that they show: noise" in text_of(study)


def test_claims_come_first_with_their_verdicts(study):
    summary = json.loads((study / "summary.json").read_text())
    source = (study / "report.html").read_text()
    results = re.search(r'<ul class="results".*?</ul>', source, re.DOTALL)[0]
    assert results.count("<li>") == 2
    for claim in summary["claims"]:
        difference = words.minus(f"{100 * claim['difference']:+.2f}")
        assert f">{claim['verdict']}.</span>" in results
        assert difference in results
    assert summary["claims"][0]["verdict"] == "confirmed"


def test_the_forest_marks_what_is_significant_after_holm(study):
    summary = json.loads((study / "summary.json").read_text())
    source = (study / "report.html").read_text()
    forests = re.findall(r'<table role="table" class="forest">.*?</table>', source, re.DOTALL)
    assert len(forests) == 2  # of the final accuracy, and of the other column of the claims
    for forest, column in zip(forests, ("final_test_accuracy", "mean_stability"), strict=True):
        for label in ("S", "L"):
            found = summary["paired"]["variants"][label][column]
            row = re.search(rf"<tr[^>]*>\s*<th[^>]*><b>{label}</b>.*?</tr>", forest, re.DOTALL)[0]
            assert ('class="sure"' in row) == (found["p_holm"] < 0.05)
            assert words.minus(f"{100 * found['difference']:+.2f}") in row
    assert "largest E[BN]" in forests[0]


def test_without_claims_arms_are_compared_and_nothing_is_judged(tmp_path, blank):
    write(tmp_path, seeds=range(4))
    report.build([tmp_path])
    text = text_of(tmp_path)
    assert re.search(r"(No arm differs|1 of 1 arm differs) from none in final accuracy", text)
    assert 'class="verdict' not in (tmp_path / "report.html").read_text()


def test_no_place_of_the_machine_is_told(study, tmp_path, blank):
    shutil.copytree(study, tmp_path / "a" / "run")
    in_shards(tmp_path / "split", [1, 3], 3)
    for path in (study, report.build([tmp_path / "split"], tmp_path / "out").parent):
        for file in ("report.html", "summary.json"):
            text = (path / file).read_text()
            for place in (str(tmp_path), str(study), "/home/", "/tmp/"):
                assert place not in text, (file, place)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["directories"] == ["1-of-3", "3-of-3"]
    assert summary["missing_shards"] == ["2-of-3"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/data", "…/data"),
        ("data_dir: '/a/b/c' -> '~/sets/d'", "data_dir: '…/c' -> '…/d'"),
        ("configs/digits.py:quick", "configs/digits.py:quick"),
        ("train / test 3/4 conv.*/kernel", "train / test 3/4 conv.*/kernel"),
    ],
)
def test_paths_are_cut_to_names(text, expected):
    assert provenance.without_places(text) == expected


def test_arms_in_words(tmp_path):
    write(tmp_path / "a", arms=ARMS, epochs=30)
    told = words.arms(tables.load([tmp_path / "a"]))
    assert told["none"] == "no pruning"
    rhythm = "up to 27 % of a layer an event, every 10 epochs"
    assert told["L"] == f"largest E[BN], {rhythm}"
    assert told["S"].startswith("smallest E[BN], ")
    write(tmp_path / "b", arms=fake_study.NOISE_ARMS, epochs=20,
          variants=fake_study.noise_variants())  # fmt: skip
    told = words.arms(tables.load([tmp_path / "b"]))
    assert told["zeroing 50"].endswith("zeroed for 50 steps")
    assert told["restore 89"].endswith("zeroed for 89 steps, then restored")
    write(tmp_path / "c", arms=fake_study.CORNER_ARMS, epochs=15,
          variants=fake_study.corner_variants())  # fmt: skip
    told = words.arms(tables.load([tmp_path / "c"]))
    assert told["sgd 0.0005 none"] == "no pruning, sgd, weight decay 0.0005"
    assert len(set(told.values())) == len(told)


def test_what_tells_alike_arms_apart_is_said_of_each(tmp_path):
    arms = {label: ("largest", 10, 0.7) for label in ("a", "b", "c")}
    prune = {"schedule": "linear", "target": "largest", "period": 10}
    variants = {v: {"prune": prune | {"per_class": i}} for i, v in enumerate(arms, 1)}
    write(tmp_path, arms=arms, epochs=30, seeds=[0], variants=variants)
    told = words.arms(tables.load([tmp_path]))
    assert {v: text.rpartition(", ")[2] for v, text in told.items()} == {
        "a": "per class 1",
        "b": "per class 2",
        "c": "per class 3",
    }


def test_an_arm_of_a_ticket_file_says_so(tmp_path):
    start = {"ticket": "/data/me/t-{seed}.npz"}
    variants = {
        "a": {"start": start},
        "b": {"start": start | {"take": ["masks"], "redraw": "classifier/.*"}},
    }
    write(tmp_path, arms=dict.fromkeys(variants, (None, 0, 0.0)), epochs=9, variants=variants)
    assert words.arms(tables.load([tmp_path])) == {
        "a": "from t-{seed}.npz",
        "b": "from masks of t-{seed}.npz, classifier/.* drawn anew",
    }


def test_a_spread_of_rounding_is_shown_as_none():
    found = {"mean": 0.7445, "std": 1.4e-16, "low": None, "n": 3}
    assert panels._mean(found, "effective_sparsity", ".4g", 3) == "74.45 ± 0"
    assert panels._mean(found | {"std": 1e-5}, "effective_sparsity", ".4g", 3) == "74.45 ± 0.001"


def test_counts_are_shown_in_full():
    found = {"mean": 40960.0, "std": 12345.6, "low": None, "n": 3}
    assert panels._mean(found, "live_weights", ".4g", 3) == "40,960 ± 12,346"
    assert panels._mean(found | {"mean": 9999.0, "std": 0}, "x", ".4g", 3) == "9999 ± 0"
    assert panels._mean(found | {"mean": 2e9, "std": 1.5}, "x", ".4g", 3) == "2e+09 ± 1.5"


@pytest.mark.parametrize(
    ("taken", "told"),
    [((7, 7), "29 % of x an event"), ((13, 1), "29 % of x an event on average")],
)
def test_uneven_events_are_told_as_a_mean(taken, told):
    live = np.subtract(24, np.cumsum(taken))
    rows = [
        {"run": "a-0", "layer": "x", "epoch": str(i), "targeted": str(k), "live": str(live[i])}
        for i, k in enumerate(taken)
    ]
    assert words._rhythm({}, rows, "") == [told, "every epoch"]


@pytest.mark.parametrize(("of", "what"), [("weight", "weights"), ("filter", "units")])
def test_a_way_of_pruning_tells_what_of_stays(of, what):
    own = {"prune.method": "rigl", "prune.fraction": (0.5,), "prune.granularity": of}
    assert words._named(own) == f"RigL, 50 % of {what} stay"  # of filters it said weights


@pytest.mark.parametrize(
    ("second", "told"),
    [(("30", "60"), "up to 60 % of the weights of a layer at once"),
     (("54", "36"), "60 % of the weights of each of 2 layers at once")],
)  # fmt: skip
def test_what_an_event_takes_of_several_layers_is_not_told_as_of_one(second, told):
    """6 of 10, and 30 or 54 of 90; it named the layer that loses most, as if no other did."""
    rows = [{"run": "a-0", "layer": layer, "epoch": "3", "targeted": targeted, "live": live}
            for layer, targeted, live in (("x", "6", "4"), ("y", *second))]  # fmt: skip
    assert words._rhythm({}, rows, "the weights of ") == [told, "epoch 3"]


def test_layers_that_lose_their_units_at_other_epochs_are_not_each_told_alike():
    """6 of 10 at once, and 3 and 3 of 10: it said 60 % of each at once."""
    taken = (("x", "6", "4", 3), ("y", "3", "7", 5), ("y", "3", "4", 6))
    rows = [{"run": "a-0", "layer": layer, "epoch": str(epoch), "targeted": n, "live": live}
            for layer, n, live, epoch in taken]  # fmt: skip
    assert words._rhythm({}, rows, "") == ["up to 60 % of a layer at once", "epoch 3"]


def change(path, table, edit):
    file = path / f"{table}.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(edit(lines)) + "\n")


def without(line):
    return lambda lines: lines[:line] + lines[line + 1 :] if line >= 0 else lines[:line]


def cell(line, column, text):
    def edit(lines):
        cells = lines[line].split(",")
        cells[lines[0].split(",").index(column)] = text
        return [*lines[:line], ",".join(cells), *lines[line + 1 :]]

    return edit


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("whole") / "run", seeds=range(2))
    runs = [row["run"] for row in tables.read_csv(path / "runs.csv")]
    (path / "study.json").write_text(json.dumps({"runs": runs, "variants": {}}))
    return path


DAMAGES = {
    "an epoch in the middle": ("epochs", without(5), "11 rows for 12 epochs (epoch 4 is missing)"),
    "the last epoch of a run": ("epochs", without(12), "epoch 11 is missing"),
    "the last row": ("epochs", lambda lines: lines[:-1], "epoch 11 is missing"),
    "an epoch twice": ("epochs", lambda lines: [*lines[:3], *lines[2:]], "is there twice"),
    "all epochs": ("epochs", lambda lines: lines[:1], "0 rows for 12 epochs"),
    "an accuracy": ("epochs", cell(12, "test_accuracy", "0.125"), "but 0.125 by epochs.csv"),
    "a word": ("epochs", cell(3, "test_accuracy", "0.9O"), "line 4: '0.9O' in column test_accu"),
    "an epoch's word": ("epochs", cell(3, "epoch", "two"), "'two' in column epoch is no whole"),
    "a column": ("epochs", lambda lines: [lines[0].replace("test_acc", "tst"), *lines[1:]],
                 "no column test_accuracy"),
    "an event": ("events", without(1), "no row for layer conv7 in epoch 3"),
    "all events": ("events", lambda lines: lines[:1], "has 0 events of run L-0"),
    "the last event": ("events", lambda lines: lines[:-1], "no row for layer"),
    "an event's word": ("events", cell(1, "instability", "none"), "'none' in column instability"),
    "a run": ("runs", lambda lines: lines[:-1], "has 3 of the 4 runs of a finished study"),
    "a run twice": ("runs", lambda lines: [*lines, lines[-1]], "names a run twice"),
    "a run's word": ("runs", cell(2, "final_test_accuracy", "high"), "'high' in column final_te"),
    "not a number": ("runs", cell(2, "final_test_accuracy", "nan"), "'nan' in column final_test"),
    "an empty cell": ("runs", cell(2, "final_test_accuracy", ""), "is empty in runs.csv, but"),
    "a digit": ("runs", cell(2, "mean_stability", "0.5"), "mean_stability of run"),
    "a count": ("runs", cell(3, "events", "7"), "runs.csv counts 7"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tables_are_told_in_a_line(damage, whole, tmp_path, capsys, blank):
    table, edit, message = DAMAGES[damage]
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    change(path, table, edit)
    assert cli.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert "restore it" in error
    assert not (path / "report.html").exists()


def test_a_whole_directory_passes(whole, tmp_path, blank, capsys):
    assert cli.main([str(whole), f"--output={tmp_path / 'out'}"]) == 0
    (file := tmp_path / "file").write_text("")
    assert cli.main([str(whole), f"--output={file}"]) == 2
    assert capsys.readouterr().err == f"prunejax: {file}: a file, not a directory\n"


@pytest.mark.parametrize("content", [b"[]", b"3", b"\xff\xfe{}"])
def test_other_files_of_another_kind_are_told(content, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "study.json").write_bytes(content)
    assert cli.main([str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "study.json" in error


@pytest.mark.parametrize("damage", ["cut", "flipped", "none"])
def test_damaged_arrays_are_told(damage, whole, tmp_path, capsys, blank):
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run" / "measures" / "none-0.npz"
    file.parent.mkdir(exist_ok=True)
    np.savez_compressed(file, eigenvalues=np.arange(500.0), predicted=np.arange(9), labels=[1] * 9)
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(
        {
            "cut": content[:200],
            "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
            "none": b"",
        }[damage]
    )
    code = cli.main([str(tmp_path / "run")])
    assert code == (1 if damage == "flipped" else 2)  # then the page is there, less a figure
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "none-0.npz cannot be read" in error


def test_times_that_are_no_numbers_are_told(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    for damaged in ('{"wall_seconds": "long"}', '{"devices": "two"}', '{"begun": 3}'):
        (tmp_path / "run" / "times.json").write_text(damaged)
        assert cli.main([str(tmp_path / "run")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(r"times\.json: '\w+' is .*, not a (Number|str)", line)


def test_bytes_that_are_no_text_are_told(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    with (tmp_path / "run" / "events.csv").open("ab") as file:
        file.write(b"\xff\xfe\n")
    assert cli.main([str(tmp_path / "run")]) == 2
    assert "events.csv is no text" in capsys.readouterr().err


def test_an_interrupted_study_is_shown_from_its_epochs(tmp_path, blank):
    path = write(tmp_path / "run", seeds=range(2))
    runs = [row["run"] for row in tables.read_csv(path / "runs.csv")]
    (path / "study.json").write_text(json.dumps({"runs": runs, "variants": {}}))
    (path / "status.json").unlink()
    change(path, "runs", lambda lines: lines[:1])
    change(path, "epochs", lambda lines: lines[:-3])
    report.build([path])
    text = text_of(path)
    assert "4 of 4 runs have not ended" in text
    for label in SMALL:
        assert re.search(rf"{label} 2 0 (12|9 to 12) ", text), label
    assert (path / "figures" / "dynamics.svg").exists()


def test_facts_tell_time_command_and_files(tmp_path, blank):
    path = write(tmp_path / "run")
    times = {"begun": "2026-01-02T03:04:05Z", "ended": "2026-01-02T04:04:05Z", "devices": 2}
    times |= {"wall_seconds": 3600.0, "device_seconds": 7200.0}
    (path / "times.json").write_text(json.dumps(times))
    command = "python -m prunejax.main --config=configs/digits.py --config.seeds=3"
    (path / "study.json").write_text(json.dumps({"command": command}))
    report.build([path])
    text = text_of(path)
    assert "2026-01-02 04:04:05 UTC" in text
    assert "60.0 min of training" in text
    assert "2.0 h: wall time of 2 devices held" in text
    assert f"to repeat {command} --workdir=run" in text


def test_a_broken_installation_shows_before_training(tmp_path, monkeypatch):
    def broken():
        raise ImportError("no module named\n'matplotlib'")

    report.check(tiny().report, ["a", "b"])
    monkeypatch.setattr(report, "_page", broken)
    with pytest.raises(ConfigError, match="report could not be drawn: ImportError: no module"):
        report.check(tiny().report, ["a", "b"])
    monkeypatch.undo()
    (tmp_path / "jinja2.py").write_text("raise ImportError('no module\\nmarkupsafe')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "jinja2", raising=False)
    with pytest.raises(ConfigError, match="report could not be drawn: ImportError: no module mark"):
        report.check(tiny().report, ["a", "b"])


def test_colours_stand_out_on_white():
    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for color in (*style.COLORS, style.GREY):
        assert 1.05 / (luminance(color) + 0.05) >= 3, color


def test_arms_differ_in_line_or_colour_beyond_four():
    look = style.Look([f"arm {i}" for i in range(25)], [])
    lines = [look.line(f"arm {i}") for i in range(5)]
    assert lines[4] != lines[0]
    assert len({(look.color(f"arm {i}"), look.line(f"arm {i}")) for i in range(25)}) == 25


def test_labels_at_the_ends_of_lines_stand_apart():
    _, axes = style.panel()
    axes.set_ylim(0, 10)
    style.label_ends(axes, [(9.9, "a", "k"), (9.9, "b", "k"), (9.8, "c", "k"), (0.0, "d", "k")])
    places = sorted(text.get_position()[1] for text in axes.texts)
    assert all(b - a > 0.05 for a, b in itertools.pairwise(places))
    assert places[0] >= 0
    assert places[-1] <= 1


def test_long_labels_of_a_product_are_told_apart():
    _, axes = style.panel()
    arms = [f"score=l{i}-learning_rate=0_0{j}" for i in (1, 2) for j in (1, 5)]
    style.label_ends(axes, [(0.1 * k, arm, "k") for k, arm in enumerate([*arms, "a short label"])])
    shown = [text.get_text() for text in axes.texts]
    assert len(set(shown)) == 5
    assert max(map(len, shown)) == 20
    assert shown[-1] == "a short label"


def test_the_table_of_measures_counts_the_runs_of_a_mean(tmp_path, blank):
    write(tmp_path, seeds=range(4))

    def infinite(lines):
        names = lines[0].split(",")
        return [
            lines[0] + ",gradient_noise_scale",
            *(
                f"{line},{'inf' if line.split(',')[names.index('run')] == 'L-0' else 3 + i}"
                for i, line in enumerate(lines[1:])
            ),
        ]

    change(tmp_path, "runs", infinite)
    report.build([tmp_path])
    text = text_of(tmp_path)
    assert "gradient noise scale of L (1 of 4 runs)" in text
    assert re.search(r"L 4 [^A-Z]*n = 3", text)


def test_claims_and_tests_of_merged_studies_are_judged_each_in_its_own_arms(tmp_path, blank):
    asked = {"claims": ["L < none in mean_stability"], "tests": ["L:none"]}
    for model in ("resnet18", "resnet20"):
        write(tmp_path / model, model={"name": model}, report=asked)
    out = tmp_path / "out"
    report.build([tmp_path / "resnet18", tmp_path / "resnet20"], out)
    summary = json.loads((out / "summary.json").read_text())
    assert [claim["text"] for claim in summary["claims"]] == [
        f"{model}/L < {model}/none in mean_stability" for model in ("resnet18", "resnet20")
    ]
    assert [claim["n"] for claim in summary["claims"]] == [2, 2]
    assert [(t["a"], t["b"]) for t in summary["welch"]] == [
        ("resnet18/L", "resnet18/none"),
        ("resnet20/L", "resnet20/none"),
    ]


def test_parts_of_one_study_claim_once_and_absent_arms_are_told(tmp_path, blank):
    asked = {"claims": ["L < none", "L < gone in mean_stability"]}
    for part, seeds in (("a", range(2)), ("b", range(2, 4))):
        write(tmp_path / part, seeds=seeds, report=asked)
    report.build([tmp_path / "a", tmp_path / "b"])
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert [(claim["text"], claim["n"]) for claim in summary["claims"]] == [("L < none", 4)]
    told = "The claim 'L < gone in mean_stability' of a config is left out: there is no arm gone"
    assert told in text_of(tmp_path / "a").replace("&#39;", "'").replace("&lt;", "<")


def test_small_forms_say_once_that_they_show_mechanics_only(tmp_path, blank):
    asked = {"claims": ["L < none in mean_stability", "L > none"], "mechanics_only": True}
    write(tmp_path, seeds=range(4), report=asked)
    report.build([tmp_path])
    first = text_of(tmp_path).split("Facts Config ")[1].split("arm Difference")[0]
    assert first.count("mechanics only.") == 2
    assert first.count("A small form shows that the study works, no more.") == 1
    assert "confirmed" not in first
    assert first.strip().startswith("A small form shows")  # before what it is said of


def test_differences_without_an_interval_are_not_called_one(tmp_path, blank):
    write(tmp_path, seeds=range(2))
    report.build([tmp_path])
    text = text_of(tmp_path)
    first = text[text.index("arm Difference") : text.index("Paired by seed.") + 100]
    assert "interval" not in first.split("Paired by seed.")[0]
    assert "No interval and no test below three seeds" in first
    assert "Hollow" not in text


def test_many_arms_take_a_line_each_and_one_sentence(tmp_path, blank):
    arms = {k: v for k, v in fake_study.RATE_ARMS.items() if v[1] in (0, 4, 16, 60)}
    write(tmp_path, seeds=range(9), arms=arms, epochs=50)
    report.build([tmp_path])
    found = Page(tmp_path)
    assert any(a.get("class") == "forest many" for _, a in found.tags)
    text = text_of(tmp_path)
    line = r"(\d) of 9 arms differ from none in final accuracy [^:]*, from [RSL], every \d+ \S"
    told = re.search(line, text)
    assert told
    assert int(told[1]) > 3


def test_an_unfinished_study_speaks_of_what_there_is_so_far(tmp_path, blank):
    write(tmp_path, seeds=range(4), report={"claims": ["L < none in mean_stability"]})
    change(tmp_path, "runs", lambda lines: [line for line in lines if not line.startswith("L-")])
    (tmp_path / "status.json").unlink(missing_ok=True)
    report.build([tmp_path])
    text = text_of(tmp_path).replace("&lt;", "<")
    assert "not finished." in text
    assert "L < none in mean stability (n = 0 seeds)" in text
    assert "A verdict waits until all runs have ended." in text


def test_no_verdict_is_given_while_runs_are_to_come(tmp_path, blank):
    """Four seeds of six have ended and would confirm the claim."""
    write(tmp_path, seeds=range(6), report={"claims": ["L < none in mean_stability"]})
    promised = [f"{arm}-{seed}" for arm in ("none", "L") for seed in range(6)]
    (tmp_path / "study.json").write_text(json.dumps({"runs": promised}))
    (tmp_path / "status.json").unlink(missing_ok=True)
    change(
        tmp_path, "runs", lambda lines: [line for line in lines if not re.match(r"\w+-[45],", line)]
    )
    report.build([tmp_path])
    summary = json.loads((tmp_path / "summary.json").read_text())
    (claim,) = summary["claims"]
    assert (claim["n"], claim["verdict"]) == (4, "not finished")
    assert {found["verdict"] for found in summary["relations"]} <= {"not finished"}
    assert claim["p"] is not None


def test_ticks_of_a_forest_keep_off_its_edges(study):
    page = Page(study)
    places = [
        float(re.search(r"left: ([\d.]+)%", a["style"])[1])
        for tag, a in page.tags
        if tag == "i" and a.get("class") == "tick"
    ]
    assert places
    assert all(4 <= place <= 96 for place in places)


def test_words_of_an_arm_count_steps_and_drop_empty_decimals():
    assert words._intervention({"kind": "zero", "duration": 1}) == ["zeroed for 1 step"]
    assert words._intervention({"kind": "zero", "duration": 2}) == ["zeroed for 2 steps"]
    assert words._setting("optimizer.weight_decay", 0.0) == "weight decay 0"
    assert words._setting("prune.fraction", (0.5, 0.25)) == "fraction 0.5 and 0.25"


def test_a_short_legend_stands_below_the_panels():
    def size(*heights):
        png = style.render([style.panel(height)[0] for height in heights])[0]
        image = Image.open(io.BytesIO(png))
        return image.width / 150 / style.WIDTH, image.height / 150

    assert size(3, 3, 1) == (2, 4)
    assert size(3, 1) == (1, 4)
    assert size(3, 3, 3) == (3, 3)
    assert size(3, 3, 3, 3, 1) == (2, 7)


def test_words_of_an_arm_that_starts_from_a_run_name_its_state():
    take = ("weights", "statistics", "step")
    own = {"start.run": "dense", "start.take": take, "start.at": "step:50", "start.copy": "a"}
    told = "from weights, statistics and step of dense at step 50, streams a"
    assert words._origin(own, "no pruning") == told
    own = {"start.run": "dense", "start.at": "end", "start.rewind_at": "epoch:2"}
    own["start.rewind_run"] = "dense"
    assert words._origin(own, "20 % fewer") == "from dense, back to epoch 2, 20 % fewer"
    assert words._origin({"start.run": "d", "start.take": ("masks",)}, "x") == "from masks of d, x"


def test_of_very_many_arms_the_claimed_ones_stand_before_the_figures():
    def forest(count):
        lines = [
            headline.Line(f"a{i}", "", "", "+1", 50 + (-1) ** i * i, None, None, i in (4, 7))
            for i in range(count)
        ]
        return headline.Forest("difference", lines, [], 50.0, True)

    claims = {"claims": [{"a": "a3", "b": "a19"}, {"a": "a17", "b": "none"}]}
    assert headline.shown(forest(16), claims) == [f"a{i}" for i in range(16)]
    assert headline.shown(forest(20), claims) == ["a3", "a17", "a19"]
    most = [4, 7, *range(26, 40)]  # those that differ significantly, then those that differ most
    assert headline.shown(forest(40), {}) == [f"a{i}" for i in most]
    elsewhere = {"claims": [{"a": "b", "b": "0.5"}]}  # no arm of the plot
    assert headline.shown(forest(40), elsewhere) == [f"a{i}" for i in most]


def test_they_have_a_scale_of_their_own():
    paired = {
        f"a{i}": {"final_test_accuracy": {"difference": d, "low": d - 0.01, "high": d + 0.01}}
        for i, d in enumerate([0.02, -0.01, *[-0.5] * 18])
    }
    summary = {
        "paired": {"variants": paired, "baselines": dict.fromkeys(paired, "none")},
        "claims": [{"a": "a0", "b": "a1"}],
    }
    study = SimpleNamespace(
        variants=["none", *paired],
        overrides={},
        settings=lambda *_: {},
        attributes={},
        attribute=lambda *_: None,
        events_of={},
        runs=[],
    )
    whole = headline.forest(study, summary, "final_test_accuracy")
    few = headline.brief(study, summary, "final_test_accuracy", whole)
    assert [line.label for line in few.lines] == ["a0", "a1"]
    assert [line.text for line in few.lines] == [line.text for line in whole.lines[:2]]
    apart = [plot.lines[0].dot - plot.lines[1].dot for plot in (whole, few)]
    assert apart[0] < 6 < 40 < apart[1]
    assert headline.brief(study, summary | {"claims": []}, "final_test_accuracy", few) is few


@pytest.mark.parametrize(
    ("base", "own", "expected"),
    [
        ("weight", {}, "random weights"),
        ("filter", {}, "random units"),
        ("filter", {"granularity": "weight"}, "random weights"),
        ("weight", {"granularity": "filter"}, "random units"),
    ],
)
def test_what_is_drawn_at_random_is_said(base, own, expected):
    config = {"prune": {"granularity": base, "target": "random"}, "variants": {"a": {"prune": own}}}
    of = lambda stated: attributes_of(config, stated, {"epochs": [], "events": []})  # noqa: E731
    study = SimpleNamespace(attributes=of({}))
    assert words._targeted(study, "a") == expected
    # of a method: it is resolved
    study.attributes = of({"variants": {"a": {"preset": {"granularity": "weight"}}}})
    assert words._targeted(study, "a") == "random weights"
    study.attributes["a"] = {"target": "S", "score": "weight_random"}  # the smallest of dice
    assert words._targeted(study, "a") == "random weights"
