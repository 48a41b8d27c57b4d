"""Flow matching's path, times and targets, and MeanFlow's identity, against closed forms."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from ddpm_cases import SPEC, batch_of
from flax import nnx
from flow_cases import FAMILY, MEAN_FLOW, deviation, normal_velocity

from zoo.core.errors import UserError
from zoo.core.family import Setup
from zoo.core.optimizer import Optimizer
from zoo.data.images.pixels import dequantise, to_pixels
from zoo.flow_matching import FlowMatching, State, mean_target
from zoo.nets.dit import DiT
from zoo.nn.platform import plain_forms
from zoo.sampling.diffusion.guidance import Condition


def make_net(family: FlowMatching) -> DiT:
    return family.init(SPEC, Setup(Optimizer(), 10, 4), jax.random.key(0)).net.net()


def make_shape(family: FlowMatching) -> DiT:
    return nnx.eval_shape(lambda: make_net(family))


@pytest.fixture(scope="module")
def net() -> DiT:
    return make_shape(FAMILY)


@pytest.fixture(scope="module")
def mean_net() -> DiT:
    return make_shape(MEAN_FLOW)


# -------------------------------------------------------------------------------------------- the data


def test_every_dequantised_level_is_uniform_and_rounds_back():
    image = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1).repeat(200, 0)
    x = dequantise(image, jax.random.key(0), jnp.arange(200))
    assert (to_pixels(x) != image).mean() < 1e-4  # float32 at the edge between two levels
    place = (np.asarray(x, np.float64) + 1) * 127.5 - np.asarray(image) + 0.5
    assert scipy.stats.kstest(place.ravel(), "uniform", args=(0, 1)).pvalue > 1e-3
    np.testing.assert_array_equal(dequantise(image[7:9], jax.random.key(0), jnp.arange(7, 9)), x[7:9])


# ------------------------------------------------------------------------------------------- the times


def test_times_have_their_distribution_and_are_spread_over_the_batch():
    rows = jnp.arange(1000)
    r, t = FAMILY.draw_times(jax.random.key(0), rows)
    np.testing.assert_array_equal(r, t)
    np.testing.assert_allclose(np.sort(t), (np.arange(1000) + 0.5) / 1000, atol=2e-3)
    _, late = replace(FAMILY, times="logit_normal", times_mean=-0.4, times_scale=1.2).draw_times(
        jax.random.key(0), rows
    )
    share = scipy.stats.norm.cdf((scipy.special.logit(np.sort(np.asarray(late, np.float64))) + 0.4) / 1.2)
    np.testing.assert_allclose(share, (np.arange(1000) + 0.5) / 1000, atol=2e-3)
    np.testing.assert_array_equal(FAMILY.draw_times(jax.random.key(0), rows[300:310])[1], t[300:310])


def test_intervals_are_two_ordered_times_or_one():
    rows = jnp.arange(20_000)
    r, t = map(np.asarray, replace(MEAN_FLOW, instants=0.0).draw_times(jax.random.key(0), rows))
    assert (r < t).all()
    assert (t < 0.5).mean() == pytest.approx(0.25, abs=0.02)  # both of two uniform times
    assert (r < 0.5).mean() == pytest.approx(0.75, abs=0.02)
    some_r, some_t = map(np.asarray, replace(MEAN_FLOW, instants=0.6).draw_times(jax.random.key(0), rows))
    np.testing.assert_array_equal(some_t, t)
    one = some_r == some_t
    assert one.mean() == pytest.approx(0.6, abs=0.02)
    np.testing.assert_array_equal(some_r[~one], r[~one])


# ---------------------------------------------------------------------------------------- the velocity


def test_a_network_that_knows_the_images_is_off_by_the_noise_of_their_levels(net, monkeypatch):
    """Of x_t and the middle x of a level it finds (x_t - x) / t = eps - x + (1 - t) / t u, u uniform on a level."""
    batch, times = batch_of(200), []
    x = np.asarray(batch["image"], np.float64) / 127.5 - 1

    def oracle(self, x_t, t, symbol=None, span=None, *, key=None, rows=None):
        assert span is None
        times.append(np.asarray(t, np.float64) / 1000)
        return jnp.asarray((x_t - x) / times[0][:, None, None, None], jnp.float32)

    monkeypatch.setattr(DiT, "__call__", oracle)
    error = np.asarray(FAMILY.errors(net, batch, jax.random.key(0), training=False)) / 64
    (t,) = times
    np.testing.assert_allclose((error * t**2)[t > 0.05].mean(), (1 / 127.5) ** 2 / 12, rtol=0.05)
    assert t.min() < 0.01
    assert t.max() > 0.99


def test_loss_of_a_network_that_says_zero_is_the_power_of_the_velocity(net, monkeypatch):
    monkeypatch.setattr(DiT, "__call__", lambda self, x, *_, **__: jnp.zeros_like(x))
    batch = batch_of(200)
    total, weight, metrics = FAMILY.loss(net, batch, jax.random.key(0))
    power = np.square(np.asarray(batch["image"], np.float64) / 127.5 - 1).mean()
    assert weight == 200
    assert not metrics
    assert float(total / weight) == pytest.approx(1 + power, rel=0.02)


def test_labels_are_withheld_by_row(net, monkeypatch):
    asked = []

    def zeros(self, x, t, symbol=None, span=None, *, key=None, rows=None):
        asked.append(np.asarray(symbol))
        return jnp.zeros_like(x)

    monkeypatch.setattr(DiT, "__call__", zeros)
    family, batch, key = replace(FAMILY, label_dropout=0.3), batch_of(2000), jax.random.key(5)
    batch["label"] = batch["label"].at[1].set(-1)
    family.loss(net, batch, key)
    symbol = asked.pop()
    withheld = symbol == 3
    assert withheld[1]
    assert withheld.mean() == pytest.approx(0.3, abs=0.04)
    np.testing.assert_array_equal(symbol[~withheld], batch["label"][~withheld])
    family.loss(net, {name: value[100:108] for name, value in batch.items()}, key)
    np.testing.assert_array_equal(asked.pop(), symbol[100:108])
    family.errors(net, batch, key, training=False)
    np.testing.assert_array_equal(asked.pop()[2:], batch["label"][2:])


# --------------------------------------------------------------------------------------------- MeanFlow


def test_the_average_velocity_of_normal_data_is_its_own_target():
    """The MeanFlow identity at its solution: x_r = x_t std_r / std_t, so u = x_t (1 - std_r / std_t) / (t - r)."""
    std, r, t = 0.3, jnp.array([0.0, 0.1, 0.4, 0.6]), jnp.array([1.0, 0.9, 0.5, 0.61])
    x = jnp.linspace(-2, 2, 4 * 16).reshape(4, 4, 4, 1)

    def u(x, r, t):
        return x * ((1 - deviation(r, std) / deviation(t, std)) / (t - r))[:, None, None, None]

    output, target = mean_target(u, x, r, t, normal_velocity(x, t[:, None, None, None], std))
    np.testing.assert_allclose(target, output, rtol=2e-4, atol=2e-5)
    _, other = mean_target(u, x, r, t, 1.1 * normal_velocity(x, t[:, None, None, None], std))
    assert float(jnp.abs(other - output).max()) > 0.05


def test_the_target_of_a_linear_field_by_hand_and_no_gradient_through_it():
    """u = a x + 2 r + 3 t: along the path it changes by a v + 3."""
    x, v, r, t = jnp.full((1, 1, 1, 1), 0.5), jnp.full((1, 1, 1, 1), -1.5), jnp.array([0.25]), jnp.array([0.75])

    def loss(a):
        output, target = mean_target(lambda x, r, t: a * x + (2 * r + 3 * t)[:, None, None, None], x, r, t, v)
        return jnp.square(output - target).sum(), (output, target)

    (value, (output, target)), slope = jax.value_and_grad(loss, has_aux=True)(4.0)
    assert float(output.squeeze()) == pytest.approx(2 + 0.5 + 2.25)
    assert float(target.squeeze()) == pytest.approx(-1.5 - 0.5 * (4 * -1.5 + 3))
    assert float(value) == pytest.approx(4.75**2)
    assert float(slope) == pytest.approx(2 * 4.75 * 0.5)  # the target's own would add to it


@pytest.mark.parametrize("network", ["dit", pytest.param("unet", marks=pytest.mark.slow)])
def test_a_networks_change_along_the_path_is_its_finite_difference(network):
    family = replace(MEAN_FLOW, network=network, channels=(8,), attention=(8,), instants=0.0)
    net, symbol = make_net(family), jnp.array([0, 3])
    x, v = jax.random.normal(jax.random.key(0), (2, 2, 8, 8, 1))
    r, t, h = jnp.array([0.1, 0.5]), jnp.array([0.6, 0.9]), 1e-3

    @jax.jit
    def changes(net):
        def u(x, r, t):
            return 100 * family.call(net, x, r, t, symbol=symbol)  # far from zero also where a network begins near it

        _, target = mean_target(u, x, r, t, v)
        with plain_forms():
            difference = (u(x + h * v, r, t + h) - u(x - h * v, r, t - h)) / (2 * h)
        return (v - target) / (t - r)[:, None, None, None], difference

    exact, difference = changes(net)
    assert float(jnp.abs(exact).max()) > 0.1
    np.testing.assert_allclose(exact, difference, rtol=0.02, atol=0.02 * float(jnp.abs(exact).max()))


def test_a_velocity_is_the_average_over_an_interval_without_length(monkeypatch):
    """Of a network that puts out the length of the interval, 20 times as long as in t from 0 to 1."""
    monkeypatch.setattr(DiT, "__call__", lambda self, x, t, symbol=None, span=None: 0 * x + span[:, None, None, None])
    state, symbol = State(SimpleNamespace(eval_net=lambda: make_shape(MEAN_FLOW))), jnp.zeros(2, int)
    x = jnp.ones((2, 8, 8, 1))
    np.testing.assert_array_equal(MEAN_FLOW.velocity(state, {"label": symbol})(x, jnp.float32(0.7)), 0.0)
    denoise = MEAN_FLOW.denoiser(state, Condition(symbol), jnp.float32(1.0))
    for r, length in ((None, 0.0), (jnp.full(2, 200.0), 20 * 0.5)):
        x_0, eps = denoise(x, jnp.full(2, 700.0), r)
        np.testing.assert_allclose(eps - x_0, length, atol=1e-5)


def test_rows_weigh_by_the_power_of_their_error_and_the_metric_is_plain(mean_net, monkeypatch):
    monkeypatch.setattr(DiT, "__call__", lambda self, x, *_, **__: jnp.zeros_like(x))
    batch, key = batch_of(1), jax.random.key(0)
    plain, _, _ = replace(MEAN_FLOW, weight_power=0.0).loss(mean_net, batch, key)
    total, weight, metrics = replace(MEAN_FLOW, weight_power=0.75).loss(mean_net, batch, key)
    assert weight == 1
    assert float(total) == pytest.approx(float(plain) ** 0.25, rel=1e-4)
    assert float(metrics["loss"][0]) == pytest.approx(float(plain) / 64, rel=1e-5)


def test_weights_have_no_gradient(mean_net, monkeypatch):
    """Of a network that puts out s everywhere the error is e(s), quadratic: the slope is e'(s) / (e(s) + c)^p."""

    def total(s, power):
        monkeypatch.setattr(DiT, "__call__", lambda self, x, *_, **__: jnp.full_like(x, s))
        return replace(MEAN_FLOW, weight_power=power).loss(mean_net, batch_of(1), jax.random.key(0))[0]

    error, slope = jax.value_and_grad(total)(0.5, 0.0)
    found = jax.grad(total)(0.5, 0.75)
    assert float(found) == pytest.approx(float(slope / error**0.75), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"patch": 3}, "family.patch is 3, so images must be multiples of 3 pixels high and wide, and they are 8 x 8"),
        ({"width": 18}, "family.width is 18; it must be a multiple of 4"),
        ({"heads": 3}, "family.width is 16; it must be a multiple of heads, 3"),
        ({"instants": 1.5}, "family.instants is 1.5; it must be from 0 to 1"),
        ({"network": "unet", "channels": (8,) * 5}, "multiples of 16 pixels high and wide, and they are 8 x 8"),
    ],
)
def test_settings_that_cannot_work_say_why(settings, says):
    with pytest.raises(UserError, match=says):
        make_net(replace(FAMILY, **settings))
