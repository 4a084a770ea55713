"""Counts of the released runs (spec of the paper), formulas, and refusals."""

import doctest
from math import ceil

import jax
import numpy as np
import pytest

from prunejax import schedules


def events(n, f, s, e, r, name="linear"):
    return schedules.SCHEDULES[name](units=n, fraction=f, start=s, end=e, period=r)


def counts(*args, **kw):
    return [k for _, k in events(*args, **kw)]


def test_documented_examples():
    assert doctest.testmod(schedules).failed == 0


def test_vgg11_last_layer_series():
    found = events(512, 0.9, 6, 275, 40)
    assert found == list(
        zip([6, 46, 86, 126, 166, 206, 246], [65, 66, 66, 65, 66, 66, 66], strict=True)
    )
    assert 512 - sum(k for _, k in found) == 52


def test_vgg11_small_layers():
    for start in (3, 4, 5):
        found = events(512, 0.3, start, 150, 40)
        assert [e for e, _ in found] == [start, start + 40, start + 80, start + 120]
        assert set(counts(512, 0.3, start, 150, 40)) <= {38, 39}
        assert 512 - sum(k for _, k in found) == 359
    small = counts(512, 0.3, 3, 150, 4)
    assert len(small) == 37
    assert set(small) <= {4, 5}
    last = counts(512, 0.9, 6, 275, 4)
    assert len(last) == 68
    assert set(last) <= {6, 7}


@pytest.mark.parametrize(
    ("period", "number", "rate"),
    [
        (4, 68, 1.3),
        (20, 14, 6.4),
        (40, 7, 12.9),
        (60, 5, 18),
        (100, 3, 30),
        (200, 2, 45),
        (300, 1, 90),
    ],
)
def test_figure_3_rates(period, number, rate):
    assert len(events(512, 0.9, 6, 275, period)) == number
    assert 100 * 0.9 / number == pytest.approx(rate, abs=0.06)


def test_resnet18_last_layer():
    found = events(512, 0.95, 10, 275, 40)
    assert [e for e, _ in found] == [10, 50, 90, 130, 170, 210, 250]
    assert set(k for _, k in found) <= {69, 70}
    assert 512 - sum(k for _, k in found) == 26


def test_figure_4_defers_the_single_filter_of_narrow_layers():
    assert events(16, 0.1, 40, 100, 30) == [(40, 0), (70, 0), (100, 1)]
    assert events(16, 0.1, 40, 100, 60) == [(40, 0), (100, 1)]


def test_figure_c3_at_most_one_filter_an_epoch():
    for n in (64, 128, 256, 512):
        for f in (0.1, 0.06):
            found = events(n, f, 24, 100, 1)
            assert len(found) == 77
            assert max(k for _, k in found) <= 1
            assert sum(k for _, k in found) == n - ceil(round((1 - f) * n, 9))


def test_table_f1():
    assert events(512, 0.7, 2500, 3500, 750) == [(2500, 179), (3250, 179)]


@pytest.mark.parametrize("name", list(schedules.SCHEDULES))
@pytest.mark.parametrize(("n", "f"), [(1, 0.5), (10, 0.0), (16, 0.1), (513, 0.77), (512, 0.999)])
def test_every_schedule_ends_exactly_and_never_goes_back(name, n, f):
    found = events(n, f, 2, 17, 5, name=name)
    assert all(k >= 0 for _, k in found)
    assert sum(k for _, k in found) == n - schedules.kept(n, f)
    table = schedules.counts(found, 20)
    assert table.shape == (21,)
    assert table.sum() == n - schedules.kept(n, f)


def test_kept_reads_decimals():
    assert [schedules.kept(n, f) for n, f in [(512, 0.3), (512, 0.9), (10, 0.7), (100, 0.07)]] == [
        359,
        52,
        3,
        93,
    ]


PAPER_PAIRS = [  # units and fractions of the pruned layers
    *((units, f) for units in (256, 512) for f in (0.3, 0.9, 0.25, 0.4, 0.7, 0.8, 0.95)),
    *((units, f) for units in (16, 32, 64, 128, 256, 512) for f in (0.06, 0.1)),
]


@pytest.mark.parametrize(
    ("pairs", "number", "differ"),
    [
        ([(n, i / 100) for n in range(1, 101) for i in range(1, 100)], 9900, 57),
        ([(n, i / 10) for n in range(5, 1046, 5) for i in range(1, 10)], 1881, 104),
        (PAPER_PAIRS, len(PAPER_PAIRS), 0),
    ],
    ids=["percents", "tenths", "paper"],
)
def test_the_release_keeps_one_more_where_binary_fractions_round_up(pairs, number, differ):
    more = [ceil((1 - f) * n) - schedules.kept(n, f) for n, f in pairs]
    assert (len(pairs), sum(more)) == (number, differ)
    assert set(more) <= {0, 1}


def test_cubic_follows_zhu_and_gupta():
    found = np.cumsum(counts(10_000, 0.8, 0, 99, 1, name="cubic")) / 10_000
    i = np.arange(1, 101) / 100
    np.testing.assert_allclose(found, 0.8 * (1 - (1 - i) ** 3), atol=1e-4)


def test_rows_of_counts():
    assert schedules.counts([(-1, 2), (0, 3), (4, 1)], 5).tolist() == [2, 3, 0, 0, 0, 1]
    with pytest.raises(ValueError, match="training ends after epoch 4"):
        schedules.counts([(5, 1)], 5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((10, 1.1, 0, 5, 1), r"1\.1 is not in \[0, 1\]"),
        ((10, -0.1, 0, 5, 1), "-0.1"),
        ((10, 0.5, 0, 5, 0), "period 0"),
        ((10, 0.5, 6, 5, 1), "end 5 is before start 6"),
        ((10, 0.5, -2, 5, 1), "start -2"),
        ((0, 0.5, 0, 5, 1), "units 0"),
    ],
)
def test_bad_requests(args, message):
    with pytest.raises(ValueError, match=message):
        events(*args)
    with pytest.raises(ValueError, match="geometric"):
        events(10, 1.0, 0, 5, 1, name="geometric")


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_counts_and_epochs_are_integers(name):
    good = {"units": 10, "fraction": 0.5, "start": 0, "end": 4, "period": 2}
    with pytest.raises(ValueError, match=r"units 2\.5 is no integer"):
        schedules.SCHEDULES[name](**good | {"units": 2.5})
    with pytest.raises(ValueError, match="'x' is no number"):
        schedules.SCHEDULES[name](**good | {"fraction": "x"})


def test_an_event_long_before_training_is_refused():
    with pytest.raises(ValueError, match="epoch -5"):
        schedules.counts([(-5, 1)], 3)


@pytest.mark.parametrize(
    "fraction", [True, np.bool_(0), np.complex64(0.5), np.ones(2), None, "0.5"]
)
def test_what_is_no_fraction_is_told_in_a_line(fraction):
    with pytest.raises(ValueError, match=r"is no number in \[0, 1\] that is known here"):
        schedules.kept(10, fraction)


def test_a_traced_fraction_is_told_in_a_line():
    with pytest.raises(ValueError, match="made of it on the host, outside of jit") as error:
        jax.jit(lambda f: schedules.kept(10, f))(0.5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [1.5, -1, 2**31, "2"])
def test_counts_of_events_are_counts(count):
    with pytest.raises(ValueError, match="a count is an integer of at least 0"):
        schedules.counts([(0, count)], 3)
    with pytest.raises(ValueError, match="do not fit into 32 bits"):
        schedules.counts([(0, 2**30)] * 2, 3)
