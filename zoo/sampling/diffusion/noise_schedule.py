"""Paths from data to noise: how much signal and how much noise an image has at time t.

Every diffusion model mixes an image x_0 with standard normal noise eps in known amounts,

    x_t = signal(t) x_0 + noise(t) eps

DDPM's process (Ho et al. 2020, "Denoising diffusion probabilistic models") preserves the variance. With beta_t in T
steps and alpha_bar_t = (1 - beta_1) ... (1 - beta_t),

    q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I)                                     (equation 4)
    signal(t) = sqrt(alpha_bar_t),  noise(t) = sqrt(1 - alpha_bar_t)

A straight path (Lipman et al. 2023, "Flow matching for generative modeling") has signal(t) = 1 - t / T and
noise(t) = t / T. Samplers need a `Path` and nothing else about the process.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from zoo.core.random import spread

Schedule = Literal["linear", "cosine"]

MAX_BETA = 0.999
"""No step removes all signal, because the posterior would divide by zero (Improved DDPM, section 3.2)."""


class Level(NamedTuple):
    """A noise level: x_t = signal x_0 + noise eps."""

    signal: Any
    """Factor of x_0; scalar, or an array that broadcasts to images."""
    noise: Any
    """Factor of eps, of the same shape."""


@runtime_checkable
class Path(Protocol):
    """A path from data to noise. Time grows with the noise and is what the network receives."""

    @property
    def timesteps(self) -> int:
        """T: times lie in [0, T], and a sampler makes at most T steps."""

    @property
    def ends(self) -> tuple[float, float]:
        """The noisiest and the least noisy time at which samplers call the network."""

    def even_times(self, steps: int) -> Float[np.ndarray, " steps"]:
        """Times evenly spaced from the noisiest on; the clean image follows them."""

    def at(self, t: Float[Array | np.ndarray, "*s"]) -> Level:
        """Signal and noise, each [*s], at times that may be fractional; float64 for NumPy arrays, float32 in JAX."""

    def time_of(self, ratio: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The times at which signal / noise equals `ratio`, clipped to `ends`."""


@dataclass(frozen=True, eq=False)
class VariancePreserving:
    """DDPM's path: signal = sqrt(alpha_bar), noise = sqrt(1 - alpha_bar).

    Times are indices into `alpha_bar`: t = 0 is the paper's step 1, so no time is free of noise. Between two indices,
    log(signal / noise) is interpolated linearly.

    Attributes:
        alpha_bar: decreasing, strictly between 0 and 1; float64 [T].
    """

    alpha_bar: Float[np.ndarray, " T"]

    @property
    def timesteps(self) -> int:
        return len(self.alpha_bar)

    @property
    def ends(self) -> tuple[float, float]:
        return self.timesteps - 1.0, 0.0

    def even_times(self, steps: int) -> Float[np.ndarray, " steps"]:
        """Whole times from T - 1 to 0, in diffusers `timestep_spacing="linspace"`; a single one is the noisiest.

        Nichol and Dhariwal 2021, "Improved denoising diffusion probabilistic models", section 4.
        """
        return np.round(np.linspace(*self.ends, steps))

    def at(self, t: Float[Array | np.ndarray, "*s"]) -> Level:
        xp = np if isinstance(t, np.ndarray) else jnp
        index, log_ratio = (table.astype(t.dtype) for table in (np.arange(self.timesteps), self._log_ratio))
        log_snr = 2 * xp.interp(t, index, log_ratio)
        # 1 - signal^2 would round small noise away in float32.
        return Level(1 / xp.sqrt(1 + xp.exp(-log_snr)), 1 / xp.sqrt(1 + xp.exp(log_snr)))

    def time_of(self, ratio: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return np.interp(-np.log(ratio), -self._log_ratio, np.arange(self.timesteps))

    @cached_property
    def _log_ratio(self) -> Float[np.ndarray, " T"]:
        return (np.log(self.alpha_bar) - np.log1p(-self.alpha_bar)) / 2


@dataclass(frozen=True)
class StraightPath:
    """The straight path of flow matching: signal = 1 - t / T, noise = t / T.

    Times are any number from 0, the image itself, to T, pure noise.
    """

    timesteps: int = 1000

    @property
    def ends(self) -> tuple[float, float]:
        return float(self.timesteps), 1.0

    def even_times(self, steps: int) -> Float[np.ndarray, " steps"]:
        """T, T - T / steps, ..., T / steps: with the clean image at 0, steps of equal length."""
        return self.timesteps * (1 - np.arange(steps) / steps)

    def at(self, t: Float[Array | np.ndarray, "*s"]) -> Level:
        return Level(1 - t / self.timesteps, t / self.timesteps)

    def time_of(self, ratio: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return np.clip(self.timesteps / (1 + ratio), *self.ends[::-1])


def make_alpha_bar(schedule: Schedule, timesteps: int) -> Float[np.ndarray, " T"]:
    """alpha_bar after each of T steps, in float64.

    linear: beta from 1e-4 to 0.02 at T = 1000 (Ho et al. 2020, section 4), scaled by 1000 / T for other T.
    cosine: alpha_bar(u) ~ cos^2((u + 0.008) / 1.008 * pi / 2) at u = t / T (Nichol and Dhariwal 2021, "Improved
        denoising diffusion probabilistic models", equation 17).
    """
    if schedule == "linear":
        beta = np.linspace(1e-4, 0.02, timesteps) * 1000 / timesteps
    else:
        u = np.arange(timesteps + 1) / timesteps
        curve = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = 1 - curve[1:] / curve[:-1]
    return np.cumprod(1 - np.minimum(beta, MAX_BETA))


def spread_times(key: Key[Array, ""], rows: Int[Array, " b"], timesteps: int) -> Float[Array, " b"]:
    """A time for each row: uniform over 0 .. T - 1, and evenly spread over consecutive rows; see `spread`."""
    return jnp.floor(spread(key, rows) * timesteps)
