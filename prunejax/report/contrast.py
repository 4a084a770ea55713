"""Colours of text that can be read: a contrast of at least 4.5:1, as WCAG 2.2 (1.4.3) asks."""

from typing import Any

import numpy as np
from matplotlib.colors import to_hex, to_rgb, to_rgba

LEAST = 4.5


def luminance(color: Any) -> float:
    """Relative luminance of WCAG 2.2: 0 black, 1 white, which shows through what has an alpha."""
    *rgb, alpha = to_rgba(color)
    v = 1 - alpha * (1 - np.array(rgb))
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def on_white(color: Any) -> str:
    """The colour, darkened as far as text on white needs it."""
    rgb = np.array(to_rgb(color))
    while 1.05 / (luminance(rgb) + 0.05) < LEAST:
        rgb *= 0.98
    return to_hex((rgb[0], rgb[1], rgb[2]))


def upon(color: Any) -> str:
    """Black or white, whichever stands out more upon a colour: at least 4.58:1."""
    bright = luminance(color) + 0.05
    return "black" if bright / 0.05 > 1.05 / bright else "white"
