"""Likelihoods of pixels: equal to SciPy's, and probabilities where they say so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from zoo.data.images.pixels import from_pixels
from zoo.nn.likelihoods import bernoulli, discretised_gaussian, discretised_logistic, gaussian


@pytest.mark.parametrize("logit", [-12.0, -2.0, 0.0, 0.7, 12.0])
def test_bernoulli(logit):
    x = jnp.array([0.0, 1.0])
    ours = bernoulli(x, jnp.full(2, logit))
    law = scipy.stats.bernoulli(scipy.special.expit(logit))
    np.testing.assert_allclose(ours, law.logpmf([0, 1]), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(jnp.exp(ours).sum(), 1.0, rtol=1e-6)


def test_bernoulli_of_a_grey_pixel_is_the_mean_over_binary_ones():
    logit = jnp.array(0.7)
    mean = 0.3 * bernoulli(jnp.array(1.0), logit) + 0.7 * bernoulli(jnp.array(0.0), logit)
    np.testing.assert_allclose(bernoulli(jnp.array(0.3), logit), mean, rtol=1e-6)


def test_gaussian():
    x = jnp.linspace(-3, 3, 7)
    ours = gaussian(x, jnp.full(7, 0.4), jnp.full(7, -0.9))
    np.testing.assert_allclose(ours, scipy.stats.norm.logpdf(x, 0.4, np.exp(-0.9)), rtol=1e-5)


def levels():
    return from_pixels(jnp.arange(256, dtype=jnp.uint8)[None, :, None, None])[0, :, 0, 0]


@pytest.mark.parametrize("mean", [-1.3, -1.0, 0.1234, 1.0])
@pytest.mark.parametrize("log_scale", [-7.0, -5.0, -2.0, 1.0])
def test_discretised_logistic(mean, log_scale):
    ours = np.asarray(discretised_logistic(levels(), jnp.full(256, mean), jnp.full(256, log_scale)), np.float64)
    np.testing.assert_allclose(np.exp(ours).sum(), 1.0, rtol=1e-4)
    centre = np.arange(256) / 127.5 - 1
    ends = np.concatenate([[-np.inf], (centre[1:] + centre[:-1]) / 2, [np.inf]])
    law = scipy.stats.logistic(mean, np.exp(log_scale))
    # A difference of probabilities near 0 for bins below the mean, near 1 above it: each from the side that has digits.
    below = np.diff(law.cdf(ends))
    above = -np.diff(law.sf(ends))
    mass = np.where(centre < mean, below, above)
    likely = mass > 1e-290
    np.testing.assert_allclose(ours[likely], np.log(mass[likely]), rtol=2e-3, atol=2e-3)


def test_discretised_logistic_has_finite_gradients_far_from_the_mean():
    def total(mean, log_scale):
        return discretised_logistic(levels(), jnp.full(256, mean), jnp.full(256, log_scale)).sum()

    for mean in (-1.0, 0.0, 1.0):
        slopes = jax.grad(total, (0, 1))(mean, -7.0)
        assert np.isfinite(total(mean, -7.0))
        assert np.isfinite(slopes).all()


@pytest.mark.parametrize("mean", [-1.3, -1.0, 0.1234, 0.98])
@pytest.mark.parametrize("deviation", [0.004, 0.05, 0.7])
def test_discretised_gaussian(mean, deviation):
    ours = np.asarray(discretised_gaussian(levels(), jnp.full(256, mean), jnp.full(256, np.log(deviation))), np.float64)
    np.testing.assert_allclose(np.exp(ours).sum(), 1.0, rtol=1e-4)
    centre = np.arange(256) / 127.5 - 1
    ends = np.concatenate([[-np.inf], (centre[1:] + centre[:-1]) / 2, [np.inf]])
    law = scipy.stats.norm(mean, deviation)
    mass = np.where(centre < mean, np.diff(law.cdf(ends)), -np.diff(law.sf(ends)))
    likely = mass > 1e-290
    np.testing.assert_allclose(ours[likely], np.log(mass[likely]), rtol=2e-3, atol=2e-3)


def test_discretised_gaussian_has_finite_gradients_far_from_the_mean():
    def total(mean, log_scale):
        return discretised_gaussian(levels(), jnp.full(256, mean), jnp.full(256, log_scale)).sum()

    for mean in (-1.0, 0.0, 1.0):
        slopes = jax.grad(total, (0, 1))(mean, -5.0)
        assert np.isfinite(total(mean, -5.0))
        assert np.isfinite(slopes).all()
