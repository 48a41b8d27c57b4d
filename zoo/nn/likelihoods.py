"""Elementwise log-likelihoods of pixels, in nats.

`bernoulli` is for pixels that are 0 or 1, `gaussian` is a density of real numbers, and the discretised distributions
assign a probability to each of 256 levels in [-1, 1], as scaled by `zoo.data.images.pixels.from_pixels`.
"""

import math

import jax.numpy as jnp
from jax.nn import log_sigmoid, softplus
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

BIN = 2.0 / 255.0
"""Distance between neighbouring levels of the 256 in [-1, 1]."""


def bernoulli(x: Float[Array, "..."], logits: Float[Array, "..."]) -> Float[Array, "..."]:
    """log P(x) where P(1) = sigmoid(logits).

    For x between 0 and 1 it is the expectation of log P over pixels that are 1 with probability x.
    """
    return x * logits - softplus(logits)


def gaussian(x: Float[Array, "..."], mean: Float[Array, "..."], log_scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """log N(x; mean, exp(log_scale)^2), a density."""
    return -0.5 * jnp.square((x - mean) * jnp.exp(-log_scale)) - log_scale - 0.5 * math.log(2 * math.pi)


def discretised_logistic(
    x: Float[Array, "..."], mean: Float[Array, "..."], log_scale: Float[Array, "..."]
) -> Float[Array, "..."]:
    """log of a logistic distribution's mass in the bin of a level.

    Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow"; Salimans et al. 2017,
    "PixelCNN++". The bins of the levels -1 and 1 extend to infinity, so the 256 masses sum to 1.

    For a bin (b, a) in units of the scale, sigmoid(a) - sigmoid(b) is computed as sigmoid(a) sigmoid(-b)
    (1 - exp(b - a)), which is accurate arbitrarily far from the mean.

    Args:
        x: levels k / 127.5 - 1 for k in 0 .. 255.
        mean: mean of the logistic distribution.
        log_scale: log of its scale, which is pi / sqrt(3) times smaller than its standard deviation.
    """
    inverse = jnp.exp(-log_scale)
    upper = log_sigmoid((x - mean + BIN / 2) * inverse)
    lower = log_sigmoid(-(x - mean - BIN / 2) * inverse)
    within = upper + lower + jnp.log(-jnp.expm1(-BIN * inverse))
    black, white = x < -1 + BIN / 2, x > 1 - BIN / 2
    return jnp.where(black, upper, jnp.where(white, lower, within))


def discretised_gaussian(
    x: Float[Array, "..."], mean: Float[Array, "..."], log_scale: Float[Array, "..."]
) -> Float[Array, "..."]:
    """log of a normal distribution's mass in the bin of a level.

    Ho et al. 2020, "Denoising diffusion probabilistic models", equation 13; bins as in `discretised_logistic`. A bin
    right of the mean is reflected to its left, where the log CDF of both ends is accurate.

    Args:
        x: levels k / 127.5 - 1 for k in 0 .. 255.
        mean: mean of the normal distribution.
        log_scale: log of its standard deviation.
    """
    inverse = jnp.exp(-log_scale)
    right = jnp.where(x > 1 - BIN / 2, jnp.inf, (x - mean + BIN / 2) * inverse)
    left = jnp.where(x < -1 + BIN / 2, -jnp.inf, (x - mean - BIN / 2) * inverse)
    mirrored = left + right > 0
    upper = log_ndtr(jnp.where(mirrored, -left, right))
    lower = log_ndtr(jnp.where(mirrored, -right, left))
    return upper + jnp.log(-jnp.expm1(jnp.minimum(lower - upper, -1e-7)))
