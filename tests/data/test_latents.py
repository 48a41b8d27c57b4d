"""Latents of images by a codec, and diffusion models of them."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as Picture

from zoo.core.artifacts import Image
from zoo.core.codec import Coder
from zoo.core.errors import UserError
from zoo.core.extractor import no_extractor
from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.images import Images
from zoo.data.specs import ImageSpec, LatentSpec
from zoo.ddpm import DDPM, DDPMScoring
from zoo.flow_matching import FlowMatching

GREY = ImageSpec(8, 8, 1)


@dataclass(frozen=True)
class Corners:
    """A codec of two channels, of different scales, on a grid of 4 x 4: the pixels at odd and at even columns."""

    symbols: int = 0

    def latents(self, state: Any, batch: dict[str, Any]) -> jax.Array:
        x = batch["image"][:, ::2, :, 0].astype(jnp.float32)
        return jnp.stack([x[:, :, ::2], 3.0 * x[:, :, 1::2] + 7.0], axis=-1)

    encode = latents

    def decode(self, state: Any, codes: jax.Array) -> jax.Array:
        rows = jnp.stack([codes[..., 0], (codes[..., 1] - 7.0) / 3.0], axis=-1).reshape(len(codes), 4, 8)
        return jnp.clip(jnp.round(rows.repeat(2, axis=1)), 0, 255).astype(jnp.uint8)[..., None]


CODEC = Coder(Corners(), GREY, 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Latents of images whose rows come in equal pairs, so that they decode exactly."""
    path = tmp_path_factory.mktemp("latents") / "images.npz"
    random = np.random.default_rng(0)
    images, test = (random.integers(0, 256, (n, 4, 8, 1), np.uint8).repeat(2, axis=1) for n in (40, 12))
    np.savez(path, images=images, labels=np.arange(40) % 2, test_images=test, test_labels=np.arange(12) % 2)
    return Images(path=str(path), codec="runs/corners").open(length=None, batch_size=8, seed=0, codec=CODEC)


def test_latents_of_the_training_images_have_mean_0_and_deviation_1(data):
    assert (data.spec.height, data.spec.width, data.spec.channels) == (4, 4, 2)
    assert data.spec.image == data.images.spec
    assert data.held_out is data.held_out  # by which metrics recognise their reference
    assert data.spec.classes == ("0", "1")
    latents = CODEC.latents({"image": data.images.images, "row": np.arange(len(data.images.images))})
    flat = data.spec.from_codec(np.asarray(latents)).reshape(-1, 2)
    np.testing.assert_allclose(flat.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(flat.std(0), 1.0, atol=1e-5)


def test_rows_are_latents_of_the_images_in_training_order(data):
    batch, images = data.batch_at(3), data.images.batch_at(3)
    expected = data.spec.from_codec(np.asarray(CODEC.latents({"image": images["image"], "row": images["row"]})))
    np.testing.assert_array_equal(batch["image"], expected)
    np.testing.assert_array_equal(batch["label"], images["label"])
    np.testing.assert_array_equal(data.batch_at(3, slice(2, 5))["image"], batch["image"][2:5])


def test_a_later_run_keeps_the_scale_of_the_first(data):
    spec = LatentSpec(
        height=4, width=4, channels=2, classes=("0", "1"), image=data.spec.image, mean=(0.0, 0.0),
        deviation=(1.0, 2.0), codec=CODEC.checksum,
    )  # fmt: skip
    source = Images(path=data.images.name, codec="runs/corners")
    again = source.open(length=None, batch_size=8, seed=0, spec=spec, codec=CODEC)
    np.testing.assert_allclose(
        again.batch_at(0)["image"][..., 1],
        (data.batch_at(0)["image"][..., 1] * data.spec.deviation[1] + data.spec.mean[1]) / 2,
        rtol=1e-4, atol=1e-3,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["ddpm", "flow"])
def model(request, data):
    """An untrained model of the latents."""
    net = {"network": "dit", "patch": 1, "width": 16, "heads": 2, "layers": 1}
    family = DDPM(clip=False, timesteps=20, **net) if request.param == "ddpm" else FlowMatching(**net)
    state = family.init(data.spec, Setup(Optimizer(), 1, 8), jax.random.key(0))
    return Model(family, data.spec, state, 0, lambda: data, codec=CODEC)


def test_samples_are_decoded_to_images(model):
    images = model.family.sample(model, model.family.Request(n=3, steps=4), jax.random.key(0))
    assert [image.pixels.shape for image in images] == [(8, 8, 1)] * 3
    (strip,) = model.family.sample(model, model.family.Request(n=1, steps=4, strip=3), jax.random.key(0))
    assert strip.pixels.shape == (2 * 10 + 2, 3 * 10 + 2, 1)
    (way,) = model.family.sample(model, model.family.Request(n=1, steps=4, interpolate=3), jax.random.key(0))
    assert way.pixels.shape == (12, 3 * 10 + 2, 1)


def test_an_image_is_encoded_and_without_noise_decoded_again(model, data):
    (made,) = model.family.sample(
        model, model.family.Request(n=1, image=("1",), strength=0.0, steps=4), jax.random.key(0)
    )
    original = Image(data.held_out.held_out_at(0)["image"][1])
    assert np.abs(made.pixels.astype(int) - original.pixels.astype(int)).max() <= 1


def test_a_mask_keeps_the_places_whose_pixels_it_keeps(model, data, tmp_path):
    mask = np.zeros((8, 8), np.uint8)
    mask[1, 5] = 255  # touches the place of rows 0 and 1, columns 4 and 5
    Picture.fromarray(mask).save(tmp_path / "mask.png")
    request = model.family.Request(n=1, image=("1",), mask=str(tmp_path / "mask.png"), steps=4)
    (made,) = model.family.sample(model, request, jax.random.key(0))
    original, changed = data.held_out.held_out_at(0)["image"][1], np.zeros((8, 8, 1), bool)
    changed[:2, 4:6] = True
    off = np.abs(made.pixels.astype(int) - original.astype(int))
    assert off[~changed].max() <= 1
    assert off[changed].max() > 1


def test_what_latents_do_not_have_is_refused(model, data):
    name = "bound_images" if isinstance(model.family, DDPM) else "ode_images"
    unfit = model.family.Scoring(**{name: 3}).check(model.family, data.spec, no_extractor)
    assert unfit == {
        name: f"{name} is 3; of latents it would be a density of the codec's codes, not of images: leave it out"
    }
    with pytest.raises(UserError, match=r"family\.clip is True, and latents have no bounds: give --family\.no-clip"):
        DDPM().init(data.spec, Setup(Optimizer(), 1, 8), jax.random.key(0))
    assert DDPMScoring(bound_images=3).check(DDPM(), data.images.spec, no_extractor) == {}
    batch = {name: jnp.asarray(array) for name, array in data.held_out_at(0).items()}
    assert set(model.family.evaluate(model.state, batch, jax.random.key(0))) == {"loss"}
