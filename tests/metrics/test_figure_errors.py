"""Figures and how far they go: standard errors, draws, what is left out."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from command_line import call
from scipy import stats

from zoo.core.errors import UserError
from zoo.core.estimates import RowMeans, row_mean, standard_error
from zoo.core.parallel import Parallel
from zoo.data.images import Images
from zoo.data.pairs import Pairs
from zoo.data.text import Sentences
from zoo.harness.config import Run
from zoo.harness.loop import fit
from zoo.harness.progress import format_figures
from zoo.harness.trained import Trained
from zoo.image_vae import ImageVAE, ImageVAEScoring
from zoo.seq2seq import error_rates

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
        scoring=ImageVAEScoring(iw_samples=3), parallel=Parallel(devices=1), rundir=str(folder / "run"), score_every=1,
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
