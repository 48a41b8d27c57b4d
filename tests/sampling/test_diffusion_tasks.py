"""Diffusion samplers at other tasks: strength, inpainting, strips, encoding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_cases import IMAGES, KEY, KNOWN, LINEAR, MANY, MEAN, NOISE, STD, gaussian, uniform_images, walk

from zoo.core.errors import UserError
from zoo.sampling.diffusion.loop import SAMPLERS, encode, part_noised, sample
from zoo.sampling.diffusion.noise_levels import edm_grid, even_grid, reverse
from zoo.sampling.diffusion.rules import ddpm, euler, heun
from zoo.sampling.latent_paths import slerp


def test_repeated_steps_look_back_on_the_level_before():
    """A rule that counts: one more than the x_0 of the previous step."""

    def rule(denoise, grid, now):
        return now.x_t, now.x_0_before + 1

    x, grid = jnp.zeros((1, 1, 1, 1)), even_grid(LINEAR, 4)
    _, strip = sample(rule, gaussian, x, grid, KEY, jnp.arange(1), repeats=3, frames=5)
    np.testing.assert_array_equal(strip.x_0.ravel()[:4], [1, 2, 3, 4])


@pytest.mark.parametrize("name", SAMPLERS)
def test_strength_is_how_much_of_an_image_is_lost(name):
    rule, make = SAMPLERS[name]
    grid = make(LINEAR, 10)
    image = np.random.default_rng(0).uniform(-1, 1, NOISE.shape).astype(np.float32)
    similarity = []
    for strength in (0.0, 0.15, 0.35, 1.0):
        start = grid.start(strength)
        made = walk(rule, np.asarray(noised(image, grid, np.int32(start))), grid, start=start)
        similarity.append(np.corrcoef(made.ravel(), image.ravel())[0, 1])
        if strength == 0.0:
            np.testing.assert_array_equal(made, image)
    assert np.all(np.diff(similarity) < -0.05)
    assert similarity[-1] < 0.15
    assert start == 0


def test_strength_is_the_same_noise_on_every_grid():
    for strength in (0.1, 0.5, 0.9):
        t = [grid.t[grid.start(strength)] for grid in (even_grid(LINEAR, 500), edm_grid(LINEAR, 500))]
        np.testing.assert_allclose(t, strength * 1000, atol=6)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_strength_outside_its_range(strength):
    with pytest.raises(UserError, match="strength"):
        even_grid(LINEAR, 10).start(strength)


@jax.jit
def noised(x_0, grid, level):
    return part_noised(x_0, grid, level, KEY, jnp.arange(len(x_0)))


def test_part_noised_images_are_distributed_as_q():
    grid = even_grid(LINEAR, 10)
    x = np.asarray(noised(np.full_like(MANY, 0.7), grid, np.int32(6)))
    alpha_bar = LINEAR.alpha_bar[int(grid.t[6])]
    np.testing.assert_allclose(x.mean(), np.sqrt(alpha_bar) * 0.7, atol=0.02)
    np.testing.assert_allclose(x.std(), np.sqrt(1 - alpha_bar), rtol=0.01)


@pytest.mark.parametrize("name", SAMPLERS)
def test_inpainting_keeps_what_is_known_and_fills_in_what_fits(name):
    rule, make = SAMPLERS[name]

    def error(repeats):
        how = {"known": KNOWN, "x_0": IMAGES, "repeats": repeats, "data": uniform_images}
        made = walk(rule, NOISE, make(LINEAR, 20), **how)
        np.testing.assert_array_equal(made[:, :, :2], IMAGES[:, :, :2])
        return abs(made - IMAGES)[:, :, 2:].mean()

    once, often = error(1), error(5)
    assert often < once
    assert often < 0.1  # two images of this kind differ by 0.34 on average


def test_known_pixels_have_the_noise_of_the_level_that_a_step_arrives_at():
    grid, x_0 = even_grid(LINEAR, 9), np.full_like(MANY, 0.7)
    known = np.broadcast_to((np.arange(32) < 24)[None, None, :, None], (8, 32, 32, 1))
    _, strip = walk(ddpm, MANY, grid, frames=10, known=known, x_0=x_0)
    levels = np.append(LINEAR.alpha_bar[grid.t[:9].astype(int)], 1.0)
    for x_t, alpha_bar in zip(strip.x_t[:, :, :, :24], levels, strict=True):
        np.testing.assert_allclose(x_t.mean(), np.sqrt(alpha_bar) * 0.7, atol=0.02)
        np.testing.assert_allclose(x_t.std(), np.sqrt(1 - alpha_bar), rtol=0.02, atol=1e-6)


def test_a_strip_shows_the_way_and_does_not_change_it():
    grid = even_grid(LINEAR, 9)
    made, strip = walk(ddpm, NOISE, grid, frames=4)
    np.testing.assert_allclose(made, walk(ddpm, NOISE, grid), atol=1e-6)
    assert strip.x_t.shape == strip.x_0.shape == (4, *NOISE.shape)
    np.testing.assert_array_equal(strip.x_t[0], NOISE)
    np.testing.assert_array_equal(strip.x_t[-1], made)
    np.testing.assert_array_equal(strip.x_0[-1], made)
    # Levels 0, 3, 6 and 9; below each frame is the network's estimate of x_0.
    denoise = jax.jit(gaussian(jnp.asarray(LINEAR.alpha_bar, jnp.float32)))
    for frame, level in enumerate((0, 3, 6)):
        x_0, _ = denoise(strip.x_t[frame], np.full(8, grid.t[level]))
        np.testing.assert_allclose(strip.x_0[frame], x_0, atol=1e-4)
    made, strip = walk(ddpm, NOISE, grid, frames=4, start=7)
    np.testing.assert_array_equal(strip.x_t[0], NOISE)
    np.testing.assert_array_equal(strip.x_t[-1], made)


@partial(jax.jit, static_argnames=("rule",))
def code_of(rule, images, grid):
    return encode(rule, gaussian(jnp.asarray(LINEAR.alpha_bar, jnp.float32)), images, grid)


def test_encoding_finds_the_noise_of_an_image():
    images = MEAN + STD * NOISE
    errors = {}
    for rule in (euler, heun):
        for steps in (20, 100):
            grid = edm_grid(LINEAR, steps)
            code = np.asarray(code_of(rule, images, grid))
            errors[rule, steps] = abs(walk(rule, code, grid) - images).max()
        assert errors[rule, 100] < errors[rule, 20] / 2
    assert errors[heun, 20] < errors[euler, 20]
    assert errors[heun, 100] < 0.02
    # The ODE of this data maps noise z to MEAN + STD z.
    np.testing.assert_allclose(code, NOISE, atol=0.05)


def test_reversed_grids():
    grid = edm_grid(LINEAR, 7)
    there = reverse(grid)
    np.testing.assert_array_equal(there.signal[:8], grid.signal[7::-1])
    np.testing.assert_array_equal(there.noise[:8], grid.noise[7::-1])
    np.testing.assert_array_equal(there.t[:8], grid.t[7::-1])
    assert there.steps == 7
    assert jax.tree.map(jnp.shape, there) == jax.tree.map(jnp.shape, grid)


def test_slerp_keeps_the_length_of_noise():
    a, b = (jnp.asarray(np.repeat(z.reshape(1, -1) / np.linalg.norm(z), 9, 0)) for z in NOISE[:2])
    weight = jnp.linspace(0, 1, 9)[:, None]
    between = np.asarray(slerp(a, b, weight))[:, 0]
    np.testing.assert_allclose(between[0], a[0], atol=1e-6)
    np.testing.assert_allclose(between[-1], b[-1], atol=1e-6)
    np.testing.assert_allclose((between**2).sum(1), 1, atol=1e-5)
    steps = np.linalg.norm(np.diff(between, axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    np.testing.assert_allclose(slerp(a, a, weight)[:, 0], a, atol=1e-6)
