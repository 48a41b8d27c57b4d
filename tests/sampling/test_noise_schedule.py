"""The noise schedule and predictions against the papers' formulas in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.sampling.diffusion.noise_schedule import (
    Level,
    StraightPath,
    VariancePreserving,
    make_alpha_bar,
    spread_times,
)
from zoo.sampling.diffusion.prediction import estimates, solve, target_weights


@pytest.mark.parametrize(("timesteps", "betas"), [(1000, (1e-4, 0.02)), (200, (5e-4, 0.1)), (10, (0.01, 0.999))])
def test_linear_betas_grow_in_proportion_where_steps_are_fewer(timesteps, betas):
    alpha_bar = make_alpha_bar("linear", timesteps)
    beta = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    assert len(alpha_bar) == timesteps
    assert (beta[0], beta[-1]) == pytest.approx(betas)
    assert beta[timesteps // 2 - 1] == pytest.approx(
        (1e-4 + (0.02 - 1e-4) * (timesteps // 2 - 1) / (timesteps - 1)) * 1000 / timesteps if timesteps > 10 else 0.9,
        rel=0.02,
    )


def test_cosine_schedule_is_equation_17():
    alpha_bar = make_alpha_bar("cosine", 50)
    f = [math.cos((t / 50 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(51)]
    np.testing.assert_allclose(alpha_bar[:-1], np.array(f[1:-1]) / f[0], rtol=1e-9)
    assert alpha_bar[-1] == pytest.approx(0.001 * alpha_bar[-2])  # beta is at most 0.999


def test_times_step_by_the_golden_ratio_from_a_uniform_start():
    for seed in range(3):
        turns = np.asarray(spread_times(jax.random.key(seed), jnp.arange(400), 1 << 20), np.float64) / (1 << 20)
        steps = (turns[1:] - turns[:-1]) % 1
        np.testing.assert_allclose(steps, (math.sqrt(5) - 1) / 2, atol=3e-6)
        assert turns.min() < 0.01
        assert turns.max() > 0.99
    starts = np.array([spread_times(jax.random.key(seed), jnp.arange(1), 1000)[0] for seed in range(60)])
    assert (starts == np.floor(starts)).all()
    assert len(np.unique(starts)) > 50


def test_between_two_times_the_snr_is_their_geometric_mean():
    table = np.array([0.9, 0.5, 0.1])
    snr = table / (1 - table)
    t = np.array([0.0, 0.25, 1.0, 1.5, 2.0])
    wanted = np.array([snr[0], snr[0] ** 0.75 * snr[1] ** 0.25, snr[1], math.sqrt(snr[1] * snr[2]), snr[2]])
    for times, tolerance in ((t, 1e-12), (jnp.asarray(t, jnp.float32), 1e-5)):
        signal, noise = VariancePreserving(table).at(times)
        assert signal.dtype == noise.dtype == times.dtype
        np.testing.assert_allclose(signal, np.sqrt(wanted / (1 + wanted)), rtol=tolerance)
        np.testing.assert_allclose(noise, np.sqrt(1 / (1 + wanted)), rtol=tolerance)
    np.testing.assert_allclose(VariancePreserving(table).time_of(np.sqrt(wanted)), t, atol=1e-12)
    np.testing.assert_array_equal(VariancePreserving(table).time_of(np.array([1e9, 1e-9])), [0, 2])
    assert VariancePreserving(table).ends == (2, 0)
    assert VariancePreserving(table).timesteps == 3


def test_small_noise_keeps_its_digits_in_float32():
    """1 - alpha_bar in float32 would have an error of 6e-5 here, relative to the noise."""
    table = make_alpha_bar("linear", 1000)
    noise = VariancePreserving(table).at(jnp.arange(1000.0)).noise
    np.testing.assert_allclose(noise, np.sqrt(1 - table), rtol=3e-6)


def test_images_noise_and_targets_by_hand():
    """x_0 = 0.5 and eps = -1 at alpha_bar = 0.64 (signal 0.8, noise 0.6) and 0.36 (the reverse)."""
    signal, noise = level = VariancePreserving(np.array([0.64, 0.36])).at(jnp.arange(2.0)[:, None, None, None])
    x_t = signal * 0.5 - noise
    np.testing.assert_allclose(x_t.ravel(), [-0.2, -0.5], atol=1e-6)
    for prediction, target in (("eps", [-1.0, -1.0]), ("x0", [0.5, 0.5]), ("v", [-1.1, -1.0])):
        a, b = target_weights(prediction, level)
        np.testing.assert_allclose(np.broadcast_to(a * 0.5 - b, x_t.shape).ravel(), target, atol=1e-6)
        x_0, eps = estimates(prediction, jnp.array(target).reshape(2, 1, 1, 1), x_t, level, clip=False)
        np.testing.assert_allclose(x_0.ravel(), 0.5, atol=1e-6)
        np.testing.assert_allclose(eps.ravel(), -1.0, atol=1e-6)
    clipped, eps = estimates("x0", jnp.full((2, 1, 1, 1), 1.5), x_t, level, clip=True)
    np.testing.assert_allclose(clipped.ravel(), 1.0, atol=1e-6)
    np.testing.assert_allclose(eps.ravel(), [-1.0 / 0.6, -1.1 / 0.8], atol=1e-5)


def test_a_velocity_on_a_straight_path_by_hand():
    """x_0 = 0.5 and eps = -1 at t = 0.25: x_t = 0.125, dx/dt = eps - x_0 = -1.5."""
    x_t, velocity = (jnp.full((1, 1, 1, 1), x) for x in (0.125, -1.5))
    x_0, eps = solve(velocity, x_t, Level(0.75, 0.25), (-1.0, 1.0))
    assert (float(x_0[0, 0, 0, 0]), float(eps[0, 0, 0, 0])) == pytest.approx((0.5, -1.0))


def test_a_straight_path_by_hand():
    path = StraightPath()
    level = path.at(np.array([1000.0, 250.0, 0.0]))
    np.testing.assert_array_equal(level.signal, [0, 0.75, 1])
    np.testing.assert_array_equal(level.noise, [1, 0.25, 0])
    np.testing.assert_allclose(path.time_of(np.array([0.0, 1.0, 3.0, 1e9])), [1000, 500, 250, 1])
    np.testing.assert_allclose(path.even_times(4), [1000, 750, 500, 250])
    assert path.ends == (1000, 1)
