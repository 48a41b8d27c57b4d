"""A run on a codec's tokens keeps the codec: an image VAE whose latents' signs a language model learns."""

import shutil
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from paths import ROOT

from zoo.core.artifacts import Text
from zoo.core.codec import Coder
from zoo.core.data import Data, DataSet
from zoo.core.errors import UserError
from zoo.core.parallel import Parallel
from zoo.data.images import Images
from zoo.data.specs import TokenSpec
from zoo.harness.config import Run
from zoo.harness.loop import fit
from zoo.harness.trained import load_run
from zoo.image_vae import ImageVAE
from zoo.transformer_lm import TransformerLM

LATENT = 5


@dataclass(frozen=True)
class SignSpec(TokenSpec):
    """The signs of an image's latents: 0 or 1."""

    @property
    def vocab_size(self) -> int:
        return 3

    @property
    def end(self) -> int:
        return 2

    @property
    def longest(self) -> int:
        return LATENT

    def decode(self, samples, codec) -> list[Text]:
        return [Text("".join(map(str, ids))) for ids in samples]


@dataclass(frozen=True, eq=False)
class SignSet(DataSet):
    images: Any
    codec: Coder
    spec: SignSpec = SignSpec()

    @property
    def held_out_batches(self):
        return self.images.held_out_batches

    def _encode(self, batch):
        codes = np.asarray(self.codec.encode({"image": batch["image"], "row": batch["row"]})) > 0
        tokens = np.insert(codes.astype(np.int32), 0, 2, axis=1)
        length = np.full(len(tokens), tokens.shape[1], np.int32)
        return {"tokens": tokens, "length": length, "row": batch["row"], "valid": batch["valid"]}

    def batch_at(self, step, rows=slice(None)):
        return self._encode(self.images.batch_at(step, rows))

    def held_out_at(self, index, rows=slice(None)):
        return self._encode(self.images.held_out_at(index, rows))


@dataclass(frozen=True)
class Signs(Data):
    """Images as their codec's signs."""

    images: Images = field(default_factory=Images)
    codec: str = ""

    def open(self, *, length, batch_size, seed, spec=None, split="dev", codec):
        return SignSet(self.images.open(length=None, batch_size=batch_size, seed=seed, split=split), codec)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A codec, and a run on its tokens."""
    folder = tmp_path_factory.mktemp("codecs")
    np.savez(folder / "images.npz", images=np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), np.uint8))
    images, alone = Images(path=str(folder / "images.npz")), Parallel(devices=1)
    vae = ImageVAE(width=8, latent=LATENT)
    shared = {"parallel": alone, "steps": 1, "batch_size": 8}
    codec = fit(Run(family=vae, data=images, rundir=str(folder / "vae"), **shared))
    run = Run(
        family=TransformerLM(layers=1, heads=1, width=8, context=LATENT),
        data=Signs(images, str(folder / "vae")),
        rundir=str(folder / "lm"),
        **shared,
    )
    return codec, fit(run), run


def test_a_run_needs_its_codec_no_more_than_once(runs, tmp_path):
    codec, trained, run = runs
    batch = codec.data.batch_at(3)
    tokens, codes = trained.data.batch_at(3)["tokens"], codec.net().encode(_observed(codec, batch))[0]
    np.testing.assert_array_equal(tokens[:, 1:], np.asarray(codes) > 0)
    shutil.move(codec.path, tmp_path / "away")
    try:
        again = load_run(trained.path)
        np.testing.assert_array_equal(again.data.batch_at(3)["tokens"], tokens)
        assert again.sample(n=2) == trained.sample(n=2)
        assert fit(replace(run, steps=2)).model.step == 2
    finally:
        shutil.move(tmp_path / "away", codec.path)


def test_a_model_has_the_codec_that_decodes_its_samples(runs):
    codec, trained, _ = runs
    codes = jnp.asarray(np.random.default_rng(0).standard_normal((2, LATENT)), jnp.float32)
    expected = codec.model.family.image(codec.net().decode(codes))
    for model in (trained.model, load_run(trained.path).model):
        np.testing.assert_array_equal(model.codec.decode(codes), expected)
    assert codec.model.codec is None


def test_a_run_that_encodes_nothing_is_no_codec(runs, tmp_path):
    _, trained, run = runs
    wrong = replace(run, data=replace(run.data, codec=str(trained.path)), rundir=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"data\.codec is .*lm, a run of TransformerLM, which encodes nothing"):
        fit(wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("codec", "config"), [("runs/image_vae", "image_vae"), ("runs/my_own", "vqvae")])
def test_a_missing_codec_is_named_with_the_command_that_trains_one(runs, tmp_path, monkeypatch, codec, config):
    _, _, run = runs
    wrong = replace(run, data=replace(run.data, codec=codec), rundir=str(tmp_path / "run"))
    monkeypatch.chdir(ROOT)
    with pytest.raises(
        UserError, match=rf"data\.codec is {codec}, .*python train\.py configs/{config}\.py trains runs/{config}"
    ):
        fit(wrong)


def _observed(codec, batch):
    return codec.model.family.observe_held_out({name: jnp.asarray(batch[name]) for name in ("image", "row")})
