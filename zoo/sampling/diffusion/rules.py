"""One step of a diffusion sampler: DDPM, DDIM, and three solvers of the probability-flow ODE.

A rule leads pictures from level k of a grid (`zoo.sampling.diffusion.noise_levels`) to level k + 1. `here` and
`there` are alpha_bar at the two levels, x_t the pictures, and (x_0, eps) what the network says of them, which agree:

    x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps

`zoo.sampling.diffusion.loop` is the loop. Letters in shapes: b rows, h w c picture.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.sampling.diffusion.noise_levels import Grid

Denoiser = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(x_t [b h w c], t [b], perhaps fractional) -> (x_0 [b h w c], eps [b h w c]), with x_t made of them in t's shares."""


class Now(NamedTuple):
    """Where a sampler stands before a step."""

    x_t: jax.Array
    """The pictures at level k, [b h w c]."""
    k: jax.Array
    """The level, int32 []."""
    first: jax.Array
    """Whether no step went before, bool []."""
    x_0_before: jax.Array
    """The estimate of x_0 that the step before went by, [b h w c]."""
    z: jax.Array
    """Standard normal noise for this step, [b h w c]."""
    eta: jax.Array
    """Share of the ancestral noise in `ddim`, []."""


Rule = Callable[[Denoiser, Grid, Now], tuple[jax.Array, jax.Array]]
"""(denoiser, grid, where it stands) -> (x at level k + 1, the x_0 it went by)."""


def ddpm(denoise: Denoiser, grid: Grid, now: Now) -> tuple[jax.Array, jax.Array]:
    """Ancestral sampling from q(x_next | x_t, x_0).

    Ho et al. 2020, "Denoising Diffusion Probabilistic Models", equations 6 and 7, with the posterior's own variance. On
    a grid of fewer levels beta is that of the whole stride.
    """
    here, there = levels(grid, now.k)
    x_0, _ = estimate(denoise, grid, now.k, now.x_t)
    beta = (there - here) / there
    mean = jnp.sqrt(there) * beta / (1 - here) * x_0 + jnp.sqrt(1 - beta) * (1 - there) / (1 - here) * now.x_t
    return mean + jnp.sqrt((1 - there) / (1 - here) * beta) * now.z, x_0


def ddim(denoise: Denoiser, grid: Grid, now: Now) -> tuple[jax.Array, jax.Array]:
    """Song et al. 2021, "Denoising Diffusion Implicit Models", equations 12 and 16.

    eta = 0 is deterministic and the same step as `euler`; eta = 1 is `ddpm`.
    """
    here, there = levels(grid, now.k)
    x_0, eps = estimate(denoise, grid, now.k, now.x_t)
    variance = now.eta**2 * (1 - there) / (1 - here) * (there - here) / there
    direction = jnp.sqrt(jnp.maximum(1 - there - variance, 0.0)) * eps
    return jnp.sqrt(there) * x_0 + direction + jnp.sqrt(variance) * now.z, x_0


def euler(denoise: Denoiser, grid: Grid, now: Now) -> tuple[jax.Array, jax.Array]:
    """One straight step of the probability-flow ODE, d x / d sigma = eps in x = x_t / sqrt(alpha_bar).

    Karras et al. 2022, algorithm 1 without its lines 6 to 8. It is DDIM's step; what differs is the grid.
    """
    _, there = levels(grid, now.k)
    x_0, eps = estimate(denoise, grid, now.k, now.x_t)
    return jnp.sqrt(there) * x_0 + jnp.sqrt(1 - there) * eps, x_0


def heun(denoise: Denoiser, grid: Grid, now: Now) -> tuple[jax.Array, jax.Array]:
    """The same ODE along the mean of the slopes at both ends of the step, with one call more of the network.

    Karras et al. 2022, algorithm 1. The last step is Euler's: at the clean level there is no slope.
    """
    here, there = levels(grid, now.k)
    calls = jnp.where(there < 1, 2, 1)

    def step(eps: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_0 = (now.x_t - jnp.sqrt(1 - here) * eps) / jnp.sqrt(here)
        return jnp.sqrt(there) * x_0 + jnp.sqrt(1 - there) * eps, x_0

    def call(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, eps_sum = carry
        eps_sum = eps_sum + estimate(denoise, grid, now.k + i, x)[1]
        return step(eps_sum / (i + 1))[0], eps_sum

    # A loop, and not two calls one after the other, so that the network is compiled once.
    _, eps_sum = jax.lax.fori_loop(0, calls, call, (now.x_t, jnp.zeros_like(now.x_t)))
    return step(eps_sum / calls)


def dpm_solver_pp(denoise: Denoiser, grid: Grid, now: Now) -> tuple[jax.Array, jax.Array]:
    """DPM-Solver++(2M): x_0 is extrapolated in lambda = -log sigma from the step before and this one.

    Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", algorithm 2. The
    first step is of first order, having none before it, and so is the last, which leads to an infinite lambda.
    """
    here, there = levels(grid, now.k)
    x_0, _ = estimate(denoise, grid, now.k, now.x_t)
    sigma_before, sigma, sigma_next = (noise_ratio(grid.alpha_bar[now.k + i]) for i in (-1, 0, 1))
    h = jnp.log(sigma) - jnp.log(jnp.maximum(sigma_next, 1e-20))
    h_before = jnp.where(now.first, 1.0, jnp.log(sigma_before) - jnp.log(sigma))
    weight = jnp.where(now.first | (there == 1), 0.0, h / (2 * h_before))
    extrapolated = x_0 + weight * (x_0 - now.x_0_before)
    shrink = sigma_next / sigma  # e^-h
    # The paper's sigma_t is sqrt(1 - alpha_bar).
    x_next = jnp.sqrt((1 - there) / (1 - here)) * now.x_t + jnp.sqrt(there) * (1 - shrink) * extrapolated
    return x_next, x_0


def levels(grid: Grid, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """alpha_bar at level k and at the next."""
    return grid.alpha_bar[k], grid.alpha_bar[k + 1]


def noise_ratio(alpha_bar: Float[Array, ""]) -> Float[Array, ""]:
    """Sigma, the noise beside a signal of scale 1."""
    return jnp.sqrt((1 - alpha_bar) / alpha_bar)


def estimate(denoise: Denoiser, grid: Grid, k: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The network's x_0 and eps of pictures at level k."""
    return denoise(x, jnp.broadcast_to(grid.t[k], x.shape[:1]))
