"""Diffusion samplers: from noise to pictures, given any network that estimates the noise in a picture.

A picture x_0 with noise is x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps. A sampler is three things:

    a denoiser  denoise(x_t, t) -> (x_0, eps)     what the network says; the two must agree with x_t as above
    a grid      levels k = 0 .. steps             see `zoo.sampling.diffusion.noise_levels`
    a rule      one step, from level k to k + 1   see `zoo.sampling.diffusion.rules`

`sample` is the loop, and `SAMPLERS` names the usual pairs of rule and grid. Other tasks are the same loop, begun
elsewhere or held to something:

    image-to-image   start = grid.start(strength); sample(..., part_noised(x_0, grid, start, ...), start=start)
    inpainting       sample(..., constrain=keep_known(x_0, known, grid))
    interpolation    sample(...) from between two noises (`slerp`), from `prior` or, of given pictures, from `encode`
    a strip          _, strip = sample(..., frames=8)

Everything here can be traced, with the grid, start, eta, repeats and whatever the denoiser closes over as arguments of
the compiled function; only the rule, the number of frames and whether there is a constraint are compiled in.

Letters in shapes: b rows, h w c picture, f frames, T levels of the training schedule.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.core.random import row_keys
from zoo.sampling.diffusion.noise_levels import Grid, edm_grid, even_grid, reverse
from zoo.sampling.diffusion.noise_schedule import add_noise
from zoo.sampling.diffusion.rules import Denoiser, Now, Rule, ddim, ddpm, dpm_solver_pp, euler, heun, levels

Constraint = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(x_t [b h w c], level [], fresh noise [b h w c]) -> x_t [b h w c] held to what is known of it."""


class Strip(NamedTuple):
    """What a sampler went through, at levels evenly spaced from the first to the last."""

    x_t: jax.Array
    """The pictures with their noise, [f b h w c]; the last are the samples."""
    x_0: jax.Array
    """What the network took them for at each level, [f b h w c]."""


class Sampler(NamedTuple):
    """A rule and the grid that goes with it."""

    rule: Rule
    make_grid: Callable[[np.ndarray, int], Grid]
    """(alpha_bar [T], steps) -> grid, on the host."""


SAMPLERS = {
    "ddpm": Sampler(ddpm, even_grid),
    "ddim": Sampler(ddim, even_grid),
    "euler": Sampler(euler, edm_grid),
    "heun": Sampler(heun, edm_grid),
    "dpm++": Sampler(dpm_solver_pp, edm_grid),
}


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
    """Walks through the grid from level `start` to the clean one.

    Args:
        rule: how a step is made.
        denoise: the network.
        x: the pictures at level `start`: `prior` at level 0, else `part_noised`.
        grid: of levels.
        key: of all noise; a row draws from fold_in(key, row), folded with the step.
        rows: each row's index among all samples, so that a sample does not depend on its batch.
        eta: share of the ancestral noise, for `ddim`.
        start: the first level; grid.steps makes no step at all.
        constrain: applied at every level, the first and the last too.
        repeats: how often each step is made, with its noise put back in between, so that what is filled in comes to
            agree with what is kept. Lugmayr et al. 2022, "RePaint", algorithm 1 (its U).
        frames: how many levels the strip shows; at least 2, or 0 for none.

    Returns:
        The samples, and the strip.
    """
    keys = row_keys(key, rows)
    start, eta = jnp.asarray(start), jnp.asarray(eta)
    grid = jax.tree.map(jnp.asarray, grid)
    shown = jnp.round(jnp.linspace(start, grid.steps, frames)).astype(jnp.int32)

    def hold(x: jax.Array, k: jax.Array, i: jax.Array | int) -> jax.Array:
        return x if constrain is None else constrain(x, k, noise(keys, i, "constraint", x.shape[1:]))

    def body(i: jax.Array, carry: tuple[jax.Array, jax.Array, Strip]) -> tuple[jax.Array, jax.Array, Strip]:
        x_t, x_0_before, strip = carry
        k = start + (i - 1) // repeats
        z = noise(keys, i, "step", x_t.shape[1:])
        x, x_0 = rule(denoise, grid, Now(x_t, k, k == start, x_0_before, z, eta))
        strip = show(strip, shown == k, x_t, x_0)
        x = hold(x, k + 1, i)
        if isinstance(repeats, int) and repeats == 1:  # the usual case needs none of the following compiled
            return x, x_0, strip
        done = i % repeats == 0
        x = jax.lax.cond(done, lambda: x, lambda: diffuse(x, grid, k, noise(keys, i, "again", x.shape[1:])))
        return x, jnp.where(done, x_0, x_0_before), strip

    x = hold(x, start, 0)
    empty = Strip(*(jnp.zeros((frames, *x.shape)),) * 2)
    count = (grid.steps - start) * repeats
    x, _, strip = jax.lax.fori_loop(1, count + 1, body, (x, jnp.zeros_like(x), empty))
    return x, show(strip, shown == grid.steps, x, x)


def prior(key: Key[Array, ""], rows: Int[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """The noise that samples begin with, x_T ~ N(0, I)."""
    return noise(row_keys(key, rows), 0, "step", shape)


def part_noised(
    x_0: Float[Array, "b h w c"],
    grid: Grid,
    level: Int[Array, ""] | int,
    key: Key[Array, ""],
    rows: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """Pictures with the noise of a level, x_t ~ q(x_t | x_0); at the clean level the pictures themselves.

    Meng et al. 2022, "SDEdit".
    """
    return mix(x_0, prior(key, rows, x_0.shape[1:]), jnp.asarray(grid.alpha_bar)[level])


def keep_known(x_0: Float[Array, "b h w c"], known: Bool[Array, "b h w 1"], grid: Grid) -> Constraint:
    """Holds the known pixels to x_0: at every level they are replaced by x_0 with that level's noise.

    Lugmayr et al. 2022, "RePaint", equation 8. At the clean level they are x_0, bit for bit.
    """

    def constrain(x_t: jax.Array, level: jax.Array, z: jax.Array) -> jax.Array:
        return jnp.where(known, mix(x_0, z, jnp.asarray(grid.alpha_bar)[level]), x_t)

    return constrain


def encode(rule: Rule, denoise: Denoiser, x_0: Float[Array, "b h w c"], grid: Grid) -> Float[Array, "b h w c"]:
    """The noise from which a deterministic rule on the same grid makes these pictures, up to the solver's error.

    Song et al. 2021, "Denoising Diffusion Implicit Models", section 4.3: the ODE solved the other way.

    Args:
        rule: `euler` (the paper's) or `heun`, which comes nearer.
        denoise: the network.
        x_0: the pictures.
        grid: from the noisiest level to the clean one, as for sampling.
    """
    rows = jnp.arange(x_0.shape[0])
    return sample(rule, denoise, x_0, reverse(grid), jax.random.key(0), rows)[0]


def mix(x_0: jax.Array, eps: jax.Array, alpha_bar: Float[Array, ""]) -> jax.Array:
    """x_t of pictures and their noise, at one level."""
    return add_noise(x_0, eps, jnp.broadcast_to(alpha_bar, x_0.shape[:1]))


def diffuse(x: jax.Array, grid: Grid, k: jax.Array, z: jax.Array) -> jax.Array:
    """From level k + 1 back to level k by adding noise, x_k ~ q(x_k | x_(k+1))."""
    here, there = levels(grid, k)
    return mix(x, z, here / there)


STREAMS = ("step", "constraint", "again")


def noise(keys: Key[Array, " b"], i: jax.Array | int, stream: str, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise of a shape for each row; step i and its use each have their own."""
    index = i * len(STREAMS) + STREAMS.index(stream)
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


def show(strip: Strip, here: Bool[Array, " f"], x_t: jax.Array, x_0: jax.Array) -> Strip:
    """Puts pictures into the frames that belong here."""
    frame = here[:, None, None, None, None]
    return Strip(*(jnp.where(frame, new[None], old) for old, new in zip(strip, (x_t, x_0), strict=True)))
