"""Group normalisation of images [b h w c] (Wu and He 2018), with the activation that follows it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from zoo.nn.arithmetic import identity
from zoo.nn.cpu import group_norm as cpu
from zoo.nn.platform import by_platform


@by_platform(cpu=cpu.group_norm)
def group_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    groups: int,
    epsilon: float,
    activation: Callable[[jax.Array], jax.Array],
) -> Float[Array, "b h w c"]:
    """activation((x - mean) / sqrt(variance + epsilon) * scale + bias), in float32; returns the dtype of x.

    Moments are over all positions and the channels of a group.
    """
    parts = rearrange(x.astype(jnp.float32), "b h w (g d) -> b h w g d", g=groups)
    centred = parts - parts.mean((1, 2, 4), keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(centred).mean((1, 2, 4), keepdims=True) + epsilon)
    x_hat = rearrange(centred * inverse, "b h w g d -> b h w (g d)")
    scale, bias = (v.astype(jnp.float32)[None, None, None, :] for v in (scale, bias))
    return activation(x_hat * scale + bias).astype(x.dtype)


class GroupNorm(nnx.Module):
    """activation((x - mean) / sqrt(variance + epsilon) * scale + bias), with moments per image and group of channels.

    Args:
        channels: channels of the input.
        groups: number of groups, a divisor of `channels`.
        epsilon: added to the variance.
        activation: applied to the normalised output.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        epsilon: float = 1e-5,
        activation: Callable[[jax.Array], jax.Array] = identity,
    ):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.groups, self.epsilon, self.activation = groups, epsilon, activation

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalises each image independently; moments are float32."""
        return group_norm(x, self.scale[...], self.bias[...], self.groups, self.epsilon, self.activation)
