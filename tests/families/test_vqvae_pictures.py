"""A trained VQ-VAE: as a codec, its scores and its pictures."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from image_vae_cases import SIZE, Blobs, train
from image_vae_cases import TINY as IMAGE_VAE
from vqvae_cases import FSQ, TINY

from zoo.core.codec import Codec
from zoo.core.errors import UserError
from zoo.core.extractor import Extractor
from zoo.metrics.codes import code_perplexity, code_use
from zoo.transformer_lm import TransformerLM
from zoo.vqvae import COLUMNS, VQVAERequest, VQVAEScoring

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def model():
    return train(TINY, 60, learning_rate=1e-2)[0]


@pytest.fixture(scope="module")
def scalars():
    return train(FSQ, 60, learning_rate=1e-2)[0]


def held_out():
    """All 20 held-out images."""
    return np.concatenate([Blobs().held_out_at(i)["image"] for i in range(3)])[:20]


def encoded(model):
    batch = {"image": jnp.asarray(held_out()), "row": jnp.arange(20)}
    return jax.jit(model.family.encode)(model.state, batch), jax.jit(model.family.latents)(model.state, batch)


# ------------------------------------------------------------------------------------------------ the codec


@pytest.mark.parametrize("name", ["model", "scalars"])
def test_decoded_codes_are_the_reconstruction_that_evaluation_scores(name, request):
    model = request.getfixturevalue(name)
    family, (codes, latents) = model.family, encoded(model)
    assert codes.dtype == jnp.int32
    assert 0 <= codes.min() < codes.max() < family.symbols == 12
    decode = jax.jit(family.decode)
    images = decode(model.state, codes)
    np.testing.assert_array_equal(images, decode(model.state, latents))
    error = np.square(np.asarray(images, np.float64) - held_out()).mean((1, 2, 3))
    rows = [jax.jit(family.evaluate)(model.state, Blobs().held_out_at(i), KEY) for i in range(3)]
    figures = {name: np.concatenate([row[name][0] for row in rows])[:20] for name in rows[0]}
    np.testing.assert_allclose(figures["psnr_db"], 10 * np.log10(255**2 / error), atol=0.05)
    loss = figures["reconstruction_nats"] + 0.25 * figures["commitment"]
    np.testing.assert_allclose(figures["loss"], loss, rtol=1e-5)


def test_a_reconstruction_is_nearer_to_its_image_than_to_others(model):
    codes, _ = encoded(model)
    images = np.asarray(jax.jit(TINY.decode)(model.state, codes), np.float64)
    own, other = (np.abs(images - np.roll(held_out(), by, axis=0)).mean() for by in (0, 1))
    assert own < 0.8 * other


def test_a_codec_states_how_many_codes_it_has():
    assert isinstance(TINY, Codec)
    assert (TINY.symbols, FSQ.symbols, replace(FSQ, levels=(8, 5, 5)).symbols, IMAGE_VAE.symbols) == (12, 12, 200, 0)
    assert isinstance(IMAGE_VAE, Codec)
    assert not isinstance(TransformerLM(), Codec)


# ------------------------------------------------------------------------------------------------ scores


def test_code_use_by_hand():
    """Frequencies 1/2, 1/4, 1/4: an entropy of 3/2 bits. Where there is ink two codes are equally frequent."""
    codes = np.array([[[0, 0], [1, 3]]])
    found = code_use(codes, 8, np.array([[[True, False], [False, True]]]))
    assert (found["codes_in_use"], found["share_in_use"]) == (3, 3 / 8)
    np.testing.assert_allclose([found["code_perplexity"], found["inked_code_perplexity"]], [2**1.5, 2.0])
    np.testing.assert_allclose(code_perplexity(np.full(7, 9)), 7.0)
    assert code_use(codes, 8).keys() == {"codes_in_use", "share_in_use", "code_perplexity"}


@pytest.mark.parametrize("name", ["model", "scalars"])
def test_scores_count_the_codes_of_every_held_out_row_once(name, request):
    model = request.getfixturevalue(name)
    found = model.family.score(model, {}, Blobs(), VQVAEScoring(), KEY)
    codes, _ = encoded(model)
    p = np.unique(codes, return_counts=True)[1] / codes.size
    assert found["codes_in_use"] == len(p)
    np.testing.assert_allclose(found["code_perplexity"], np.exp(-(p * np.log(p)).sum()))
    assert f"{len(p)} of 12 codes are in use on 20 images" in found["codebook"]
    x = model.family.observe_held_out({"image": jnp.asarray(held_out()), "row": jnp.arange(20)})
    inked = rearrange(np.asarray(x), "b (h p) (w q) 1 -> b h w (p q)", p=4, q=4).max(-1) == 1
    q = np.unique(np.asarray(codes)[inked], return_counts=True)[1] / inked.sum()
    assert 0 < inked.mean() < 1
    np.testing.assert_allclose(found["inked_code_perplexity"], np.exp(-(q * np.log(q)).sum()))


def test_the_verdict_says_in_words_how_codes_are_used():
    use = {"codes_in_use": 384, "share_in_use": 0.75, "code_perplexity": 151.2, "inked_code_perplexity": 201.7}
    family = replace(TINY, codes=512, revive=0.1)
    facts = "384 of 512 codes are in use on 9 images, with a perplexity of 151, and of 202 over inked places"
    idle = f"{facts}; the others are idle: train longer, or start over with --family.revive 0.3 or fewer codes"
    assert family.verdict(use, 9) == idle
    assert family.verdict(use | {"share_in_use": 0.9}, 9) == facts
    scalars = replace(FSQ, levels=(8, 8, 8))
    assert scalars.verdict(use, 9) == f"{facts}; fewer --family.levels leave fewer codes idle"
    del use["inked_code_perplexity"]
    assert "ink" not in family.verdict(use, 9)


def test_the_reconstruction_fid_is_of_reconstructions_in_the_order_of_the_split(model):
    seen = []

    def first_pixels(images):
        seen.append(images)
        return images.reshape(len(images), -1)[:, 20:25].astype(np.float32), np.zeros((len(images), 2), np.float32)

    judged = replace(model, extractor=lambda *_: Extractor("plain", "v1", first_pixels))
    found = TINY.score(judged, {}, Blobs(), VQVAEScoring(samples=12), KEY)
    made = np.asarray(jax.jit(TINY.decode)(model.state, encoded(model)[0][:12])).astype(int)
    assert np.abs(made - made[::-1]).max() > 2
    off = [np.abs(np.asarray(images[:12]) - made).max() for images in seen if len(images) >= 12]
    assert min(off) <= 1  # in batches of another size, a level may round to the next
    assert found["reconstruction_fid"] > 0
    assert "fid" not in found
    assert (found["samples"], found["sampler"]) == (12, "reconstructions of held-out images")
    assert TINY.score(judged, {}, Blobs(), VQVAEScoring(samples=50), KEY)["samples"] == 20


def test_reconstructions_are_judged_like_samples_of_their_captions(model):
    asked = VQVAEScoring(samples=12, reader="runs/reader")
    with pytest.raises(UserError, match="reader is runs/reader, which judges by captions, and the model reads none"):
        asked.check(TINY, model.spec, lambda *_: Extractor("plain", "v1", lambda images: (images, images)))

    class Judged(VQVAEScoring):
        def judge(self, images, data, load):
            return {"read_all": 0.5, "reader": self.reader, "images": len(images)}

    flat = Extractor(
        "plain", "v1", lambda x: (x.reshape(len(x), -1)[:, 20:25].astype(np.float32), np.zeros((len(x), 0)))
    )
    judged = replace(model, extractor=lambda *_: flat)
    found = TINY.score(judged, {}, Blobs(), Judged(samples=12, reader="runs/reader"), KEY)
    assert (found["reconstruction_read_all"], found["reconstruction_images"]) == (0.5, 12)
    assert "read_all" not in found


# ---------------------------------------------------------------------------------------------- pictures


def cells(sheet, columns):
    """The images of a sheet, [r k h w]."""
    size = SIZE + 2
    whole = rearrange(sheet.pixels[2:, 2:, 0], "(r h) (k w) -> r k h w", h=size, w=size, k=columns)
    return whole[:, :, :SIZE, :SIZE].astype(int)


def test_without_flags_there_are_reconstructions_of_random_held_out_images_and_the_codebook(model):
    first, second, codebook = TINY.sample(model, VQVAERequest(n=3), KEY)
    assert [picture.name for picture in (first, second, codebook)] == ["reconstruction", "reconstruction", "codebook"]
    assert first != second
    shown, made = cells(first, COLUMNS)
    certain = np.isin(held_out()[..., 0], (0, 255))
    fits = [
        [(image[sure] == x[sure]).all() for x, sure in zip(held_out()[..., 0], certain, strict=True)] for image in shown
    ]
    assert np.array(fits).any(1).all()
    assert np.abs(made - shown).mean() < 0.8 * np.abs(made - np.roll(shown, 1, axis=0)).mean()
    assert TINY.sample(model, VQVAERequest(n=3), KEY)[:2] == [first, second]
    assert TINY.sample(model, VQVAERequest(n=2), KEY) == [first, codebook]
    assert TINY.sample(model, VQVAERequest(n=2), jax.random.key(1))[0] != first


def test_the_codebook_shows_each_code_alone(model):
    (codebook,) = TINY.sample(model, VQVAERequest(n=1), KEY)
    codes = jnp.broadcast_to(jnp.arange(12)[:, None, None], (12, 2, 2))
    expected = jax.jit(TINY.decode)(model.state, codes)[..., 0]
    np.testing.assert_array_equal(cells(codebook, 4).reshape(12, SIZE, SIZE), expected)


def test_given_and_first_held_out_images_are_reconstructed(model):
    (sheet,) = TINY.sample(model, VQVAERequest(reconstruct=3), KEY)
    (same,) = TINY.sample(model, VQVAERequest(images=("0", "1", "2")), KEY)
    assert sheet == same
    np.testing.assert_array_equal(cells(sheet, 3)[1], jax.jit(TINY.decode)(model.state, encoded(model)[0][:3])[..., 0])
    sheets = TINY.sample(model, VQVAERequest(reconstruct=COLUMNS + 2), KEY)
    assert [cells(s, k).shape[1] for s, k in zip(sheets, (COLUMNS, 2), strict=True)] == [COLUMNS, 2]
    with pytest.raises(UserError, match="data is not at hand: give files"):
        TINY.sample(replace(model, data=None), VQVAERequest(), KEY)
