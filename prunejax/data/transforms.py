"""Encoded images to arrays of one size on the host, by pillow and NumPy."""

import io
from typing import TYPE_CHECKING

import numpy as np

from prunejax.system import optional

if TYPE_CHECKING:  # only who decodes images needs pillow
    from PIL import Image

BILINEAR = 2  # `PIL.Image.Resampling.BILINEAR`
CROP_AREA = (0.08, 1.0)  # fraction of the image's area
CROP_RATIO = (3 / 4, 4 / 3)  # width / height
RESIZE = 256 / 224  # evaluation: the short side is resized to this times the output size


def _open(encoded: bytes, channels: int) -> "Image.Image":
    image = optional.need("a set of encoded images", "PIL.Image").open(io.BytesIO(encoded))
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # grey, palette, CMYK files


def _pixels(image: "Image.Image") -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """A PNG, JPEG or WebP as uint8 [height, width, channels], grey for 1 channel, RGB for 3.

    Always by pillow: TFDS would take OpenCV where that happens to be installed, which decodes
    JPEG to slightly different pixels.
    """
    return _pixels(_open(encoded, channels))


def crop_box(
    generator: np.random.Generator, width: int, height: int
) -> tuple[float, float, float, float]:
    """A random part of an image: (left, top, right, bottom) in pixels, whole numbers.

    Area uniform in `CROP_AREA` of the image's, log(width / height) uniform in log `CROP_RATIO`,
    place uniform: Szegedy et al. 2015, "Going deeper with convolutions", section 6, in the usual
    form: up to ten draws until one fits, else the largest central part of an allowed ratio.
    """
    for _ in range(10):
        area = width * height * generator.uniform(*CROP_AREA)
        ratio = np.exp(generator.uniform(*np.log(CROP_RATIO)))
        # Either side may come out longer than the image's: then it is drawn again.
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(generator.integers(0, width - w + 1))
            top = int(generator.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * CROP_RATIO[1])))
    h = min(height, max(1, round(width / CROP_RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_resized(
    encoded: bytes, size: int, channels: int, generator: np.random.Generator
) -> np.ndarray:
    """Training view: a random part, resized (antialiased), mirrored with probability 1/2.

    Args:
      encoded: the file's content.
      size: side of the result, in pixels.
      channels: 1 or 3.
      generator: its state decides everything.

    Returns: uint8 [size, size, channels].
    """
    image = _open(encoded, channels)
    box = crop_box(generator, *image.size)
    pixels = _pixels(image.resize((size, size), BILINEAR, box=box))
    return pixels[:, ::-1] if generator.random() < 0.5 else pixels


def central(encoded: bytes, size: int, channels: int) -> np.ndarray:
    """Evaluation view: short side resized to `RESIZE * size`, then the central square cut out.

    Both at once, by resizing the part of the image that the square shows.

    Returns: uint8 [size, size, channels].
    """
    image = _open(encoded, channels)
    width, height = image.size
    side = min(width, height) / RESIZE
    # Not rounded to whole pixels: the resize samples between them.
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return _pixels(image.resize((size, size), BILINEAR, box=box))
