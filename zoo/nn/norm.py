"""Layer normalisation (Ba et al. 2016) and root-mean-square normalisation (Zhang and Sennrich 2019)."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.nn.dense import add_vector, late


def _moments(x, epsilon, centred):
    """The mean to take off, or None, and the reciprocal of the deviation, [b t 1] each."""
    mean = x.mean(-1, keepdims=True) if centred else 0.0
    return mean, jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + epsilon)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def normalise(
    x: Float[Array, "b t d"], scale: Float[Array, " d"], epsilon: float, centred: bool
) -> Float[Array, "b t d"]:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale over the last axis, in float32; mean is 0 if not centred.

    For gradients it remembers x and its moments alone. With y the normalised x and g the gradient times scale,
    dx = (g - mean(g) - y mean(g y)) / deviation, where mean(g) is left out if not centred.
    """
    return _forward(x, scale, epsilon, centred)[0]


def _forward(x, scale, epsilon, centred):
    wide = x.astype(jnp.float32)
    mean, inverse = _moments(wide, epsilon, centred)
    y = (wide - mean) * inverse * scale.astype(jnp.float32)[None, None, :]
    return y.astype(x.dtype), (x, scale, mean, inverse)


def _backward(epsilon, centred, saved, gradient):
    x, scale, mean, inverse = saved
    y = (late(x, gradient).astype(jnp.float32) - mean) * inverse
    wide = gradient.astype(jnp.float32)
    g = wide * scale.astype(jnp.float32)[None, None, :]
    along = (g * y).mean(-1, keepdims=True)
    shift = g.mean(-1, keepdims=True) if centred else 0.0
    x_gradient = (g - shift - y * along) * inverse
    return x_gradient.astype(x.dtype), (wide * y).sum((0, 1)).astype(scale.dtype)


normalise.defvjp(_forward, _backward)


class LayerNorm(nnx.Module):
    """Mean 0 and variance 1 over the last axis, then a learned scale and perhaps a bias."""

    def __init__(self, features: int, *, epsilon: float, bias: bool):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features)) if bias else None
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Normalises every position."""
        y = normalise(x, self.scale[...], self.epsilon, True)
        return y if self.bias is None else add_vector(y, self.bias[...])


class RMSNorm(nnx.Module):
    """Mean square 1 over the last axis, then a learned scale."""

    def __init__(self, features: int, *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(features))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Normalises every position."""
        return normalise(x, self.scale[...], self.epsilon, False)
