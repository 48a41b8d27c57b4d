"""A trained image VAE: its figures, its pictures, and what is refused."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from einops import rearrange
from image_vae_cases import LATENT, LEVELS, SIZE, TINY, Blobs, on_device, shapes, train

from zoo.core.errors import UserError
from zoo.data.specs import ImageSpec
from zoo.image_vae import COLUMNS, ImageVAE, ImageVAERequest, ImageVAEScoring
from zoo.nets.autoencoder import pyramid
from zoo.sampling.latent_paths import interpolate, lerp, slerp, traverse


@pytest.fixture(scope="module")
def model():
    return train(TINY, 400, learning_rate=1e-2)[0]


# -------------------------------------------------------------------------------------------- figures


def test_iw_bound_does_not_depend_on_the_batch_it_is_computed_in(model):
    x = jnp.asarray(Blobs().held_out_at(0)["image"] // 128 * 2.0 - 1, jnp.float32)
    weighted = jax.jit(lambda x, rows: TINY.iw_log_likelihood(model.state.net.net(), x, jax.random.key(3), rows, 200))
    whole, part = weighted(x, jnp.arange(8)), weighted(x[4:], jnp.arange(4, 8))
    np.testing.assert_allclose(whole[4:], part, rtol=1e-5)


def test_figures_add_up(model):
    rows = jax.jit(TINY.evaluate)(model.state, Blobs().held_out_at(0), jax.random.key(0))
    figures = {name: np.asarray(total / weight) for name, (total, weight) in rows.items()}
    np.testing.assert_allclose(figures["loss"], figures["reconstruction_nats"] + figures["kl_nats"], rtol=1e-5)
    np.testing.assert_allclose(figures["bits_per_dim"], figures["loss"] / (SIZE * SIZE * math.log(2)), rtol=1e-5)


def test_held_out_pixels_are_the_same_in_every_evaluation_and_new_in_every_step(model):
    batch, seen = on_device(Blobs().held_out_at(1)), []
    evaluate = jax.jit(TINY.evaluate)
    for key in (jax.random.key(0), jax.random.key(1)):
        rows = evaluate(model.state, batch, key)
        seen.append(np.asarray(rows["kl_nats"][0]))  # a function of the pixels and the weights alone
    np.testing.assert_array_equal(seen[0], seen[1])
    told = jax.jit(lambda key: TINY.loss(model.state.net.net(), batch, key)[2]["kl_nats"][0])
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
    few, many = (TINY.sample(model, ImageVAERequest(n=n), jax.random.key(0)) for n in (2, 5))
    for one, other in zip(few, many, strict=False):
        assert np.abs(one.pixels.astype(int) - other.pixels).max() <= 1
    assert many[0] != many[1]


def test_interpolation_rows_begin_and_end_with_the_images_of_their_codes(model, tmp_path):
    (wide,) = TINY.sample(model, ImageVAERequest(n=2, interpolate=4), jax.random.key(0))
    (narrow,) = TINY.sample(model, ImageVAERequest(n=1, interpolate=2), jax.random.key(0))
    cell = SIZE + 2
    assert wide.pixels.shape == (2 * cell + 2, 4 * cell + 2, 1)
    first, last = wide.pixels[: cell + 2, :cell], wide.pixels[: cell + 2, 3 * cell :]
    np.testing.assert_allclose(first, narrow.pixels[:, :cell], atol=1)
    np.testing.assert_allclose(last, narrow.pixels[:, cell:], atol=1)
    assert (wide.pixels[: cell + 2] != wide.pixels[cell:]).any()


def test_traversal_shows_active_units_only_and_leaves_the_code_at_its_own_value(model):
    sheets = TINY.sample(model, ImageVAERequest(n=2, traverse=2), jax.random.key(0))
    assert [sheet.name for sheet in sheets] == ["traversal"] * 2
    rows = sheets[0].pixels[2 : 2 + SIZE, 2:]
    assert (rows[:, :SIZE] != rows[:, -2 - SIZE : -2]).any()
    with pytest.raises(UserError, match="a code has 3 units"):
        TINY.sample(model, ImageVAERequest(traverse=4), jax.random.key(0))


def test_reconstructions_are_of_held_out_images(model):
    (sheet,) = TINY.sample(model, ImageVAERequest(reconstruct=10), jax.random.key(0))
    cells = rearrange(sheet.pixels[2:, 2:, 0], "(r h) (k w) -> r k h w", r=2, h=SIZE + 2, w=SIZE + 2)
    shown, made = cells[:, :, :SIZE, :SIZE].astype(int)
    held_out = np.concatenate([Blobs().held_out_at(i)["image"] for i in range(2)])[:10, :, :, 0]
    assert set(np.unique(shown)) <= {0, 255}
    certain = np.isin(held_out, (0, 255))
    np.testing.assert_array_equal(shown[certain], held_out[certain])
    assert np.abs(made - shown).mean() < 0.8 * np.abs(made - np.roll(shown, 1, axis=0)).mean()
    first, rest = TINY.sample(model, ImageVAERequest(reconstruct=COLUMNS + 3), jax.random.key(0))
    assert [s.pixels.shape[1] for s in (first, rest)] == [2 + columns * (SIZE + 2) for columns in (COLUMNS, 3)]
    with pytest.raises(UserError, match="picture 20 is asked for, but there are 20"):
        TINY.sample(model, ImageVAERequest(reconstruct=21), jax.random.key(0))


def test_files_are_reconstructed_and_interpolated(model, tmp_path):
    paths = []
    for i, image in enumerate(Blobs().held_out_at(0)["image"][:3]):
        paths.append(str(tmp_path / f"{i}.png"))
        PIL.Image.fromarray(image[..., 0]).save(paths[-1])
    (sheet,) = TINY.sample(model, ImageVAERequest(images=tuple(paths)), jax.random.key(0))
    (ours,) = TINY.sample(model, ImageVAERequest(reconstruct=3), jax.random.key(0))
    np.testing.assert_array_equal(sheet.pixels, ours.pixels)
    (numbered,) = TINY.sample(model, ImageVAERequest(images=("0", paths[1], "2")), jax.random.key(0))
    np.testing.assert_array_equal(numbered.pixels, ours.pixels)
    (rows,) = TINY.sample(model, ImageVAERequest(images=tuple(paths), interpolate=5), jax.random.key(0))
    assert rows.pixels.shape[0] == 2 * (SIZE + 2) + 2


def test_scores(model):
    data, scoring = Blobs(), ImageVAEScoring(iw_samples=70)
    figures = TINY.score(model, {}, data, scoring, jax.random.key(0))
    assert figures["iw_samples"] == 70
    evaluate = jax.jit(TINY.evaluate)
    rows = [evaluate(model.state, data.held_out_at(i), jax.random.key(0))["loss"][0] for i in range(3)]
    assert 0 < figures["iw_nll_nats"] < np.concatenate(rows)[:20].mean()
    assert 1 <= figures["active_units"] <= LATENT
    assert "iw_nll_nats" not in TINY.score(model, {}, data, ImageVAEScoring(), jax.random.key(0))


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageVAE(likelihood="logistic", binarise=True), "no-binarise"),
        (lambda: ImageVAE(scale=0.5), "only the gaussian"),
        (lambda: ImageVAE(latent=0), "family.latent is 0"),
        (lambda: ImageVAE(beta=-1.0), "family.beta is -1.0"),
        (lambda: ImageVAERequest(interpolate=1), "interpolate is 1"),
        (lambda: ImageVAERequest(interpolate=3, traverse=2), "two kinds of picture"),
        (lambda: ImageVAERequest(images=("a.png",), interpolate=3), "two files"),
        (lambda: ImageVAERequest(images=("a.png",), reconstruct=3), "held-out images"),
        (lambda: ImageVAEScoring(iw_samples=-1), "iw_samples is -1"),
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


@pytest.mark.parametrize(("size", "last"), [(28, 7), (32, 8), (64, 8), (20, 5), (8, 2)])
def test_the_convolutional_network_takes_any_size_that_halves(size, last):
    family = replace(LEVELS, network="conv", width=2, hidden=4)
    assert pyramid(size, size, 2)[1] == (last, last)
    state = shapes(family, ImageSpec(size, size, 3))
    z = jax.ShapeDtypeStruct((2, LATENT), jnp.float32)
    assert jax.eval_shape(lambda s, z: s.net.net().decode(z), state, z).shape == (2, size, size, 3, 2)
