"""Layer and root-mean-square normalisation with a custom gradient that stores only x, the scale and the moments.

With y the normalised x and g the gradient times scale,

    dx = (g - mean(g) - y mean(g y)) / deviation

where mean(g) is left out without centring. JAX's own gradient would also store the normalised x.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.nn.cpu.barriers import late


def layer_norm(x: Float[Array, "b t d"], scale: Float[Array, " d"], epsilon: float) -> Float[Array, "b t d"]:
    """Implements `zoo.nn.norm.layer_norm`."""
    return _standardised(x, scale, epsilon, True)


def rms_norm(x: Float[Array, "b t d"], scale: Float[Array, " d"], epsilon: float) -> Float[Array, "b t d"]:
    """Implements `zoo.nn.norm.rms_norm`."""
    return _standardised(x, scale, epsilon, False)


def _moments(x, epsilon, centred):
    """Returns the mean to subtract (0 without centring) and the reciprocal of the deviation, [b t 1]."""
    mean = x.mean(-1, keepdims=True) if centred else 0.0
    return mean, jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + epsilon)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _standardised(x, scale, epsilon, centred):
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


_standardised.defvjp(_forward, _backward)
