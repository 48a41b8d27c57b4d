"""Sequence to sequence: scores, targets and alignments of a run, and bad input."""

import hashlib
import itertools
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call, refused
from seq2seq_cases import LENGTH, LUONG, SPEC, log_probability, make_net

from zoo import Run, fit
from zoo.core.errors import UserError
from zoo.data.pairs import Pairs
from zoo.harness.config import from_json, to_json
from zoo.sampling.tokens.translation import TranslationRequest, encode_source, translate, translate_lines
from zoo.seq2seq import Seq2Seq, Seq2SeqScoring, error_rates


def test_any_of_several_targets_is_right_and_the_nearest_counts():
    found = error_rates(["A B C", "A B", "X"], [["A B", "A B C"], ["A C D", "A D"], ["A B"]])
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["error_rate"] == pytest.approx(2 / 3)
    assert found["token_error_rate"] == pytest.approx((0 + 1 + 2) / (3 + 2 + 2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few steps on a file of short words."""
    folder = tmp_path_factory.mktemp("seq2seq")
    words = ["".join(letters) for letters in itertools.product("abc", repeat=3)]
    lines = [f"{word}\t{' '.join(letter.upper() + str(i) for i, letter in enumerate(word))}\n" for word in words]
    (folder / "pairs.tsv").write_text("".join(lines) + "abcabcabca\tA0\n")
    run = Run(
        family=replace(LUONG, dropout=0.1),
        data=Pairs(path=str(folder / "pairs.tsv"), dev=0.2, test=0.2),
        steps=2, batch_size=8, rundir=str(folder / "run"),
        scoring=Seq2SeqScoring(strip="[0-9]", words="none", num_beams=2),
    )  # fmt: skip
    return fit(run)


@pytest.mark.slow
def test_scores_are_of_the_split_that_is_asked_for(trained):
    figures = trained.evaluate()
    assert figures["scored_sources"] == len(trained.data.references())
    names = ["error_rate", "exact_match", "token_error_rate"]
    for name in (*names, *(f"{name}_unstripped" for name in names), "bleu", "rougeL", "perplexity"):
        assert np.isfinite(figures[name]), name
    other = trained.evaluate(split="test", sources=3, strip="")
    assert other["scored_sources"] == 3
    assert "error_rate_unstripped" not in other


@pytest.mark.slow
def test_losses_are_of_the_split_that_is_asked_for(trained, capsys):
    """Against the log-probability of each target, which the file and the hash of its source say are in the split."""
    lines = [line.split("\t") for line in Path(trained.run.data.path).read_text().splitlines()]
    ranked = sorted({line[0] for line in lines}, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    spec, sixth = trained.model.spec, round(0.2 * len(ranked))
    losses = {}
    for split, sources in (("test", ranked[:sixth]), ("dev", ranked[sixth : 2 * sixth])):
        pairs = [(s, t) for s, t in lines if s in sources and max(len(s), len(t.split())) < LENGTH]
        targets = [np.append(spec.target.encode(target), spec.target.end_of_text) for _, target in pairs]
        read = [encode_source(spec, source, LENGTH) for source, _ in pairs]
        nats = -sum(map(partial(log_probability, trained.net(), spec=spec), read, targets))
        shown = call(capsys, "evaluate", trained.path, "--json", *(("--split", "test") if split == "test" else ()))
        found = json.loads(shown.out)
        assert found == json.loads((trained.path / "scores.jsonl").read_text().splitlines()[-1])
        assert (found["split"], found["data"]) == (split, trained.run.data.path)
        losses[split] = found["loss"]
        assert found["loss"] == pytest.approx(nats / sum(map(len, targets)), rel=1e-4)
        assert found["nats_per_target"] == pytest.approx(nats / len(pairs), rel=1e-4)
        assert found["perplexity"] == pytest.approx(np.exp(nats / sum(map(len, targets))), rel=1e-4)
    assert abs(losses["dev"] - losses["test"]) > 1e-3


@pytest.mark.slow
def test_settings_of_an_earlier_run_that_had_a_split_of_its_own_load(trained):
    config = to_json(trained.run)
    config["scoring"]["split"] = "test"
    assert from_json(config, Run, "config.json") == trained.run


def test_stripping_is_done_on_both_sides(trained, monkeypatch):
    """A model that writes the right phones with other digits is right once they are stripped."""
    references = trained.data.references()

    def right_but_for_digits(net, spec, sources, **settings):
        texts = [references[spec.source.decode(source)][0] for source in sources]
        return [[type("Target", (), {"text": text.translate(str.maketrans("012", "345"))})] for text in texts]

    monkeypatch.setattr("zoo.seq2seq.translate", right_but_for_digits)
    figures = trained.evaluate()
    assert figures["exact_match"] + (len(references) - figures["scored_sources"]) == 1.0
    assert figures["token_error_rate"] == 0.0
    assert figures["exact_match_unstripped"] == 0.0
    assert figures["bleu"] == pytest.approx(100.0) or figures["bleu"] == 0.0  # three tokens have no 4-grams


def test_sampling_names_the_source_it_draws(trained):
    drawn = trained.sample(seed=1, n=2)
    assert drawn[0].text.split(":")[0] in trained.model.spec.examples
    asked = trained.sample(source="abc", n=2, num_beams=4)
    assert len(asked) == 2
    assert asked[0].scores["score"] >= asked[1].scores["score"]
    assert ":" not in asked[0].text


def test_the_command_line(trained, capsys, tmp_path):
    picture = tmp_path / "new" / "out.png"
    shown = call(capsys, "sample", trained.path, "--source", "abc", "--n", 3, "--attention", picture)
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert len(lines) == 3
    assert all("score -" in line for line in lines)
    assert picture.read_bytes().startswith(b"\x89PNG")
    one = call(capsys, "sample", trained.path, "--source", "abc", "--n", 1)
    assert one.out.strip() == lines[0].strip() or one.out.split() == lines[0].split()
    refused(call(capsys, "sample", trained.path, "--source", ""), "source is ''", "not empty")
    refused(call(capsys, "sample", trained.path, "--source", "abx"), "'x'", "lacks")
    refused(call(capsys, "sample", trained.path, "--source", "abcabcabc"), "9 symbols long", "at most 7")
    refused(call(capsys, "sample", trained.path, "--source", "abc", "--num-beams", 0), "num_beams is 0", "at least 1")
    refused(call(capsys, "sample", trained.path, "--source", "abc", "--n", 6), "n is 6", "num_beams, 5")
    refused(call(capsys, "sample", trained.path, "--source", "abc", "--attention", "a.txt"), "a.txt", ".png")
    refused(call(capsys, "evaluate", trained.path, "--num-beams", 0), "num_beams is 0")
    refused(call(capsys, "evaluate", trained.path, "--strip", "("), "no regular expression")


def test_a_target_has_the_log_probabilities_of_its_symbols(trained):
    """Symbol by symbol from what `extend` predicts, and in sum what beam search ranks its targets by."""
    model, source = trained.model, trained.model.spec.examples[0]
    net, spec = model.state.net.eval_net(), model.spec
    best = trained.sample(source=source, n=1)[0]
    (scored,) = trained.sample(source=source, score=best.text)
    record = scored.record
    assert (record["source"], record["text"]) == (source, best.text)
    np.testing.assert_allclose(record["log_probability"], best.scores["score"], rtol=1e-4)
    np.testing.assert_allclose(sum(record["log_probabilities"]), record["log_probability"], rtol=1e-5)

    end = spec.target.end_of_text
    target = [end, *spec.target.encode(best.text), end]
    read, count = jnp.asarray(encode_source(spec, source, model.family.context))[None], len(record["tokens"])
    memory = net.encode(read, jnp.ones(read.shape, bool))
    cache, found = net.init_cache(memory, model.family.context), []
    for place in range(count):
        logits, cache = net.extend(jnp.array([[target[place]]]), cache, place, memory)
        found.append(jax.nn.log_softmax(logits[0])[target[place + 1]])
    np.testing.assert_allclose(record["log_probabilities"], found, rtol=1e-4, atol=1e-5)
    assert record["tokens"][-1] == "<end of text>"
    with pytest.raises(UserError, match="score is 40 symbols long"):
        trained.sample(source=source, score="A0 " * 40)
    with pytest.raises(UserError, match="a target of a source that is given"):
        trained.sample(score="a")


def test_a_file_of_sources_is_answered_line_by_line(trained, capsys, tmp_path, caplog):
    path, known = tmp_path / "sources.txt", trained.model.spec.examples[:2]
    path.write_text("\n".join([known[0], "", "a" * 40, "?", known[1]]) + "\n")
    answered = trained.sample(sources=str(path), n=3)
    alone = [trained.sample(source=source, n=3) for source in known]
    assert [text.text for text in answered] == [alone[0][0].text, "", "", "", alone[1][0].text]
    for number, many in ((0, alone[0]), (4, alone[1])):
        best = answered[number].record["best"]
        assert [target["text"] for target in best] == [text.text for text in many]
        np.testing.assert_allclose([t["score"] for t in best], [t.scores["score"] for t in many], rtol=1e-4)
    assert [text.record["best"] for text in answered[1:4]] == [[], [], []]
    for number, why in ((2, "source is empty"), (3, "source is 40 symbols long"), (4, "'?'")):
        assert f"line {number} of {path} has an empty result: " in caplog.text
        assert why in caplog.text

    told = call(capsys, "sample", trained.path, "--sources", path)
    assert told.code == 0
    assert told.out.split("\n") == [*(text.text for text in answered), ""]
    told = call(capsys, "sample", trained.path, "--sources", path, "--json", "--n", "3")
    assert [json.loads(line) for line in told.out.splitlines()] == [text.record for text in answered]
    refused(call(capsys, "sample", trained.path, "--sources", path, "--source", known[0]), "sources is", "source")
    refused(call(capsys, "sample", trained.path, "--sources", tmp_path / "none"), "none cannot be read")


def test_the_text_of_a_line_is_its_best_target(tmp_path):
    net, path = make_net(LUONG), tmp_path / "sources.txt"
    path.write_text("abc\n\nfghij\n")
    texts = translate_lines(net, SPEC, TranslationRequest(sources=str(path), n=3, num_beams=3), LENGTH)
    sources = [encode_source(SPEC, source, LENGTH) for source in ("abc", "fghij")]
    first, last = (found[0].text for found in translate(net, SPEC, sources, length=LENGTH, num_beams=3))
    assert [text.text for text in texts] == [first, "", last]
    assert first or last


def test_a_network_without_attention_has_none_to_draw(trained):
    model = replace(trained.model, family=replace(trained.model.family, attention="none"))
    with pytest.raises(UserError, match="has none to draw"):
        model.family.sample(model, TranslationRequest(source="abc", attention="a.png"), jax.random.key(0))


@pytest.mark.parametrize(
    ("field", "value"),
    [("layers", 0), ("width", 15), ("context", 1), ("dropout", 1.0), ("label_smoothing", -0.1), ("embedding", 0)],
)
def test_settings_that_make_no_network_are_named(field, value):
    with pytest.raises(UserError, match=str(value)):
        replace(LUONG, **{field: value})
    with pytest.raises(UserError, match="multiple"):
        Seq2Seq(network="transformer", width=30, heads=4)


def test_an_encoded_source_ends_and_fits():
    np.testing.assert_array_equal(encode_source(SPEC, "abcdefg", LENGTH), [0, 1, 2, 3, 4, 5, 6, 10])
    with pytest.raises(UserError, match="8 symbols long"):
        encode_source(SPEC, "abcdefga", LENGTH)
