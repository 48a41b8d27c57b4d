"""The diffusion model: its process, losses and bound, guidance, requests, and diffusers' U-Net."""

import json
import math
import shutil
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.stats
from flax import nnx
from paths import REFERENCES
from safetensors.numpy import load_file, save_file

from zoo.core.artifacts import Image
from zoo.core.data import DataSet
from zoo.core.errors import UserError
from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.core.random import normal
from zoo.data.images import Images
from zoo.data.images.pixels import from_pixels
from zoo.data.specs import ImageSpec
from zoo.ddpm import DDPM
from zoo.harness.config import Run, from_json, parse_flags, to_json
from zoo.harness.trained import load_run
from zoo.interop.diffusers import export_run, import_run, read_diffusers, write_diffusers
from zoo.metrics import diffusion_scoring as scoring
from zoo.metrics.diffusion_scoring import DiffusionScoring
from zoo.nets import unet
from zoo.nets.unet import ResidualBlock, UNet, UNetSettings
from zoo.nn.likelihoods import discretised_gaussian
from zoo.sampling.diffusion import request as requests
from zoo.sampling.diffusion.guidance import guidable
from zoo.sampling.diffusion.noise_schedule import Level, VariancePreserving, make_alpha_bar, spread_times
from zoo.sampling.diffusion.prediction import estimates, target_weights
from zoo.sampling.diffusion.request import DiffusionRequest

SPEC = ImageSpec(8, 8, 1, ("cat", "dog", "7"))
FAMILY = DDPM(channels=(8,), layers=1, attention=(8,), timesteps=20)
PREDICTIONS = ("eps", "x0", "v")


class FewImages(DataSet):
    """Six held-out images in batches of four."""

    spec, held_out_batches = SPEC, 2

    def batch_at(self, step, rows=slice(None)):
        return self.held_out_at(step)

    def held_out_at(self, index, rows=slice(None)):
        row = np.arange(4 * index, 4 * index + 4, dtype=np.int32)
        image = np.random.default_rng(index).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
        return {"image": image, "label": row % 3, "row": row, "valid": row < 6}


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(replace(FAMILY, prediction="v"))


def make_model(family: DDPM, spec: ImageSpec = SPEC) -> Model:
    """A network whose last layers are not zero, as those of a fresh one are."""
    state = jax.jit(lambda key: family.init(spec, Setup(Optimizer(), 10, 4), key))(jax.random.key(0))
    leaves, tree = jax.tree.flatten(state.unet.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    unet = state.unet.with_params(jax.tree.unflatten(tree, noisy)).inference()
    return Model(family, spec, state._replace(unet=unet), 0, FewImages)


@pytest.mark.parametrize("channels", [(7, 9), pytest.param((6, 5), marks=pytest.mark.slow)])
def test_odd_channels_make_a_network_that_draws(channels):
    pixels = draw(make_model(replace(FAMILY, channels=channels)))
    assert pixels.shape[-3:] == (8, 8, 1)
    assert pixels.std() > 0


def draw(model: Model, seed: int = 0, **request: Any) -> np.ndarray:
    """Two samples in five steps, unless something else is asked for."""
    made = model.family.sample(model, DiffusionRequest(**({"n": 2, "steps": 5} | request)), jax.random.key(seed))
    return np.stack([image.pixels for image in made]).astype(int)


def batch_of(rows: int) -> dict[str, jax.Array]:
    row = np.arange(rows, dtype=np.int32)
    image = np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 1)).astype(np.uint8)
    return jax.device_put({"image": image, "label": row % 3, "row": row, "valid": np.ones(rows, bool)})


# ------------------------------------------------------------------------------------------- the process


def level_of(alpha_bar: jax.Array) -> Level:
    """Signal and noise of each row, by DDPM's equation 4."""
    return Level(*(jnp.sqrt(x)[:, None, None, None] for x in (alpha_bar, 1 - alpha_bar)))


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
    whole = np.asarray(block(x, embedding, None, None) - x)
    dropped = np.asarray(block(x, embedding, jax.random.key(1), rows) - x)
    kept = np.abs(dropped) > 1e-5
    np.testing.assert_allclose(dropped[kept], whole[kept] / 0.75, atol=1e-5)
    assert kept[np.abs(whole) > 1e-3].mean() == pytest.approx(0.75, abs=0.03)
    alone = np.asarray(block(x[5:6], embedding[5:6], jax.random.key(1), rows[5:6]) - x[5:6])
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


def test_bound_of_one_time_a_row_estimates_the_whole_bound(model):
    whole = model.family.score(model, {}, FewImages(), DiffusionScoring(bound_images=6), jax.random.key(0))
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
    found = FAMILY.score(model, {}, FewImages(), DiffusionScoring(samples=5, **settings), jax.random.key(0))
    assert found["made"] == 5
    ((request, classes),) = asked
    assert classes.tolist() == [2, 0, 1, 1, 2]
    assert request.n == 5
    assert {name: getattr(request, name) for name in settings} == settings
    assert {name: told[name] for name in settings} == settings


# ------------------------------------------------------------------------------------------------ guidance


def test_guidance_is_the_papers_and_one_is_plain_conditional(model):
    family, net = replace(model.family, clip=False), model.state.unet.eval_net()
    x_t, t, symbol = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([3.0, 15.0]), jnp.array([0, 2])
    alpha_bar_t = make_alpha_bar("linear", 20)[np.array([3, 15])][:, None, None, None]
    signal, noise = np.sqrt(alpha_bar_t), np.sqrt(1 - alpha_bar_t)
    # Salimans and Ho 2022: eps = signal v + noise x_t.
    eps_c, eps_u = (signal * net(x_t, t, classes) + noise * x_t for classes in (symbol, jnp.array([3, 3])))
    guide = jax.jit(lambda state, g: family.denoiser(state, symbol, g)(x_t, t)[1])
    for g in (0.0, 1.0, 3.0):
        found = guide(model.state, jnp.float32(g))
        np.testing.assert_allclose(found, eps_u + g * (eps_c - eps_u), rtol=1e-3, atol=2e-3)
    assert float(jnp.abs(eps_c - eps_u).max()) > 0.1
    # The network is not even asked about no class where g = 1.
    state = jax.tree.map(jnp.copy, model.state)
    table = state.unet.params["classes"]["table"]
    state.unet.params["classes"]["table"] = table.at[3].set(jnp.nan)
    assert np.isfinite(guide(state, jnp.float32(1.0))).all()
    assert np.isnan(guide(state, jnp.float32(2.0))).all()


def test_label_chooses_the_class(model):
    each = draw(model, n=4)
    for i, name in enumerate(("cat", "dog", "7", "0")):
        np.testing.assert_allclose(draw(model, n=4, label=name)[i], each[i], atol=1)
    assert np.abs(draw(model, n=4, label="none") - each).max() > 2
    assert np.abs(draw(model, n=4, label="dog", guidance=3.0) - draw(model, n=4, label="dog")).max() > 2


# ------------------------------------------------------------------------------------ what can be asked for


def test_a_sample_does_not_depend_on_how_many_are_made(model, monkeypatch):
    two, five = draw(model), draw(model, n=5)
    np.testing.assert_allclose(two, five[:2], atol=1)
    assert np.abs(five[0] - five[1]).max() > 2
    monkeypatch.setattr(requests, "BATCH_SIZE", 2)
    np.testing.assert_allclose(draw(model, n=5), five, atol=1)
    with jax.default_device(jax.devices()[3]):
        np.testing.assert_allclose(draw(model, n=5), five, atol=1)


def test_settings_of_a_sampler_compile_nothing(model):
    draw(model)
    before = requests._walk._cache_size()
    for request in (
        {"steps": 20},
        {"guidance": 2.5},
        {"eta": 0.7},
        {"shift": 3.0},
        {"label": "dog"},
        {"label": "none"},
        {"seed": 3},
    ):
        draw(model, **request)
    assert requests._walk._cache_size() == before


def test_every_sampler_makes_images_of_the_same_kind(model):
    exact = draw(model, steps=20)
    assert exact.std() > 20
    for sampler in ("ddpm", "euler", "heun", "dpm++"):
        made = draw(model, sampler=sampler, steps=20)
        assert made.mean() == pytest.approx(exact.mean(), abs=60), sampler
        assert made.std() > 20, sampler
        assert (made != draw(model, seed=1, sampler=sampler, steps=20)).any(), sampler


@pytest.fixture
def files(tmp_path):
    """An image and a mask whose left half is to be filled in."""
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8)).astype(np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    for name, array in (("image", pixels), ("mask", mask), ("small", mask[:4])):
        PIL.Image.fromarray(array).save(tmp_path / f"{name}.png")
    return tmp_path


def test_inpainting_keeps_what_the_mask_does_not_name(model, files):
    image = np.asarray(PIL.Image.open(files / "image.png")).astype(int)
    made = draw(model, image=(str(files / "image.png"),), mask=str(files / "mask.png"))
    for pixels in made[..., 0]:
        np.testing.assert_array_equal(pixels[:, 4:], image[:, 4:])
    assert np.abs(made[0] - made[1]).max() > 2
    again = draw(model, image=(str(files / "image.png"),), mask=str(files / "mask.png"), repeats=2)
    np.testing.assert_array_equal(again[0, :, 4:, 0], image[:, 4:])
    assert np.abs(made[0] - again[0]).max() > 2


def test_image_to_image_starts_from_the_given_images(model, files):
    names = (str(files / "image.png"), "5")
    same = draw(model, n=3, image=names, strength=0.0)
    np.testing.assert_array_equal(same[0, ..., 0], PIL.Image.open(files / "image.png"))
    np.testing.assert_array_equal(same[1], FewImages().held_out_at(1)["image"][1])
    np.testing.assert_array_equal(same[2], same[0])
    near, far = (np.abs(draw(model, n=3, image=names, strength=s, steps=20) - same).mean() for s in (0.1, 0.9))
    assert 0 < near < far


def test_interpolation_begins_with_the_samples_own_noise(model):
    ways = model.family.sample(model, DiffusionRequest(n=2, steps=5, interpolate=3), jax.random.key(0))
    assert [way.name for way in ways] == ["interpolation"] * 2
    assert ways[0].pixels.shape == (12, 3 * 8 + 4 * 2, 1)
    first = np.stack([way.pixels[2:10, 2:10] for way in ways]).astype(int)
    assert np.abs(first - draw(model)).max() <= 1
    between = model.family.sample(
        model, DiffusionRequest(steps=5, interpolate=4, image=("0", "1"), sampler="heun"), jax.random.key(0)
    )
    assert len(between) == 1
    assert between[0].pixels.shape == (12, 4 * 8 + 5 * 2, 1)


def test_strip_ends_with_the_sample(model):
    strips = model.family.sample(model, DiffusionRequest(n=2, steps=5, strip=3), jax.random.key(0))
    assert strips[0].name == "strip"
    assert strips[0].pixels.shape == (2 * 8 + 3 * 2, 3 * 8 + 4 * 2, 1)
    np.testing.assert_allclose(strips[0].pixels[2:10, 22:30].astype(int), draw(model)[0], atol=1)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"guidance": 2.0, "label": "none"}, "guidance is 2, and there is no class to guide to"),
        ({"guidance": -1.0}, "guidance is -1.0; it must be 0 or above"),
        ({"label": "bird"}, "label is 'bird'; it must be one of the classes cat, dog, 7, or a number below 3"),
        ({"label": "3"}, "label is '3'; it must be"),
        ({"steps": 21}, "steps is 21; it must be from 1 to 20"),
        ({"steps": 0}, "steps is 0"),
        ({"sampler": "ddpm", "eta": 0.5}, "eta is 0.5, which is a setting of the sampler ddim"),
        ({"shift": 0.0}, "shift is 0.0; it must be above 0"),
        ({"mask": "mask.png"}, "give the image with --image"),
        ({"image": ("nowhere.png",)}, "there is no file nowhere.png"),
        ({"image": ("6",)}, "held-out picture 6 is asked for, but there are 6"),
        ({"image": ("0",), "interpolate": 3}, "image names 1 images; interpolate needs two"),
        (
            {"image": ("0", "1"), "interpolate": 3, "sampler": "ddpm"},
            "sampler is ddpm, which does not repro",
        ),
        (
            {"image": ("0", "1"), "interpolate": 3, "sampler": "heun", "guidance": 2.0},
            "guidance is 2; to interpolate",
        ),
        ({"repeats": 3}, "repeats is 3; it must be 1 without a mask"),
        ({"image": ("0",), "strength": 1.5}, "strength is 1.5; it must be from 0 to 1"),
        ({"strip": 1}, "strip is 1"),
    ],
)
def test_requests_that_cannot_be_met_say_why(model, request_, says):
    with pytest.raises(UserError, match=says):
        draw(model, **request_)


def test_masks_of_another_size_are_refused(model, files):
    with pytest.raises(UserError, match=r"small\.png is 8x4; it must be 8x8"):
        draw(model, image=("0",), mask=str(files / "small.png"))


def test_models_without_classes_refuse_labels_and_guidance():
    model = Model(replace(FAMILY, conditional=False), SPEC, None, 0)  # refused before the network is needed
    with pytest.raises(UserError, match="guidance is 2, but the model was trained without classes"):
        draw(model, guidance=2.0)
    with pytest.raises(UserError, match="label is 'cat', but the model was trained without classes"):
        draw(model, label="cat")
    with pytest.raises(UserError, match="label-dropout 0"):
        draw(replace(model, family=replace(FAMILY, label_dropout=0.0)), guidance=2.0, label="cat")


@pytest.mark.parametrize(
    ("settings", "spec", "says"),
    [
        ({"conditional": True}, ImageSpec(8, 8, 1), "the images have no classes: give --family.no-conditional"),
        ({"channels": (8,) * 5}, SPEC, "multiples of 16 pixels high and wide, and they are 8 x 8"),
        ({"channels": ()}, SPEC, "at least one level"),
        ({"head_width": 5}, SPEC, "multiples of head-width, 5"),
        ({"label_dropout": 1.0}, SPEC, "label_dropout is 1.0"),
    ],
)
def test_settings_that_cannot_work_say_why(settings, spec, says):
    with pytest.raises(UserError, match=says):
        replace(FAMILY, **settings).init(spec, Setup(Optimizer(), 10, 4), jax.random.key(0))


@pytest.mark.parametrize(("given", "classes", "symbols"), [(None, (), 0), (None, ("a", "b"), 3), (False, ("a",), 0)])
def test_conditioning_follows_the_data_unless_it_is_given(given, classes, symbols):
    family = replace(FAMILY, conditional=given)
    spec = ImageSpec(8, 8, 1, classes)
    assert family.unet_settings(spec).symbols == symbols
    assert guidable(family, spec) == (symbols > 0)


@pytest.mark.parametrize(
    ("flags", "conditional"), [([], None), (["--family.conditional"], True), (["--family.no-conditional"], False)]
)
def test_conditional_is_a_flag_with_a_counterpart_and_a_setting_of_three_values(flags, conditional):
    run = parse_flags(Run, Run(family=FAMILY, data=Images()), flags, "train.py")
    assert run.family.conditional is conditional
    assert from_json(to_json(run), Run, "config.json") == run


def test_images_without_classes_train_and_are_sampled():
    spec = replace(SPEC, classes=())
    batch = batch_of(2) | {"label": jnp.full(2, -1)}
    state = FAMILY.init(spec, Setup(Optimizer(), 10, 2), jax.random.key(0))
    total, weight, _ = FAMILY.loss(state.unet.net(), batch, jax.random.key(1))
    assert np.isfinite(total / weight)
    assert draw(Model(FAMILY, spec, state, 0)).shape == (2, 8, 8, 1)
    with pytest.raises(UserError, match="guidance is 2, but the model was trained without classes"):
        draw(Model(FAMILY, spec, state, 0), guidance=2.0)


# ---------------------------------------------------------------------------------------- diffusers' U-Net


@pytest.mark.parametrize("name", ["unet", "unet_ddpm"])
def test_unet_is_that_of_diffusers(name, tmp_path):
    family, spec, params = read_diffusers(REFERENCES / name)
    settings = family.unet_settings(spec)
    graphdef, _, rest = nnx.split(nnx.eval_shape(lambda: UNet(settings, nnx.Rngs(0))), nnx.Param, ...)
    net = nnx.merge(graphdef, params, nnx.to_pure_dict(rest))
    expected = load_file(REFERENCES / name / "expected.safetensors")
    found = jax.jit(net)(expected["x"], expected["t"], expected["classes"] if family.conditional else None)
    np.testing.assert_allclose(found, expected["output"], atol=2e-5)

    write_diffusers(tmp_path / "back", family, spec, params)
    theirs, ours = (
        load_file(f / "diffusion_pytorch_model.safetensors") for f in (REFERENCES / name, tmp_path / "back")
    )
    if family.conditional:
        assert (ours["class_embedding.weight"][-1] == 0).all()
        ours["class_embedding.weight"] = ours["class_embedding.weight"][:-1]
    assert theirs.keys() == ours.keys()
    assert all(np.array_equal(theirs[tensor], ours[tensor]) for tensor in theirs)
    their_config, our_config = (
        json.loads((f / "config.json").read_text()) for f in (REFERENCES / name, tmp_path / "back")
    )
    differing = {key for key in our_config if their_config[key] != our_config[key]}
    assert differing <= {"num_class_embeds"}
    again = read_diffusers(tmp_path / "back", no_class_last=True)
    assert replace(again[0], label_dropout=0.0) == family
    assert again[1] == spec
    jax.tree.map(np.testing.assert_array_equal, again[2], params)


@pytest.mark.slow
def test_run_directory_from_diffusers_and_back(tmp_path):
    import_run(REFERENCES / "unet", tmp_path / "run")
    trained = load_run(tmp_path / "run")
    assert len(trained.sample(n=2, steps=2)) == 2
    export_run(tmp_path / "run", tmp_path / "back")
    assert read_diffusers(tmp_path / "back", no_class_last=True)[1] == trained.model.spec
    with pytest.raises(UserError, match="not an empty folder"):
        import_run(REFERENCES / "unet", tmp_path / "run")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"act_fn": "gelu"}, "act_fn = 'gelu'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier'"),
        ({"out_channels": 2}, "out_channels = 2"),
        ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
        ({"up_block_types": ["UpBlock2D"] * 3}, "their counterparts in the other order"),
        ({"sample_size": None}, "sample_size = None"),
        ({"norm_num_groups": 8}, "norm_num_groups = 8"),
        ({"layers_per_block": 2}, r"lacks the tensors down_blocks\.0\.resnets\.1"),
    ],
)
def test_settings_of_diffusers_without_an_equal_are_refused(config, says, tmp_path):
    values = json.loads((REFERENCES / "unet" / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(values))
    shutil.copy(REFERENCES / "unet" / "diffusion_pytorch_model.safetensors", tmp_path)
    with pytest.raises(UserError, match=says):
        read_diffusers(tmp_path)


def test_pipelines_and_old_names_of_attention_are_read(tmp_path):
    (tmp_path / "scheduler").mkdir()
    shutil.copytree(REFERENCES / "unet", tmp_path / "unet")
    schedule = {"num_train_timesteps": 500, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    tensors = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new, before in old.items():
        tensors = {name.replace(new, before): value for name, value in tensors.items()}
    save_file(tensors, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    family, spec, params = read_diffusers(tmp_path)
    plain, _, plain_params = read_diffusers(REFERENCES / "unet")
    assert family == replace(plain, timesteps=500, schedule="cosine", prediction="v")
    jax.tree.map(np.testing.assert_array_equal, params, plain_params)
    assert spec.classes == ("0", "1", "2", "3")
