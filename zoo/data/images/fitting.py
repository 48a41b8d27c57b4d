"""The conversion of images to one size and number of channels."""

import logging
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import PIL.Image
import PIL.ImageColor
import PIL.ImageOps
from jaxtyping import UInt8

from zoo.core.errors import UserError

log = logging.getLogger("zoo")

LARGE = 16_000_000
"""Images with more pixels are decoded one at a time."""

_one_large = threading.Lock()

HALVED = 4
"""A factor of image sizes that suits all configs, whose networks halve images at least twice."""


@dataclass(frozen=True)
class Fitting:
    """Converts images to one size and number of channels.

    Attributes:
        size: (height, width), or None to keep each image's own.
        fit: "crop" covers the size and crops the excess at both ends; it averages blocks of pixels if the scale is a
            whole number, and uses Lanczos resampling otherwise. "pad" never enlarges, and pads with the background.
            "auto" pads images smaller than the size, and crops the rest.
        channels: 1 for grey, 3 for colour, 0 for the image's own.
        background: the colour behind transparent pixels and around padded images.
        mixed: (height, width) for images of different sizes, if `size` is None; "auto": chosen from theirs; None:
            images of different sizes are rejected.
    """

    size: tuple[int, int] | None = None
    fit: Literal["auto", "crop", "pad"] = "crop"
    channels: int = 0
    background: tuple[int, int, int] = (255, 255, 255)
    mixed: tuple[int, int] | Literal["auto"] | None = None

    def settled(self, sizes: Sequence[tuple[int, int]], name: str) -> "Fitting":
        """Returns the settings with a size, if one may be chosen and is needed; the log names it.

        It is needed if sizes differ, or if a side of their one size cannot be halved twice, as networks do.

        Args:
            sizes: (height, width) of each image.
            name: name of the source.
        """
        alike = len(set(sizes)) < 2
        if (
            self.size is not None
            or self.mixed is None
            or (alike and not any(n % HALVED for n in min(sizes, default=())))
        ):
            return self
        size = choose_size(sizes) if self.mixed == "auto" else self.mixed
        smallest, largest = (pick(sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
        kinds = "{1}x{0}".format(*smallest)
        kinds = kinds if alike else f"of different sizes, from {kinds} to {'{1}x{0}'.format(*largest)},"
        log.info("pictures in %s are %s and are brought to %dx%d; --data.size gives another", name, kinds, *size[::-1])
        return replace(self, size=size)

    def pads(self, height: int, width: int) -> bool:
        """Returns whether an image of that size is padded to `size` rather than cropped."""
        smaller = self.size is not None and (height < self.size[0] or width < self.size[1])
        return self.fit == "pad" or (self.fit == "auto" and smaller)

    def __call__(self, image: PIL.Image.Image) -> UInt8[np.ndarray, "h w c"]:
        """Returns the pixels of an opened image, with its EXIF orientation applied."""
        if self.size is not None and not self.pads(image.height, image.width):
            # decodes a JPEG at reduced resolution if that is enough
            image.draft(None, (2 * self.size[1], 2 * self.size[0]))
        with _one_large if image.width * image.height > LARGE else nullcontext():
            return self._place(self._opaque(PIL.ImageOps.exif_transpose(image)))

    def array(self, pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h2 w2 c2"]:
        """Does the same for an array: grey or colour, with or without an alpha channel."""
        return self(PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))

    def _opaque(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """Converts to mode L or RGB without transparency; 16-bit grey is scaled to 8 bits."""
        if image.mode.startswith("I") or image.mode == "F":
            deep = np.clip(np.asarray(image, np.float32), 0, 65535)
            image = PIL.Image.fromarray(np.round(deep / 257).astype(np.uint8))
        is_grey = image.mode in ("1", "L", "LA", "La")
        if image.has_transparency_data:
            behind = PIL.Image.new("RGBA", image.size, self.background)
            image = PIL.Image.alpha_composite(behind, image.convert("RGBA"))
            is_grey = is_grey and len(set(self.background)) == 1
        return image.convert("L" if self.channels == 1 or (is_grey and self.channels == 0) else "RGB")

    def _place(self, image: PIL.Image.Image) -> UInt8[np.ndarray, "h w c"]:
        if self.size is not None and image.size != self.size[::-1]:
            height, width = self.size
            if not self.pads(image.height, image.width):
                share = min(image.width / width, image.height / height)
                cut = (max(1, round(width * share)), max(1, round(height * share)))
                left, top = (image.width - cut[0]) // 2, (image.height - cut[1]) // 2
                window = (left, top, left + cut[0], top + cut[1])
                if share.is_integer():
                    image = image.reduce(int(share), window)
                else:
                    image = image.resize((width, height), PIL.Image.Resampling.LANCZOS, window)
            else:
                share = min(1.0, width / image.width, height / image.height)
                within = (max(1, round(image.width * share)), max(1, round(image.height * share)))
                if share < 1:
                    image = image.resize(within, PIL.Image.Resampling.LANCZOS)
                padded = PIL.Image.new("RGB", (width, height), self.background).convert(image.mode)
                padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
                image = padded
        pixels = np.array(image)
        return pixels[..., None] if pixels.ndim == 2 else pixels


def choose_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Returns a square size for images of different sizes: 64, 32 or 16, at most the median shorter side; else 8."""
    median = sorted(map(min, sizes))[len(sizes) // 2]
    side = next((side for side in (64, 32, 16) if side <= median), 8)
    return side, side


def colour(name: str) -> tuple[int, int, int]:
    """Returns red, green and blue of a colour name or `#rrggbb`.

    Raises:
        UserError: it is not a colour.
    """
    try:
        red, green, blue, *_ = PIL.ImageColor.getrgb(name)
    except ValueError:
        raise UserError(f"{name!r} is no colour: give a name such as black, or #rrggbb") from None
    return red, green, blue
