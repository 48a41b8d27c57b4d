"""Conversion between uint8 images and network inputs: floats from -1 to 1, with or without noise, or binary pixels."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from zoo.core.random import row_keys, uniform

HELD_OUT_NOISE = 2014
"""Seed of the noise of held-out images, the same for all families."""


def from_pixels(image: UInt8[Array, "b h w c"] | Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Maps 0 .. 255 to -1 .. 1; latents, which are floats, stay as they are."""
    if jnp.issubdtype(image.dtype, jnp.floating):
        return image
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(x: Float[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """Maps -1 .. 1 to the nearest integer in 0 .. 255; values outside are clipped."""
    return jnp.clip(jnp.round((x + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)


def dequantise(
    image: UInt8[Array, "b h w c"] | Float[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Spreads level k uniformly over the numbers that `to_pixels` rounds to it: (k + u - 1/2) / 127.5 - 1, u in [0, 1).

    The density of the result bounds the probability of the pixels (Theis et al. 2016, "A note on the evaluation of
    generative models", section 3.1). Latents, which are floats, stay as they are.
    """
    if jnp.issubdtype(image.dtype, jnp.floating):
        return image
    return from_pixels(image) + (uniform(key, rows, image.shape[1:]) - 0.5) / 127.5


def binarise(image: UInt8[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"]) -> Float[Array, "b h w c"]:
    """Draws binary pixels: 1 with probability k / 255, exact to 2^-17; 0 and 255 never change.

    Uses 16 random bits per pixel, half as many as a uniform float: P(bits < t) = t / 65536, t = round(65536 k / 255).
    """
    bits = jax.vmap(lambda row_key: jax.random.bits(row_key, image.shape[1:], jnp.uint16))(row_keys(key, rows))
    level = image.astype(jnp.int32)
    return (bits.astype(jnp.int32) < 257 * level + (level >= 128)).astype(jnp.float32)


def observe(
    image: UInt8[Array, "b h w c"],
    pixels: Literal["binary", "noisy", "levels"],
    key: Key[Array, ""],
    rows: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """Returns the x that a model with a likelihood of pixels sees, in [-1, 1].

    Args:
        image: levels 0 .. 255.
        pixels: binary: black or white, drawn by `binarise`; noisy: levels plus uniform noise, so that a density bounds
            their probability; levels: the levels themselves.
        key: of the noise.
        rows: each row's index.
    """
    if pixels == "binary":
        return 2.0 * binarise(image, key, rows) - 1.0
    if pixels == "noisy":
        return (image + uniform(key, rows, image.shape[1:])) / 128.0 - 1.0
    return from_pixels(image)
