"""Diffusion samplers: from noise to images, with any network that estimates x_0 and eps in a noisy image.

A noisy image is x_t = signal x_0 + noise eps. A sampler is three things:

    a denoiser  denoise(x_t, t) -> (x_0, eps)     the network's estimates, which satisfy the equation above
    a grid      levels k = 0 .. steps             see `zoo.sampling.diffusion.noise_levels`
    a rule      one step, from level k to k + 1   see `zoo.sampling.diffusion.rules`

`sample` is the loop, and `SAMPLERS` names the usual pairs of rule and grid; on a straight path, `STRAIGHT` does. Other
tasks are the same loop from another starting point or with a constraint:

    image-to-image   start = grid.start(strength); sample(..., part_noised(x_0, grid, start, ...), start=start)
    inpainting       sample(..., constrain=keep_known(x_0, known, grid))
    interpolation    sample(...) from between two noises (`slerp`), drawn by `prior` or found by `encode`
    a strip          _, strip = sample(..., frames=8)

Everything here can be traced, with the grid, start, eta, repeats and whatever the denoiser closes over as arguments of
the compiled function; only the rule, the number of frames and the presence of a constraint are compiled in.

Letters in shapes: b rows, h w c image, f frames, T levels of the path.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.core.random import row_keys
from zoo.sampling.diffusion.noise_levels import Grid, edm_grid, even_grid, reverse
from zoo.sampling.diffusion.noise_schedule import Level, Path
from zoo.sampling.diffusion.rules import (
    Denoiser,
    Now,
    Rule,
    ddim,
    ddpm,
    dpm_solver_pp,
    euler,
    forward,
    heun,
    straight_heun,
    straight_midpoint,
)

Constraint = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(x_t [b h w c], k [], fresh noise [b h w c]) -> x_t [b h w c] with what is known put in."""


class Strip(NamedTuple):
    """The states of a sampler at levels evenly spaced from the first to the last."""

    x_t: jax.Array
    """The noisy images, [f b h w c]; the last are the samples."""
    x_0: jax.Array
    """The network's estimates of x_0 at the same levels, [f b h w c]."""


class Sampler(NamedTuple):
    """A rule and its grid."""

    rule: Rule
    make_grid: Callable[[Path, int], Grid]
    """(path, steps) -> grid, on the host."""


SAMPLERS = {
    "ddpm": Sampler(ddpm, even_grid),
    "ddim": Sampler(ddim, even_grid),
    "euler": Sampler(euler, edm_grid),
    "heun": Sampler(heun, edm_grid),
    "dpm++": Sampler(dpm_solver_pp, edm_grid),
}
STRAIGHT = SAMPLERS | {
    "euler": Sampler(euler, even_grid),
    "heun": Sampler(straight_heun, even_grid),
    "midpoint": Sampler(straight_midpoint, even_grid),
}
"""The samplers of a straight path, whose ODE d x / d t = eps - x_0 is solved in t."""


def sample(
    rule: Rule,
    denoise: Denoiser,
    x: Float[Array, "b h w c"],
    grid: Grid,
    key: Key[Array, ""],
    rows: Int[Array, " b"],
    *,
    eta: Float[Array, ""] | float = 0.0,
    start: Int[Array, ""] | int = 0,
    constrain: Constraint | None = None,
    repeats: Int[Array, ""] | int = 1,
    frames: int = 0,
) -> tuple[Float[Array, "b h w c"], Strip]:
    """Goes through the grid from level `start` to the clean one.

    Args:
        rule: makes one step.
        denoise: the network.
        x: the images at level `start`: `prior` at level 0, else `part_noised`.
        grid: the noise levels.
        key: source of all noise; a row draws from fold_in(key, row), folded with the step.
        rows: each row's index among all samples, so that a sample does not depend on its batch.
        eta: share of the ancestral noise, for `ddim`.
        start: the first level; grid.steps makes no step.
        constrain: applied at every level, including the first and the last.
        repeats: number of times that each step is made, with its noise added again in between, which makes new pixels
            consistent with known ones. Lugmayr et al. 2022, "RePaint", algorithm 1 (its U).
        frames: number of levels in the strip; at least 2, or 0 for no strip.

    Returns:
        The samples, and the strip.
    """
    keys = row_keys(key, rows)
    start, eta = jnp.asarray(start), jnp.asarray(eta)
    grid = jax.tree.map(jnp.asarray, grid)
    shown = jnp.round(jnp.linspace(start, grid.steps, frames)).astype(jnp.int32)

    def hold(x: jax.Array, k: jax.Array, i: jax.Array | int) -> jax.Array:
        return x if constrain is None else constrain(x, k, draw_noise(keys, i, "constraint", x.shape[1:]))

    def body(i: jax.Array, carry: tuple[jax.Array, jax.Array, Strip]) -> tuple[jax.Array, jax.Array, Strip]:
        x_t, x_0_before, strip = carry
        k = start + (i - 1) // repeats
        z = draw_noise(keys, i, "step", x_t.shape[1:])
        x, x_0 = rule(denoise, grid, Now(x_t, k, k == start, x_0_before, z, eta))
        strip = show(strip, shown == k, x_t, x_0)
        x = hold(x, k + 1, i)
        if isinstance(repeats, int) and repeats == 1:  # the usual case compiles nothing of the following
            return x, x_0, strip
        done = i % repeats == 0
        x = jax.lax.cond(done, lambda: x, lambda: diffuse(x, grid, k, draw_noise(keys, i, "again", x.shape[1:])))
        return x, jnp.where(done, x_0, x_0_before), strip

    x = hold(x, start, 0)
    empty = Strip(*(jnp.zeros((frames, *x.shape)),) * 2)
    count = (grid.steps - start) * repeats
    x, _, strip = jax.lax.fori_loop(1, count + 1, body, (x, jnp.zeros_like(x), empty))
    return x, show(strip, shown == grid.steps, x, x)


def prior(key: Key[Array, ""], rows: Int[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """The noise from which samples start, x_T ~ N(0, I)."""
    return draw_noise(row_keys(key, rows), 0, "step", shape)


def part_noised(
    x_0: Float[Array, "b h w c"],
    grid: Grid,
    level: Int[Array, ""] | int,
    key: Key[Array, ""],
    rows: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """Images with the noise of a level, x_t ~ q(x_t | x_0); at the clean level the images themselves.

    Meng et al. 2022, "SDEdit".
    """
    return noised(x_0, prior(key, rows, x_0.shape[1:]), grid.level(level))


def keep_known(x_0: Float[Array, "b h w c"], known: Bool[Array, "b h w 1"], grid: Grid) -> Constraint:
    """Keeps the known pixels at x_0: at every level they are replaced by x_0 with that level's noise.

    Lugmayr et al. 2022, "RePaint", equation 8. At the clean level they are x_0, bit for bit.
    """

    def constrain(x_t: jax.Array, k: jax.Array, z: jax.Array) -> jax.Array:
        return jnp.where(known, noised(x_0, z, grid.level(k)), x_t)

    return constrain


def encode(rule: Rule, denoise: Denoiser, x_0: Float[Array, "b h w c"], grid: Grid) -> Float[Array, "b h w c"]:
    """The noise from which a deterministic rule on the same grid makes these images, up to the solver's error.

    Song et al. 2021, "Denoising diffusion implicit models", section 4.3: the ODE in the opposite direction.

    Args:
        rule: `euler` (the paper's) or `heun`, which is more accurate.
        denoise: the network.
        x_0: the images.
        grid: from the noisiest level to the clean one, as for sampling.
    """
    rows = jnp.arange(x_0.shape[0])
    return sample(rule, denoise, x_0, reverse(grid), jax.random.key(0), rows)[0]


def noised(x_0: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], level: Level) -> Float[Array, "b h w c"]:
    """x_t at one level, signal x_0 + noise eps."""
    return level.signal * x_0 + level.noise * eps


def diffuse(x: Float[Array, "b h w c"], grid: Grid, k: jax.Array, z: jax.Array) -> Float[Array, "b h w c"]:
    """From level k + 1 back to level k by adding noise, x_k ~ q(x_k | x_(k+1))."""
    scale, variance = forward(grid.level(k + 1), grid.level(k))
    return scale * x + jnp.sqrt(variance) * z


STREAMS = ("step", "constraint", "again")


def draw_noise(keys: Key[Array, " b"], i: jax.Array | int, stream: str, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise [b, *shape]; each row, step i and stream has its own."""
    index = i * len(STREAMS) + STREAMS.index(stream)
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


def show(strip: Strip, here: Bool[Array, " f"], x_t: jax.Array, x_0: jax.Array) -> Strip:
    """Puts images into the frames where `here` is true."""
    frame = here[:, None, None, None, None]
    return Strip(*(jnp.where(frame, new[None], old) for old, new in zip(strip, (x_t, x_0), strict=True)))
