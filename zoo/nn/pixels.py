"""Images as data sets hold them, uint8, and as networks take them, floats from -1 to 1."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def from_pixels(image: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """0 .. 255 to -1 .. 1."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(x: Float[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """-1 .. 1 to the nearest of 0 .. 255; what lies outside is clipped."""
    return jnp.clip(jnp.round((x + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)
