"""Group normalisation of images [b h w c] with a custom gradient.

It stores only the input and its moments. Sums run over positions first, which is fast, then over the channels of a
group. With y = activation(z), z = x_hat * scale + bias and x_hat = (x - mean) / deviation, and g the gradient with
respect to z times scale,

    dx = (g - mean(g) - x_hat mean(g x_hat)) / deviation

where means are over all positions and a group of channels.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from einops import reduce, repeat
from jaxtyping import Array, Float

from zoo.nn.cpu.barriers import settle


def _group_mean(x: Float[Array, "b c"], groups: int) -> Float[Array, "b c"]:
    """Returns the mean over each group of channels, repeated for its channels."""
    return repeat(reduce(x, "b (g d) -> b g", "mean", g=groups), "b g -> b (g d)", d=x.shape[1] // groups)


def _spread(x: Float[Array, "b c"]) -> Float[Array, "b 1 1 c"]:
    return x[:, None, None]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def group_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    groups: int,
    epsilon: float,
    activation: Callable[[jax.Array], jax.Array],
) -> Float[Array, "b h w c"]:
    """Implements `zoo.nn.group_norm.group_norm`."""
    return _forward(x, scale, bias, groups, epsilon, activation)[0]


def _forward(x, scale, bias, groups, epsilon, activation):
    wide = x.astype(jnp.float32)
    mean = settle(_group_mean(wide.mean((1, 2)), groups))
    variance = _group_mean(jnp.square(wide - _spread(mean)).mean((1, 2)), groups)
    inverse = jax.lax.rsqrt(variance + epsilon)
    slope = inverse * scale.astype(jnp.float32)[None, :]
    shift = bias.astype(jnp.float32)[None, :] - mean * slope
    mean, inverse, slope, shift = moments = settle((mean, inverse, slope, shift))
    y = activation(wide * _spread(slope) + _spread(shift))
    return settle(y.astype(x.dtype)), (x, scale, bias, moments)


def _backward(groups, epsilon, activation, saved, gradient):
    x, scale, bias, (mean, inverse, slope, shift) = saved
    x, gradient = settle((x, gradient))
    wide = x.astype(jnp.float32)
    _, pull = jax.vjp(activation, wide * _spread(slope) + _spread(shift))
    (z_gradient,) = pull(gradient.astype(jnp.float32))
    z_gradient = settle(z_gradient)
    along_bias = settle(z_gradient.mean((1, 2)))
    along_scale = (settle((z_gradient * wide).mean((1, 2))) - mean * along_bias) * inverse
    wide_scale = scale.astype(jnp.float32)[None, :]
    # dx as g / deviation + x * by_x + constant.
    by_x = -jnp.square(inverse) * _group_mean(along_scale * wide_scale, groups)
    constant = -inverse * _group_mean(along_bias * wide_scale, groups) - mean * by_x
    by_x, constant = settle((by_x, constant))
    dx = z_gradient * _spread(slope) + wide * _spread(by_x) + _spread(constant)
    places = x.shape[1] * x.shape[2]
    return (
        settle(dx.astype(x.dtype)),
        (places * along_scale.sum(0)).astype(scale.dtype),
        (places * along_bias.sum(0)).astype(bias.dtype),
    )


group_norm.defvjp(_forward, _backward)
