"""Samplers against closed forms and against diffusers.

If the data is Gaussian, N(MEAN, STD^2) in every pixel, the best denoiser is known, and a deterministic sampler maps
noise z to mean + std z: two rows of noise, -1 and 1, give its mean and standard deviation without any sampling error.

`tests/references/schedulers.*` contain the steps of diffusers' schedulers for random network outputs, made by
tools/make_references.py.
"""

import json
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import REFERENCES
from safetensors.numpy import load_file
from test_sampling import no_compilation

from zoo.core.errors import UserError
from zoo.sampling.diffusion.loop import SAMPLERS, encode, keep_known, part_noised, prior, sample
from zoo.sampling.diffusion.noise_levels import edm_grid, even_grid, make_grid, reverse, shifted
from zoo.sampling.diffusion.noise_schedule import Level, Path, VariancePreserving, make_alpha_bar
from zoo.sampling.diffusion.prediction import solve, target_weights
from zoo.sampling.diffusion.rules import Now, ddim, ddpm, dpm_solver_pp, euler, heun
from zoo.sampling.latent_paths import slerp

MEAN, STD = 0.4, 0.3
PATHS = {name: VariancePreserving(make_alpha_bar(name, 1000)) for name in ("linear", "cosine")}
LINEAR = PATHS["linear"]
KEY = jax.random.key(0)
SHAPE = (4, 4, 3)
ROWS = np.arange(8)
# One shape for most tests, so that little has to be compiled.
NOISE = np.asarray(prior(KEY, jnp.asarray(ROWS), SHAPE))
IMAGES = np.linspace(-0.4, 1.2, 8, dtype=np.float32)[:, None, None, None] * np.ones((8, *SHAPE), np.float32)
KNOWN = np.broadcast_to((np.arange(4) < 2)[None, None, :, None], (8, 4, 4, 1))
MANY = np.asarray(prior(KEY, jnp.asarray(ROWS), (32, 32, 3)))


def alpha_bar_at(alpha_bar, t):
    """alpha_bar at fractional times, with the log of the signal-to-noise ratio interpolated."""
    log_snr = jnp.log(alpha_bar) - jnp.log1p(-alpha_bar)
    return jax.nn.sigmoid(jnp.interp(t, jnp.arange(len(alpha_bar), dtype=jnp.float32), log_snr))


def to_eps(x_0, x_t, ab):
    """The noise in x_t, by DDPM's equation 4."""
    return (x_t - jnp.sqrt(ab) * x_0) / jnp.sqrt(1 - ab)


def gaussian(alpha_bar):
    """The best denoiser where pixels are independent, N(MEAN, STD^2)."""

    def denoise(x_t, t):
        ab = alpha_bar_at(alpha_bar, t)[:, None, None, None]
        x_0 = MEAN + STD**2 * jnp.sqrt(ab) / (ab * STD**2 + 1 - ab) * (x_t - jnp.sqrt(ab) * MEAN)
        return x_0, to_eps(x_0, x_t, ab)

    return denoise


def uniform_images(alpha_bar):
    """The best denoiser where all pixels of an image are equal, one draw of N(MEAN, STD^2)."""

    def denoise(x_t, t):
        ab = alpha_bar_at(alpha_bar, t)[:, None, None, None]
        seen = x_t.mean(axis=(1, 2, 3), keepdims=True)
        noise = (1 - ab) / (x_t[0].size)
        x_0 = MEAN + STD**2 * jnp.sqrt(ab) / (ab * STD**2 + noise) * (seen - jnp.sqrt(ab) * MEAN)
        x_0 = jnp.broadcast_to(x_0, x_t.shape)
        return x_0, to_eps(x_0, x_t, ab)

    return denoise


def untrained(alpha_bar):
    """A network whose eps has nothing to do with the image, so that x_0 is far out at the noisy end, and clipped."""

    def denoise(x_t, t):
        ab = alpha_bar_at(alpha_bar, t)[:, None, None, None]
        x_0 = jnp.clip((x_t - jnp.sqrt(1 - ab) * jnp.cos(5 * x_t)) / jnp.sqrt(ab), -1, 1)
        return x_0, to_eps(x_0, x_t, ab)

    return denoise


DATA = (gaussian, uniform_images, untrained)


@partial(jax.jit, static_argnames=("rule", "frames"))
def _walk(rule, frames, data, alpha_bar, x, grid, key, rows, known, x_0, **how):
    def denoise(x_t, t):
        return jax.lax.switch(data, [make(alpha_bar) for make in DATA], x_t, t)

    constrain = None if known is None else keep_known(x_0, known, grid)
    return sample(rule, denoise, x, grid, key, rows, constrain=constrain, frames=frames, **how)


def walk(rule, x, grid, *, data=gaussian, frames=0, path=LINEAR, key=KEY, rows=None, known=None, x_0=None, **how):
    """`sample`, compiled for each rule, number of frames, size, and whether something is known."""
    rows = np.arange(len(x)) if rows is None else rows
    kinds = {"eta": np.float32, "start": np.int32, "repeats": np.int32}
    numbers = {"eta": np.float32(0), "start": np.int32(0)} | {name: kinds[name](how[name]) for name in how}
    table, number = np.asarray(path.alpha_bar, np.float32), np.int32(DATA.index(data))
    made, strip = _walk(rule, frames, number, table, x, grid, key, rows, known, x_0, **numbers)
    return (np.asarray(made), jax.tree.map(np.asarray, strip)) if frames else np.asarray(made)


def moments(rule, grid, path=LINEAR):
    """Mean and standard deviation of what a deterministic sampler makes."""
    ends = np.where(ROWS[:, None, None, None] % 2, 1, -1) * np.ones((8, *SHAPE), np.float32)
    low, high = walk(rule, ends, grid, path=path)[:2, 0, 0, 0]
    return (low + high) / 2, (high - low) / 2


# ------------------------------------------------------------------------------ the data's distribution comes out


@pytest.mark.parametrize("schedule", PATHS)
@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpm++"])
def test_solvers_of_the_ode_converge_to_the_data(name, schedule):
    path = PATHS[schedule]
    rule, make = SAMPLERS[name]
    found = [moments(rule, make(path, steps), path) for steps in (20, 100, 1000)]
    errors = [abs(std - STD) for _, std in found]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.002
    # What is left of the mean: at level 0 the samplers begin with mean 0 instead of sqrt(alpha_bar) MEAN.
    np.testing.assert_allclose([mean for mean, _ in found], MEAN, atol=0.01)


def test_ddim_falls_short_by_known_amounts():
    stds = [moments(ddim, even_grid(LINEAR, steps))[1] for steps in (20, 100, 1000)]
    np.testing.assert_allclose(stds, [0.238, 0.287, 0.2985], atol=5e-4)


@pytest.mark.parametrize("schedule", PATHS)
def test_higher_order_comes_nearer_at_equal_steps(schedule):
    path = PATHS[schedule]
    for steps in (20, 50, 100):
        grid = edm_grid(path, steps)
        errors = {rule: abs(moments(rule, grid, path)[1] - STD) for rule in (euler, heun, dpm_solver_pp)}
        assert max(errors[heun], errors[dpm_solver_pp]) < errors[euler] / 2


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("schedule", PATHS)
def test_samplers_with_noise_converge_to_the_data(schedule, eta):
    path = PATHS[schedule]
    grids = [even_grid(path, steps) for steps in (20, 100, 1000)]
    made = [walk(ddim, MANY, grid, path=path, eta=eta) for grid in grids]
    errors = [abs(images.std() - STD) for images in made]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.006
    assert abs(made[2].mean() - MEAN) < 0.01


def test_repeating_steps_keeps_the_distribution():
    made = [walk(ddim, MANY, even_grid(LINEAR, steps), eta=1, repeats=3) for steps in (100, 400)]
    errors = [abs(images.std() - STD) for images in made]
    assert errors[1] < errors[0] / 2 < 0.03
    assert abs(made[1].mean() - MEAN) < 0.01


# ------------------------------------------------------------------------------ relations between samplers


@pytest.mark.parametrize(("steps", "tolerance"), [(1, 1e-5), (5, 1e-5), (1000, 2e-3)])
def test_ddpm_is_ddim_with_all_of_the_noise(steps, tolerance):
    grid = even_grid(LINEAR, steps)
    np.testing.assert_allclose(walk(ddpm, NOISE, grid), walk(ddim, NOISE, grid, eta=1), atol=tolerance)


def test_euler_is_ddim_without_noise():
    grid = edm_grid(LINEAR, 9)
    np.testing.assert_allclose(walk(euler, NOISE, grid), walk(ddim, NOISE, grid, eta=0), atol=1e-5)


@pytest.mark.parametrize(("rule", "calls"), [(euler, 6), (dpm_solver_pp, 6), (heun, 11)])
def test_calls_of_the_network(rule, calls):
    times = []

    def denoise(x_t, t):
        jax.debug.callback(lambda t: times.append(float(t[0])), t, ordered=True)
        return gaussian(jnp.asarray(LINEAR.alpha_bar, jnp.float32))(x_t, t)

    grid = edm_grid(LINEAR, 6)
    jax.block_until_ready(sample(rule, denoise, jnp.ones((1, 2, 2, 1)), grid, KEY, jnp.arange(1)))
    jax.effects_barrier()
    assert len(times) == calls
    assert set(times) == set(grid.t[:6].tolist())


# ------------------------------------------------------------------------------ one compilation, any batch, no NaN


@pytest.mark.parametrize("name", SAMPLERS)
def test_other_settings_compile_nothing(name):
    rule, make = SAMPLERS[name]
    walk(rule, NOISE, make(LINEAR, 5))
    key = jax.random.key(1)
    with no_compilation():
        walk(rule, NOISE, make(PATHS["cosine"], 50), key=key, rows=ROWS + 8, eta=0.5, start=3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(name):
    rule, make = SAMPLERS[name]

    def made(rows):
        how = {"known": KNOWN[rows], "x_0": IMAGES[rows], "repeats": 2, "eta": 0.7, "data": uniform_images}
        return walk(rule, NOISE[rows], make(LINEAR, 6), rows=rows, **how)

    whole, turned = made(ROWS), made(ROWS[::-1])
    np.testing.assert_allclose(turned, whole[::-1], atol=1e-6)
    if name == "ddpm":
        np.testing.assert_allclose(made(ROWS[4:6]), whole[4:6], atol=1e-6)


@jax.jit
def noises(key):
    """All that a sampler of four steps draws: a rule shows its noise as x_0, a constraint its own as x_t."""
    _, strip = sample(
        lambda denoise, grid, now: (now.x_t, now.z), gaussian, jnp.asarray(NOISE), even_grid(LINEAR, 4), key,
        jnp.asarray(ROWS), constrain=lambda x, level, z: z, frames=5,
    )  # fmt: skip
    return jnp.concatenate([strip.x_t.reshape(40, -1), strip.x_0[:4].reshape(32, -1)])


def test_noise_is_another_for_every_row_step_use_and_key():
    made = np.concatenate([NOISE.reshape(8, -1), noises(KEY), noises(jax.random.key(1))])
    np.testing.assert_allclose(made.std(), 1, atol=0.02)
    correlation = np.corrcoef(made)[~np.eye(len(made), dtype=bool)]
    assert abs(correlation).max() < 0.7  # of 23,256 pairs of 48 numbers each


@pytest.mark.parametrize(("name", "timesteps"), [*((name, 1000) for name in SAMPLERS), ("ddpm", 1), ("dpm++", 1)])
def test_the_ends_of_the_schedule_are_finite(name, timesteps):
    rule, make = SAMPLERS[name]
    for schedule in PATHS:
        path = VariancePreserving(make_alpha_bar(schedule, timesteps))
        for steps in {1, min(2, timesteps), timesteps}:
            made = walk(rule, NOISE, make(path, steps), data=untrained, path=path, eta=1)
            assert np.isfinite(made).all()
            assert abs(made).max() < 1.5


@pytest.mark.parametrize("make", [even_grid, edm_grid])
def test_a_shift_moves_levels_towards_the_noise_as_published(make):
    """Of noise in data that flow from one to the other by x = (1 - s) x_0 + s eps, SD3 makes 3 s / (1 + 2 s)."""
    path = PATHS["cosine"]
    plain, moved = make(path, 40), shifted(make(path, 40), path, 3.0)
    assert moved.steps == 40
    assert moved.signal[40:].min() == 1
    assert moved.noise[40:].max() == 0
    assert moved.t[0] == pytest.approx(plain.t[0], abs=1e-3)
    table, times = jnp.asarray(path.alpha_bar, jnp.float32), jnp.asarray(moved.t[:40])
    np.testing.assert_allclose(alpha_bar_at(table, times), moved.signal[:40] ** 2, rtol=1e-4)
    np.testing.assert_allclose(moved.signal[:40] ** 2 + moved.noise[:40] ** 2, 1, rtol=1e-6)
    (s, s_moved) = (1 / (1 + grid.signal[1:40] / grid.noise[1:40]) for grid in (plain, moved))
    np.testing.assert_allclose(s_moved, 3 * s / (1 + 2 * s), atol=5e-3 if make is edm_grid else 1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_shift_leaves_the_distribution_as_it_is(name):
    rule, make = SAMPLERS[name]
    grids = [shifted(make(LINEAR, steps), LINEAR, 2.0) for steps in (20, 100, 1000)]
    errors = [abs(walk(rule, MANY, grid, eta=1).std() - STD) for grid in grids]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


@pytest.mark.parametrize("make", [even_grid, edm_grid])
@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_steps_that_the_schedule_does_not_have(make, steps):
    with pytest.raises(UserError, match=f"steps is {steps}; it must be from 1 to 1000"):
        make(LINEAR, steps)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_levels_that_float32_cannot_tell_apart_add_no_noise(name):
    rule, make = SAMPLERS[name]
    made = walk(rule, NOISE, shifted(make(LINEAR, 1000), LINEAR, 1e9), data=untrained, eta=1)
    assert np.isfinite(made).all()


# ------------------------------------------------------------------------------ a straight path


@dataclass(frozen=True)
class Straight:
    """Flow matching's path (Lipman et al. 2023), with times from 0 to T = 1000 as in diffusers."""

    timesteps: int = 1000
    ends: tuple[float, float] = (1000.0, 1.0)

    def at(self, t):
        return Level(1 - t / self.timesteps, t / self.timesteps)

    def time_of(self, ratio):
        return self.timesteps / (1 + ratio)


def flow(x_t, t):
    """The best denoiser of Gaussian data on the straight path, by way of its velocity E[eps - x_0 | x_t]."""
    level = Straight().at(t[:, None, None, None])
    gain = (level.noise - level.signal * STD**2) / ((level.signal * STD) ** 2 + level.noise**2)
    velocity = gain * (x_t - level.signal * MEAN) - MEAN
    return solve(velocity, x_t, level, (-1.0, 1.0))


@partial(jax.jit, static_argnames="rule")
def flown(rule, x, grid, eta):
    return sample(rule, flow, x, grid, KEY, jnp.arange(len(x)), eta=eta)[0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_converges_to_the_data_on_a_straight_path(name):
    assert isinstance(Straight(), Path)
    rule, make = SAMPLERS[name]
    made = [np.asarray(flown(rule, MANY, make(Straight(), steps), np.float32(0))) for steps in (10, 500)]
    errors = [abs(images.std() - STD) for images in made]
    assert errors[1] < 0.005
    assert errors[1] < errors[0]
    assert abs(made[1].mean() - MEAN) < 0.01


def test_euler_steps_on_a_straight_path_follow_the_velocity():
    """Lipman et al.: x + dt v, from pure noise at t = T, on times as evenly spaced as diffusers' flow matching has."""
    grid = even_grid(Straight(), 4)
    np.testing.assert_array_equal(grid.t[:5], [1000, 667, 334, 1, 0])
    x = NOISE.astype(np.float64)
    for begin, end in zip(grid.t[:4].astype(np.float64) / 1000, grid.t[1:5] / 1000, strict=True):
        variance = ((1 - begin) * STD) ** 2 + begin**2
        x = x + (end - begin) * ((begin - (1 - begin) * STD**2) / variance * (x - (1 - begin) * MEAN) - MEAN)
    np.testing.assert_allclose(flown(euler, NOISE, grid, np.float32(0)), x, atol=1e-5)


def test_a_shift_on_a_straight_path_is_exact():
    plain, moved = even_grid(Straight(), 50), shifted(even_grid(Straight(), 50), Straight(), 3.0)
    s = plain.t[:50] / 1000
    np.testing.assert_allclose(moved.t[:50] / 1000, 3 * s / (1 + 2 * s), atol=1e-6)
    np.testing.assert_allclose(moved.noise[:50], moved.t[:50] / 1000, atol=1e-6)


def test_strength_on_a_straight_path_is_its_noise():
    grid = even_grid(Straight(), 500)
    assert grid.start(1.0) == 0
    for strength in (0.1, 0.5, 0.9):
        assert grid.noise[grid.start(strength)] == pytest.approx(strength, abs=3e-3)


# ------------------------------------------------------------------------------ other tasks


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


# ------------------------------------------------------------------------------ diffusers


RULE_OF = {
    "DDPMScheduler": ddpm,
    "DDIMScheduler": ddim,
    "EulerDiscreteScheduler": euler,
    "HeunDiscreteScheduler": heun,
    "DPMSolverMultistepScheduler": dpm_solver_pp,
}
BETAS = {"linear": "linear", "squaredcos_cap_v2": "cosine"}


def load_schedulers(folder=REFERENCES):
    """Every case, its numbers and its table of alpha_bar."""
    arrays = load_file(folder / "schedulers.safetensors")
    cases = json.loads((folder / "schedulers.json").read_text())["cases"]
    for number, case in enumerate(cases):
        own = {name.split(".")[1]: value for name, value in arrays.items() if name.startswith(f"{number}.")}
        yield case, own, arrays["alpha_bar." + case["settings"].get("beta_schedule", "linear")]


def levels_of(case, arrays, alpha_bar):
    """Times and alpha_bar of a scheduler's levels."""
    t = arrays["timesteps"]
    if "sigmas" not in arrays:
        return t, alpha_bar[t.astype(int)]
    sigmas = arrays["sigmas"][:-1]
    if case["scheduler"] == "HeunDiscreteScheduler":  # which lists a level for each call
        t, sigmas = np.append(t[:1], t[1::2]), np.append(sigmas[:1], sigmas[1::2])
    return t, 1 / (1 + sigmas.astype(np.float64) ** 2)


@partial(jax.jit, static_argnames=("rule", "prediction"))
def advance(rule, prediction, grid, now, outputs):
    """One step with the given network outputs, of which the second is for a call at the next level."""

    def denoise(x_t, t):
        call = jnp.where(t[0] == grid.t[now.k], 0, 1)
        level = grid.level(now.k + call)
        return solve(outputs[call], x_t, level, target_weights(prediction, level))

    return rule(denoise, grid, now)


def check_rules(folder):
    for number, (case, arrays, alpha_bar) in enumerate(load_schedulers(folder)):
        rule, steps = RULE_OF[case["scheduler"]], case["steps"]
        t, levels = levels_of(case, arrays, alpha_bar)
        level = Level(np.sqrt(levels.astype(np.float64)), np.sqrt(1 - levels.astype(np.float64)))
        grid = jax.tree.map(jnp.asarray, make_grid(t.astype(np.float64), level, 1000))
        assert len(t) == steps
        calls = 2 if rule is heun else 1
        # Euler and Heun hold x_t / sqrt(alpha_bar).
        scale = np.sqrt(np.append(levels, 1.0)) if rule in (euler, heun) else np.ones(steps + 1)
        expected = np.append(arrays["x"][:-1:calls], arrays["x"][-1:], 0) * scale[:, None, None, None, None]
        outputs = jnp.asarray(np.append(arrays["outputs"], arrays["outputs"][-1:], 0))
        noise = arrays.get("noise", np.zeros_like(expected))
        x = x_0 = jnp.asarray(expected[0], jnp.float32)
        for k in range(steps):
            now = Now(x, jnp.int32(k), jnp.asarray(k == 0), x_0, jnp.asarray(noise[k]), jnp.float32(case["eta"]))
            x, x_0 = advance(rule, case["prediction"], grid, now, outputs[calls * k : calls * k + 2])
            size = max(1, abs(expected[k + 1]).max())
            np.testing.assert_allclose(x, expected[k + 1], atol=2e-4 * size, err_msg=f"case {number}, step {k}: {case}")


def check_grids(folder):
    compared = []
    for case, arrays, alpha_bar in load_schedulers(folder):
        settings, schedule = case["settings"], BETAS[case["settings"].get("beta_schedule", "linear")]
        own = PATHS[schedule]
        np.testing.assert_allclose(own.alpha_bar, alpha_bar, rtol=1e-3, atol=1e-6)
        t, levels = levels_of(case, arrays, alpha_bar)
        if case["steps"] == 1:
            continue  # diffusers' single step begins at t = 0, where there is no noise to remove
        if case["scheduler"] == "DDPMScheduler":
            grid = even_grid(own, case["steps"])
            np.testing.assert_array_equal(grid.t[: case["steps"]], t)
        elif settings.get("use_karras_sigmas"):
            grid = edm_grid(own, case["steps"])
            # DPMSolverMultistepScheduler rounds the times at which the network is called; its levels are the same.
            near = 0.5 if case["scheduler"] == "DPMSolverMultistepScheduler" else 0.05
            np.testing.assert_allclose(grid.t[: case["steps"]], t, atol=near + 1e-3)
        else:
            continue
        compared.append(case["scheduler"])
        np.testing.assert_allclose(grid.signal[: case["steps"]] ** 2, levels, rtol=2e-3, atol=1e-6)
        # The time that the network receives is that of the noise in the images.
        at_t = alpha_bar_at(jnp.asarray(own.alpha_bar, jnp.float32), jnp.asarray(grid.t[: case["steps"]]))
        np.testing.assert_allclose(1 - at_t, grid.noise[: case["steps"]] ** 2, rtol=2e-3)
        assert grid.signal[case["steps"]] == 1
        assert grid.noise[case["steps"]] == 0
    assert len(set(compared)) == 4


def test_rules_are_diffusers():
    check_rules(REFERENCES)


def test_grids_are_diffusers():
    check_grids(REFERENCES)
