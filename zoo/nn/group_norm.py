"""Group normalisation of images [b h w c] (Wu and He 2018)."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float


class GroupNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, mean and variance over all places and a group of channels.

    Args:
        channels: of the input.
        groups: how many; a divisor of `channels`.
        epsilon: added to the variance.
    """

    def __init__(self, channels: int, groups: int, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalises each picture by itself; moments are float32."""
        grouped = rearrange(x.astype(jnp.float32), "b h w (g d) -> b h w g d", g=self.groups)
        mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
        variance = jnp.square(grouped - mean).mean(axis=(1, 2, 4), keepdims=True)
        normal = rearrange((grouped - mean) * jax.lax.rsqrt(variance + self.epsilon), "b h w g d -> b h w (g d)")
        scale, bias = (p[...].astype(jnp.float32)[None, None, None, :] for p in (self.scale, self.bias))
        return (normal * scale + bias).astype(x.dtype)
