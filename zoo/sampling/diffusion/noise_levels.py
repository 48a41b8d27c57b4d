"""Grids: the noise levels that a diffusion sampler visits, from the noisiest to the clean image.

A model is trained at the times of a `Path` (`zoo.sampling.diffusion.noise_schedule`). A sampler visits few of them, or
times in between, chosen by signal / noise; its inverse is the sigma of Karras et al. 2022, the noise beside a signal of
scale 1.

Grids are made on the host and have one shape for any number of steps, so another number of steps compiles nothing.
Compiled functions take them as arguments.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.core.errors import UserError
from zoo.sampling.diffusion.noise_schedule import Level, Path

SIGMA_MAX = float(np.exp(5.1))
"""Upper limit of sigma on EDM grids: DPM-Solver's authors cut the cosine schedule at log(signal / noise) = -5.1.

The linear schedule ends at sigma = 157, below it. The cosine schedule ends at 20,000, where an ODE solver would spend
many of its steps on pure noise; a straight path ends at infinity.
"""


class Grid(NamedTuple):
    """Noise levels k = 0 .. steps, of which the last is the clean image; padded to T + 1 clean levels."""

    t: np.ndarray | jax.Array
    """Time that the network receives at each level, in [0, T], may be fractional; 0 at the clean level. [T + 1]."""
    signal: np.ndarray | jax.Array
    """Factor of x_0 at each level; 1 at the clean level. [T + 1]."""
    noise: np.ndarray | jax.Array
    """Factor of eps at each level; 0 at the clean level. [T + 1]."""
    steps: np.ndarray | jax.Array
    """Number of steps, int32 []."""

    def level(self, k: Int[Array, ""] | int) -> Level:
        """Signal and noise at level k, scalars."""
        return Level(jnp.asarray(self.signal)[k], jnp.asarray(self.noise)[k])

    def start(self, strength: float) -> int:
        """The level at which a given image enters: the noisiest with t below strength T.

        Args:
            strength: 0 returns the clean level and 1 the noisiest; the amount of noise is the same on every grid.

        Raises:
            UserError: strength is not from 0 to 1.
        """
        if not 0 <= strength <= 1:
            raise UserError(f"strength is {strength}; it must be from 0 to 1")
        t = np.asarray(self.t)
        return 0 if strength == 1 else int(np.sum(t[: int(self.steps)] >= strength * (len(t) - 1)))


def even_grid(path: Path, steps: int) -> Grid:
    """Levels evenly spaced in t from the noisiest on, for DDPM and DDIM, and for the solvers of a straight path.

    See `even_times` of the path. A single step goes from the noisiest time to the clean image.

    Raises:
        UserError: fewer steps than 1 or more than T.
    """
    check_steps(path, steps)
    t = path.even_times(steps)
    return make_grid(t, path.at(t), path.timesteps)


def edm_grid(path: Path, steps: int, rho: float = 7.0) -> Grid:
    """Levels evenly spaced in sigma^(1 / rho), for solvers of the probability-flow ODE.

    Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", equation 5, from the
    largest sigma of the path, but `SIGMA_MAX` at most, to its smallest; in diffusers `use_karras_sigmas=True`.

    Raises:
        UserError: fewer steps than 1 or more than T.
    """
    check_steps(path, steps)
    signal, noise = path.at(np.array(path.ends))
    largest, smallest = 1 / np.maximum(signal / noise, 1 / SIGMA_MAX)
    sigma = np.linspace(largest ** (1 / rho), smallest ** (1 / rho), steps) ** rho
    return _grid_at(1 / sigma, path)


def shifted(grid: Grid, path: Path, shift: float) -> Grid:
    """The same number of levels, moved towards the noise: each sigma becomes about `shift` times as large.

    Esser et al. 2024, "Scaling rectified flow transformers for high-resolution image synthesis", section 5.3.2: on a
    path whose noisiest level has no signal, signal / noise is divided by the shift. In general the noisiest level stays
    where it is, and the part of signal / noise above that of the noisiest level is divided.
    """
    if shift == 1:
        return grid
    signal, noise = (np.asarray(array, np.float64)[: int(grid.steps)] for array in (grid.signal, grid.noise))
    ratio = signal / noise
    return _grid_at(ratio[0] + (ratio - ratio[0]) / shift, path)


def _grid_at(ratio: Float[np.ndarray, " steps"], path: Path) -> Grid:
    """The grid of the levels with given signal / noise."""
    t = path.time_of(ratio)
    return make_grid(t, path.at(t), path.timesteps)


def reverse(grid: Grid) -> Grid:
    """The same levels from the clean image to the noisiest, on which an ODE solver finds the noise of an image."""
    k = jnp.maximum(grid.steps - jnp.arange(grid.t.shape[0]), 0)
    t, signal, noise = (jnp.asarray(array)[k] for array in (grid.t, grid.signal, grid.noise))
    return Grid(t, signal, noise, grid.steps)


def check_steps(path: Path, steps: int) -> None:
    """Refuses a number of steps that the path does not have.

    Raises:
        UserError: fewer steps than 1 or more than T.
    """
    if not 1 <= steps <= path.timesteps:
        raise UserError(f"steps is {steps}; it must be from 1 to {path.timesteps}, the steps of the path")


def make_grid(t: Float[np.ndarray, " steps"], level: Level, size: int) -> Grid:
    """The grid of some times and their levels [steps], with the clean level added, padded to `size` + 1 levels."""
    padding = (0, size + 1 - len(t))
    return Grid(
        np.pad(t, padding).astype(np.float32),
        np.pad(level.signal, padding, constant_values=1.0).astype(np.float32),
        np.pad(level.noise, padding).astype(np.float32),
        np.asarray(len(t), np.int32),
    )
