"""What can be asked of a flow: samplers, one step, guidance, given images, and what is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from ddpm_cases import FAMILY as DDPM
from ddpm_cases import SPEC, FewImages
from flow_cases import FAMILY, MEAN_FLOW, as_network, draw, make_model, normal_velocity

from zoo.core.errors import UserError
from zoo.core.extractor import no_extractor
from zoo.core.family import Model
from zoo.flow_matching import FlowRequest, FlowScoring
from zoo.nets.dit import DiT
from zoo.sampling.diffusion import request as requests
from zoo.sampling.diffusion.guidance import Condition
from zoo.sampling.diffusion.loop import prior
from zoo.sampling.diffusion.request import DiffusionRequest


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(FAMILY)


@pytest.fixture(scope="module")
def mean_model() -> Model:
    return make_model(MEAN_FLOW)


# ----------------------------------------------------------------------------------------------- samples


def textbook(sampler: str, steps: int, std: float) -> float:
    """What a solver makes of x = 1 at t = 1 under the flow of data N(0, std^2), in float64."""
    x, h = 1.0, 1 / steps
    for k in range(steps, 0, -1):
        t, slope = k / steps, normal_velocity(x, k / steps, std)
        if sampler == "midpoint":
            slope = normal_velocity(x - h / 2 * slope, t - h / 2, std)
        elif sampler == "heun" and k > 1:
            slope = (slope + normal_velocity(x - h * slope, t - h, std)) / 2
        x = x - h * slope
    return x


@pytest.mark.parametrize(("sampler", "error"), [("euler", 0.01), ("heun", 1e-3), ("midpoint", 1e-3)])
def test_the_flow_of_normal_data_makes_normal_data(sampler, error, monkeypatch):
    """N(0, 0.3^2) from noise z: 0.3 z but for the solver's error; the grey levels are those numbers, rounded."""
    assert textbook(sampler, 80, 0.3) == pytest.approx(0.3, abs=error)
    monkeypatch.setattr(DiT, "__call__", as_network(0.3, scale=300.0))
    model = make_model(replace(FAMILY, time_scale=300.0))
    z = np.asarray(prior(jax.random.key(0), jnp.arange(2), (8, 8, 1)))
    for steps in (10, 80):
        wanted = np.clip((textbook(sampler, steps, 0.3) * z + 1) * 127.5, 0, 255)
        np.testing.assert_allclose(draw(model, sampler=sampler, steps=steps), wanted, atol=0.51)


def test_a_mean_flow_crosses_each_step_by_its_average_velocity(mean_model):
    """x_r = x_t - (t - r) u(x_t, r, t) by hand, in one step and in two."""
    net, symbol = mean_model.state.net.eval_net(), jnp.array([0, 1])

    @jax.jit
    def cross(x, t, r):
        return x - (t - r) * net(x, jnp.full(2, 20.0 * t), symbol, jnp.full(2, 20.0 * (t - r)))

    z = prior(jax.random.key(0), jnp.arange(2), (8, 8, 1))
    for steps, x in ((1, cross(z, 1.0, 0.0)), (2, cross(cross(z, 1.0, 0.5), 0.5, 0.0))):
        pixels = np.clip((np.asarray(x) + 1) * 127.5, 0, 255)
        np.testing.assert_allclose(draw(mean_model, steps=steps), pixels, atol=0.6)
    assert pixels.std() > 5
    assert draw(mean_model, steps=5, sampler="midpoint").shape == (2, 8, 8, 1)


def test_settings_of_a_sampler_compile_nothing(model):
    draw(model)
    before = requests._walk._cache_size()
    for request in ({"steps": 20}, {"guidance": 2.5}, {"shift": 3.0}, {"label": "dog"}, {"label": "none"}, {"seed": 3}):
        draw(model, **request)
    assert requests._walk._cache_size() == before
    draw(model, sampler="ddim", eta=0.7)
    draw(model, sampler="ddim", eta=0.1)
    assert requests._walk._cache_size() == before + 1


def test_guidance_is_of_the_velocity_and_one_is_plain_conditional(model):
    net = model.state.net.eval_net()
    x_t, t, symbol = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([300.0, 1000.0]), jnp.array([0, 2])
    of_class, of_none = (net(x_t, t, classes) for classes in (symbol, jnp.array([3, 3])))
    guide = jax.jit(lambda state, g: FAMILY.denoiser(state, Condition(symbol), g)(x_t, t))
    for g in (0.0, 1.0, 3.0):
        x_0, eps = guide(model.state, jnp.float32(g))
        np.testing.assert_allclose(eps - x_0, of_none + g * (of_class - of_none), atol=1e-3)
        np.testing.assert_allclose(0.7 * x_0[0] + 0.3 * eps[0], x_t[0], atol=1e-4)
        np.testing.assert_allclose(eps[1], x_t[1], atol=1e-4)  # at t = 1 there is only noise
    assert float(jnp.abs(of_class - of_none).max()) > 0.1
    state = jax.tree.map(jnp.copy, model.state)
    table = state.net.params["classes"]["table"]
    state.net.params["classes"]["table"] = table.at[3].set(jnp.nan)
    assert np.isfinite(guide(state, jnp.float32(1.0))[0]).all()
    assert np.isnan(guide(state, jnp.float32(2.0))[0]).all()


# ------------------------------------------------------------------------------------------ given images


@pytest.fixture
def files(tmp_path):
    """An image and a mask whose left half is to be filled in."""
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8)).astype(np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    for name, array in (("image", pixels), ("mask", mask)):
        PIL.Image.fromarray(array).save(tmp_path / f"{name}.png")
    return tmp_path


def test_inpainting_keeps_what_the_mask_does_not_name(model, files):
    image = np.asarray(PIL.Image.open(files / "image.png")).astype(int)
    made = draw(model, image=(str(files / "image.png"),), mask=str(files / "mask.png"))
    for pixels in made[..., 0]:
        np.testing.assert_array_equal(pixels[:, 4:], image[:, 4:])
    assert np.abs(made[0] - made[1]).max() > 2


def test_image_to_image_starts_from_the_given_images(model):
    same = draw(model, image=("5", "0"), strength=0.0)
    np.testing.assert_array_equal(same[0], FewImages().held_out_at(1)["image"][1])
    near, far = (np.abs(draw(model, image=("5", "0"), strength=s, steps=20) - same).mean() for s in (0.1, 0.9))
    assert 0 < near < far


def test_the_noise_of_given_images_makes_them_again(monkeypatch):
    """The ends of an interpolation, through their noise and back, under the flow of normal data."""
    monkeypatch.setattr(DiT, "__call__", as_network(0.6, scale=600.0))
    model = make_model(replace(FAMILY, time_scale=600.0))
    request = FlowRequest(steps=100, interpolate=3, image=("0", "1"), sampler="heun")
    (way,) = model.family.sample(model, request, jax.random.key(0))
    ends = [way.pixels[2:10, begin : begin + 8].astype(int) for begin in (2, 22)]
    for end, given in zip(ends, FewImages().held_out_at(0)["image"][:2].astype(int), strict=True):
        np.testing.assert_allclose(end, given, atol=2)


def test_strips_and_interpolations_are_sheets(model):
    strips = FAMILY.sample(model, FlowRequest(n=2, steps=5, strip=3), jax.random.key(0))
    assert strips[0].pixels.shape == (2 * 8 + 3 * 2, 3 * 8 + 4 * 2, 1)
    np.testing.assert_allclose(strips[0].pixels[2:10, 22:30].astype(int), draw(model)[0], atol=1)
    ways = FAMILY.sample(model, FlowRequest(n=2, steps=5, interpolate=3), jax.random.key(0))
    np.testing.assert_allclose(ways[1].pixels[2:10, 2:10].astype(int), draw(model)[1], atol=1)


# ----------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"steps": 1}, "steps is 1, which takes a model trained with --family.objective mean"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001; it must be from 1 to 1000"),
        ({"eta": 0.5}, "eta is 0.5, which is a setting of the sampler ddim and not of euler"),
        ({"image": ("0", "1"), "interpolate": 3}, "sampler is euler, which does not reproduce given images"),
        ({"label": "bird"}, "label is 'bird'; it must be one of the classes cat, dog, 7"),
    ],
)
def test_requests_that_cannot_be_met_say_why(model, request_, says):
    with pytest.raises(UserError, match=says):
        draw(model, **request_)


def test_one_step_takes_the_sampler_of_average_velocities(mean_model):
    with pytest.raises(UserError, match=r"steps is 1, which takes .* and the sampler euler"):
        draw(mean_model, steps=1, sampler="heun")
    for family, steps, refused in ((FAMILY, 1, True), (FAMILY, 2, False), (MEAN_FLOW, 1, False)):
        scoring = FlowScoring(samples=8, steps=steps)
        if refused:
            with pytest.raises(UserError, match="steps is 1"):
                scoring.check(family, SPEC, no_extractor)
        else:
            scoring.check(family, SPEC, no_extractor)


def test_midpoint_is_a_sampler_of_straight_paths():
    with pytest.raises(UserError, match=r"sampler is midpoint; for this model it must be one of ddpm, ddim, euler"):
        DDPM.sample(Model(DDPM, SPEC, None, 0), DiffusionRequest(sampler="midpoint"), jax.random.key(0))
