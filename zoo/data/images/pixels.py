"""Conversion between uint8 images and network inputs: floats from -1 to 1, or random binary pixels, 0 and 1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from zoo.core.random import row_keys

HELD_OUT_NOISE = 2014
"""Seed of the noise of held-out images, the same for all families."""


def from_pixels(image: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Maps 0 .. 255 to -1 .. 1."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(x: Float[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """Maps -1 .. 1 to the nearest integer in 0 .. 255; values outside are clipped."""
    return jnp.clip(jnp.round((x + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)


def binarise(image: UInt8[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"]) -> Float[Array, "b h w c"]:
    """Draws binary pixels: 1 with probability k / 255, exact to 2^-17; 0 and 255 never change.

    Uses 16 random bits per pixel, half as many as a uniform float: P(bits < t) = t / 65536, t = round(65536 k / 255).
    """
    bits = jax.vmap(lambda row_key: jax.random.bits(row_key, image.shape[1:], jnp.uint16))(row_keys(key, rows))
    level = image.astype(jnp.int32)
    return (bits.astype(jnp.int32) < 257 * level + (level >= 128)).astype(jnp.float32)
