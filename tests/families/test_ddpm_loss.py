"""The diffusion model's process, its losses and its bound."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from ddpm_cases import FAMILY, PREDICTIONS, SPEC, FewImages, batch_of, level_of, make_model
from flax import nnx

from zoo.core.artifacts import Image
from zoo.core.family import Model
from zoo.core.random import normal
from zoo.data.images.pixels import from_pixels
from zoo.ddpm import DDPMScoring
from zoo.metrics import diffusion_scoring as scoring
from zoo.nets import unet
from zoo.nets.unet import ResidualBlock, UNet, UNetSettings
from zoo.nn.likelihoods import discretised_gaussian
from zoo.sampling.diffusion.noise_schedule import VariancePreserving, make_alpha_bar, spread_times
from zoo.sampling.diffusion.prediction import estimates, target_weights


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(replace(FAMILY, prediction="v"))


# ------------------------------------------------------------------------------------------- the process


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_noise_added_step_by_step_is_noise_added_at_once(schedule):
    alpha_bar = make_alpha_bar(schedule, 12)
    rng = np.random.default_rng(0)
    x = np.full(200_000, 0.7)
    for t, beta in enumerate(1 - alpha_bar / np.append(1.0, alpha_bar[:-1])):
        x = math.sqrt(1 - beta) * x + math.sqrt(beta) * rng.standard_normal(x.shape)
        signal, noise = VariancePreserving(alpha_bar).at(jnp.float32(t))
        assert x.mean() == pytest.approx(float(signal * 0.7), abs=0.01), t
        assert x.std() == pytest.approx(float(noise), abs=0.01), t


def test_schedules_are_the_papers():
    linear, cosine = make_alpha_bar("linear", 1000), make_alpha_bar("cosine", 1000)
    assert 1 - linear[0] == pytest.approx(1e-4)
    assert 1 - linear[-1] / linear[-2] == pytest.approx(0.02)
    assert cosine[499] == pytest.approx(math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2, rel=1e-3)
    assert 1 - cosine[-1] / cosine[-2] == pytest.approx(0.999)
    assert (np.diff(make_alpha_bar("linear", 5)) < 0).all()


def test_signal_between_two_times_lies_between_theirs():
    table = make_alpha_bar("linear", 50)
    path, signals = VariancePreserving(table), np.sqrt(table)
    np.testing.assert_allclose(path.at(jnp.arange(50.0)).signal, signals, rtol=1e-5)
    np.testing.assert_allclose(path.at(jnp.arange(50.0)).noise, np.sqrt(1 - table), rtol=1e-5)
    between = path.at(jnp.arange(49.0) + 0.5).signal
    assert ((between < signals[:-1]) & (between > signals[1:])).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_is_predicted_gives_back_image_and_noise(prediction):
    x_0, eps = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 1))
    level = level_of(jnp.array([0.999, 0.9, 0.5, 0.1, 0.01]))
    x_t = level.signal * x_0 + level.noise * eps
    a, b = target_weights(prediction, level)
    image, noise = estimates(prediction, a * x_0 + b * eps, x_t, level, clip=False)
    np.testing.assert_allclose(image, x_0, atol=1e-4)
    np.testing.assert_allclose(noise, eps, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clipped_estimates_still_mix_to_the_noisy_image(prediction):
    x_t, output = 3 * jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 1))
    level = level_of(jnp.array([0.999, 0.9, 0.5, 0.1, 0.01]))
    free, _ = estimates(prediction, output, x_t, level, clip=False)
    x_0, eps = estimates(prediction, output, x_t, level, clip=True)
    np.testing.assert_allclose(x_0, np.clip(free, -1, 1), atol=1e-5)
    np.testing.assert_allclose(level.signal * x_0 + level.noise * eps, x_t, atol=1e-4)
    assert (np.abs(free) > 1).any()


def test_times_are_uniform_and_spread_over_a_batch():
    times = np.asarray(spread_times(jax.random.key(0), jnp.arange(1000), 1000))
    assert np.bincount(times.astype(int), minlength=1000).max() <= 2
    first = np.array([spread_times(jax.random.key(seed), jnp.arange(1), 4)[0] for seed in range(100)])
    assert np.bincount(first.astype(int)).min() > 12
    np.testing.assert_array_equal(spread_times(jax.random.key(0), jnp.arange(7, 9), 1000), times[7:9])


# ----------------------------------------------------------------------------------------- loss and bound


@pytest.fixture
def asked(monkeypatch):
    """Has networks put out zeros; the classes that they are asked for."""
    symbols = []

    def zeros(self, x, t, symbol=None, *, key=None, rows=None):
        symbols.append(symbol)
        return jnp.zeros_like(x)

    monkeypatch.setattr(UNet, "__call__", zeros)
    return symbols


@pytest.fixture(scope="module")
def net() -> UNet:
    return nnx.eval_shape(lambda: UNet(FAMILY.unet_settings(SPEC), nnx.Rngs(0)))


def test_labels_are_withheld_by_row_and_missing_ones_are_no_class(net, asked):
    family, key = replace(FAMILY, label_dropout=0.3), jax.random.key(5)
    batch = batch_of(2000)
    batch["label"] = batch["label"].at[1].set(-1)
    family.loss(net, batch, key)
    symbol = np.asarray(asked.pop())
    withheld = symbol == 3
    assert withheld[1]
    assert withheld.mean() == pytest.approx(0.3, abs=0.04)
    np.testing.assert_array_equal(symbol[~withheld], batch["label"][~withheld])
    family.loss(net, {name: value[100:108] for name, value in batch.items()}, key)
    np.testing.assert_array_equal(asked.pop(), symbol[100:108])


def test_loss_of_a_network_that_says_zero_is_the_power_of_its_target(net, asked):
    batch = batch_of(64)
    x_0 = from_pixels(batch["image"])
    total, weight, _ = replace(FAMILY, prediction="x0").loss(net, batch, jax.random.key(0))
    assert float(total / weight) == pytest.approx(float(jnp.square(x_0).mean()), rel=1e-5)
    total, weight, _ = FAMILY.loss(net, batch, jax.random.key(0))
    assert float(total / weight) == pytest.approx(1.0, abs=0.1)


def test_loss_gives_the_network_the_time_of_the_noise_that_it_sees(net, monkeypatch):
    """A network that knows the images finds their noise by equation 4, if it is given the right time."""
    batch = batch_of(16)
    x_0 = np.asarray(batch["image"], np.float64) / 127.5 - 1
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))

    def oracle(self, x, t, symbol=None, *, key=None, rows=None):
        signal, noise = (
            np.sqrt(v)[:, None, None, None] for v in (alpha_bar[t.astype(int)], 1 - alpha_bar[t.astype(int)])
        )
        return jnp.asarray((x - signal * x_0) / noise, jnp.float32)

    monkeypatch.setattr(UNet, "__call__", oracle)
    total, weight, _ = replace(FAMILY, timesteps=1000).loss(net, batch, jax.random.key(0))
    assert weight == 16
    assert float(total) < 1e-6


@pytest.mark.parametrize("min_snr", [0.0, 5.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_weighs_each_row_by_its_noise_level(prediction, min_snr, net, monkeypatch):
    """A network that is off by 1 everywhere: the loss is the sum of the rows' weights, which Hang et al. give."""
    family, batch, times = replace(FAMILY, prediction=prediction, min_snr=min_snr, timesteps=1000), batch_of(16), []
    x_0 = np.asarray(batch["image"], np.float64) / 127.5 - 1
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))

    def off_by_one(self, x, t, symbol=None, *, key=None, rows=None):
        times.append(t.astype(int))
        signal, noise = (np.sqrt(v)[:, None, None, None] for v in (alpha_bar[times[0]], 1 - alpha_bar[times[0]]))
        eps = (x - signal * x_0) / noise
        target = {"eps": eps, "x0": x_0, "v": signal * eps - noise * x_0}[prediction]
        return jnp.asarray(target + 1, jnp.float32)

    monkeypatch.setattr(UNet, "__call__", off_by_one)
    total, _, _ = family.loss(net, batch, jax.random.key(0))
    (t,) = times
    snr = alpha_bar[t] / (1 - alpha_bar[t])
    assert (snr > 5).any()
    assert (snr < 5).any()
    capped = np.minimum(snr, 5)
    hang = {"eps": capped / snr, "x0": capped, "v": capped / (snr + 1)}[prediction]
    assert float(total) == pytest.approx(float((hang if min_snr else np.ones(16)).sum()), rel=1e-4)


def test_residual_blocks_drop_features_before_their_last_convolution():
    """With a last convolution that changes nothing, a block adds each feature scaled by 4/3 or, one time of four, 0."""
    settings = UNetSettings(height=4, features_in=1, channels=(8,), layers=1, groups=2, dropout=0.25)
    block = ResidualBlock(settings, 8, 8, nnx.Rngs(0))
    block.conv_out.kernel[...] = jnp.zeros((3, 3, 8, 8)).at[1, 1].set(jnp.eye(8))
    x, embedding, rows = jax.random.normal(jax.random.key(0), (32, 4, 4, 8)), jnp.ones((32, 1, 32)), jnp.arange(32)
    drop = jax.jit(lambda x, embedding, rows: block(x, embedding, jax.random.key(1), rows) - x)
    whole = np.asarray(jax.jit(lambda: block(x, embedding, None, None) - x)())
    dropped = np.asarray(drop(x, embedding, rows))
    kept = np.abs(dropped) > 1e-5
    np.testing.assert_allclose(dropped[kept], whole[kept] / 0.75, atol=1e-5)
    assert kept[np.abs(whole) > 1e-3].mean() == pytest.approx(0.75, abs=0.03)
    alone = np.asarray(drop(x[5:6], embedding[5:6], rows[5:6]))
    np.testing.assert_allclose(alone, dropped[5:6], atol=1e-6)


def test_loss_drops_features_in_every_residual_block_with_noise_of_its_own(monkeypatch):
    family, batch, calls = replace(FAMILY, channels=(8, 16), dropout=0.25), batch_of(4), []

    def record(x, rate, key, rows):
        calls.append((rate, key, rows))
        return x

    monkeypatch.setattr(unet, "dropout", record)

    def loss(batch, key):
        calls.clear()
        total, _, _ = family.loss(UNet(family.unet_settings(SPEC), nnx.Rngs(0)), batch, key)
        assert all(rows is batch["row"] for _, _, rows in calls)
        return total

    jax.eval_shape(loss, batch, jax.random.key(0))
    assert len(calls) == 2 * 1 + 2 + 2 * 2  # two levels of one block down, the middle's two, two levels of two up
    assert {rate for rate, _, _ in calls} == {0.25}
    assert None not in [key for _, key, _ in calls]
    assert len({id(key) for _, key, _ in calls}) == len(calls)


def test_min_snr_weighs_errors_of_the_image_alike_whatever_is_predicted():
    x_0, eps, wrong = jax.random.normal(jax.random.key(0), (3, 6, 4, 4, 1))
    alpha_bar_t = jnp.array([0.9999, 0.95, 0.8, 0.5, 0.1, 0.001])
    level = level_of(alpha_bar_t)
    x_t, snr = level.signal * x_0 + level.noise * eps, alpha_bar_t / (1 - alpha_bar_t)
    found = []
    for prediction in PREDICTIONS:
        family = replace(FAMILY, prediction=prediction, min_snr=5.0)
        a, b = target_weights(prediction, level)
        right, guess = (a * x + b * (x_t - level.signal * x) / level.noise for x in (x_0, x_0 + 0.01 * wrong))
        found.append(family.weight(snr) * jnp.square(right - guess).mean((1, 2, 3)))
    wanted = jnp.minimum(snr, 5.0) * jnp.square(0.01 * wrong).mean((1, 2, 3))
    for error in found:
        np.testing.assert_allclose(error, wanted, rtol=0.02)


def test_grey_values_share_the_whole_probability():
    values = from_pixels(jnp.arange(256, dtype=jnp.uint8).reshape(256, 1, 1, 1))
    for mean in (-1.2, -1.0, 0.003, 0.9):
        for deviation in (0.004, 0.05, 0.7):
            logs = discretised_gaussian(values, jnp.full(values.shape, mean), jnp.log(deviation))
            assert float(jnp.exp(logs).sum()) == pytest.approx(1.0, abs=1e-4)
            assert np.isfinite(np.asarray(logs)).all()


def test_bound_is_that_of_the_normal_distributions_it_is_made_of():
    family = replace(FAMILY, timesteps=1000)
    alpha_bar = make_alpha_bar("linear", 1000)
    x_0 = from_pixels(jnp.full((1, 8, 8, 1), 200, jnp.uint8))
    x, guess = float(x_0[0, 0, 0, 0]), 0.5
    for t in (1, 300, 999):
        last, term = family.bound(x_0, jnp.full_like(x_0, guess), jnp.array([float(t)]))
        beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
        variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta
        moved = math.sqrt(alpha_bar[t - 1]) * beta / (1 - alpha_bar[t]) * (x - guess)  # between the posteriors' means
        assert float(term[0]) == pytest.approx(moved**2 / (2 * variance) / math.log(2), rel=1e-4)
        signal, noise = alpha_bar[-1], 1 - alpha_bar[-1]
        kl = 0.5 * (signal * x**2 + noise - 1 - math.log(noise))
        assert float(last[0]) == pytest.approx(kl / math.log(2), rel=1e-3)
    _, first = family.bound(x_0, x_0, jnp.zeros(1))
    deviation = math.sqrt((1 - alpha_bar[0]) / (1 - alpha_bar[1]) * (1 - alpha_bar[1] / alpha_bar[0]))
    share = 2 * scipy.stats.norm.cdf(1 / 255 / deviation) - 1
    assert float(first[0]) == pytest.approx(-math.log2(share), rel=1e-4)


@pytest.mark.slow
def test_bound_of_one_time_a_row_estimates_the_whole_bound(model):
    whole = model.family.score(model, {}, FewImages(), DDPMScoring(bound_images=6), jax.random.key(0))
    assert whole["bound_images"] == 6
    assert whole["bound_bits_per_dim"] == pytest.approx(
        whole["bound_rate_bits_per_dim"] + whole["bound_distortion_bits_per_dim"]
    )
    valid = [{n: v[b["valid"]] for n, v in b.items()} for b in map(FewImages().held_out_at, (0, 1))]
    once = {name: np.concatenate([part[name] for part in valid]) for name in valid[0]}
    many = {name: np.concatenate([value] * 200) for name, value in once.items()}
    many["row"] = np.arange(1200, dtype=np.int32)
    rows = jax.jit(model.family.evaluate)(model.state, many, jax.random.key(1))
    assert float(rows["bits_per_dim"][0].mean()) == pytest.approx(whole["bound_bits_per_dim"], rel=0.05)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_terms_are_of_the_image_that_the_networks_output_stands_for(prediction, model, monkeypatch):
    """By hand, of a network that puts out 0.3 everywhere: equations 4 and 8 of the paper, solved for x_0."""
    monkeypatch.setattr(UNet, "__call__", lambda self, x, *_, **__: jnp.full_like(x, 0.3))
    family, t = replace(FAMILY, prediction=prediction), np.array([1, 4, 9, 19])
    batch, key = batch_of(4), jax.random.key(0)
    error, _, terms = family.terms(model.state, batch, jnp.asarray(t, jnp.float32), key)
    alpha_bar = make_alpha_bar("linear", 20)
    signal, noise = (np.sqrt(x)[t].reshape(4, 1, 1, 1) for x in (alpha_bar, 1 - alpha_bar))
    x, z = np.asarray(batch["image"]) / 127.5 - 1, np.asarray(normal(key, batch["row"], (8, 8, 1)), np.float64)
    seen = signal * x + noise * z
    target = {"eps": z, "x0": x, "v": signal * z - noise * x}[prediction]
    guess = {"eps": (seen - noise * 0.3) / signal, "x0": np.full_like(x, 0.3), "v": signal * seen - noise * 0.3}
    np.testing.assert_allclose(error, np.square(target - 0.3).mean((1, 2, 3)), rtol=1e-4)
    snr = alpha_bar / (1 - alpha_bar)
    missed = np.square(x - np.clip(guess[prediction], -1, 1)).mean((1, 2, 3))
    np.testing.assert_allclose(terms, (snr[t - 1] - snr[t]) / 2 * missed / math.log(2), rtol=1e-3)


def test_scored_samples_are_made_as_is_recorded(monkeypatch):
    """The sampler is asked for all settings that are written beside the figures."""
    asked, told = [], {}

    def make(family, model, request, key, classes):
        asked.append((request, classes))
        return [Image(np.zeros((8, 8, 1), np.uint8)) for _ in range(request.n)]

    def scores(make, data, scoring, how, *rest):
        told.update(how)
        return {"made": len(make(np.array([2, 0, 1, 1, 2])))}

    monkeypatch.setattr(scoring, "sample_images", make)
    monkeypatch.setattr(scoring, "score_samples", scores)
    settings = {"sampler": "ddim", "steps": 7, "eta": 0.5, "shift": 3.0, "guidance": 2.5}
    model = Model(FAMILY, SPEC, None, 0)
    found = FAMILY.score(model, {}, FewImages(), DDPMScoring(samples=5, **settings), jax.random.key(0))
    assert found["made"] == 5
    ((request, classes),) = asked
    assert classes.tolist() == [2, 0, 1, 1, 2]
    assert request.n == 5
    assert {name: getattr(request, name) for name in settings} == settings
    assert {name: told[name] for name in settings} == settings
