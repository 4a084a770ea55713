"""The page of all fields is what the declarations say, and they say all."""

from pathlib import Path

import pytest

from prunejax.configs import default
from prunejax.study.settings import ranges
from tests import reference

PAGE = Path(__file__).resolve().parents[1] / "docs" / "config.md"
FIELDS = {field.name: field for field in reference.fields()}
CHOICES, RANGES, ENTRIES = ranges.choices(), ranges.bounds(), ranges.entries()


def test_the_page_is_up_to_date():
    again = "run: python -m tests.reference > docs/config.md"
    assert PAGE.read_text() == reference.page(), again


def test_what_is_declared_elsewhere_is_a_field():
    assert sorted(({*CHOICES, *RANGES, *ENTRIES}) - set(FIELDS)) == []


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_says_what_may_be(name):
    """Numbers have bounds and a unit, tuples a kind of entries; defaults keep to them."""
    field = FIELDS[name]
    assert field.meaning
    value = field.default
    if isinstance(value, bool):
        assert field.allowed == "True, False"
    elif isinstance(value, (int, float)):
        low, high, unit = RANGES[name]
        assert unit
        assert low is None or value >= low
        assert high is None or value <= high
    elif isinstance(value, tuple):
        assert ENTRIES[name][1] in field.allowed
    elif name in CHOICES:
        assert value in CHOICES[name]


def test_fields_by_hand():
    period = FIELDS["prune.period"]
    assert period.default == 1
    assert period.allowed == "at least 1 (epochs)"
    assert period.meaning == 'epochs between events ("retrain period")'
    assert FIELDS["data.label_noise"].allowed == "0 to 1 (fraction)"
    assert FIELDS["prune.target"].allowed == "smallest, random, largest"
    assert FIELDS["model.dtype"].meaning.startswith("of activations")
    assert FIELDS["data.imbalance"].meaning.startswith("r >= 1: the most frequent class")
    row = [line for line in reference.page().splitlines() if line.startswith("| `prune.period`")]
    assert row == [f"| `prune.period` | `1` | at least 1 (epochs) | {period.meaning} |"]


def test_a_field_without_meaning_is_refused(monkeypatch):
    said = reference._meanings()
    monkeypatch.setattr(reference, "_meanings", lambda: said | {"epochs": ""})
    with pytest.raises(ValueError, match=r"config\.epochs has no meaning; write a comment"):
        reference.fields()
    assert set(said) == set(FIELDS)
    assert default.get_config().epochs == FIELDS["epochs"].default
