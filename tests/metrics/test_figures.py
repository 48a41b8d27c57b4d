"""Figures and how far they go: standard errors, draws, what is left out, classes of samples, what cannot be had."""

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
from scipy import stats

import zoo.dcgan
from zoo.core.data import DataSet
from zoo.core.errors import UserError
from zoo.core.estimates import RowMeans, row_mean, standard_error
from zoo.core.extractor import Extractor
from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.core.parallel import Parallel
from zoo.data.images import Images
from zoo.data.pairs import Pairs
from zoo.data.specs import ImageSpec
from zoo.data.text import Sentences
from zoo.dcgan import DCGAN
from zoo.ddpm import DDPM
from zoo.harness.config import Run, load_config
from zoo.harness.extractors import load_extractor
from zoo.harness.loop import fit
from zoo.harness.progress import format_figures
from zoo.harness.trained import Trained, inference_state, load_run
from zoo.image_vae import ImageVAE, Pictures
from zoo.image_vae import Scores as VAEScores
from zoo.metrics.diffusion_scoring import DiffusionScoring
from zoo.metrics.images import ImageScoring, spread_classes
from zoo.sampling.diffusion import request as requests
from zoo.seq2seq import error_rates

KEY = jax.random.key(3)


# ------------------------------------------------------------------------------------------ standard errors


def test_the_error_of_a_plain_mean_is_the_textbooks():
    values = np.random.default_rng(0).normal(3, 2, 50)
    found = row_mean("loss", values)
    assert found == {"loss": pytest.approx(values.mean()), "loss_stderr": pytest.approx(stats.sem(values))}
    share = row_mean("right", np.arange(40) < 10)
    assert share == {"right": 0.25, "right_stderr": pytest.approx((0.25 * 0.75 / 39) ** 0.5)}


def test_the_error_of_a_ratio_is_what_the_bootstrap_finds():
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 60, 400).astype(float)
    nats = tokens * rng.gamma(8, 0.25, 400) + rng.normal(0, 2, 400)
    some = rng.integers(0, 400, (6000, 400))
    bootstrap = (nats[some].sum(1) / tokens[some].sum(1)).std()
    assert standard_error(nats, tokens) == pytest.approx(bootstrap, rel=0.04)
    # As if the number of tokens were known, it would be much larger.
    assert stats.sem(nats) / tokens.mean() > 1.5 * bootstrap


def test_rows_that_carry_nothing_do_not_count_and_one_row_has_no_error():
    s, w = np.array([3.0, 5.0, 9.0]), np.array([1.0, 2.0, 3.0])
    assert standard_error(np.append(s, [0, 0]), np.append(w, [0, 0])) == standard_error(s, w)
    # A row of a document's end: nats, and no characters that they are of. By hand: r = 3 / 2, s - r w = -1/2, -3/2, 2.
    assert standard_error([1.0, 0.0, 2.0], [1.0, 1.0, 0.0]) == pytest.approx((3 / 2 * 6.5) ** 0.5 / 2)
    assert standard_error([1.0, 3.0], [1.0, 1.0]) == pytest.approx(1.0)
    assert row_mean("loss", [2.0], [4.0]) == {"loss": 0.5}
    assert row_mean("loss", [0.0, 0.0], [0.0, 0.0]) == {"loss": 0.0}


def test_batches_are_added_without_their_padding():
    rng, valid = np.random.default_rng(2), np.array([True, True, True, False])
    batches = [{"nats": (rng.normal(5, 1, 4), np.ones(4)), "loss": (rng.normal(9, 1, 4), rng.integers(1, 9, 4))}
               for _ in range(2)]  # fmt: skip
    means = RowMeans()
    means.add([batches[0]], np.ones(4, bool))
    means.add([batches[1]], valid)
    kept = {
        name: [np.concatenate([batches[0][name][i], batches[1][name][i][:3]]) for i in (0, 1)] for name in batches[0]
    }
    found = means.metrics()
    assert list(found) == ["loss", "loss_stderr", "nats", "nats_stderr", "rows"]
    assert found["rows"] == 7
    assert found["nats"] == pytest.approx(kept["nats"][0].mean())
    assert found["nats_stderr"] == pytest.approx(stats.sem(kept["nats"][0]))
    s, w = kept["loss"]
    ratio = s.sum() / w.sum()
    assert found["loss"] == pytest.approx(ratio)
    assert found["loss_stderr"] == pytest.approx((7 / 6 * np.square(s - ratio * w).sum()) ** 0.5 / w.sum())


def test_draws_are_averaged_row_by_row():
    draws = np.array([[1.0, 4.0, 7.0], [3.0, 4.0, 2.0], [2.0, 1.0, 3.0]])
    means = RowMeans(3)
    means.add([{"loss": (draw, np.ones(3))} for draw in draws], np.ones(3, bool))
    assert means.metrics() == {
        "loss": pytest.approx(3.0),
        "loss_stderr": pytest.approx(stats.sem(draws.mean(0))),
        "loss_draws_stderr": pytest.approx(stats.sem(draws.mean(1))),
        "rows": 3,
    }


def test_shares_of_wrong_texts_have_errors():
    texts, right = ["A B C", "A B", "X", "A"], [["A B", "A B C"], ["A C D", "A D"], ["A B"], ["A"]]
    found = error_rates(texts, right)
    assert found["exact_match_stderr"] == found["error_rate_stderr"] == pytest.approx(stats.sem([1, 0, 0, 1]))
    edits, tokens = np.array([0, 1, 2, 0]), np.array([3, 2, 2, 1])
    left = edits - 3 / 8 * tokens
    assert found["token_error_rate_stderr"] == pytest.approx((4 / 3 * np.square(left).sum()) ** 0.5 / 8)


def test_people_read_a_figure_with_its_error():
    metrics = {
        "loss": 1.904,
        "loss_stderr": 0.01234,
        "loss_draws_stderr": 0.002,
        "kl": 2.0,
        "rows": 7,
        "sampler": "ddim",
    }
    assert format_figures(metrics) == {
        "loss": "1.9040 +- 0.012 (0.002 of that by the draw)", "kl": "2.0000", "rows": "7", "sampler": "ddim",
    }  # fmt: skip
    assert format_figures(metrics, errors=False) == {"loss": "1.9040", "kl": "2.0000", "sampler": "ddim"}


# ---------------------------------------------------------------------------------------- a run and its draws


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Trained:
    """A VAE of noise, after one step."""
    folder = tmp_path_factory.mktemp("vae")
    np.savez(folder / "noise.npz", images=np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8))
    run = Run(
        ImageVAE(width=8, latent=3), Images(path=str(folder / "noise.npz"), held_out=0.5), steps=1, batch_size=8,
        scoring=VAEScores(iw_samples=3), parallel=Parallel(devices=1), rundir=str(folder / "run"), score_every=1,
    )  # fmt: skip
    return fit(run)


def row_losses(trained: Trained, key: jax.Array) -> np.ndarray:
    """-ELBO of each held-out row, one code each."""
    evaluate, data = jax.jit(trained.model.family.evaluate), trained.data
    parts = []
    for batch in map(data.held_out_at, range(data.held_out_batches)):
        parts.append(np.asarray(evaluate(trained.model.state, batch, key)["loss"][0])[batch["valid"]])
    return np.concatenate(parts).astype(np.float64)


def test_several_draws_are_the_mean_of_single_ones_and_the_first_is_the_default(vae):
    keys = [jax.random.key(5), *(jax.random.fold_in(jax.random.key(5), draw) for draw in (1, 2))]
    losses = np.stack([row_losses(vae, key) for key in keys])
    once, thrice = vae.evaluate(5), vae.evaluate(5, draws=3)
    assert once["rows"] == thrice["rows"] == losses.shape[1]
    assert once["loss"] == pytest.approx(losses[0].mean(), rel=1e-6)
    assert once["loss_stderr"] == pytest.approx(stats.sem(losses[0]), rel=1e-4)
    assert "loss_draws_stderr" not in once
    assert thrice["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert thrice["loss_stderr"] == pytest.approx(stats.sem(losses.mean(0)), rel=1e-4)
    assert thrice["loss_draws_stderr"] == pytest.approx(stats.sem(losses.mean(1)), rel=1e-3)
    assert thrice["loss_draws_stderr"] > 0
    assert thrice["kl_nats"] == pytest.approx(once["kl_nats"], rel=1e-12)  # known in closed form, without noise
    with pytest.raises(UserError, match="draws is 0; it must be at least 1"):
        vae.evaluate(draws=0)


def test_the_command_line_prints_and_records_errors_rows_and_draws(vae, capsys):
    result = call(capsys, "evaluate", vae.path, "--draws", "2")
    assert result.code == 0, result
    lines = dict(line.split("  ", 1) for line in result.out.splitlines())
    assert lines["loss"].count("+-") == 1
    assert "by the draw" in lines["loss"]
    assert "+-" in lines["iw nll nats"]
    assert not [name for name in lines if "stderr" in name]
    record = json.loads((vae.path / "scores.jsonl").read_text().splitlines()[-1])
    assert record["draws"] == 2
    assert record["rows"] == int(lines["rows"])
    assert record["loss_stderr"] > record["loss_draws_stderr"] > 0
    assert record["iw_nll_nats_stderr"] > 0


def test_training_logs_errors_to_the_file_and_short_lines_to_people(vae):
    record = next(line for line in map(json.loads, (vae.path / "metrics.jsonl").read_text().splitlines())
                  if line["split"] == "eval")  # fmt: skip
    assert record["loss_stderr"] > 0
    assert record["iw_nll_nats_stderr"] > 0
    (told,) = [line for line in (vae.path / "log.txt").read_text().splitlines() if "held-out: " in line]
    assert "loss" in told
    assert "stderr" not in told
    assert "rows" not in told


# --------------------------------------------------------------------------------------------- what is left out


def test_sentences_that_are_too_long_and_words_that_are_unknown_are_counted(tmp_path):
    (tmp_path / "train.txt").write_text("the cat sat\nthe dog sat\nthe cat ran\n")
    # At most four words fit, so the third and the fifth are out: 7 + 6 of 3 + 2 + 7 + 4 + 6 words.
    held_out = ["the cat sat", "a cat", "the cat sat and the dog ran", "the bird sat still", "the dog ran and ran on"]
    (tmp_path / "held_out.txt").write_text("\n".join(held_out))
    (tmp_path / "test.txt").write_text("the dog sat\nthe dog ran and the cat sat")
    paths = {name: str(tmp_path / f"{name.removesuffix('_path')}.txt") for name in ("held_out_path", "test_path")}
    settings = Sentences(path=str(tmp_path / "train.txt"), **paths)
    data = settings.open(length=5, batch_size=2, seed=0)
    assert data.on("test").coverage() == {
        "left_out_share": pytest.approx(1 / 2),
        "left_out_token_share": pytest.approx(7 / 10),
        "unknown_share": 0,
    }
    assert data.coverage() == {
        "left_out_share": pytest.approx(2 / 5),
        "left_out_token_share": pytest.approx(13 / 22),
        "unknown_share": pytest.approx(3 / 9),  # a, bird, still
    }
    letters = replace(settings, tokenizer="characters").open(length=30, batch_size=2, seed=0)
    assert letters.coverage() == {"left_out_share": 0, "left_out_token_share": 0}


def test_pairs_that_are_too_long_and_targets_that_are_unknown_are_counted(tmp_path):
    sources = [f"w{i:03d}" for i in range(60)]
    rows = [(source, "AH B" if i % 3 else "AH B K D EH") for i, source in enumerate(sources)]
    (tmp_path / "pairs.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in rows))
    settings = Pairs(path=str(tmp_path / "pairs.tsv"), dev=0.3, test=0.3, source_tokenizer="words", target_vocabulary=4)
    data = settings.open(length=5, batch_size=4, seed=0)
    held_out = [target.split() for (target,) in data.references().values()]
    long = sum(len(target) == 5 for target in held_out)
    short = len(held_out) - long
    assert long
    found = data.coverage()
    assert found["left_out_share"] == pytest.approx(long / (long + short))
    assert found["left_out_token_share"] == pytest.approx(5 * long / (5 * long + 2 * short))
    assert found["unknown_share"] == 0  # AH and B are the two most frequent of four tokens
    assert found["source_unknown_share"] == 1  # no source occurs twice


def test_what_is_left_out_is_among_the_figures(vae, monkeypatch):
    assert "left_out_share" not in vae.evaluate()
    monkeypatch.setattr(type(vae.data), "coverage", lambda _: {"left_out_share": 0.25})
    assert vae.evaluate()["left_out_share"] == 0.25


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

    def walk(family, sampler, frames, state, settings, start):
        seen.append({"symbol": start.symbol, "guidance": settings.guidance})
        return jnp.zeros(start.x.shape, jnp.uint8)

    monkeypatch.setattr(requests, "_walk", walk)
    return seen


def test_a_conditional_diffusion_model_is_scored_with_the_datas_classes_and_guidance(plain, walked):
    family = DDPM(channels=(4,), layers=1, attention=(), timesteps=20)
    model, scoring = start(family), DiffusionScoring(samples=20, steps=3, guidance=2.0)
    found = family.score(model, {}, Unequal(), scoring, KEY)
    assert Counter(np.concatenate([np.asarray(asked["symbol"]) for asked in walked])[:20].tolist()) == {
        0: 14,
        1: 4,
        3: 2,
    }
    assert {float(asked["guidance"]) for asked in walked} == {2.0}
    assert (found["guidance"], found["steps"], found["classes"]) == (2.0, 3, "as often as in the reference")
    assert found["bits_per_dim_of"] == "p(x | y)"


def test_a_diffusion_model_without_classes_says_so_and_refuses_guidance(plain, walked):
    family = DDPM(channels=(4,), layers=1, attention=(), timesteps=20, conditional=False)
    found = family.score(start(family), {}, Unequal(), DiffusionScoring(samples=8, steps=3), KEY)
    assert found["bits_per_dim_of"] == "p(x)"
    assert "classes" not in found
    assert DiffusionScoring(samples=8).check(family, SPEC, load_extractor) == {}
    with pytest.raises(UserError, match="guidance is 2, but the model was trained without classes; only 1 is possible"):
        DiffusionScoring(guidance=2.0).check(family, SPEC, load_extractor)
    with pytest.raises(UserError, match="guidance is 2, but the model was trained with label-dropout 0"):
        DiffusionScoring(guidance=2.0).check(replace(family, conditional=True, label_dropout=0.0), SPEC, load_extractor)


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
    found = model.family.score(model, {}, Unequal(), VAEScores(samples=12), KEY)
    sampled = np.stack([image.pixels for image in model.family.sample(model, Pictures(n=12), KEY)])
    assert len(np.unique(sampled, axis=0)) == 12
    assert any(np.array_equal(images[:12], sampled) for images in plain)
    assert (found["samples"], found["sampler"]) == (12, "prior")
