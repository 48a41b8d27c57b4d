"""Steps of diffusion samplers: how they relate to each other, and diffusers' own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_cases import KEY, LINEAR, NOISE, check_grids, check_rules, gaussian, walk
from flow_cases import check_flow_steps
from paths import REFERENCES

from zoo.sampling.diffusion.loop import sample
from zoo.sampling.diffusion.noise_levels import edm_grid, even_grid
from zoo.sampling.diffusion.rules import ddim, ddpm, dpm_solver_pp, euler, heun

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


# ------------------------------------------------------------------------------ diffusers


def test_rules_are_diffusers():
    check_rules(REFERENCES)


def test_grids_are_diffusers():
    check_grids(REFERENCES)


def test_steps_of_a_flow_are_diffusers():
    check_flow_steps(REFERENCES)
