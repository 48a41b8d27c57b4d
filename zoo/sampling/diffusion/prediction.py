"""What a diffusion network predicts, and the estimates of x_0 and eps that its output stands for.

At a level with x_t = signal x_0 + noise eps, every target is a combination a x_0 + b eps:

    eps   a = 0,       b = 1          Ho et al. 2020, "Denoising diffusion probabilistic models"
    x0    a = 1,       b = 0
    v     a = -noise,  b = signal     Salimans and Ho 2022, "Progressive distillation for fast sampling"

The velocity of a straight path, eps - x_0, is `VELOCITY`. An output and x_t are two linear equations, which `solve`
solves for x_0 and eps.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.sampling.diffusion.noise_schedule import Level

Prediction = Literal["eps", "x0", "v"]

Weight = Float[Array, "*s"] | float

VELOCITY = (-1.0, 1.0)
"""(a, b) of flow matching's target on a straight path: d x_t / d t = eps - x_0, t from 0 to 1 (Lipman et al. 2023)."""


def target_weights(prediction: Prediction, level: Level) -> tuple[Weight, Weight]:
    """(a, b) of the network's target a x_0 + b eps."""
    weights: dict[str, tuple[Weight, Weight]] = {
        "eps": (0.0, 1.0),
        "x0": (1.0, 0.0),
        "v": (-level.noise, level.signal),
    }
    return weights[prediction]


def solve(
    output: Float[Array, "b h w c"], x_t: Float[Array, "b h w c"], level: Level, target: tuple[Weight, Weight]
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """(x_0, eps) with signal x_0 + noise eps = x_t and a x_0 + b eps = output, where target = (a, b)."""
    (signal, noise), (a, b) = level, target
    determinant = signal * b - noise * a
    return (b * x_t - noise * output) / determinant, (signal * output - a * x_t) / determinant


def estimates(
    prediction: Prediction, output: Float[Array, "b h w c"], x_t: Float[Array, "b h w c"], level: Level, clip: bool
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """The (x_0, eps) that a network's output stands for; with `clip`, x_0 lies in [-1, 1] and eps still fits x_t."""
    x_0, eps = solve(output, x_t, level, target_weights(prediction, level))
    if clip:
        x_0 = jnp.clip(x_0, -1.0, 1.0)
        eps = (x_t - level.signal * x_0) / level.noise
    return x_0, eps
