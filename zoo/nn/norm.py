"""Layer normalisation (Ba et al. 2016) and root-mean-square normalisation (Zhang and Sennrich 2019).

Both normalise the last axis in float32 and return the dtype of x.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.nn.arithmetic import add_vector
from zoo.nn.cpu import norm as cpu
from zoo.nn.platform import by_platform


@by_platform(cpu=cpu.layer_norm)
def layer_norm(x: Float[Array, "b t d"], scale: Float[Array, " d"], epsilon: float) -> Float[Array, "b t d"]:
    """(x - mean) / sqrt(variance + epsilon) * scale."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    return _divided_by_root_mean_square(centred, scale, epsilon).astype(x.dtype)


@by_platform(cpu=cpu.rms_norm)
def rms_norm(x: Float[Array, "b t d"], scale: Float[Array, " d"], epsilon: float) -> Float[Array, "b t d"]:
    """x / sqrt(mean(x^2) + epsilon) * scale."""
    return _divided_by_root_mean_square(x.astype(jnp.float32), scale, epsilon).astype(x.dtype)


def _divided_by_root_mean_square(x, scale, epsilon):
    inverse = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
    return x * inverse * scale.astype(jnp.float32)[None, None, :]


class LayerNorm(nnx.Module):
    """Normalises the last axis to mean 0 and variance 1, then applies a learned scale and an optional bias."""

    def __init__(self, features: int, *, epsilon: float, bias: bool):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features)) if bias else None
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Normalises every position."""
        y = layer_norm(x, self.scale[...], self.epsilon)
        return y if self.bias is None else add_vector(y, self.bias[...])


class RMSNorm(nnx.Module):
    """Normalises the last axis to mean square 1, then applies a learned scale."""

    def __init__(self, features: int, *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(features))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Normalises every position."""
        return rms_norm(x, self.scale[...], self.epsilon)
