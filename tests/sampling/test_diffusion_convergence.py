"""Diffusion samplers against closed forms: the data's distribution comes out on any grid, path and batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import no_compilation
from diffusion_cases import (
    IMAGES,
    KEY,
    KNOWN,
    LINEAR,
    MANY,
    MEAN,
    NOISE,
    PATHS,
    ROWS,
    STD,
    alpha_bar_at,
    gaussian,
    moments,
    uniform_images,
    untrained,
    walk,
)

from zoo.core.errors import UserError
from zoo.sampling.diffusion.loop import SAMPLERS, STRAIGHT, sample
from zoo.sampling.diffusion.noise_levels import edm_grid, even_grid, shifted
from zoo.sampling.diffusion.noise_schedule import Path, StraightPath, VariancePreserving, make_alpha_bar
from zoo.sampling.diffusion.prediction import solve
from zoo.sampling.diffusion.rules import ddim, dpm_solver_pp, euler, heun, straight_heun, straight_midpoint

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_repeating_steps_keeps_the_distribution():
    made = [walk(ddim, MANY, even_grid(LINEAR, steps), eta=1, repeats=3) for steps in (100, 400)]
    errors = [abs(images.std() - STD) for images in made]
    assert errors[1] < errors[0] / 2 < 0.03
    assert abs(made[1].mean() - MEAN) < 0.01


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


@pytest.mark.slow
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


PATH = StraightPath()


def flow(x_t, t):
    """The best denoiser of Gaussian data on the straight path, by way of its velocity E[eps - x_0 | x_t]."""
    level = PATH.at(t[:, None, None, None])
    gain = (level.noise - level.signal * STD**2) / ((level.signal * STD) ** 2 + level.noise**2)
    velocity = gain * (x_t - level.signal * MEAN) - MEAN
    return solve(velocity, x_t, level, (-1.0, 1.0))


@partial(jax.jit, static_argnames="rule")
def flown(rule, x, grid, eta):
    return sample(rule, flow, x, grid, KEY, jnp.arange(len(x)), eta=eta)[0]


@pytest.mark.parametrize("name", STRAIGHT)
def test_every_sampler_converges_to_the_data_on_a_straight_path(name):
    assert isinstance(PATH, Path)
    rule, make = STRAIGHT[name]
    made = [np.asarray(flown(rule, MANY, make(PATH, steps), np.float32(0))) for steps in (10, 500)]
    errors = [abs(images.std() - STD) for images in made]
    assert errors[1] < 0.005
    assert errors[1] < max(errors[0], 0.001)  # the samples' own standard error
    assert abs(made[1].mean() - MEAN) < 0.01


def test_euler_steps_on_a_straight_path_follow_the_velocity():
    """Lipman et al.: x + dt v, from pure noise at t = T, in steps of equal length."""
    grid = even_grid(PATH, 4)
    np.testing.assert_array_equal(grid.t[:5], [1000, 750, 500, 250, 0])
    x = NOISE.astype(np.float64)
    for begin, end in zip(grid.t[:4].astype(np.float64) / 1000, grid.t[1:5] / 1000, strict=True):
        variance = ((1 - begin) * STD) ** 2 + begin**2
        x = x + (end - begin) * ((begin - (1 - begin) * STD**2) / variance * (x - (1 - begin) * MEAN) - MEAN)
    np.testing.assert_allclose(flown(euler, NOISE, grid, np.float32(0)), x, atol=1e-5)


@pytest.mark.parametrize("rule", [straight_heun, straight_midpoint])
def test_second_order_in_t_on_a_straight_path(rule):
    """The ODE maps noise z to MEAN + STD z; twice the steps leave less than a third of the error."""
    wanted = MEAN + STD * NOISE
    errors = [np.abs(flown(rule, NOISE, even_grid(PATH, steps), np.float32(0)) - wanted).max() for steps in (40, 80)]
    assert errors[1] < errors[0] / 3
    assert errors[0] < np.abs(flown(euler, NOISE, even_grid(PATH, 80), np.float32(0)) - wanted).max() / 3


def test_two_steps_of_heun_and_midpoint_by_hand():
    """In one pixel, with velocity x + t: Heun from t = 1 to 1/2 and Euler from there; midpoint at 3/4 and 1/4."""

    def denoise(x_t, t):
        return solve(x_t + t[:, None, None, None] / 1000, x_t, PATH.at(t[:, None, None, None]), (-1.0, 1.0))

    x, grid = jnp.full((1, 1, 1, 1), 2.0), even_grid(PATH, 2)
    made = {
        rule: sample(rule, denoise, x, grid, KEY, jnp.arange(1))[0].item()
        for rule in (straight_heun, straight_midpoint)
    }
    # Heun: slopes 3 at (2, 1) and 1 at (1/2, 1/2), so x = 2 - 1/2 * 2 = 1; then 1 - 1/2 * 3/2.
    assert made[straight_heun] == pytest.approx(0.25, abs=1e-5)
    # Midpoint: at 3/4 x = 5/4, slope 2, so x = 1; at 1/4 x = 1 - 1/4 * 3/2 = 5/8, slope 7/8.
    assert made[straight_midpoint] == pytest.approx(1 - 7 / 16, abs=1e-5)


def test_a_shift_on_a_straight_path_is_exact():
    plain, moved = even_grid(PATH, 50), shifted(even_grid(PATH, 50), PATH, 3.0)
    s = plain.t[:50] / 1000
    np.testing.assert_allclose(moved.t[:50] / 1000, 3 * s / (1 + 2 * s), atol=1e-6)
    np.testing.assert_allclose(moved.noise[:50], moved.t[:50] / 1000, atol=1e-6)


def test_strength_on_a_straight_path_is_its_noise():
    grid = even_grid(PATH, 500)
    assert grid.start(1.0) == 0
    for strength in (0.1, 0.5, 0.9):
        assert grid.noise[grid.start(strength)] == pytest.approx(strength, abs=3e-3)
