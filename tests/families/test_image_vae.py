"""The VAE's bound against closed forms, and its pictures."""

import logging
import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.stats
from einops import rearrange

from zoo import image_vae
from zoo.core.data import DataSet
from zoo.core.errors import UserError
from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.images.pixels import binarise
from zoo.data.specs import ImageSpec
from zoo.image_vae import COLUMNS, ImageVAE, Pictures, Scores
from zoo.nets.autoencoder import pyramid
from zoo.nn.variational import kl_divergence
from zoo.sampling.latent_paths import interpolate, lerp, slerp, traverse

SIZE = 8
LATENT = 3
TINY = ImageVAE(width=16, latent=LATENT)
LEVELS = ImageVAE(width=16, latent=LATENT, binarise=False, likelihood="logistic")


class Blobs(DataSet):
    """Discs of random place and brightness; the last held-out batch is filled up with rows that do not count."""

    spec = ImageSpec(SIZE, SIZE, 1)
    batch_size = 8
    held_out_batches = 3
    held_out_rows = 20

    def batch_at(self, step, rows=slice(None)):
        row = np.arange(self.batch_size, dtype=np.int32)[rows]
        return self._batch(np.random.default_rng(step + 1000), row, np.ones(len(row), bool))

    def held_out_at(self, index, rows=slice(None)):
        row = (index * self.batch_size + np.arange(self.batch_size, dtype=np.int32))[rows]
        return self._batch(np.random.default_rng(index), row, row < self.held_out_rows)

    def _batch(self, rng, row, valid):
        y, x, light = rng.uniform(1, SIZE - 1, (3, self.batch_size, 1, 1))
        grid = np.arange(SIZE)
        distance = np.hypot(grid[None, :, None] - y, grid[None, None, :] - x)
        image = np.round(255 * (0.5 + light / 16) * np.clip(3 - distance, 0, 1)).astype(np.uint8)[..., None]
        return {"image": image[: len(row)], "row": row, "valid": valid, "label": np.full(len(row), -1, np.int32)}


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)


def start(family, steps=1, learning_rate=1e-3):
    data = Blobs()
    setup = Setup(Optimizer(learning_rate=learning_rate), steps, data.batch_size)
    state = jax.jit(lambda key: family.init(data.spec, setup, key))(jax.random.key(0))
    return Model(family, data.spec, state, 0, lambda: data)


def train(family, steps, learning_rate):
    model, data, told = start(family, steps, learning_rate), Blobs(), []
    state, step = model.state, jax.jit(family.step)
    for n in range(steps):
        state, metrics = step(state, data.batch_at(n), np.int32(n), jax.random.fold_in(jax.random.key(1), n))
        told.append(jax.device_get(metrics))
    return replace(model, state=state), told


@pytest.fixture(scope="module")
def model():
    return train(TINY, 400, learning_rate=1e-2)[0]


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
        map(lambda a, b: bool((a != b).any()), *map(jax.tree.leaves, (before.vae.params, model.state.vae.params)))
    )


def test_iw_bound_does_not_depend_on_the_batch_it_is_computed_in(model):
    x = jnp.asarray(Blobs().held_out_at(0)["image"] // 128 * 2.0 - 1, jnp.float32)
    weighted = jax.jit(lambda x, rows: TINY.iw_log_likelihood(model.state.vae.net(), x, jax.random.key(3), rows, 200))
    whole, part = weighted(x, jnp.arange(8)), weighted(x[4:], jnp.arange(4, 8))
    np.testing.assert_allclose(whole[4:], part, rtol=1e-5)


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
        image_vae._log_choice.cache_clear()
        for _ in range(2):
            shapes(TINY, ImageSpec(4, 4, channels))
    (record,) = caplog.records
    assert explicit.likelihood in record.getMessage()


def test_figures_add_up(model):
    rows = jax.jit(TINY.evaluate)(model.state, Blobs().held_out_at(0), jax.random.key(0))
    figures = {name: np.asarray(total / weight) for name, (total, weight) in rows.items()}
    np.testing.assert_allclose(figures["loss"], figures["reconstruction_nats"] + figures["kl_nats"], rtol=1e-5)
    np.testing.assert_allclose(figures["bits_per_dim"], figures["loss"] / (SIZE * SIZE * math.log(2)), rtol=1e-5)


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
    net, batch, key = start(TINY).state.vae.net(), on_device(Blobs().batch_at(0)), jax.random.key(2)

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
    learner, batch = start(TINY).state.vae, on_device(Blobs().batch_at(0))
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


def test_held_out_pixels_are_the_same_in_every_evaluation_and_new_in_every_step(model):
    batch, seen = on_device(Blobs().held_out_at(1)), []
    evaluate = jax.jit(TINY.evaluate)
    for key in (jax.random.key(0), jax.random.key(1)):
        rows = evaluate(model.state, batch, key)
        seen.append(np.asarray(rows["kl_nats"][0]))  # a function of the pixels and the weights alone
    np.testing.assert_array_equal(seen[0], seen[1])
    told = jax.jit(lambda key: TINY.loss(model.state.vae.net(), batch, key)[2]["kl_nats"][0])
    kls = [told(jax.random.key(i)) for i in range(2)]
    assert kls[0] != kls[1]


# ---------------------------------------------------------------------------------------------- pictures


def decode_two(z):
    """Codes of two numbers as images of two pixels."""
    return z[:, None, :, None]


def test_paths_end_at_the_given_codes():
    a, b = jax.random.normal(jax.random.key(0), (2, 4, 5))
    for path in (slerp, lerp):
        codes = path(a, b, jnp.linspace(0, 1, 6)[None])
        np.testing.assert_allclose(codes[:, 0], a, atol=1e-6)
        np.testing.assert_allclose(codes[:, -1], b, atol=1e-6)
    unit = a / jnp.linalg.norm(a, axis=1, keepdims=True), b / jnp.linalg.norm(b, axis=1, keepdims=True)
    lengths = jnp.linalg.norm(slerp(*unit, jnp.linspace(0, 1, 6)[None]), axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)
    places = slerp(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), jnp.array([[1 / 3]]))
    np.testing.assert_allclose(places[0, 0], [math.cos(math.pi / 6), math.sin(math.pi / 6)], atol=1e-6)
    third = math.radians(120)
    places = slerp(jnp.array([[1.0, 0.0]]), jnp.array([[math.cos(third), math.sin(third)]]), jnp.array([[1 / 3]]))
    np.testing.assert_allclose(places[0, 0], [math.cos(third / 3), math.sin(third / 3)], atol=1e-6)
    parallel = slerp(a, 2 * a, jnp.array([[0.5]]))
    np.testing.assert_allclose(parallel[:, 0], 1.5 * a, atol=1e-4)
    assert np.isfinite(slerp(a, -a, jnp.array([[0.25]]))).all()
    assert np.isfinite(slerp(a, 0 * a, jnp.array([[0.25]]))).all()


def test_interpolation_and_traversal_decode_the_right_codes():
    a, b = jnp.array([[0.0, 1.0], [2.0, 3.0]]), jnp.array([[4.0, 5.0], [6.0, 7.0]])
    rows = interpolate(decode_two, a, b, 5, lerp)
    assert rows.shape == (2, 5, 1, 2, 1)
    np.testing.assert_allclose(rows[:, 2, 0, :, 0], (a + b) / 2)
    sheet = traverse(decode_two, a, jnp.array([1]), jnp.array([-1.0, 0.5]))
    assert sheet.shape == (2, 1, 2, 1, 2, 1)
    np.testing.assert_allclose(sheet[1, 0, :, 0, :, 0], [[2.0, -1.0], [2.0, 0.5]])


def test_sample_i_does_not_depend_on_how_many_there_are(model):
    few, many = (TINY.sample(model, Pictures(n=n), jax.random.key(0)) for n in (2, 5))
    for one, other in zip(few, many, strict=False):
        assert np.abs(one.pixels.astype(int) - other.pixels).max() <= 1
    assert many[0] != many[1]


def test_interpolation_rows_begin_and_end_with_the_images_of_their_codes(model, tmp_path):
    (wide,) = TINY.sample(model, Pictures(n=2, interpolate=4), jax.random.key(0))
    (narrow,) = TINY.sample(model, Pictures(n=1, interpolate=2), jax.random.key(0))
    cell = SIZE + 2
    assert wide.pixels.shape == (2 * cell + 2, 4 * cell + 2, 1)
    first, last = wide.pixels[: cell + 2, :cell], wide.pixels[: cell + 2, 3 * cell :]
    np.testing.assert_allclose(first, narrow.pixels[:, :cell], atol=1)
    np.testing.assert_allclose(last, narrow.pixels[:, cell:], atol=1)
    assert (wide.pixels[: cell + 2] != wide.pixels[cell:]).any()


def test_traversal_shows_active_units_only_and_leaves_the_code_at_its_own_value(model):
    sheets = TINY.sample(model, Pictures(n=2, traverse=2), jax.random.key(0))
    assert [sheet.name for sheet in sheets] == ["traversal"] * 2
    rows = sheets[0].pixels[2 : 2 + SIZE, 2:]
    assert (rows[:, :SIZE] != rows[:, -2 - SIZE : -2]).any()
    with pytest.raises(UserError, match="a code has 3 units"):
        TINY.sample(model, Pictures(traverse=4), jax.random.key(0))


def test_reconstructions_are_of_held_out_images(model):
    (sheet,) = TINY.sample(model, Pictures(reconstruct=10), jax.random.key(0))
    cells = rearrange(sheet.pixels[2:, 2:, 0], "(r h) (k w) -> r k h w", r=2, h=SIZE + 2, w=SIZE + 2)
    shown, made = cells[:, :, :SIZE, :SIZE].astype(int)
    held_out = np.concatenate([Blobs().held_out_at(i)["image"] for i in range(2)])[:10, :, :, 0]
    assert set(np.unique(shown)) <= {0, 255}
    certain = np.isin(held_out, (0, 255))
    np.testing.assert_array_equal(shown[certain], held_out[certain])
    assert np.abs(made - shown).mean() < 0.8 * np.abs(made - np.roll(shown, 1, axis=0)).mean()
    first, rest = TINY.sample(model, Pictures(reconstruct=COLUMNS + 3), jax.random.key(0))
    assert [s.pixels.shape[1] for s in (first, rest)] == [2 + columns * (SIZE + 2) for columns in (COLUMNS, 3)]
    with pytest.raises(UserError, match="picture 20 is asked for, but there are 20"):
        TINY.sample(model, Pictures(reconstruct=21), jax.random.key(0))


def test_files_are_reconstructed_and_interpolated(model, tmp_path):
    paths = []
    for i, image in enumerate(Blobs().held_out_at(0)["image"][:3]):
        paths.append(str(tmp_path / f"{i}.png"))
        PIL.Image.fromarray(image[..., 0]).save(paths[-1])
    (sheet,) = TINY.sample(model, Pictures(images=tuple(paths)), jax.random.key(0))
    (ours,) = TINY.sample(model, Pictures(reconstruct=3), jax.random.key(0))
    np.testing.assert_array_equal(sheet.pixels, ours.pixels)
    (numbered,) = TINY.sample(model, Pictures(images=("0", paths[1], "2")), jax.random.key(0))
    np.testing.assert_array_equal(numbered.pixels, ours.pixels)
    (rows,) = TINY.sample(model, Pictures(images=tuple(paths), interpolate=5), jax.random.key(0))
    assert rows.pixels.shape[0] == 2 * (SIZE + 2) + 2


def test_scores(model):
    data, scoring = Blobs(), Scores(iw_samples=70)
    figures = TINY.score(model, {}, data, scoring, jax.random.key(0))
    assert figures["iw_samples"] == 70
    evaluate = jax.jit(TINY.evaluate)
    rows = [evaluate(model.state, data.held_out_at(i), jax.random.key(0))["loss"][0] for i in range(3)]
    assert 0 < figures["iw_nll_nats"] < np.concatenate(rows)[:20].mean()
    assert 1 <= figures["active_units"] <= LATENT
    assert "iw_nll_nats" not in TINY.score(model, {}, data, Scores(), jax.random.key(0))


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageVAE(likelihood="logistic", binarise=True), "no-binarise"),
        (lambda: ImageVAE(scale=0.5), "only the gaussian"),
        (lambda: ImageVAE(latent=0), "family.latent is 0"),
        (lambda: ImageVAE(beta=-1.0), "family.beta is -1.0"),
        (lambda: Pictures(interpolate=1), "interpolate is 1"),
        (lambda: Pictures(interpolate=3, traverse=2), "two kinds of picture"),
        (lambda: Pictures(images=("a.png",), interpolate=3), "two files"),
        (lambda: Pictures(images=("a.png",), reconstruct=3), "held-out images"),
        (lambda: Scores(iw_samples=-1), "iw_samples is -1"),
        (lambda: ImageVAE(iw_samples=0), "family.iw_samples is 0; it must be at least 1"),
        (lambda: ImageVAE(iw_samples=5, beta=2.0), "family.iw_samples is 5; it must be 1 with family.beta"),
        (lambda: ImageVAE(iw_samples=5, kl_warmup_steps=9), "importance-weighted bound has none"),
        (lambda: ImageVAE(iw_samples=5, free_bits=0.1), "importance-weighted bound has none"),
        (lambda: shapes(replace(TINY, likelihood="bernoulli"), ImageSpec(8, 8, 3)), "3 channels"),
        (
            lambda: shapes(replace(TINY, binarise=True), ImageSpec(8, 8, 3)),
            "family.binarise is True.*--data.channels 1",
        ),
        (lambda: shapes(replace(TINY, network="conv"), ImageSpec(9, 8, 1)), "9 x 8"),
        (lambda: shapes(replace(TINY, network="conv"), ImageSpec(68, 68, 1)), "68 x 68"),
    ],
)
def test_refusals_are_one_sentence(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def shapes(family, spec):
    return jax.eval_shape(lambda key: family.init(spec, Setup(Optimizer(), 1, 8), key), jax.random.key(0))


@pytest.mark.parametrize(("size", "last"), [(28, 7), (32, 8), (64, 8), (20, 5), (8, 2)])
def test_the_convolutional_network_takes_any_size_that_halves(size, last):
    family = replace(LEVELS, network="conv", width=2, hidden=4)
    assert pyramid(size, size, 2)[1] == (last, last)
    state = shapes(family, ImageSpec(size, size, 3))
    z = jax.ShapeDtypeStruct((2, LATENT), jnp.float32)
    assert jax.eval_shape(lambda s, z: s.vae.net().decode(z), state, z).shape == (2, size, size, 3, 2)
