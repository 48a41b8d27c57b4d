"""Figures of samples: which classes are drawn, and what cannot be had."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import ROOT, call, refused
from PIL import Image

import zoo.dcgan
from zoo.core.data import DataSet
from zoo.core.errors import UserError
from zoo.core.extractor import Extractor
from zoo.core.family import Model, Scoring, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.specs import ImageSpec
from zoo.dcgan import DCGAN
from zoo.ddpm import DDPM, DDPMScoring
from zoo.flow_matching import FlowScoring
from zoo.harness.extractors import load_extractor
from zoo.harness.flags import load_config
from zoo.harness.trained import inference_state, load_run
from zoo.image_vae import ImageVAE, ImageVAERequest, ImageVAEScoring
from zoo.metrics.diffusion_scoring import density
from zoo.metrics.images import ImageScoring, spread_classes
from zoo.sampling.diffusion import request as requests

KEY = jax.random.key(3)

# ------------------------------------------------------------------------------------------ classes of samples


SPEC = ImageSpec(32, 32, 1, ("common", "rare", "never", "rarest"))
LABELS = np.array([0, 0, 1, 0, -1, 0, 0, 3, 1, 0, 0], np.int32)  # 7, 2, 0 and 1 of ten


class Unequal(DataSet):
    """Eleven held-out pictures in two batches, of classes of different sizes; one has no label."""

    spec, held_out_batches = SPEC, 2

    def batch_at(self, step, rows=slice(None)):
        return self.held_out_at(step)

    def held_out_at(self, index, rows=slice(None)):
        row = np.arange(6 * index, 6 * index + 6, dtype=np.int32)
        image = np.random.default_rng(index).integers(0, 256, (6, 32, 32, 1)).astype(np.uint8)
        return {"image": image, "label": LABELS[np.minimum(row, 10)], "row": row, "valid": row < 11}


@pytest.mark.parametrize("n", [7, 10, 100, 1001])
def test_classes_are_drawn_as_often_as_they_are_in_the_data(n):
    classes = spread_classes(LABELS, 4, n, KEY)
    drawn = np.bincount(classes, minlength=4)
    assert drawn.sum() == n
    assert np.abs(drawn - n * np.array([0.7, 0.2, 0.0, 0.1])).max() < 1
    np.testing.assert_array_equal(classes, spread_classes(LABELS, 4, n, KEY))
    assert (classes != spread_classes(LABELS, 4, n, jax.random.key(4))).any()
    assert (np.diff(classes) < 0).any()


def test_without_labels_classes_are_equal():
    assert Counter(spread_classes(np.full(5, -1), 3, 6, KEY).tolist()) == {0: 2, 1: 2, 2: 2}
    assert spread_classes(np.full(5, -1), 0, 6, KEY).tolist() == [0] * 6


@pytest.fixture
def plain() -> list[np.ndarray]:
    """The images that the extractor of `start`, which has no network, is given."""
    SEEN.clear()
    return SEEN


SEEN: list[np.ndarray] = []


def first_pixels(images):
    """Features without a network."""
    SEEN.append(images)
    return images.reshape(len(images), -1)[:, :5].astype(np.float32), np.zeros((len(images), 2), np.float32)


def start(family) -> Model:
    """A family before its first step."""
    state = jax.jit(lambda key: family.init(SPEC, Setup(Optimizer(), 10, 6), key))(KEY)
    plain = Extractor("plain", "v1", first_pixels)
    return Model(family, SPEC, inference_state(state), 0, Unequal, lambda *_: plain)


def test_a_conditional_gan_is_scored_with_the_datas_classes(plain, monkeypatch):
    model, seen = start(DCGAN(width=2, latent=4, conditional=True)), []

    def generate(gen, key, rows, label, *_, **__):
        seen.append(np.asarray(label))
        return jnp.zeros((len(rows), 1, 32, 32, 1), jnp.uint8)

    monkeypatch.setattr(zoo.dcgan, "generate", generate)
    found = model.family.score(model, {}, Unequal(), ImageScoring(samples=20), KEY)
    assert Counter(np.concatenate(seen)[:20].tolist()) == {0: 14, 1: 4, 3: 2}
    assert found["classes"] == "as often as in the reference"


@pytest.fixture
def walked(monkeypatch) -> list[dict]:
    """What the sampler of diffusion models is asked for, in place of it."""
    seen = []

    def walk(family, sampler, frames, pixels, state, settings, start):
        seen.append({"symbol": start.condition.symbol, "guidance": settings.guidance})
        return jnp.zeros(start.x.shape, jnp.uint8)

    monkeypatch.setattr(requests, "_walk", walk)
    return seen


def test_a_conditional_diffusion_model_is_scored_with_the_datas_classes_and_guidance(plain, walked):
    family = DDPM(channels=(4,), layers=1, attention=(), timesteps=20)
    model, scoring = start(family), DDPMScoring(samples=20, steps=3, guidance=2.0)
    found = family.score(model, {}, Unequal(), scoring, KEY)
    assert Counter(np.concatenate([np.asarray(asked["symbol"]) for asked in walked])[:20].tolist()) == {
        0: 14,
        1: 4,
        3: 2,
    }
    assert {float(asked["guidance"]) for asked in walked} == {2.0}
    assert (found["guidance"], found["steps"], found["classes"]) == (2.0, 3, "as often as in the reference")
    assert found["bits_per_dim_of"] == "p(x | y)"


def test_a_likelihood_is_of_images_given_their_class_where_they_have_one():
    class Nameless(Unequal):
        def held_out_at(self, index, rows=slice(None)):
            return super().held_out_at(index) | {"label": np.full(6, -1, np.int32)}

    class Later(Unequal):
        def held_out_at(self, index, rows=slice(None)):
            return super().held_out_at(index) | {"label": np.full(6, index - 1, np.int32)}

    model = Model(DDPM(), SPEC, None, 0)
    found = [density(DDPM(), model, data()) for data in (Unequal, Later, Nameless)]
    assert found == ["p(x | y)", "p(x | y)", "p(x)"]
    assert density(DDPM(conditional=False), model, Unequal()) == "p(x)"


def test_of_one_image_the_likelihood_is_scored_and_no_samples():
    none = {"samples": 0, "floor": False, "nearest": 0}
    prompted = none | {"reader": "", "clip": "", "variety": 0}
    assert ImageScoring(samples=9, floor=True).of_image() == none
    assert DDPMScoring(bound_images=50).of_image() == prompted | {"bound_images": 1}
    assert FlowScoring(ode_images=50).of_image() == prompted | {"ode_images": 1}
    assert Scoring().of_image() == {}


def test_a_diffusion_model_without_classes_says_so_and_refuses_guidance(plain, walked):
    family = DDPM(channels=(4,), layers=1, attention=(), timesteps=20, conditional=False)
    found = family.score(start(family), {}, Unequal(), DDPMScoring(samples=8, steps=3), KEY)
    assert found["bits_per_dim_of"] == "p(x)"
    assert "classes" not in found
    assert DDPMScoring(samples=8, steps=3).check(family, SPEC, load_extractor) == {}
    with pytest.raises(UserError, match="steps is 50; it must be from 1 to 20"):
        DDPMScoring(samples=8).check(family, SPEC, load_extractor)
    with pytest.raises(UserError, match="guidance is 2, but the model was trained without classes; only 1 is possible"):
        DDPMScoring(guidance=2.0).check(family, SPEC, load_extractor)
    with pytest.raises(UserError, match="guidance is 2, but the model was trained with label-dropout 0"):
        DDPMScoring(guidance=2.0).check(replace(family, conditional=True, label_dropout=0.0), SPEC, load_extractor)


# -------------------------------------------------------------------------------------------- what cannot be had


def photos(folder: Path, mode: str, count: int = 16) -> Path:
    """A folder of tiny pictures."""
    folder.mkdir()
    shape = (32, 32, 3) if mode == "RGB" else (32, 32)
    for i in range(count):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, shape, np.uint8)).save(folder / f"{i}.png")
    return folder


def train_gan(capsys, tmp_path: Path, mode: str, *flags: object):
    """Two steps of a tiny GAN of such a folder, each of them scored."""
    return call(
        capsys, "train", ROOT / "configs" / "dcgan.py", "--data.path", photos(tmp_path / "photos", mode), "--data.size",
        32, "--family.width", 2, "--batch-size", 8, "--steps", 2, "--score-every", 1, "--eval-every", 1, "--save-every",
        1, "--sample-every", 0, "--parallel.devices", 1, "--rundir", tmp_path / "run", *flags,
    )  # fmt: skip


@pytest.mark.slow
def test_training_goes_on_without_a_metric_that_cannot_be_had(capsys, tmp_path):
    result, rundir = train_gan(capsys, tmp_path, "RGB"), tmp_path / "run"
    assert result.code == 0, result
    told = result.err.replace("\n", " ")
    assert told.count("--scoring.extractor") == 1
    assert "32x32 in colour: name a file of Inception-v3 weights" in told
    records = [*map(json.loads, (rundir / "metrics.jsonl").read_text().splitlines())]
    evaluations = [record for record in records if record["split"] == "eval"]
    assert [record["step"] for record in evaluations] == [1, 2]
    assert not any("fid" in record for record in evaluations)
    assert load_run(rundir, "best").model.step == 2

    scored = call(capsys, "evaluate", rundir, "--json")
    assert scored.code == 0, scored
    assert "fid" not in json.loads(scored.out)
    samples = load_config(str(ROOT / "configs" / "dcgan.py")).scoring.samples
    for asked in (8, samples):  # the second is what the run's own settings say, too
        refused(call(capsys, "evaluate", rundir, "--samples", asked), "extractor is 'auto'", "Inception-v3 weights")


@pytest.mark.slow
def test_training_goes_on_when_there_is_too_little_to_compare_with(capsys, tmp_path):
    result = train_gan(capsys, tmp_path, "L", "--scoring.samples", 8, "--scoring.references", 200)
    assert result.code == 0, result
    told = " ".join(result.err.split())
    assert told.count("references is 200") == 1
    assert "step 1 is not scored" in told


def test_wrong_settings_of_scores_are_refused_before_training(capsys, tmp_path):
    refused(train_gan(capsys, tmp_path, "L", "--scoring.extractor", "nothing.pth"), "'nothing.pth'")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="of images that are 28x28 in grey, and these are 32x32 in colour"):
        load_extractor("mnist", ImageSpec(32, 32, 3))


def test_an_image_vae_is_scored_on_the_pictures_that_it_samples(plain):
    model = start(ImageVAE(network="mlp", hidden=8, latent=3))
    found = model.family.score(model, {}, Unequal(), ImageVAEScoring(samples=12), KEY)
    sampled = np.stack([image.pixels for image in model.family.sample(model, ImageVAERequest(n=12), KEY)])
    assert len(np.unique(sampled, axis=0)) == 12
    assert any(np.array_equal(images[:12], sampled) for images in plain)
    assert (found["samples"], found["sampler"]) == (12, "prior")
