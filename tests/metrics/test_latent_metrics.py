"""KL, importance weighting and mutual information against cases whose answers are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from zoo.core.data import DataSet
from zoo.metrics.latent import (
    AT_ONCE,
    active_units,
    batch_information,
    held_out_rows,
    importance_weighted,
    log_densities,
    mutual_information,
)
from zoo.nn.variational import draw_code, draw_codes, free_bits, iw_bound, kl_divergence, warm_up

ROWS, UNITS, FEATURES, NOISE = 48, 3, 7, 0.6


class LinearGaussian:
    """x = z W + noise with orthogonal rows of W, so that the posterior's covariance is diagonal.

    Probabilistic PCA (Tipping & Bishop 1999): p(x) = N(0, W'W + s^2), p(z|x) = N(W x / s^2 / a, 1 / a) with
    a = 1 + w_j w_j / s^2.
    """

    def __init__(self):
        orthogonal, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(FEATURES, UNITS)))
        self.W = jnp.asarray((orthogonal * [0.5, 1.0, 2.0]).T, jnp.float32)
        z, noise = (jax.random.normal(jax.random.key(i), (ROWS, n)) for i, n in ((1, UNITS), (2, FEATURES)))
        self.x = z @ self.W + NOISE * noise
        precision = 1 + jnp.square(self.W).sum(1) / NOISE**2
        self.mean = self.x @ self.W.T / NOISE**2 / precision[None, :]
        self.log_variance = jnp.broadcast_to(-jnp.log(precision)[None, :], self.mean.shape)

    def log_likelihood(self, z):
        """log p(x|z) for codes [s b d]."""
        square = jnp.square((self.x[None] - z @ self.W) / NOISE).sum(-1)
        return -0.5 * (square + FEATURES * math.log(2 * math.pi * NOISE**2))

    def expected_log_likelihood(self, mean, log_variance):
        """E log p(x|z) for z ~ N(mean, diag), in closed form."""
        spread = jnp.exp(log_variance) @ jnp.square(self.W).sum(1) / NOISE**2
        return self.log_likelihood(mean[None])[0] - 0.5 * spread

    def log_evidence(self):
        covariance = np.asarray(self.W.T @ self.W + NOISE**2 * jnp.eye(FEATURES), np.float64)
        return scipy.stats.multivariate_normal(np.zeros(FEATURES), covariance).logpdf(np.asarray(self.x, np.float64))


@pytest.fixture(scope="module")
def model():
    return LinearGaussian()


def weighted(model, mean, log_variance, k, at_once=4, seed=0):
    rows = jnp.arange(ROWS)
    key = jax.random.key(seed)
    return importance_weighted(model.log_likelihood, mean, log_variance, key, rows, k, most=at_once * ROWS)


def test_the_bound_is_the_evidence_where_q_is_the_posterior(model):
    elbo = model.expected_log_likelihood(model.mean, model.log_variance)
    elbo -= kl_divergence(model.mean, model.log_variance).sum(1)
    np.testing.assert_allclose(elbo, model.log_evidence(), rtol=1e-4)


def test_every_code_weighs_the_evidence_where_q_is_the_posterior(model):
    for k in (1, 3, 8):
        np.testing.assert_allclose(weighted(model, model.mean, model.log_variance, k), model.log_evidence(), rtol=1e-4)


def log_weights(model, mean, log_variance, k, seed=0):
    z, log_ratio = draw_codes(mean, log_variance, jax.random.key(seed), jnp.arange(ROWS), jnp.arange(k))
    return model.log_likelihood(z) + log_ratio


def test_one_code_has_the_bound_as_its_mean(model):
    mean, log_variance = model.mean + 0.4, model.log_variance + 0.5
    elbo = model.expected_log_likelihood(mean, log_variance) - kl_divergence(mean, log_variance).sum(1)
    drawn = np.stack([iw_bound(weight[None]) for weight in log_weights(model, mean, log_variance, 4000)])
    error = drawn.std(0) / math.sqrt(len(drawn))
    assert (np.abs(drawn.mean(0) - elbo) < 4.5 * error).all()
    assert error.max() < 0.1


def test_training_climbs_from_the_bound_to_the_evidence(model):
    mean, log_variance = model.mean + 0.4, model.log_variance + 0.5
    truth = model.log_evidence().mean()
    found = [iw_bound(log_weights(model, mean, log_variance, k)).mean() for k in (1, 10, 3000)]
    assert found[0] < found[1] < found[2] < truth + 0.01
    np.testing.assert_allclose(found[2], truth, atol=0.03)


def test_the_bound_and_its_gradient_are_burdas_equations_8_and_13(model):
    """In float64, from densities of scipy's; the gradient by central differences, with the same eps."""
    k, mean, log_variance = 5, model.mean + 0.4, model.log_variance + 0.5
    W, x = np.asarray(model.W, np.float64), np.asarray(model.x, np.float64)
    z, _ = draw_codes(mean, log_variance, jax.random.key(0), jnp.arange(ROWS), jnp.arange(k))
    eps = np.asarray((z - mean[None]) / jnp.exp(0.5 * log_variance)[None], np.float64)

    def bound(shift, widen):
        m, v = np.asarray(mean, np.float64) + shift, np.asarray(log_variance, np.float64) + widen
        codes, log_pdf = m + np.exp(0.5 * v) * eps, scipy.stats.norm.logpdf
        log_w = (
            log_pdf(x, codes @ W, NOISE).sum(-1) + log_pdf(codes).sum(-1) - log_pdf(codes, m, np.exp(0.5 * v)).sum(-1)
        )
        return np.log(np.exp(log_w).mean(0)).sum()

    def ours(shift, widen):
        return iw_bound(log_weights(model, mean + shift, log_variance + widen, k)).sum()

    zero, step = jnp.zeros((1, UNITS)), 1e-5
    value, slopes = jax.value_and_grad(ours, (0, 1))(zero, zero)
    np.testing.assert_allclose(value, bound(0.0, 0.0), rtol=1e-5)
    for unit in range(UNITS):
        d = step * np.eye(UNITS)[unit]
        by_hand = [(bound(d, 0) - bound(-d, 0)) / (2 * step), (bound(0, d) - bound(0, -d)) / (2 * step)]
        np.testing.assert_allclose([slope[0, unit] for slope in slopes], by_hand, rtol=2e-3, atol=2e-3)


def test_weighting_climbs_from_the_bound_to_the_evidence_where_q_is_not(model):
    mean, log_variance = model.mean + 0.4, model.log_variance + 0.5
    gap = model.log_evidence() - model.expected_log_likelihood(mean, log_variance)
    gap += kl_divergence(mean, log_variance).sum(1)
    # The gap of the bound is KL(q || posterior).
    ratio = math.exp(0.5)
    expected = 0.5 * (0.16 / jnp.exp(model.log_variance) + ratio - 1 - 0.5).sum(1)
    np.testing.assert_allclose(gap, expected, rtol=1e-3)
    far = [model.log_evidence().mean() - weighted(model, mean, log_variance, k).mean() for k in (1, 10, 100, 5000)]
    assert far[0] > far[1] > far[2] > far[3] - 0.01
    assert abs(far[3]) < 0.1


def test_codes_past_the_last_do_not_count(model):
    mean, log_variance = model.mean + 0.4, model.log_variance
    np.testing.assert_allclose(
        weighted(model, mean, log_variance, 6, at_once=4), weighted(model, mean, log_variance, 6, at_once=3), rtol=1e-5
    )


def test_information_of_a_gaussian_channel():
    """z = rho x + sqrt(1 - rho^2) eps has I = -1/2 log(1 - rho^2) nats a unit."""
    n, rho = 3000, 0.9
    mean = rho * jax.random.normal(jax.random.key(0), (n, 2))
    log_variance = jnp.full((n, 2), math.log(1 - rho**2))
    z = draw_code(mean, log_variance, jax.random.key(1), jnp.arange(n))
    assert abs(mutual_information(z, mean, log_variance) + math.log(1 - rho**2)) < 0.08
    np.testing.assert_allclose(
        mutual_information(z[: AT_ONCE + 7], mean[: AT_ONCE + 7], log_variance[: AT_ONCE + 7]),
        batch_information(z[: AT_ONCE + 7], mean[: AT_ONCE + 7], log_variance[: AT_ONCE + 7]),
        rtol=1e-4,
    )


def test_information_is_none_where_all_posteriors_are_one_and_all_where_they_are_apart():
    zeros, z = jnp.zeros((50, 2)), jax.random.normal(jax.random.key(0), (50, 2))
    assert abs(batch_information(z, zeros, zeros)) < 1e-4
    apart = 100.0 * jnp.arange(50)[:, None] * jnp.ones((1, 2))
    np.testing.assert_allclose(batch_information(apart, apart, zeros), math.log(50), rtol=1e-4)
    halves = 100.0 * (jnp.arange(50) % 2)[:, None] * jnp.ones((1, 2))
    np.testing.assert_allclose(batch_information(halves + z, halves, zeros), math.log(2), rtol=1e-3)


def test_densities_are_those_of_the_normal_distribution():
    z, mean, log_variance = (jax.random.normal(jax.random.key(i), (5, 2)) for i in range(3))
    law = scipy.stats.norm(np.asarray(mean)[None], np.exp(0.5 * np.asarray(log_variance))[None])
    expected = law.logpdf(np.asarray(z)[:, None]).sum(2)
    np.testing.assert_allclose(log_densities(z, mean, log_variance), expected, rtol=1e-4)


def test_a_unit_is_active_where_its_mean_varies():
    mean = np.random.default_rng(0).normal(size=(5000, 3)) * np.array([1.0, 0.11, 0.09])[None, :] + 5
    assert active_units(mean) == 2


def test_free_bits_charge_the_larger_of_both_and_stop_the_gradient():
    mean = jnp.array([[0.1, 1.0], [-0.1, 3.0]])
    kl = kl_divergence(mean, jnp.zeros((2, 2)))
    np.testing.assert_allclose(free_bits(kl, 0.5).sum(1).mean(), 0.5 + kl[:, 1].mean(), rtol=1e-5)
    gradient = jax.grad(lambda mean: free_bits(kl_divergence(mean, jnp.zeros((2, 2))), 0.5).sum())(mean)
    np.testing.assert_array_equal(gradient[:, 0], 0)
    np.testing.assert_allclose(gradient[:, 1], mean[:, 1])


def test_kl_warm_up_rises_once_or_again_and_again():
    assert [float(warm_up(step, 4)) for step in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1, 1, 1]
    cyclical = [float(warm_up(jnp.int32(step), 4, 6)) for step in range(14)]
    assert cyclical == [0.25, 0.5, 0.75, 1, 1, 1] * 2 + [0.25, 0.5]
    assert warm_up(0, 0) == 1


def test_held_out_rows_leave_out_what_fills_up_the_last_batch():
    class Three(DataSet):
        held_out_batches = 2

        def batch_at(self, step, rows=slice(None)):
            return self.held_out_at(step, rows)

        def held_out_at(self, index, rows=slice(None)):
            row = 2 * index + np.arange(2)[rows]
            return {"row": row, "valid": row < 3}

    np.testing.assert_array_equal(held_out_rows(Three(), lambda batch: batch["row"]), [0, 1, 2])
    one, two = held_out_rows(Three(), lambda batch: (batch["row"], 2 * batch["row"]))
    np.testing.assert_array_equal(two, 2 * one)
