"""How much noise a picture holds after t steps, and the three things a network can predict of it.

Ho et al. 2020, "Denoising diffusion probabilistic models" (DDPM); Nichol and Dhariwal 2021, "Improved DDPM"; Salimans
and Ho 2022, "Progressive distillation" (v). With alpha_t = 1 - beta_t and alpha_bar_t = alpha_1 ... alpha_t,

    q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I)              DDPM, equation 4
    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps                   eps ~ N(0, I)
    v   = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0

Times are indices 0 .. T - 1 into a table of alpha_bar: index t is the paper's step t + 1, so no index is free of noise.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

Schedule = Literal["linear", "cosine"]
Prediction = Literal["eps", "x0", "v"]

MAX_BETA = 0.999
"""No step may destroy the picture wholly: the posterior would divide by zero (Improved DDPM, section 3.2)."""


def make_alpha_bar(schedule: Schedule, timesteps: int) -> Float[np.ndarray, " T"]:
    """alpha_bar after each of T steps, in float64.

    linear: beta from 1e-4 to 0.02 at T = 1000 (DDPM, section 4), and in the same proportion more at fewer steps.
    cosine: alpha_bar(u) ~ cos^2((u + 0.008) / 1.008 * pi / 2) at u = t / T (Improved DDPM, equation 17).
    """
    if schedule == "linear":
        beta = np.linspace(1e-4, 0.02, timesteps) * 1000 / timesteps
    else:
        u = np.arange(timesteps + 1) / timesteps
        curve = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = 1 - curve[1:] / curve[:-1]
    return np.cumprod(1 - np.minimum(beta, MAX_BETA))


def spread_times(key: Key[Array, ""], rows: Int[Array, " b"], timesteps: int) -> Float[Array, " b"]:
    """A time for each row, uniform over 0 .. T - 1, and evenly spread over any rows that follow each other.

    Multiples of the golden ratio, all shifted by the same uniform number, modulo 1: the mean over a batch varies less
    than with independent times (Kingma et al. 2021, "Variational diffusion models", appendix I, with a regular grid).
    """
    offset = jax.random.bits(key, (), jnp.uint32)
    turns = rows.astype(jnp.uint32) * jnp.uint32(2654435769) + offset  # 2^32 / golden ratio; wraps at 2^32
    return jnp.floor((turns >> 8).astype(jnp.float32) / 2**24 * timesteps)


def alpha_bar_at(alpha_bar: Float[Array, " T"], t: Float[Array, " b"]) -> Float[Array, " b"]:
    """alpha_bar at times that may lie between two indices: the log of alpha_bar / (1 - alpha_bar) is interpolated."""
    log_snr = jnp.log(alpha_bar) - jnp.log1p(-alpha_bar)
    return jax.nn.sigmoid(jnp.interp(t, jnp.arange(len(alpha_bar), dtype=jnp.float32), log_snr))


def _amplitudes(alpha_bar_t: Float[Array, " b"], x: Float[Array, "b h w c"]) -> tuple[jax.Array, jax.Array]:
    """Of signal and noise: sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped to multiply x."""
    ab = alpha_bar_t.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.sqrt(ab), jnp.sqrt(1 - ab)


def add_noise(
    x_0: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], alpha_bar_t: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """x_t, drawn from q(x_t | x_0) where eps is standard normal."""
    signal, noise = _amplitudes(alpha_bar_t, x_0)
    return signal * x_0 + noise * eps


def to_target(
    prediction: Prediction, x_0: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], alpha_bar_t: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """What the network should put out."""
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x_0
    signal, noise = _amplitudes(alpha_bar_t, x_0)
    return signal * eps - noise * x_0


def to_x_0(
    prediction: Prediction,
    output: Float[Array, "b h w c"],
    x_t: Float[Array, "b h w c"],
    alpha_bar_t: Float[Array, " b"],
) -> Float[Array, "b h w c"]:
    """The picture that the network's output stands for."""
    signal, noise = _amplitudes(alpha_bar_t, x_t)
    if prediction == "eps":
        return (x_t - noise * output) / signal
    if prediction == "x0":
        return output
    return signal * x_t - noise * output


def to_eps(
    x_0: Float[Array, "b h w c"], x_t: Float[Array, "b h w c"], alpha_bar_t: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """The noise that, added to x_0, gives x_t."""
    signal, noise = _amplitudes(alpha_bar_t, x_t)
    return (x_t - signal * x_0) / noise
