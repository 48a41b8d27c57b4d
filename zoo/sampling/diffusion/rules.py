"""One step of a diffusion sampler: DDPM, DDIM, and solvers of the probability-flow ODE.

A rule moves images from level k of a grid (`zoo.sampling.diffusion.noise_levels`) to level k + 1. `here` and `there`
are the two levels, x_t are the images at level k, and (x_0, eps) the network's estimates, which satisfy

    x_t = here.signal x_0 + here.noise eps

`zoo.sampling.diffusion.loop` is the loop. Letters in shapes: b rows, h w c image.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.sampling.diffusion.noise_levels import Grid
from zoo.sampling.diffusion.noise_schedule import Level

Denoiser = Callable[..., tuple[jax.Array, jax.Array]]
"""(x_t [b h w c], t [b], may be fractional) -> estimates (x_0 [b h w c], eps [b h w c]) that mix to x_t at time t.

With a third argument r [b], for `average`: estimates with which x_r is that of the path through x_t."""


class Now(NamedTuple):
    """The state of a sampler before a step."""

    x_t: jax.Array
    """The images at level k, [b h w c]."""
    k: jax.Array
    """The level, int32 []."""
    first: jax.Array
    """Whether this is the first step, bool []."""
    x_0_before: jax.Array
    """The estimate of x_0 in the previous step, [b h w c]."""
    z: jax.Array
    """Standard normal noise for this step, [b h w c]."""
    eta: jax.Array
    """Share of the ancestral noise in `ddim`, []."""


Rule = Callable[[Denoiser, Grid, Now], tuple[jax.Array, jax.Array]]
"""(denoiser, grid, state) -> (x at level k + 1, the estimate of x_0 that the step used)."""


def ddpm(denoise: Denoiser, grid: Grid, now: Now) -> tuple[jax.Array, jax.Array]:
    """Ancestral sampling from q(x_next | x_t, x_0).

    Ho et al. 2020, "Denoising diffusion probabilistic models", equations 6 and 7, with the posterior's variance. On a
    grid with fewer levels than T, beta is that of the whole stride.
    """
    here, there = levels(grid, now)
    x_0, _ = estimate(denoise, grid, now.k, now.x_t)
    scale, variance = forward(there, here)
    mean = there.signal * variance / here.noise**2 * x_0 + scale * (there.noise / here.noise) ** 2 * now.x_t
    return mean + jnp.sqrt(variance) * there.noise / here.noise * now.z, x_0


def ddim(denoise: Denoiser, grid: Grid, now: Now) -> tuple[jax.Array, jax.Array]:
    """Song et al. 2021, "Denoising diffusion implicit models", equations 12 and 16.

    eta = 0 is deterministic and the same step as `euler`; eta = 1 is `ddpm`.
    """
    here, there = levels(grid, now)
    x_0, eps = estimate(denoise, grid, now.k, now.x_t)
    deviation = now.eta * jnp.sqrt(forward(there, here)[1]) * there.noise / here.noise
    direction = jnp.sqrt(jnp.maximum(there.noise**2 - deviation**2, 0.0)) * eps
    return there.signal * x_0 + direction + deviation * now.z, x_0


def euler(denoise: Denoiser, grid: Grid, now: Now) -> tuple[jax.Array, jax.Array]:
    """An Euler step of the probability-flow ODE, d x / d sigma = eps in x = x_t / signal, sigma = noise / signal.

    Karras et al. 2022, algorithm 1 without its lines 6 to 8. The step is DDIM's; the grid differs.
    """
    _, there = levels(grid, now)
    x_0, eps = estimate(denoise, grid, now.k, now.x_t)
    return there.signal * x_0 + there.noise * eps, x_0


def heun(denoise: Denoiser, grid: Grid, now: Now) -> tuple[jax.Array, jax.Array]:
    """A step of the same ODE along the mean of the slopes at both its ends, with two calls of the network.

    Karras et al. 2022, algorithm 1. The last step is Euler's: the clean level has no slope.
    """
    here, there = levels(grid, now)
    calls = jnp.where(there.noise > 0, 2, 1)

    def step(eps: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_0 = (now.x_t - here.noise * eps) / here.signal
        return there.signal * x_0 + there.noise * eps, x_0

    def call(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, eps_sum = carry
        eps_sum = eps_sum + estimate(denoise, grid, now.k + i, x)[1]
        return step(eps_sum / (i + 1))[0], eps_sum

    # A loop rather than two calls in a row, so that the network is compiled once.
    _, eps_sum = jax.lax.fori_loop(0, calls, call, (now.x_t, jnp.zeros_like(now.x_t)))
    return step(eps_sum / calls)


def straight_heun(denoise: Denoiser, grid: Grid, now: Now) -> tuple[jax.Array, jax.Array]:
    """Heun's step in t on a straight path: along the mean of the velocities eps - x_0 at both its ends.

    Unlike `heun`, whose slope d x / d sigma is taken in x_t / signal, it can begin at pure noise. The last step is
    Euler's.
    """
    here, there = levels(grid, now)
    calls = jnp.where(there.noise > 0, 2, 1)

    def call(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        x, x_0_sum, eps_sum = carry
        x_0, eps = estimate(denoise, grid, now.k + i, x)
        x_0_sum, eps_sum = x_0_sum + x_0, eps_sum + eps
        return along(now.x_t, here, there, x_0_sum / (i + 1), eps_sum / (i + 1)), x_0_sum, eps_sum

    zero = jnp.zeros_like(now.x_t)
    x, x_0_sum, _ = jax.lax.fori_loop(0, calls, call, (now.x_t, zero, zero))
    return x, x_0_sum / calls


def straight_midpoint(denoise: Denoiser, grid: Grid, now: Now) -> tuple[jax.Array, jax.Array]:
    """A step in t on a straight path along the velocity at its middle, to which half an Euler step leads.

    On a straight path, signal and noise are linear in t, so that the middle of two levels is their mean.
    """
    here, there = levels(grid, now)
    middle = Level(*((a + b) / 2 for a, b in zip(here, there, strict=True)))
    t, t_next = grid.t[now.k], grid.t[now.k + 1]

    def call(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        time = jnp.where(i == 0, t, (t + t_next) / 2)
        x_0, eps = denoise(carry[0], jnp.broadcast_to(time, now.x_t.shape[:1]))
        to = Level(*(jnp.where(i == 0, a, b) for a, b in zip(middle, there, strict=True)))
        return along(now.x_t, here, to, x_0, eps), x_0

    return jax.lax.fori_loop(0, 2, call, (now.x_t, jnp.zeros_like(now.x_t)))


def average(denoise: Denoiser, grid: Grid, now: Now) -> tuple[jax.Array, jax.Array]:
    """A step along the average velocity from its beginning to its end, for a network that predicts it.

    Geng et al. 2025, "Mean flows for one-step generative modeling", algorithm 2: x_r = x_t - (t - r) u(x_t, r, t).
    """
    here, there = levels(grid, now)
    t, r = (jnp.broadcast_to(grid.t[k], now.x_t.shape[:1]) for k in (now.k, now.k + 1))
    x_0, eps = denoise(now.x_t, t, r)
    return along(now.x_t, here, there, x_0, eps), x_0


def dpm_solver_pp(denoise: Denoiser, grid: Grid, now: Now) -> tuple[jax.Array, jax.Array]:
    """DPM-Solver++(2M): x_0 is extrapolated in lambda = -log sigma from the previous step and this one.

    Lu et al. 2022, "DPM-Solver++: Fast solver for guided sampling of diffusion probabilistic models", algorithm 2. The
    first step is of first order, because no step precedes it; so is the last, where lambda is infinite.
    """
    here, there = levels(grid, now)
    x_0, _ = estimate(denoise, grid, now.k, now.x_t)
    sigma_before, sigma, sigma_next = (noise_ratio(level) for level in (grid.level(now.k - 1), here, there))
    h = jnp.log(sigma) - jnp.log(jnp.maximum(sigma_next, 1e-20))
    h_before = jnp.where(now.first, 1.0, jnp.log(sigma_before) - jnp.log(sigma))
    weight = jnp.where(now.first | (there.noise == 0), 0.0, h / (2 * h_before))
    extrapolated = x_0 + weight * (x_0 - now.x_0_before)
    shrink = sigma_next / sigma  # e^-h
    return there.noise / here.noise * now.x_t + there.signal * (1 - shrink) * extrapolated, x_0


def levels(grid: Grid, now: Now) -> tuple[Level, Level]:
    """The levels at which a step begins and ends."""
    return grid.level(now.k), grid.level(now.k + 1)


def along(x: jax.Array, here: Level, there: Level, x_0: jax.Array, eps: jax.Array) -> jax.Array:
    """x at another level on the line with constant x_0 and eps; on a straight path the velocity is eps - x_0."""
    return x + (there.signal - here.signal) * x_0 + (there.noise - here.noise) * eps


def forward(clean: Level, noisy: Level) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(scale, variance) of q(x_noisy | x_clean) = N(scale x_clean, variance I), from one level to a noisier one.

    Kingma et al. 2021, "Variational diffusion models", appendix A. In DDPM they are sqrt(1 - beta_t) and beta_t from
    step t - 1 to t.
    """
    scale = noisy.signal / clean.signal
    # Levels that float32 cannot tell apart could have a variance below 0.
    return scale, jnp.maximum(noisy.noise**2 - (scale * clean.noise) ** 2, 0.0)


def noise_ratio(level: Level) -> Float[Array, ""]:
    """Sigma, the noise beside a signal of scale 1."""
    return level.noise / level.signal


def estimate(denoise: Denoiser, grid: Grid, k: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The network's x_0 and eps for images at level k."""
    return denoise(x, jnp.broadcast_to(grid.t[k], x.shape[:1]))
