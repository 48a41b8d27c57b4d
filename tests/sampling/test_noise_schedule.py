"""The noise schedule against the papers' formulas, worked out in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.sampling.diffusion.noise_schedule import (
    add_noise,
    alpha_bar_at,
    make_alpha_bar,
    spread_times,
    to_eps,
    to_target,
    to_x_0,
)


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


def test_alpha_bar_between_two_times_has_the_geometric_mean_of_their_snr():
    table = np.array([0.9, 0.5, 0.1])
    snr = table / (1 - table)
    t = jnp.array([0.0, 0.25, 1.0, 1.5, 2.0])
    wanted = np.array([snr[0], snr[0] ** 0.75 * snr[1] ** 0.25, snr[1], math.sqrt(snr[1] * snr[2]), snr[2]])
    np.testing.assert_allclose(alpha_bar_at(jnp.asarray(table, jnp.float32), t), wanted / (1 + wanted), rtol=1e-5)


def test_pictures_noise_and_targets_by_hand():
    """x_0 = 0.5 and eps = -1 at alpha_bar = 0.64 (signal 0.8, noise 0.6) and 0.36 (the reverse)."""
    x_0, eps, alpha_bar = jnp.full((2, 1, 1, 1), 0.5), jnp.full((2, 1, 1, 1), -1.0), jnp.array([0.64, 0.36])
    x_t = add_noise(x_0, eps, alpha_bar)
    np.testing.assert_allclose(x_t.ravel(), [-0.2, -0.5], atol=1e-6)
    for prediction, target in (("eps", [-1.0, -1.0]), ("x0", [0.5, 0.5]), ("v", [-1.1, -1.0])):
        output = jnp.array(target).reshape(2, 1, 1, 1)
        np.testing.assert_allclose(to_target(prediction, x_0, eps, alpha_bar), output, atol=1e-6)
        np.testing.assert_allclose(to_x_0(prediction, output, x_t, alpha_bar), x_0, atol=1e-6)
    np.testing.assert_allclose(to_eps(x_0, x_t, alpha_bar), eps, atol=1e-6)
