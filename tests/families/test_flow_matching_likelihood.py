"""Likelihood by the instantaneous change of variables, against densities that are known."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from compilation import no_compilation
from ddpm_cases import SPEC, FewImages, batch_of
from flow_cases import FAMILY, MEAN_FLOW, as_network, deviation, make_model, normal_velocity

from zoo.core.errors import UserError
from zoo.flow_matching import FlowScoring
from zoo.metrics import ode_likelihood
from zoo.metrics.ode_likelihood import image_bits, log_density, make_probes, ode_bits
from zoo.nets.dit import DiT

KEY = jax.random.key(0)
COVARIANCE = np.array([[0.25, 0.18], [0.18, 0.2]])


def correlated_velocity(x, t):
    """v = (t I - (1 - t) S) S_t^-1 x for pairs of pixels with covariance S; see `flow_cases`."""
    s, one = jnp.asarray(COVARIANCE, jnp.float32), jnp.eye(2)
    gain = (t * one - (1 - t) * s) @ jnp.linalg.inv((1 - t) ** 2 * s + t**2 * one)
    return jnp.einsum("ij,bhwj->bhwi", gain, x)


def two_modes_velocity(x, t, middle=0.8, std=0.05):
    """v = E[eps - x_0 | x] for one pixel of two normal modes at +-middle.

    In mode m, x_t is normal with mean (1 - t) m, so that v is the velocity about the mode less m; Bayes gives
    the modes' shares at x.
    """
    variance = deviation(t, std) ** 2
    modes = [normal_velocity(x - (1 - t) * m, t, std) - m for m in (-middle, middle)]
    upper = jax.nn.sigmoid(2 * x * (1 - t) * middle / variance)
    return (1 - upper) * modes[0] + upper * modes[1]


@jax.jit
def normal_nats(x, steps, std):
    return log_density(lambda x, t: normal_velocity(x, t, std), x, make_probes(KEY, jnp.arange(len(x)), x.shape[1:]),
                       steps)  # fmt: skip


@pytest.mark.parametrize("std", [1.0, 0.3, 0.0023])
def test_normal_pixels_have_their_density_and_other_steps_compile_nothing(std):
    x = std * np.linspace(-2, 2, 5 * 4).astype(np.float32).reshape(5, 2, 2, 1)
    wanted = scipy.stats.norm.logpdf(x, scale=std).sum((1, 2, 3))
    normal_nats(x, 10, std)
    with no_compilation():
        found = normal_nats(x, 40, std)
    np.testing.assert_allclose(found, wanted, atol=4e-3)
    rough = np.abs(np.asarray(normal_nats(x, 5, std)) - wanted).max()
    assert std == 1.0 or rough > 4 * np.abs(np.asarray(found) - wanted).max()


def test_a_pixel_of_two_modes_has_its_density():
    x = np.array([-0.8, -0.72, 0.0, 0.7, 0.85], np.float32)
    wanted = np.logaddexp(*(scipy.stats.norm.logpdf(x, m, 0.05) for m in (-0.8, 0.8))) - math.log(2)
    probes = make_probes(KEY, jnp.arange(5), (1, 1, 1))
    found = jax.jit(lambda x: log_density(two_modes_velocity, x, probes, 80))(x.reshape(5, 1, 1, 1))
    near = np.abs(x) > 0.5  # between the modes the flow tears the line apart
    np.testing.assert_allclose(found[near], wanted[near], atol=0.02)


def test_correlated_pixels_have_their_density_and_random_directions_give_it_on_average():
    x = np.tile(np.array([0.7, -0.3], np.float32), (4000, 1, 1, 1))
    wanted = scipy.stats.multivariate_normal.logpdf([0.7, -0.3], cov=COVARIANCE)
    nats = jax.jit(lambda x, probes: log_density(correlated_velocity, x, probes, 30))
    exact = nats(x[:2], make_probes(KEY, jnp.arange(2), (1, 1, 2)))
    np.testing.assert_allclose(exact, wanted, atol=1e-3)
    signs = jax.random.rademacher(KEY, (1, 4000, 1, 1, 2), jnp.float32)
    found = np.asarray(nats(x, signs))
    assert found.std() > 0.1
    assert abs(found.mean() - wanted) < 4 * found.std() / math.sqrt(4000)


def test_directions_are_all_axes_up_to_64_dimensions_and_random_signs_of_the_row_above():
    np.testing.assert_array_equal(make_probes(KEY, jnp.arange(3), (8, 8, 1)).reshape(64, 64), np.eye(64))
    signs = np.asarray(make_probes(KEY, jnp.arange(50), (5, 13, 1)))
    assert signs.shape == (1, 50, 5, 13, 1)
    np.testing.assert_array_equal(np.abs(signs), 1)
    assert abs(signs.mean()) < 0.08
    correlation = np.corrcoef(signs.reshape(50, -1))[~np.eye(50, dtype=bool)]
    assert np.abs(correlation).max() < 0.6
    np.testing.assert_array_equal(make_probes(KEY, jnp.arange(7, 9), (5, 13, 1)), signs[:, 7:9])


def test_bits_are_those_of_a_level_under_the_networks_flow(monkeypatch):
    """Of normal pixels: the density at a level's middle times its width, 2 / 255, in bits."""
    monkeypatch.setattr(DiT, "__call__", as_network(0.5, scale=500.0))
    model = make_model(replace(FAMILY, time_scale=500.0))
    batch = {name: batch_of(4)[name] for name in ("image", "label", "row")}
    x = np.asarray(batch["image"], np.float64) / 127.5 - 1
    wanted = -scipy.stats.norm.logpdf(x, scale=0.5).mean((1, 2, 3)) / math.log(2) + math.log2(127.5)
    found = image_bits(model.family, model.state, batch, 20, KEY)
    np.testing.assert_allclose(found, wanted, atol=0.003)  # 2 / 256 would be 0.0056 off


def test_scores_are_of_the_first_held_out_images_with_their_error(monkeypatch):
    model = make_model(FAMILY)
    monkeypatch.setattr(ode_likelihood, "image_bits", lambda family, state, batch, steps, key: batch["row"] + 1.0)
    found = FAMILY.score(model, {}, FewImages(), FlowScoring(ode_images=5, ode_steps=3), KEY)
    assert found["ode_bits_per_dim"] == pytest.approx(3.0)
    assert found["ode_bits_per_dim_stderr"] == pytest.approx(math.sqrt(2.5 / 5))
    assert (found["ode_images"], found["ode_steps"], found["ode_divergence"]) == (5, 3, "exact")
    assert found["bits_per_dim_of"] == "p(x | y)"
    assert ode_bits(FAMILY, None, FewImages(), 100, 3, KEY)["ode_images"] == 6  # not the padding
    assert FAMILY.score(model, {}, FewImages(), FlowScoring(), KEY) == {}


@pytest.mark.parametrize("network", ["dit", pytest.param("unet", marks=pytest.mark.slow)])
def test_a_networks_layers_have_the_derivatives_that_the_flow_needs(network):
    """By the network's own layers; an average velocity is asked for at r = t."""
    family = replace(MEAN_FLOW, network=network, channels=(8,), attention=(8,))
    batch = {name: batch_of(2)[name] for name in ("image", "label", "row")}
    assert np.isfinite(np.asarray(image_bits(family, make_model(family).state, batch, 2, KEY))).all()


def test_images_that_are_not_there_are_said_so():
    class NoImages(FewImages):
        spec, held_out_batches = SPEC, 0

    with pytest.raises(UserError, match="ode-images is 3, but there are no held-out images"):
        ode_bits(FAMILY, None, NoImages(), 3, 10, KEY)
    with pytest.raises(UserError, match="ode_steps is 0; it must be at least 1"):
        FlowScoring(ode_steps=0)
