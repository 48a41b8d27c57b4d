"""Pictures with their captions under them."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import UInt8

from zoo.core.artifacts import Image, grid

PREVIEW = 32
"""Maximum number of images in the picture of the first batch."""

COLUMNS = 8
"""Number of images in each of its rows."""

WIDTH = 112
"""Smallest width in pixels of a picture on the sheet; smaller pictures are enlarged by repeating pixels."""

LINES = 4
"""Lines of text under a picture; what does not fit is left out."""

FONT_SIZE = 11
EMPTY = "(no caption)"


def captioned_grid(images: UInt8[np.ndarray, "n h w c"], captions: Sequence[str], columns: int = 0) -> Image:
    """Returns a grid of images, filled row by row, each with its caption under it; see `captioned`.

    Args:
        images: all of one size.
        captions: one for each image.
        columns: images in a row; 0: as many as make the grid square.
    """
    return grid(captioned(images, captions), columns, gap=4)


def captioned(images: UInt8[np.ndarray, "n h w c"], captions: Sequence[str]) -> UInt8[np.ndarray, "n h2 w2 3"]:
    """Returns images, enlarged, each with its caption under it in black on white.

    Args:
        images: all of one size.
        captions: one for each image; an empty one is shown as such.
    """
    font = PIL.ImageFont.load_default(FONT_SIZE)
    factor = max(1, -(-WIDTH // images.shape[2]))
    cells = images.repeat(factor, 1).repeat(factor, 2)
    if cells.shape[-1] == 1:
        cells = cells.repeat(3, -1)
    wrapped = [_wrap(caption or EMPTY, font, cells.shape[2]) for caption in captions]
    height = (FONT_SIZE + 2) * max(map(len, wrapped)) + 4
    text = np.stack([_written(lines, font, cells.shape[2], height) for lines in wrapped])
    return np.concatenate([cells, text], 1)


def _wrap(caption: str, font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont, width: int) -> list[str]:
    """Breaks a caption into at most `LINES` lines, between words; the last line ends in ... if words are left out."""
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1]} ..."]


def _written(
    lines: Sequence[str], font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont, width: int, height: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns lines of text in black on white, cut at the right edge."""
    label = PIL.Image.new("RGB", (width, height), "white")
    for i, line in enumerate(lines):
        PIL.ImageDraw.Draw(label).text((1, 1 + i * (FONT_SIZE + 2)), line, "black", font)
    return np.array(label)
