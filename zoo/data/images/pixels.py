"""Images as data sets hold them, uint8, and as networks take them, floats from -1 to 1 or drawn as 0 and 1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from zoo.core.random import row_keys


def from_pixels(image: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """0 .. 255 to -1 .. 1."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(x: Float[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """-1 .. 1 to the nearest of 0 .. 255; what lies outside is clipped."""
    return jnp.clip(jnp.round((x + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)


def binarise(image: UInt8[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"]) -> Float[Array, "b h w c"]:
    """Pixels that are 1 with probability k / 255 and 0 otherwise, exact to 2^-17; 0 and 255 never change.

    Sixteen bits a pixel, half of what a uniform float takes: P(bits < t) = t / 65536, with t nearest to 65536 k / 255.
    """
    bits = jax.vmap(lambda row_key: jax.random.bits(row_key, image.shape[1:], jnp.uint16))(row_keys(key, rows))
    level = image.astype(jnp.int32)
    return (bits.astype(jnp.int32) < 257 * level + (level >= 128)).astype(jnp.float32)
