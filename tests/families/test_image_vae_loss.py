"""The image VAE's bound against closed forms, and what training descends."""

import logging
import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from image_vae_cases import LATENT, LEVELS, SIZE, TINY, Blobs, on_device, shapes, start, train

from zoo.data.images.pixels import binarise
from zoo.data.specs import ImageSpec
from zoo.nn import pixel_likelihood
from zoo.nn.variational import kl_divergence

# ---------------------------------------------------------------------------------------------- the bound


def test_kl_is_what_monte_carlo_says():
    mean, log_variance = jnp.array([[0.5, -1.5, 0.0]]), jnp.array([[-1.0, 0.3, 0.0]])
    z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(jax.random.key(0), (400_000, 3))
    log_q = scipy.stats.norm.logpdf(z, mean, np.exp(0.5 * log_variance))
    estimate = (log_q - scipy.stats.norm.logpdf(z)).mean(0)
    np.testing.assert_allclose(kl_divergence(mean, log_variance)[0], estimate, atol=0.01)


class Linear:
    """p(x|z) = N(W z, s^2) with a Gaussian q that is not the posterior: probabilistic PCA (Tipping & Bishop 1999)."""

    def __init__(self, scale):
        self.scale = scale
        self.W = 0.4 * jax.random.normal(jax.random.key(5), (LATENT, SIZE * SIZE)) / math.sqrt(LATENT)

    def encode(self, x):
        flat = x.reshape(len(x), -1)
        precision = jnp.eye(LATENT) + self.W @ self.W.T / self.scale**2
        mean = jnp.linalg.solve(precision, self.W @ flat.T / self.scale**2).T
        return mean + 0.3, jnp.broadcast_to(-jnp.log(jnp.diag(precision))[None], mean.shape)

    def decode(self, z):
        return (z @ self.W).reshape(len(z), SIZE, SIZE, 1, 1)

    def log_likelihood(self, x):
        """log N(x; 0, W'W + s^2), and the density's 1 / 128 for each level."""
        covariance = np.asarray(self.W.T @ self.W + self.scale**2 * jnp.eye(SIZE * SIZE), np.float64)
        law = scipy.stats.multivariate_normal(np.zeros(SIZE * SIZE), covariance)
        return law.logpdf(np.asarray(x, np.float64).reshape(len(x), -1)) - SIZE * SIZE * math.log(128)


def test_importance_weighting_climbs_from_the_bound_to_the_likelihood():
    family = replace(TINY, likelihood="gaussian", binarise=False, scale=0.5)
    net, rows = Linear(0.5), jnp.arange(64)
    z = jax.random.normal(jax.random.key(7), (64, LATENT))
    x = net.decode(z)[..., 0] + 0.5 * jax.random.normal(jax.random.key(8), (64, SIZE, SIZE, 1))
    truth = net.log_likelihood(x)
    terms = jax.jit(lambda key: family.terms(net, x, key, rows))
    weighted = jax.jit(lambda key, k: family.iw_log_likelihood(net, x, key, rows, k))
    keys = jax.random.split(jax.random.key(1), 20)
    elbo = np.mean([likelihood - kl.sum(1) for likelihood, kl in map(terms, keys)], axis=0)
    bound = {k: np.mean([weighted(key, k) for key in keys[:count]], axis=0)
             for k, count in ((1, 20), (5, 4), (37, 2), (2000, 1))}  # fmt: skip
    np.testing.assert_allclose(bound[1].mean(), elbo.mean(), atol=0.1)
    assert elbo.mean() < truth.mean() - 0.3
    assert bound[1].mean() < bound[5].mean() < bound[37].mean() < bound[2000].mean()
    np.testing.assert_allclose(bound[2000].mean(), truth.mean(), atol=0.05)
    np.testing.assert_allclose(bound[2000], truth, atol=0.6)


def test_training_with_several_codes_descends_the_tighter_bound():
    settings = {"likelihood": "gaussian", "binarise": False, "scale": 0.5}
    net, rows = Linear(0.5), jnp.arange(64)
    x = net.decode(jax.random.normal(jax.random.key(7), (64, LATENT)))[..., 0]
    x += 0.5 * jax.random.normal(jax.random.key(8), x.shape)
    truth, loss = -net.log_likelihood(x).mean(), {}
    for k, draws in ((2, 16), (300, 1)):
        weighted = jax.jit(partial(replace(TINY, **settings, iw_samples=k).iw_loss, net, x, rows=rows))
        loss[k] = np.mean([weighted(key=key)[0] / 64 for key in jax.random.split(jax.random.key(1), draws)])
    elbo = replace(TINY, **settings)
    terms = jax.jit(lambda key: elbo.terms(net, x, key, rows))
    plain = np.mean([(kl.sum(1) - fits).mean() for fits, kl in map(terms, jax.random.split(jax.random.key(2), 16))])
    assert plain > loss[2] > loss[300] > truth - 0.02
    np.testing.assert_allclose(loss[300], truth, atol=0.1)


def test_several_codes_train_both_networks():
    family = replace(TINY, iw_samples=3)
    model, (told,) = train(family, 1, learning_rate=1e-2)
    before = start(family).state
    assert {"loss", "kl_nats"} <= told.keys()
    assert all(
        map(lambda a, b: bool((a != b).any()), *map(jax.tree.leaves, (before.net.params, model.state.net.params)))
    )


@pytest.mark.parametrize(
    "family",
    [
        LEVELS,
        replace(LEVELS, likelihood="gaussian"),
        replace(LEVELS, likelihood="gaussian", scale=0.4),
        replace(TINY, binarise=False),
    ],
    ids=["logistic", "gaussian", "fixed", "grey"],
)
def test_every_likelihood_learns(family):
    _, told = train(family, 60, learning_rate=1e-2)
    assert np.isfinite([metrics["loss"] for metrics in told]).all()
    assert told[-1]["loss"] < 0.9 * told[0]["loss"]


@pytest.mark.parametrize(
    ("channels", "explicit"),
    [(1, replace(TINY, likelihood="bernoulli", binarise=True)), (3, LEVELS)],
    ids=["grey", "colour"],
)
def test_auto_is_binary_in_grey_and_logistic_in_colour(channels, explicit, caplog):
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.integers(0, 256, (2, 4, 4, channels), np.uint8))
    assert TINY.outputs(channels) == explicit.outputs(channels)
    parameters = jnp.asarray(rng.standard_normal((*image.shape, explicit.outputs(channels)), np.float32))
    x, same = (family.observe(image, jax.random.key(0), jnp.arange(2)) for family in (TINY, explicit))
    np.testing.assert_array_equal(x, same)
    np.testing.assert_array_equal(TINY.log_likelihood(x, parameters), explicit.log_likelihood(x, parameters))
    np.testing.assert_array_equal(TINY.image(parameters), explicit.image(parameters))
    with caplog.at_level(logging.INFO, "zoo"):
        pixel_likelihood._log_choice.cache_clear()
        for _ in range(2):
            shapes(TINY, ImageSpec(4, 4, channels))
    (record,) = caplog.records
    assert explicit.likelihood in record.getMessage()


def test_noisy_levels_have_a_probability_and_not_a_density():
    """Over 256 levels and the noise on them it sums to what N(0.1, 0.3^2) has between -1 and 1."""
    family = replace(LEVELS, likelihood="gaussian", scale=0.3)
    x = jnp.asarray((np.arange(256 * 16) + 0.5) / 16 / 128 - 1, jnp.float32)[:, None, None, None]
    mass = jnp.exp(family.log_likelihood(x, jnp.full((256 * 16, 1, 1, 1, 1), 0.1))).sum() / 16
    law = scipy.stats.norm(0.1, 0.3)
    np.testing.assert_allclose(mass, law.cdf(1) - law.cdf(-1), rtol=1e-4)
    image = jnp.asarray(Blobs().batch_at(0)["image"])
    noisy = family.observe(image, jax.random.key(0), jnp.arange(8))
    np.testing.assert_array_equal(jnp.floor((noisy + 1) * 128), image)
    assert len(np.unique(noisy)) > len(np.unique(image))


# -------------------------------------------------------------------------------------- what training descends


def objective(family, weight=1.0):
    """The loss; from the same noise what it is made of, reconstruction and KL [b latent]; and the KL as it is told."""
    net, batch, key = start(TINY).state.net.net(), on_device(Blobs().batch_at(0)), jax.random.key(2)

    @jax.jit
    def parts():
        total, count, pairs = family.loss(net, batch, key, weight)
        x = family.observe(batch["image"], jax.random.split(key)[0], batch["row"])
        log_likelihood, kl = family.terms(net, x, jax.random.split(key)[1], batch["row"])
        return total / count, -log_likelihood.mean(), kl, pairs["kl_nats"][0] / pairs["kl_nats"][1]

    return jax.device_get(parts())


def test_loss_weights_the_kl_term():
    loss, reconstruction, kl, told = objective(TINY, 0.25)
    np.testing.assert_allclose(loss, reconstruction + 0.25 * kl.sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(told, kl.sum(1).mean(), rtol=1e-5)


def test_free_bits_charge_each_unit_at_least_so_much():
    _, reconstruction, kl, _ = objective(TINY)
    some = float(np.sort(kl.mean(0))[1]) + 1e-4  # above two of the three
    loss, *_ = objective(replace(TINY, free_bits=some))
    np.testing.assert_allclose(loss, reconstruction + np.maximum(some, kl.mean(0)).sum(), rtol=1e-5)


def test_what_is_free_has_no_gradient():
    learner, batch = start(TINY).state.net, on_device(Blobs().batch_at(0))
    family = replace(TINY, free_bits=1e3)

    @jax.jit
    def gradient_norm(weight):
        return learner.descend(partial(family.loss, weight=weight), batch, 0, jax.random.key(0))[1]["grad_norm"]

    assert gradient_norm(0.0) == gradient_norm(1e6) > 0


def test_the_kl_term_warms_up():
    family = replace(TINY, beta=4.0, kl_warmup_steps=10)
    model = start(TINY)
    batch, key = on_device(Blobs().batch_at(0)), jax.random.key(2)
    advance = jax.jit(family.step)
    for step, weight in ((0, 0.4), (4, 2.0), (9, 4.0), (50, 4.0)):
        _, told = advance(model.state, batch, jnp.int32(step), key)
        expected = told["reconstruction_nats"] + weight * told["kl_nats"]
        np.testing.assert_allclose(told["loss"], expected, rtol=1e-5)


def test_binarisation_is_bernoulli_of_the_level():
    levels = jnp.tile(jnp.array([0, 1, 127, 128, 254, 255], jnp.uint8)[None, None, :, None], (2, 50_000, 1, 1))
    drawn = binarise(levels, jax.random.key(0), jnp.arange(2))
    rate = np.asarray(drawn).mean((0, 1))[:, 0]
    expected = np.array([0, 1, 127, 128, 254, 255]) / 255
    np.testing.assert_allclose(rate, expected, atol=4 * 0.5 / math.sqrt(100_000))
    assert rate[0] == 0
    assert rate[-1] == 1
    assert 0 < rate[1] < rate[4] < 1
    assert (drawn[0] != drawn[1]).any()
