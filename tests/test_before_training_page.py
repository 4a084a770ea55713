"""Pruning before training: figures and words of its page."""

import numpy as np
import pytest

from prunejax import report
from prunejax.configs import before_training
from prunejax.errors import ConfigError
from prunejax.measures.columns import by_variant
from prunejax.report import figures_before
from prunejax.report import words as report_words


def test_a_run_that_has_stopped_stays_in_the_mean():
    rows = [
        {"run": run, "step": str(step), "signal": str(value)}
        for run, curve in (("a", {0: 1, 10: 2, 17: 4}), ("b", {0: 3, 10: 5, 20: 6, 30: 8}))
        for step, value in curve.items()
    ]
    steps, means = figures_before._mean_curve(rows, "signal")
    assert steps == [0, 10, 17, 20, 30]
    assert means == pytest.approx([2, 3.5, (4 + 5.7) / 2, 5, 6])  # b: between 10 and 20


def test_a_run_whose_answers_are_no_numbers_leaves_the_mean():
    rows = [
        {"run": run, "step": str(step), "signal": value}
        for run, curve in (("a", ("1", "2")), ("b", ("3", "nan")))
        for step, value in enumerate(curve)
    ]
    assert figures_before._mean_curve(rows, "signal") == ([0, 1], [2.0, 2.0])
    runs = [{"status": "done", "final_train_accuracy": x} for x in ("nan", "0.5")]
    assert not figures_before._fits(runs)


def test_figures_sort_arms_by_label():
    rows_of = [
        {"run": f"{v}-{s}", "variant": v, "seed": str(s), "status": "done",
         "final_test_accuracy": str(a), "final_train_accuracy": str(t)}
        for v, a, t in (("std=0_1-keep=1", 0.4, 1), ("std=0_1-keep=0_2", 0.5, 1),
                        ("std=0_1-scaled=0_2", 0.6, 1), ("std=0_1-keep=0_01", 0.2, 0.5))
        for s in range(4)
    ]  # fmt: skip

    class Fake:
        good, guides = rows_of, ()
        good_of = property(lambda self: by_variant(self.good))

        def report_option(self, name, default):
            return self.guides if name == "guides" else default

    found = figures_before.arms(Fake())
    assert set(found[0.1]) == {"keep", "scaled"}
    assert sorted(found[0.1]["scaled"]) == [0.2, 1.0]
    drawing = figures_before.before_training(Fake(), None)
    assert "paired by seed [95 %], 4 seeds: start 0.1: " in drawing.alt
    assert "+10.0" in drawing.alt
    assert not figures_before._fits(found[0.1]["keep"][0.01])
    for words in (
        "no mask is better",
        "is better than pruning",
    ):  # .2 gains, and .01 has no control
        assert words not in drawing.alt
    rows_of += [
        {"run": f"{v}-{s}", "variant": v, "seed": str(s), "status": "done",
         "final_test_accuracy": str(a), "final_train_accuracy": "1"}
        for v, a in (("std=0_01-keep=1", 0.64), ("std=0_01-keep=0_5", 0.6),
                     ("std=0_01-keep=0_2", 0.5), ("std=0_01-scaled=0_5", 0.65),
                     ("std=0_01-scaled=0_2", 0.66))
        for s in range(4)
    ]  # fmt: skip
    text = figures_before.before_training(Fake(), None).alt
    # means, and said to be: the intervals are beside them
    assert "at this start of 0.01 no mask is better than dense on average" in text
    assert "scaling the start of 0.01 is better than pruning on average, at every p" in text
    assert "against dense \N{MINUS SIGN}4.0" in text

    def dashed(guides):
        Fake.guides = guides
        drawing = figures_before.before_training(Fake(), None)
        lines = [line for line in drawing.panels[0].axes[0].lines if line.get_color() == "0.6"]
        return [line.get_xdata()[0] for line in lines], "remembered" in drawing.caption

    assert dashed(()) == ([], False)
    assert dashed((0.155, 0.001)) == ([pytest.approx(15.5), pytest.approx(0.1)], True)


def test_guides_are_drawn_only_where_asked_for():
    assert before_training.get_config("synthetic").report.guides == ()
    config = before_training.get_config("synthetic,guides")
    log = np.log(500)
    assert config.report.guides == pytest.approx((log / 40, 1 / (4 * 40 * log)))
    assert before_training.get_config("guides").report.guides[0] == pytest.approx(np.log(264) / 10)
    labels = list(config.variants)
    report.check(config.report, labels)
    config.report.guides = (0.0,)
    with pytest.raises(
        ConfigError, match=r"config.report.guides: 0.0 is no share above 0, up to 1"
    ):
        report.check(config.report, labels)


@pytest.mark.parametrize(
    ("targeted", "words"), [(500, "50 %"), (985, "98 %"), (995, "99.5 %"), (1000, "all")]
)
def test_nearly_all_is_not_all(targeted, words):
    event = {"run": "a-0", "epoch": "-1", "layer": "neurons"}
    event |= {"targeted": str(targeted), "live": str(1000 - targeted)}
    for of in ("the weights of ", ""):  # weights one by one, and units
        found = report_words._rhythm({}, [event], of)
        assert found == [f"{words} of {of}neurons at once", "before training"]
