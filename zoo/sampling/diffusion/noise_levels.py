"""The noise levels that a diffusion sampler visits, from the noisiest to none.

A model is trained at levels t = 0 .. T - 1 with signal alpha_bar[t] (`zoo.sampling.diffusion.noise_schedule`). A
sampler visits few of them, or ones in between: the network is called at a fractional t, found by interpolating log
sigma, where sigma = sqrt((1 - alpha_bar) / alpha_bar) is the noise beside a signal of scale 1.

Grids are made on the host and have one shape whatever the number of steps, so that another number compiles nothing.
A traced function takes them as arguments.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zoo.core.errors import UserError

SIGMA_MAX = float(np.exp(5.1))
"""Where EDM grids begin at most: half the log SNR is at least -5.1, where DPM-Solver's authors cut the cosine schedule.

The linear schedule ends at sigma = 157, within it; the cosine one at 20,000, and a solver of the ODE would spend many
of its steps where there is nothing but noise.
"""


class Grid(NamedTuple):
    """Noise levels k = 0 .. steps, of which the last is the clean picture, padded to T + 1."""

    t: np.ndarray | jax.Array
    """Where the network is called at each level, in [0, T - 1], perhaps fractional; 0 at the clean one. [T + 1]."""
    alpha_bar: np.ndarray | jax.Array
    """Signal of each level; 1 at the clean one. [T + 1]."""
    steps: np.ndarray | jax.Array
    """How many steps lead through it, int32 []."""

    def start(self, strength: float) -> int:
        """The level at which a given picture enters: the noisiest with t below strength T.

        Args:
            strength: 0 takes the picture as it is, 1 begins at the noisiest level; the noise between does not depend on
                the kind of grid.
        """
        if not 0 <= strength <= 1:
            raise UserError(f"strength is {strength}; it must be from 0 to 1")
        t = np.asarray(self.t)
        return int(np.sum(t[: int(self.steps)] >= strength * (len(t) - 1)))


def even_grid(alpha_bar: Float[Array | np.ndarray, " T"], steps: int) -> Grid:
    """Levels evenly spaced in t from T - 1 to 0, for DDPM and DDIM.

    Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", section 4; in diffusers
    `timestep_spacing="linspace"`. One step goes from T - 1 to the clean picture at once.

    Raises:
        UserError: fewer steps than 1 or more than T.
    """
    n = check_steps(alpha_bar, steps)
    t = np.round(np.linspace(n - 1, 0, steps))
    return make_grid(t, np.asarray(alpha_bar, np.float64)[t.astype(int)], n)


def edm_grid(alpha_bar: Float[Array | np.ndarray, " T"], steps: int, rho: float = 7.0) -> Grid:
    """Levels evenly spaced in sigma^(1 / rho), for solvers of the probability-flow ODE.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", equation 5, from the
    largest sigma of the schedule, but `SIGMA_MAX` at most, to its smallest; in diffusers `use_karras_sigmas=True`.

    Raises:
        UserError: fewer steps than 1 or more than T.
    """
    check_steps(alpha_bar, steps)
    sigmas = _sigma(alpha_bar)
    largest, smallest = min(sigmas[-1], SIGMA_MAX), sigmas[0]
    sigma = np.linspace(largest ** (1 / rho), smallest ** (1 / rho), steps) ** rho
    return _grid_at(sigma, alpha_bar)


def shifted(grid: Grid, alpha_bar: Float[Array | np.ndarray, " T"], shift: float) -> Grid:
    """The same number of levels, crowded towards the noise: each sigma becomes about `shift` times as large.

    Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", section 5.3.2; there,
    where the noisiest level has no signal at all, 1 / sigma is divided by the shift. Here the noisiest level stays what
    it is: what is divided is by how much 1 / sigma exceeds the noisiest's. A shift of 1 gives the grid back.
    """
    if shift == 1:
        return grid
    ratio = 1 / _sigma(np.asarray(grid.alpha_bar)[: int(grid.steps)])
    return _grid_at(1 / (ratio[0] + (ratio - ratio[0]) / shift), alpha_bar)


def _sigma(alpha_bar: Float[Array | np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The noise beside a signal of scale 1."""
    signal = np.asarray(alpha_bar, np.float64)
    return np.sqrt((1 - signal) / signal)


def _grid_at(sigma: Float[np.ndarray, " steps"], alpha_bar: Float[Array | np.ndarray, " T"]) -> Grid:
    """The grid of some levels in a schedule."""
    n = len(alpha_bar)
    return make_grid(np.interp(np.log(sigma), np.log(_sigma(alpha_bar)), np.arange(n)), 1 / (1 + sigma**2), n)


def reverse(grid: Grid) -> Grid:
    """The same levels from the clean picture to the noisiest, on which a solver of the ODE finds a picture's noise."""
    k = jnp.maximum(grid.steps - jnp.arange(grid.t.shape[0]), 0)
    return Grid(jnp.asarray(grid.t)[k], jnp.asarray(grid.alpha_bar)[k], grid.steps)


def check_steps(alpha_bar: Float[Array | np.ndarray, " T"], steps: int) -> int:
    """T, where a grid of so many steps can be made."""
    if not 1 <= steps <= len(alpha_bar):
        raise UserError(f"steps is {steps}; it must be from 1 to {len(alpha_bar)}, the steps of the noise schedule")
    return len(alpha_bar)


def make_grid(t: Float[np.ndarray, " steps"], alpha_bar: Float[np.ndarray, " steps"], size: int) -> Grid:
    """Adds the clean level and pads to `size` + 1 levels."""
    padding = (0, size + 1 - len(t))
    return Grid(
        np.pad(t, padding).astype(np.float32),
        np.pad(alpha_bar, padding, constant_values=1.0).astype(np.float32),
        np.asarray(len(t), np.int32),
    )
