"""Images as tokens: pixels, patches and codes, from the same images as `Images`, and models of them."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as Picture

from zoo.core.codec import Coder
from zoo.core.errors import UserError
from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.images import Images, ImageTokens
from zoo.data.images.codes import DRAWINGS
from zoo.data.images.pixels import HELD_OUT_NOISE, binarise
from zoo.data.images.tokens import spec_of_pixels
from zoo.data.specs import GivenPart, ImageSpec
from zoo.data.text import Text
from zoo.image_vae import ImageVAE
from zoo.lstm_lm import LSTMLM
from zoo.masked_diffusion import MaskedDiffusion
from zoo.transformer_lm import TransformerLM

GREY = ImageSpec(4, 8, 1)


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """Forty grey images, 4 pixels high and 8 wide, and ten test images."""
    path = tmp_path_factory.mktemp("tokens") / "images.npz"
    random = np.random.default_rng(0)
    images, test = (random.integers(0, 256, (n, 4, 8, 1), np.uint8) for n in (40, 10))
    np.savez(path, images=images, test_images=test)
    return path


def open_tokens(npz, batch_size=8, length=32, split="dev", **settings):
    data = ImageTokens(path=str(npz), **settings)
    return data.open(length=length, batch_size=batch_size, seed=0, split=split)


# ------------------------------------------------------------------------------------------ the tokens


def test_a_patch_is_the_number_that_its_bits_are():
    image = np.zeros((1, 4, 8, 1), np.uint8)
    image[0, 0, 0] = image[0, 1, 3] = 255  # the first patch's first and last bit
    image[0, 2, 5] = 255  # the last patch's second bit
    np.testing.assert_array_equal(spec_of_pixels(GREY, (2, 4), True).encode(image), [[1 + 128, 0, 0, 2]])


@pytest.mark.parametrize(
    ("channels", "patch", "binary"),
    [(1, (2, 4), True), (3, (2, 2), True), (1, None, False), (3, None, False), (1, None, True)],
)
def test_tokens_decode_to_the_image(channels, patch, binary):
    spec = spec_of_pixels(ImageSpec(4, 8, channels), patch, binary)
    image = np.random.default_rng(0).integers(0, 2 if binary else 256, (3, 4, 8, channels), np.uint8)
    image = 255 * image if binary else image
    tokens = spec.encode(image)
    assert tokens.shape == (3, spec.longest)
    assert 0 <= tokens.min() <= tokens.max() < spec.symbols == spec.outputs == spec.end
    np.testing.assert_array_equal(spec.to_pixels(tokens), image)
    np.testing.assert_array_equal([made.pixels for made in spec.decode(list(tokens), None)], image)


# -------------------------------------------------------------------------------------------- the data


def test_rows_are_images_in_training_order(npz):
    data = open_tokens(npz, tokens="pixels")
    batch = data.batch_at(3)
    np.testing.assert_array_equal(batch["tokens"][:, 1:], data.images.batch_at(3)["image"].reshape(8, -1))
    np.testing.assert_array_equal(batch["tokens"][:, 0], 256)
    np.testing.assert_array_equal(batch["length"], 33)
    np.testing.assert_array_equal(data.batch_at(3, slice(2, 5))["tokens"], batch["tokens"][2:5])


def test_black_and_white_is_drawn_anew_in_each_epoch_with_the_probability_of_the_grey_level(npz):
    data = open_tokens(npz, batch_size=36, tokens="pixels", binary=True)
    assert len(data.images.images) == 36  # a batch is an epoch
    grey = data.images.images.reshape(36, 32) / 255.0
    drawn = np.zeros((60, 36, 32))
    for epoch in range(60):
        place = data.images.order[epoch * 36 + np.arange(36)]
        drawn[epoch, place] = data.batch_at(epoch)["tokens"][:, 1:]
    assert (drawn[0] != drawn[1]).any()
    assert np.abs(drawn.mean(0) - grey).max() < 5 * 0.5 / 60**0.5
    assert abs(drawn.mean() - grey.mean()) < 0.007  # 5 standard errors of 60 x 36 x 32 draws at most


def test_held_out_pixels_are_drawn_once_as_for_every_family(npz):
    data = open_tokens(npz, batch_size=10, tokens="patches", split="test")
    batch = data.held_out_at(0)
    pixels = data.spec.to_pixels(batch["tokens"][:, 1:])
    image = data.held_out.held_out_at(0)["image"]
    expected = binarise(jnp.asarray(image), jax.random.key(HELD_OUT_NOISE), jnp.arange(10))
    np.testing.assert_array_equal(pixels, 255 * np.asarray(expected))
    np.testing.assert_array_equal(batch["dims"], 32)
    np.testing.assert_array_equal(batch["images"], 1)


def test_samples_in_black_and_white_are_compared_with_images_in_black_and_white(npz):
    data = open_tokens(npz, batch_size=10, tokens="patches", split="test")
    reference = data.reference
    for ours, theirs in ((reference.held_out_at(0), data.held_out_at(0)), (reference.batch_at(2), data.batch_at(2))):
        np.testing.assert_array_equal(ours["image"], data.spec.to_pixels(theirs["tokens"][:, 1:]))
    assert reference is data.reference  # by which metrics keep its features
    grey = open_tokens(npz, tokens="pixels")
    assert grey.reference is grey.held_out


@pytest.mark.parametrize(
    ("settings", "length", "message"),
    [
        ({"patch": (3, 4)}, 32, "data.patch is 3 4, and the images are 4 pixels high and 8 wide"),
        ({"patch": (4, 8)}, 32, "data.patch is 4 8, 32 bits with 1 channels; it must have at most 16"),
        ({}, 3, "family.context is 3, and an image has 4 tokens"),
        ({"tokens": "codes"}, 32, "data.codec is ''; it must be a run directory"),
        ({"codec": "runs/vqvae"}, 32, "data.codec is 'runs/vqvae'; it must be empty for --data.tokens patches"),
        ({"binary": True}, 32, "data.binary is True; it must be left out for --data.tokens patches"),
    ],
)
def test_settings_that_do_not_fit(npz, settings, length, message):
    with pytest.raises(UserError, match=message):
        open_tokens(npz, length=length, **settings)


def test_a_new_run_takes_the_tokens_of_the_run_it_starts_from(npz):
    spec = open_tokens(npz, tokens="pixels", binary=True).spec
    fitted = ImageTokens(path=str(npz)).fitting(spec)
    assert (fitted.tokens, fitted.binary, fitted.channels) == ("pixels", True, 1)
    with pytest.raises(UserError, match="tokens are patches of 2 x 4 pixels, 256 symbols, and the run's are pixels"):
        ImageTokens(path=str(npz)).open(length=32, batch_size=8, seed=0, spec=spec)


# ------------------------------------------------------------------------------------------- the codec


@dataclass(frozen=True)
class Halves:
    """A codec that says which of an image's two halves, drawn in black and white, have more than 8 white pixels."""

    symbols: int = 2

    def encode(self, state: Any, batch: dict[str, Any]) -> jax.Array:
        drawn = binarise(batch["image"], jax.random.key(state), batch["row"])
        return (drawn.reshape(-1, 1, 4, 2, 4).sum((1, 2, 4)) > 8).astype(jnp.int32)[:, None]

    latents = encode

    def decode(self, state: Any, codes: jax.Array) -> jax.Array:
        return (
            jnp.broadcast_to(255 * codes[:, :, :, None], (*codes.shape, 1)).astype(jnp.uint8).repeat(4, 1).repeat(4, 2)
        )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.data.images.codes._cache", lambda: tmp_path)
    return tmp_path


def open_codes(npz, codec, **settings):
    data = ImageTokens(path=str(npz), tokens="codes", codec="runs/halves", **settings)
    return data.open(length=8, batch_size=8, seed=0, codec=codec)


def test_codes_are_those_of_the_codec_and_of_eight_drawings(npz, cache):
    codec = Coder(Halves(), GREY, 0)
    data = open_codes(npz, codec)
    n = len(data.images.images)
    assert (data.spec.longest, data.spec.symbols, data.spec.patch) == (2, 2, (4, 4))
    for step in (0, 5, 40):  # of the epochs 0, 1 and 8, which is drawing 0 again
        drawn = step * 8 + np.arange(8)
        place, drawing = data.images.order[drawn], drawn // n % DRAWINGS
        expected = codec.encode({"image": data.images.images[place], "row": (drawing * n + place).astype(np.int32)})
        np.testing.assert_array_equal(data.batch_at(step)["tokens"][:, 1:], np.asarray(expected)[:, 0])
    held_out = data.held_out_at(0)
    expected = codec.encode({"image": data.held_out.held_out_at(0)["image"], "row": held_out["row"]})
    np.testing.assert_array_equal(held_out["tokens"][:, 1:], np.asarray(expected)[:, 0])
    assert "dims" not in held_out  # the likelihood of codes is not one of pixels
    assert data.reference is data.held_out  # a codec decodes to grey
    (image,) = data.spec.decode([np.array([0, 1])], codec)
    np.testing.assert_array_equal(image.pixels[..., 0], np.repeat([[0, 255]], 4, 0).repeat(4, 1))


def test_codes_are_computed_once_for_a_codec(npz, cache):
    first = open_codes(npz, Coder(Halves(), GREY, 0)).batch_at(0)["tokens"]
    (file,) = cache.iterdir()
    kept = np.load(file)
    np.save(file, 1 - kept)  # what is cached is what is used
    np.testing.assert_array_equal(
        open_codes(npz, Coder(Halves(), GREY, 0)).batch_at(0)["tokens"][:, 1:], 1 - first[:, 1:]
    )
    other = open_codes(npz, Coder(Halves(), GREY, 1))
    other.batch_at(0)
    assert len(list(cache.iterdir())) == 2
    assert other.spec.codec != open_codes(npz, Coder(Halves(), GREY, 0)).spec.codec


def test_codecs_that_do_not_fit(npz, cache):
    for spec, message in (
        (ImageSpec(8, 8, 1), "encodes images of 8x8 in grey, and these are of 8x4 in grey"),
        (ImageSpec(4, 8, 3), "encodes images of 8x4 in colour, and these are of 8x4 in grey"),
        (None, "does not encode images"),
    ):
        with pytest.raises(UserError, match=message):
            open_codes(npz, Coder(Halves(), spec, 0))
    vae = ImageVAE(width=8, latent=3)
    with pytest.raises(UserError, match="a run of ImageVAE, whose codes are not tokens; give a run of a VQ-VAE"):
        open_codes(npz, Coder(vae, GREY, vae.init(GREY, Setup(Optimizer(), 1, 8), jax.random.key(0))))


# ------------------------------------------------------------------------------------------ the models

FAMILIES = {
    "transformer": TransformerLM(layers=1, heads=2, width=16, context=4),
    "untied": TransformerLM(layers=1, heads=2, width=16, context=4, tied=False),
    "lstm": LSTMLM(layers=1, width=8, embedding=8, context=4),
    "masked_diffusion": MaskedDiffusion(layers=1, heads=2, width=16, context=4),
}
EXACT = [name for name in FAMILIES if name != "masked_diffusion"]


exactly = pytest.mark.parametrize("model", EXACT, indirect=True)
"""For families whose likelihood is exact."""


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    """An untrained model of images of 4 x 2 black and white pixels, as patches of 2 x 1."""
    family, spec = FAMILIES[request.param], spec_of_pixels(ImageSpec(4, 2, 1), (2, 1), True)
    return Model(family, spec, family.init(spec, Setup(Optimizer(), 1, 256), jax.random.key(0)), 0)


@exactly
def test_the_probabilities_of_all_images_sum_to_one(model):
    spec = model.spec
    tokens = np.array([[spec.end, *ids] for ids in itertools.product(range(4), repeat=4)], np.int32)
    batch = {
        "tokens": tokens, "length": np.full(256, 5, np.int32), "row": np.arange(256), "valid": np.ones(256, bool),
        "images": np.ones(256, np.int32), "dims": np.full(256, 8, np.int32),
    }  # fmt: skip
    found = jax.jit(model.family.evaluate)(model.state, batch, jax.random.key(0))
    nats, images = found["nats_per_image"]
    np.testing.assert_allclose(np.exp(-np.float64(nats)).sum(), 1.0, rtol=1e-5)
    bits, dims = found["bits_per_dim"]
    np.testing.assert_allclose(np.float64(bits / dims), np.float64(nats / images) / (8 * math.log(2)), rtol=1e-5)


@exactly
def test_samples_have_the_probabilities_of_the_model(model):
    """The first token of 256 samples against the softmax of the model, by chi-square."""
    images = model.family.sample(model, model.family.Request(n=256), jax.random.key(1))
    first = model.spec.encode(np.stack([image.pixels for image in images]))[:, 0]
    tokens = np.array([[model.spec.end, i, 0, 0, 0] for i in range(4)], np.int32)
    batch = {"tokens": tokens, "length": np.full(4, 2, np.int32), "row": np.arange(4), "valid": np.ones(4, bool)}
    nats, _ = jax.jit(model.family.evaluate)(model.state, batch, jax.random.key(0))["loss"]
    expected = 256 * np.exp(-np.asarray(nats))
    assert ((np.bincount(first, minlength=4) - expected) ** 2 / expected).sum() < 16.3  # 0.1 %, 3 degrees of freedom


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(3).integers(0, 2, (4, 2), np.uint8) * 255
    Picture.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png", pixels[..., None]


def test_a_completed_image_keeps_its_part(model, picture, tmp_path):
    file, pixels = picture
    request = model.family.Request
    top = model.family.sample(model, request(n=40, image=str(file), keep_rows=2), jax.random.key(0))
    assert all((image.pixels[:2] == pixels[:2]).all() for image in top)
    assert len({image.pixels.tobytes() for image in top}) > 4
    mask = np.zeros((4, 2), np.uint8)
    mask[0, 1] = 255  # the patch of its two upper rows is sampled whole
    Picture.fromarray(mask).save(tmp_path / "mask.png")
    inner = model.family.sample(
        model, request(n=40, image=str(file), mask=str(tmp_path / "mask.png")), jax.random.key(0)
    )
    assert all((image.pixels[:, 0] == pixels[:, 0]).all() for image in inner)
    assert all((image.pixels[2:] == pixels[2:]).all() for image in inner)
    assert len({image.pixels.tobytes() for image in inner}) > 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"keep_rows": 3}, "keep_rows is 3; it must be from 1 to 3, a multiple of 2"),
        ({"keep_rows": 4}, "keep_rows is 4; it must be from 1 to 3, a multiple of 2"),
        ({}, "image is '.*'; it must be given with keep_rows or mask"),
        ({"keep_rows": 2, "mask": "m.png"}, "mask is 'm.png'; it must be empty with keep_rows, 2"),
        ({"keep_rows": 2, "prompt": "a"}, "prompt is 'a'; it must be empty with image"),
    ],
)
def test_completions_that_do_not_fit(model, picture, asked, message):
    with pytest.raises(UserError, match=message):
        model.family.sample(model, model.family.Request(image=str(picture[0]), **asked), jax.random.key(0))


def test_an_image_of_another_size_and_one_for_a_model_of_text(model, picture, tmp_path):
    Picture.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match=r"the image .*wide.png is 4x4; it must be 2x4, as the model's"):
        model.spec.given(GivenPart(str(tmp_path / "wide.png"), keep_rows=2), None)
    with pytest.raises(UserError, match="keep_rows is 2; it must be 0 without an image to complete"):
        model.family.Request(keep_rows=2)


def test_one_image_is_scored_alone(model, picture):
    file, pixels = picture
    data = ImageTokens(patch=(2, 1)).of_image(str(file), model.spec)
    opened = data.open(length=4, batch_size=8, seed=0, spec=model.spec, split="all")
    batch = opened.held_out_at(0)
    np.testing.assert_array_equal(batch["valid"], [True] + 7 * [False])
    np.testing.assert_array_equal(model.spec.to_pixels(batch["tokens"][:1, 1:])[0], pixels)
    labelled = ImageSpec(4, 2, 1, ("a", "b"))
    images = Images().of_image(str(file), labelled).open(length=None, batch_size=2, seed=0, spec=labelled, split="all")
    np.testing.assert_array_equal(images.held_out_at(0)["image"][0], pixels)
    np.testing.assert_array_equal(images.held_out_at(0)["label"], -1)
    with pytest.raises(UserError, match=r"image is 'a\.png', and the run's data is .*, which is not of images"):
        Text().of_image("a.png", None)
    with pytest.raises(UserError, match=r"image is 'missing\.png', and there is no such file"):
        Images().of_image("missing.png", labelled)
