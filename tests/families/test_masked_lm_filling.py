"""What a masked language model fills and writes, how it is scored, and what cannot be made."""

import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from masked_lm_cases import BERT, OBJECTIVES, SPEC

from zoo import Optimizer
from zoo.core.errors import UserError
from zoo.core.family import Model, Setup
from zoo.data.text.masking import choose_targets
from zoo.data.text.sentence_pairs import SentencePairs, make_spec
from zoo.data.tokenizers import BPE
from zoo.masked_lm import HELD_OUT_MASKS, ranks
from zoo.metrics.intervals import wilson_interval
from zoo.sampling.tokens.infill import FillRequest
from zoo.sampling.tokens.logits import Knobs
from zoo.sampling.tokens.mask_predict import mask_predict

# ---------------------------------------------------------------------------------------- what is made


@cache
def make_model(family, tokenizer):
    spec = make_spec(tokenizer)
    setup = Setup(optimizer=Optimizer(), total_steps=1, batch_size=4)
    return Model(family, spec, family.init(spec, setup, jax.random.key(0)), 0)


def ask(model, **request):
    return model.family.sample(model, FillRequest(**request), jax.random.key(0))


@OBJECTIVES
def test_fills_are_ranked_and_their_probabilities_sum_to_one(family):
    model = make_model(family, SPEC.tokenizer)
    fills = ask(model, fill="ab[MASK]d", n=9)
    assert sorted(fill.text for fill in fills) == sorted(f"ab{c}d" for c in "abcdefgh ")
    found = [fill.scores["probability"] for fill in fills]
    assert found == sorted(found, reverse=True)
    assert sum(found) == pytest.approx(1.0, abs=1e-5)


def test_several_masks_are_filled_one_at_a_time():
    model = make_model(BERT, SPEC.tokenizer)
    fills = [fill.text for fill in ask(model, fill="[MASK]b[MASK]", n=2)]
    assert all(text.endswith("b[MASK]") and len(text) == len("ab[MASK]") for text in fills[:2])
    assert all(text.startswith("[MASK]b") and len(text) == len("[MASK]ba") for text in fills[2:])


def test_a_mask_takes_the_space_before_it_where_words_begin_with_one():
    model = make_model(BERT, BPE.train(["the cat the cat the dog dogs"], 270))
    pieces = model.spec.tokenizer.pieces
    texts = {fill.text for fill in ask(model, fill="the [MASK] dog", n=len(pieces) - 1)}
    assert "the cat dog" in texts
    assert not any(text.startswith("the  cat") for text in texts)
    assert all(text.endswith(" dog") for text in texts)


@OBJECTIVES
def test_lines_have_their_length_and_their_prompt(family):
    model = make_model(family, SPEC.tokenizer)
    lines = [text.text for text in ask(model, n=3, tokens=5, prompt="abc")]
    assert len(set(lines)) > 1
    assert all(line.startswith("abc\n") and len(line) <= 4 + 5 for line in lines)
    assert not any("[" in line for line in lines)
    alone = ask(model, n=1, tokens=5, prompt="abc")
    assert alone[0].text == lines[0]


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({"fill": "The Prince of Denmark"}, r"no.* \[MASK\]|\[MASK\] where"),
        ({"fill": ""}, r"\[MASK\] where"),
        ({"fill": "a[MASK]", "prompt": "b"}, "prompt"),
        ({"fill": "a" * 20 + "[MASK]"}, "23 tokens"),
        ({"tokens": 20}, "22 tokens"),
        ({"fill": "[MASK]", "n": 10}, "n is 10"),
        ({"fill": "Q[MASK]"}, "'Q'"),
        ({"iterations": 0}, "iterations is 0"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_what_cannot_be_made_is_named(request_, named):
    with pytest.raises(UserError, match=named):
        ask(make_model(BERT, SPEC.tokenizer), **request_)


def knobs(temperature, rows):
    return Knobs(*(jnp.full(rows, value) for value in (temperature, 0, 1.0, 0.0, 1.0)))


def test_mask_predict_keeps_the_probable_and_finds_the_others_anew():
    """Position i's best token is i plus how many are known, and the surer the higher i is."""
    seen = []

    def predict(tokens, unknown):
        jax.debug.callback(lambda u: seen.append(np.asarray(u)), unknown)
        known = (~unknown).sum(1, keepdims=True)
        best = (jnp.arange(4)[None, :] + known) % 6
        return (1.0 + jnp.arange(4.0))[None, :, None] * jax.nn.one_hot(best, 6)

    tokens, _ = mask_predict(predict, 4, iterations=4, knobs=knobs(0.0, 2), keys=jax.random.split(jax.random.key(0), 2))
    jax.effects_barrier()
    unknown = [mask[0].tolist() for mask in seen]
    assert [sum(mask) for mask in unknown] == [4, 3, 2, 1]
    assert unknown[1] == [True, True, True, False]
    assert unknown[3] == [True, False, False, False]
    assert tokens[0].tolist() == [3, 3, 3, 3]  # position i is chosen last when i of the others are known: 3 - i of them


def test_mask_predict_in_one_iteration_draws_from_the_distribution():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    n = 4000
    tokens, log_probability = mask_predict(
        lambda tokens, unknown: jnp.broadcast_to(logits, (*tokens.shape, 3)), 2, iterations=1, knobs=knobs(1.0, n),
        keys=jax.random.split(jax.random.key(0), n),
    )  # fmt: skip
    np.testing.assert_allclose(log_probability, logits[tokens], atol=1e-5)
    joint = np.bincount(np.asarray(tokens[:, 0] * 3 + tokens[:, 1]), minlength=9)
    expected = n * np.outer([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]).ravel()
    assert scipy.stats.chisquare(joint, expected).pvalue > 1e-3


# -------------------------------------------------------------------------------------------- figures


def test_wilson_interval_is_scipy_s():
    for hits, count in ((50, 100), (0, 7), (7, 7), (403, 576)):
        theirs = scipy.stats.binomtest(hits, count).proportion_ci(0.95, "wilson")
        np.testing.assert_allclose(wilson_interval(hits / count, count, 1.959964), theirs, atol=1e-6)


def scored_with_labels(data):
    """The scores of a fresh model that is given some means, and the tokens that it has to guess."""
    family = replace(BERT, mask_share=0.5)
    setup = Setup(optimizer=Optimizer(), total_steps=1, batch_size=8)
    model = Model(family, data.spec, family.init(data.spec, setup, jax.random.key(0)), 0)
    rows = {"masked_nats": 1.5, "next_sentence_accuracy": 0.75}
    figures = family.score(model, rows, data, family.Scoring(), jax.random.key(0))
    labels = []
    for batch in map(data.held_out_at, range(data.held_out_batches)):
        tokens, rows_ = jnp.asarray(batch["tokens"]), jnp.asarray(batch["row"])
        chosen = choose_targets(tokens, data.spec.special, 0.5, jax.random.key(HELD_OUT_MASKS), rows_)
        labels.extend(np.asarray(chosen.labels)[batch["valid"]][np.asarray(chosen.counted)[batch["valid"]]])
    return figures, np.array(labels)


def test_scores_stand_beside_the_unigram_model_s(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(["aaa b", "aa bb a", "aaaa c"] * 60))
    data = SentencePairs(path=str(tmp_path / "a.txt"), tokenizer="characters").open(length=12, batch_size=8, seed=0)
    figures, labels = scored_with_labels(data)
    assert figures["masked_perplexity"] == pytest.approx(math.exp(1.5))
    assert data.frequencies.argmax() == data.spec.tokenizer.encode("a")[0]
    hits = labels == data.frequencies.argmax()
    assert figures["unigram_top1"] == pytest.approx(np.mean(hits))
    assert figures["masked_tokens"] == len(hits)
    assert figures["unigram_top5"] == 1.0
    assert figures["next_sentence_low"] < 0.75 < figures["next_sentence_high"]
    assert figures["next_sentence_pairs"] == sum(
        data.held_out_at(i)["valid"].sum() for i in range(data.held_out_batches)
    )


def test_of_equally_frequent_tokens_the_first_are_the_unigram_models(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(["aabcdefghiii jklm", "nopqr stuvwx", "yza iiii"] * 60))
    data = SentencePairs(path=str(tmp_path / "a.txt"), tokenizer="characters").open(length=12, batch_size=8, seed=0)
    frequencies = np.random.default_rng(1).integers(0, 3, data.spec.vocab_size)  # an unstable sort ranks others first
    data.__dict__["frequencies"] = frequencies
    ranked = sorted(range(len(frequencies)), key=lambda i: (-frequencies[i], i))
    figures, labels = scored_with_labels(data)
    for n in (1, 5):
        assert figures[f"unigram_top{n}"] == pytest.approx(np.isin(labels, ranked[:n]).mean())
    assert 0 < figures["unigram_top5"] < 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("layers", 0), ("heads", 3), ("context", 4), ("mask_share", 0.0), ("mask_share", 1.5), ("dropout", 1.0),
     ("attention_dropout", -0.1), ("mlp_width", -1), ("norm_epsilon", 0.0)],
)  # fmt: skip
def test_settings_that_make_no_network_are_named(field, value):
    with pytest.raises(UserError, match=str(value)):
        replace(BERT, **{field: value})


def test_ties_before_the_label_count_against_it():
    logits = jnp.array([[[2.0, 1.0, 2.0, 2.0, 3.0]] * 4]).reshape(1, 4, 5)
    # Best first: 4, then the ties 0, 2, 3 in their order, then 1.
    np.testing.assert_array_equal(ranks(logits, jnp.array([[0, 1, 3, 4]])), [[1, 4, 3, 0]])
