"""What can be asked of a diffusion model: guidance, requests, settings."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from ddpm_cases import FAMILY, SPEC, FewImages, batch_of, draw, make_model
from flax import nnx

from zoo.core.errors import UserError
from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.images import Images
from zoo.data.specs import ImageSpec
from zoo.harness.config import Run, from_json, to_json
from zoo.harness.flags import parse_flags
from zoo.nets.unet import UNet
from zoo.sampling.diffusion import request as requests
from zoo.sampling.diffusion.guidance import Condition, guidable
from zoo.sampling.diffusion.noise_schedule import make_alpha_bar
from zoo.sampling.diffusion.request import DiffusionRequest


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(replace(FAMILY, prediction="v"))


@pytest.fixture(scope="module")
def net() -> UNet:
    return nnx.eval_shape(lambda: UNet(FAMILY.unet_settings(SPEC), nnx.Rngs(0)))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [(7, 9), (6, 5)])
def test_odd_channels_make_a_network_that_draws(channels):
    pixels = draw(make_model(replace(FAMILY, channels=channels)))
    assert pixels.shape[-3:] == (8, 8, 1)
    assert pixels.std() > 0


# ------------------------------------------------------------------------------------------------ guidance


def test_guidance_is_the_papers_and_one_is_plain_conditional(model):
    family, net = replace(model.family, clip=False), model.state.net.eval_net()
    x_t, t, symbol = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([3.0, 15.0]), jnp.array([0, 2])
    alpha_bar_t = make_alpha_bar("linear", 20)[np.array([3, 15])][:, None, None, None]
    signal, noise = np.sqrt(alpha_bar_t), np.sqrt(1 - alpha_bar_t)
    # Salimans and Ho 2022: eps = signal v + noise x_t.
    velocity = jax.jit(lambda classes: net(x_t, t, classes))
    eps_c, eps_u = (signal * velocity(classes) + noise * x_t for classes in (symbol, jnp.array([3, 3])))
    guide = jax.jit(lambda state, g: family.denoiser(state, Condition(symbol), g)(x_t, t)[1])
    for g in (0.0, 1.0, 3.0):
        found = guide(model.state, jnp.float32(g))
        np.testing.assert_allclose(found, eps_u + g * (eps_c - eps_u), rtol=1e-3, atol=2e-3)
    assert float(jnp.abs(eps_c - eps_u).max()) > 0.1
    # The network is not even asked about no class where g = 1.
    state = jax.tree.map(jnp.copy, model.state)
    table = state.net.params["classes"]["table"]
    state.net.params["classes"]["table"] = table.at[3].set(jnp.nan)
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
    monkeypatch.setattr(requests, "AT_ONCE", 2)
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


@pytest.mark.parametrize(
    "sampler", ["ddpm", "dpm++", *(pytest.param(s, marks=pytest.mark.slow) for s in ("euler", "heun"))]
)
def test_every_sampler_makes_images_of_the_same_kind(model, sampler):
    exact = draw(model, steps=20)
    assert exact.std() > 20
    made = draw(model, sampler=sampler, steps=20)
    assert made.mean() == pytest.approx(exact.mean(), abs=60)
    assert made.std() > 20
    assert (made != draw(model, seed=1, sampler=sampler, steps=20)).any()


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
    total, weight, _ = FAMILY.loss(state.net.net(), batch, jax.random.key(1))
    assert np.isfinite(total / weight)
    assert draw(Model(FAMILY, spec, state, 0)).shape == (2, 8, 8, 1)
    with pytest.raises(UserError, match="guidance is 2, but the model was trained without classes"):
        draw(Model(FAMILY, spec, state, 0), guidance=2.0)
