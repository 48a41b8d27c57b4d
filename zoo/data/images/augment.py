"""Random augmentation of training images, row by row, on the device, within the compiled training step.

`Augment` holds a data set's settings. `diff_augment` is for GANs, whose discriminator sees real and generated images
through it; it is differentiable (Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training",
arXiv:2006.10738). Row r of the global batch draws from `fold_in(key, r)`.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Le
from einops import reduce
from jaxtyping import Array, Float, Int, Key, UInt8

from zoo.core import random
from zoo.core.bounds import Why
from zoo.core.errors import UserError, require

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


@dataclass(frozen=True)
class Augment:
    """Random augmentation of training images, redrawn at every step; held-out images are unchanged.

    Areas exposed by a shift or a rotation are filled with the border's pixels.
    """

    flip: Annotated[float, Ge(0), Le(1)] = 0.0
    """Probability of a left-right flip; 0.5 is usual. Not for images with a reading direction, such as digits."""
    rotation: Annotated[float, Ge(0), Le(180), Why("degrees")] = 0.0
    """Largest rotation in degrees, in either direction."""
    shift: Annotated[int, Ge(0), Why("pixels")] = 0
    """Largest shift in whole pixels, in each direction."""
    crop: Annotated[float, Gt(0), Le(1)] = 1.0
    """Smallest share of each side that a random crop keeps before it is resized to the full size; 1: no crop."""
    brightness: Annotated[float, Ge(0), Le(1)] = 0.0
    """Intensities are multiplied by a factor from 1 - brightness to 1 + brightness."""
    contrast: Annotated[float, Ge(0), Le(1)] = 0.0
    """Distances from the image's mean grey are multiplied by a factor from 1 - contrast to 1 + contrast."""
    saturation: Annotated[float, Ge(0), Le(1)] = 0.0
    """Distances from each pixel's grey are multiplied by a factor from 1 - saturation to 1 + saturation."""
    hue: Annotated[float, Ge(0), Le(180), Why("degrees")] = 0.0
    """Largest rotation of hues in degrees, in either direction; 180 reaches every hue."""

    def __post_init__(self) -> None:
        require(self, "data.augment.")

    def check(self, height: int, width: int, channels: int) -> None:
        """Rejects settings that do not fit the images.

        Raises:
            UserError: the shift is as large as a side, or a colour setting is used on grey images.
        """
        if self.shift >= min(height, width):
            raise UserError(f"--data.augment.shift {self.shift} moves images of {width}x{height} pixels out of sight")
        for name in ("saturation", "hue"):
            if channels == 1 and getattr(self, name):
                raise UserError(f"--data.augment.{name} {getattr(self, name)} changes colours, and the images are grey")

    def apply(
        self, image: UInt8[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"]
    ) -> UInt8[Array, "b h w c"]:
        """Augments each image with its own random draws. Traced; changes that are off cost nothing."""
        if self == NO_AUGMENTATION:
            return image
        x = image.astype(jnp.float32) / 255.0
        flip_key, rotation_key, shift_key, crop_key, colour_key = random.split(key, 5)
        if self.flip:
            x = flip(x, random.uniform(flip_key, rows) < self.flip)
        if self.rotation:
            x = rotate(x, math.radians(self.rotation) * _signed(rotation_key, rows))
        if self.crop < 1:
            x = crop(x, *self._crops(crop_key, rows))
        if self.shift:
            most = (self.shift, self.shift)
            x = shift(x, _whole(shift_key, rows, most), most)
        x = self._jitter(x, colour_key, rows)
        return jnp.clip(jnp.round(x * 255.0), 0.0, 255.0).astype(jnp.uint8)

    def _crops(self, key: Key[Array, ""], rows: Int[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, "b 2"]]:
        u = random.uniform(key, rows, (3,))
        return self.crop + (1 - self.crop) * u[:, 0], u[:, 1:]

    def _jitter(
        self, x: Float[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        by_brightness, by_contrast, by_saturation, by_hue = random.split(key, 4)
        if self.brightness:
            x = jnp.clip(x * _each(1 + self.brightness * _signed(by_brightness, rows)), 0.0, 1.0)
        if self.contrast:
            mean = reduce(grey(x), "b h w c -> b 1 1 c", "mean")
            x = jnp.clip(mean + (x - mean) * _each(1 + self.contrast * _signed(by_contrast, rows)), 0.0, 1.0)
        if self.saturation:
            x = jnp.clip(grey(x) + (x - grey(x)) * _each(1 + self.saturation * _signed(by_saturation, rows)), 0.0, 1.0)
        if self.hue:
            x = jnp.clip(turn_hue(x, math.radians(self.hue) * _signed(by_hue, rows)), 0.0, 1.0)
        return x


NO_AUGMENTATION = Augment()


def diff_augment(x: Float[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"]) -> Float[Array, "b h w c"]:
    """DiffAugment with the paper's policy "color,translation,cutout", for images from -1 to 1; differentiable in x.

    Brightness is shifted by up to 0.5, saturation is scaled by 0 to 2 and contrast by 0.5 to 1.5; images are translated
    by up to 1/8 of their size with zero padding; a randomly placed window of half of each side is set to zero.
    """
    size = np.array(x.shape[1:3])
    by_brightness, by_saturation, by_contrast, by_translation, by_cutout = random.split(key, 5)
    x = x + _each(random.uniform(by_brightness, rows) - 0.5)
    mean = reduce(x, "b h w c -> b h w 1", "mean")
    x = mean + (x - mean) * _each(2 * random.uniform(by_saturation, rows))
    mean = reduce(x, "b h w c -> b 1 1 1", "mean")
    x = mean + (x - mean) * _each(0.5 + random.uniform(by_contrast, rows))

    most = (int(x.shape[1] / 8 + 0.5), int(x.shape[2] / 8 + 0.5))
    x = shift(x, _whole(by_translation, rows, most), most, fill_with_zeros=True)

    hole = np.floor(size / 2 + 0.5).astype(int)
    begin = jnp.floor(random.uniform(by_cutout, rows, (2,)) * (size + 1 - hole % 2)[None, :]) - (hole // 2)[None, :]
    inside_h, inside_w = (
        (np.arange(size[axis])[None, :] >= begin[:, axis, None])
        & (np.arange(size[axis])[None, :] < begin[:, axis, None] + hole[axis])
        for axis in range(2)
    )
    return jnp.where((inside_h[:, :, None] & inside_w[:, None, :])[..., None], 0.0, x)


def flip(x: Float[Array, "b h w c"], which: Float[Array, " b"] | Array) -> Float[Array, "b h w c"]:
    """Flips images left to right where `which` is true."""
    return jnp.where(which[:, None, None, None], x[:, :, ::-1], x)


def shift(
    x: Float[Array, "b h w c"], by: Int[Array, "b 2"], most: tuple[int, int], fill_with_zeros: bool = False
) -> Float[Array, "b h w c"]:
    """Moves each image down and to the right by `by` whole pixels, each from -`most` to `most`."""
    down, right = most
    padded = jnp.pad(x, ((0, 0), (down, down), (right, right), (0, 0)), mode="constant" if fill_with_zeros else "edge")

    def window(image: Float[Array, "h2 w2 c"], by: Int[Array, " 2"]) -> Float[Array, "h w c"]:
        return jax.lax.dynamic_slice(image, (down - by[0], right - by[1], 0), x.shape[1:])

    return jax.vmap(window)(padded, by)


def crop(x: Float[Array, "b h w c"], share: Float[Array, " b"], place: Float[Array, "b 2"]) -> Float[Array, "b h w c"]:
    """Crops a window of `share` of each side and resizes it to the full size, bilinearly.

    `place` is the window's position: (0, 0) is the upper left, (1, 1) the lower right.
    """

    def positions(size: int, place: Float[Array, " b"]) -> Float[Array, "b s"]:
        begin = place * (1 - share) * size
        centres = begin[:, None] + share[:, None] * (np.arange(size) + 0.5)[None, :]
        return jnp.clip(centres - 0.5, 0.0, size - 1.0)

    return _sample_along_axes(x, positions(x.shape[1], place[:, 0]), positions(x.shape[2], place[:, 1]))


def rotate(x: Float[Array, "b h w c"], angle: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Rotates each image about its centre by `angle` radians, anticlockwise, bilinearly."""
    height, width = x.shape[1:3]
    v = (np.arange(height, dtype=np.float32) - (height - 1) / 2)[:, None]
    u = (np.arange(width, dtype=np.float32) - (width - 1) / 2)[None, :]

    def turn(image: Float[Array, "h w c"], angle: Float[Array, ""]) -> Float[Array, "h w c"]:
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        at_h = v * cos + u * sin + (height - 1) / 2
        at_w = u * cos - v * sin + (width - 1) / 2
        sample = jax.scipy.ndimage.map_coordinates
        return jax.vmap(lambda plane: sample(plane, [at_h, at_w], order=1, mode="nearest"), -1, -1)(image)

    return jax.vmap(turn)(x, angle)


def grey(x: Float[Array, "b h w c"]) -> Float[Array, "b h w 1"]:
    """Returns the luma of each pixel."""
    return x if x.shape[-1] == 1 else jnp.sum(x * LUMA[None, None, None, :], axis=-1, keepdims=True)


def turn_hue(x: Float[Array, "b h w 3"], angle: Float[Array, " b"]) -> Float[Array, "b h w 3"]:
    """Rotates the colours of each image by `angle` radians about the grey axis; luma is unchanged.

    The rotation is in the I-Q plane of the YIQ colour space.
    """
    to_yiq = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32)
    cos, sin, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
    turn = jnp.stack([zero + 1, zero, zero, zero, cos, -sin, zero, sin, cos], -1).reshape(-1, 3, 3)
    matrix = jnp.einsum("ij,bjk,kl->bil", np.linalg.inv(to_yiq), turn, to_yiq, precision="highest")
    return jnp.einsum("bij,bhwj->bhwi", matrix, x, precision="highest")


def _sample_along_axes(
    x: Float[Array, "b h w c"], at_h: Float[Array, "b h"], at_w: Float[Array, "b w"]
) -> Float[Array, "b h w c"]:
    """Returns bilinear samples at the grid of `at_h` and `at_w`; zero beyond the border.

    Each axis is a product with a matrix that has two nonzero entries per row.
    """

    def weights(at: Float[Array, "b s"]) -> Float[Array, "b s s"]:
        return jnp.maximum(0.0, 1.0 - jnp.abs(at[:, :, None] - np.arange(at.shape[1])[None, None, :]))

    x = jnp.einsum("bij,bjwc->biwc", weights(at_h), x, precision="highest")
    return jnp.einsum("bij,bhjc->bhic", weights(at_w), x, precision="highest")


def _each(factor: Float[Array, " b"]) -> Float[Array, "b 1 1 1"]:
    return factor[:, None, None, None]


def _signed(key: Key[Array, ""], rows: Int[Array, " b"]) -> Float[Array, " b"]:
    """Draws uniformly from [-1, 1)."""
    return 2 * random.uniform(key, rows) - 1


def _whole(key: Key[Array, ""], rows: Int[Array, " b"], most: tuple[int, int]) -> Int[Array, "b 2"]:
    """Draws pairs of integers from -most to most."""
    bound = np.array(most)
    return jnp.floor(random.uniform(key, rows, (2,)) * (2 * bound + 1)[None, :]).astype(jnp.int32) - bound[None, :]
