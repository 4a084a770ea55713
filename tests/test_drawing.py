"""Figures drawn by several processes: the bytes of one."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from prunejax.report import drawing, png, style
from prunejax.report.figures import Drawing


def drawn(panels=(1, 1)):
    """Figures "b", "a", ... of so many panels each."""
    figures = {}
    for name, count in zip("bac", panels, strict=False):
        made = []
        for scale in range(count):
            figure, axes = style.panel()
            axes.plot([0, 1], [2, 10 ** (4 + scale)], label=name)
            made.append(figure)
        figures[name] = Drawing(made, name, "", "")
    return figures


def draw(processes, meanwhile=lambda: None, **options):
    figures = drawn(**options)
    return drawing.draw(figures.get, [*figures, "none"], processes, meanwhile)


def alone(**options):
    with style.context():
        return draw(1, **options)


def test_a_sheet_has_the_pixels_of_its_pictures():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 40, 30, 4), np.uint8)
    sheet = png.Sheet(60, 50)
    sheet.paste(first, 5, 0)
    sheet.paste(second, 30, 25)  # beyond both edges
    expected = np.full((60, 50, 3), 255, np.uint8)
    expected[5:45, :30] = first[..., :3]
    expected[30:, 25:] = second[:30, :25, :3]
    with Image.open(io.BytesIO(sheet.png())) as image:
        image.verify()  # checksums
    image = Image.open(io.BytesIO(sheet.png()))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), expected)
    blank = png.Sheet(600, 1000).png()
    assert len(blank) < 10_000


def test_forked_processes_draw_the_same_bytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    assert drawing.workers(9) == 1  # its threads hold locks: no fork beside them
    monkeypatch.delitem(sys.modules, "jax")
    assert 1 <= drawing.workers(2) <= 2
    times = []
    with style.context():
        beside = draw(2, lambda: times.append(1))
    assert alone(meanwhile=lambda: times.append(1)) == beside
    assert len(times) == 2
    assert list(beside) == ["b", "a", "none"]
    assert beside["none"] is None
    here, render = os.getpid(), style.render
    monkeypatch.setattr(
        style, "render", lambda *a: render(*a) if os.getpid() == here else os._exit(9)
    )
    with style.context():
        assert draw(2, lambda: times.append(1)) == beside  # killed, as for want of memory
    assert len(times) == 3


def test_what_is_raised_beside_the_drawing_is_raised():
    def fails():
        raise KeyError("words")

    for processes in (1, 2):
        with style.context(), pytest.raises(KeyError, match="words"):
            draw(processes, fails)
