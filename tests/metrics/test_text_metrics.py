"""Metrics of texts: those of the reference packages on awkward inputs, and figures worked out by hand."""

import math
import random
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import nltk
import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from zoo.core.artifacts import Text
from zoo.core.data import DataSet
from zoo.core.errors import UserError
from zoo.core.family import Family, Model
from zoo.metrics.text import (
    bleu,
    distinct_n,
    edit_distance,
    error_rate,
    exact_match,
    likelihood_statistics,
    perplexity,
    rouge,
    self_bleu,
)
from zoo.metrics.tokens import TokenScoring, UnmaskScoring, score_language_model
from zoo.sampling.tokens.request import TokenRequest
from zoo.sampling.tokens.unmask_request import UnmaskRequest

# (text, its references): ordinary, empty on either side, one word, repeated words, other scripts, marks, line ends.
AWKWARD = [
    ("the cat sat on the mat.", ["the cat is on the mat.", "there is a cat on the mat."]),
    ("", ["something"]),
    ("something", [""]),
    ("word", ["word"]),
    ("the the the the the", ["the cat the cat", "the"]),
    ("我能吞下玻璃而不伤身体", ["我能吞下玻璃", "我吞下玻璃而不伤身体"]),
    ("ガラスを食べられます", ["私はガラスを食べられます"]),
    ("Ain't it so -- 3.5% more?\nYes!", ["ain't it so: 3,5 % more?\nYes."]),
]
TEXTS, REFERENCES = [text for text, _ in AWKWARD], [many for _, many in AWKWARD]


@pytest.mark.parametrize("tokenize", ["13a", "zh", "char", "none"])
def test_bleu_is_sacrebleu_s(tokenize):
    streams = [[many[min(i, len(many) - 1)] for many in REFERENCES] for i in range(2)]
    theirs = sacrebleu.corpus_bleu(TEXTS, streams, tokenize=tokenize)  # a reference twice changes nothing
    ours = bleu(TEXTS, REFERENCES, tokenize)
    assert ours["bleu"] == pytest.approx(theirs.score, abs=1e-9)
    assert f"tok:{tokenize}" in ours["bleu_signature"]
    assert "nrefs:var" in ours["bleu_signature"]
    for text, many in AWKWARD:
        theirs = sacrebleu.corpus_bleu([text], [[reference] for reference in many], tokenize=tokenize)
        assert bleu([text], [many], tokenize)["bleu"] == pytest.approx(theirs.score, abs=1e-9)


def test_bleu_of_chinese_needs_its_own_words():
    text, many = AWKWARD[5]
    assert bleu([text], [many])["bleu"] < 1 < bleu([text], [many], "zh")["bleu"]


def test_rouge_is_rouge_score_s():
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds)
    ours = rouge(TEXTS, REFERENCES)
    for kind in kinds:
        theirs = [max(scorer.score(reference, text)[kind].fmeasure for reference in many) for text, many in AWKWARD]
        assert ours[kind] == pytest.approx(np.mean(theirs), abs=1e-12)
    assert rouge(["word"], [["other", "word"]])["rouge1"] == 1.0
    assert rouge([""], [[""]])["rouge1"] == 0.0


def test_rouge_of_chinese_needs_its_own_words():
    text, many = AWKWARD[5]
    assert rouge([text], [many])["rougeL"] == 0.0
    figures = rouge([text], [many], "zh")
    assert figures["rougeL"] == pytest.approx(20 / 21)  # 10 of 11 characters, and 10 of 10
    assert figures["rouge_words"] == "zh"


def test_edit_distance_is_nltk_s():
    draw = random.Random(0)
    for _ in range(100):
        a, b = ("".join(draw.choices("abc", k=draw.randrange(7))) for _ in range(2))
        assert edit_distance(a, b) == nltk.edit_distance(a, b)


def test_error_rate_is_to_the_nearest_reference_and_summed_before_divided():
    rows = [["K", "AE", "T"], ["D", "AO", "G"], []]
    references = [[["K", "AH", "T"], ["K", "AE", "T", "S"]], [["D", "AO", "G"], ["D"]], [["AH"]]]
    assert error_rate(rows, references) == pytest.approx((1 + 0 + 1) / (3 + 3 + 1))
    assert error_rate([["a", "b", "c"]], [[["x"]]]) == 3.0
    assert error_rate(["kitten"], [["sitting"]]) == pytest.approx(3 / 7)
    assert error_rate([[]], [[[]]]) == 0.0
    assert exact_match(rows, references) == pytest.approx(1 / 3)
    assert exact_match(TEXTS, REFERENCES) == pytest.approx(1 / len(TEXTS))


def test_variety():
    assert distinct_n(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 6)  # of tokens, as in Li et al. 2016
    assert distinct_n(["", "one"], 2) == 0.0
    assert distinct_n(["我我能"], 1) == 1.0
    assert distinct_n(["我我能"], 1, "zh") == pytest.approx(2 / 3)
    assert self_bleu(["so it goes on and on"] * 3) == pytest.approx(100.0)
    assert self_bleu(["one two three four", "five six seven eight"]) == 0.0
    different = self_bleu(["so it goes on and on", "so it went on and off", ""])
    by_hand = [
        sacrebleu.sentence_bleu("so it goes on and on", ["so it went on and off", ""]).score,
        sacrebleu.sentence_bleu("so it went on and off", ["so it goes on and on", ""]).score,
        0.0,
    ]
    assert 0 < different == pytest.approx(np.mean(by_hand))


def test_a_byte_s_bits_do_not_depend_on_the_tokenizer():
    """The same probability of the same text, told in 4 tokens and in 2: perplexity differs, bits a byte do not."""
    lengths = {"characters": jnp.array([4]), "bytes": jnp.array([6])}
    fine, coarse = (likelihood_statistics(jnp.array([12.0]), jnp.array([n]), lengths) for n in (4.0, 2.0))
    for name, per in (("bits_per_byte", 6), ("bits_per_character", 4)):
        for figures in (fine, coarse):
            total, weight = figures[name]
            assert float(total[0] / weight[0]) == pytest.approx(12.0 / math.log(2) / per)
    assert perplexity(float(fine["loss"][0][0] / fine["loss"][1][0])) == pytest.approx(math.exp(3))
    assert perplexity(float(coarse["loss"][0][0] / coarse["loss"][1][0])) == pytest.approx(math.exp(6))
    assert math.isfinite(perplexity(1e6))


@dataclass(frozen=True)
class Parrot(Family):
    """Says its texts over and over."""

    texts: tuple[str, ...] = ()

    Request: ClassVar[type] = TokenRequest

    def init(self, spec, setup, key):
        raise NotImplementedError

    step = evaluate = init

    def sample(self, model, request, key):
        return [Text(self.texts[i % len(self.texts)][: request.max_new_tokens]) for i in range(request.n)]


class Nothing(DataSet):
    """No held-out rows."""

    held_out_batches = 0

    def batch_at(self, step, rows=slice(None)):
        raise NotImplementedError

    held_out_at = batch_at


def test_samples_are_scored_where_they_are_asked_for():
    model = Model(Parrot(("so it goes on and on", "and on and on it goes")), None, None, 0)
    key = jax.random.key(0)
    assert score_language_model(model, {"loss": 2.0}, Nothing(), TokenScoring(), key) == {"perplexity": math.exp(2.0)}
    figures = score_language_model(model, {"loss": 2.0}, Nothing(), TokenScoring(samples=4), key)
    assert figures["distinct_1"] == pytest.approx(5 / 24)
    assert figures["self_bleu"] == pytest.approx(100.0)
    assert (figures["samples"], figures["sample_tokens"]) == (4, 300)
    assert score_language_model(model, {"loss": 2.0}, Nothing(), TokenScoring(2, sample_tokens=5), key)[
        "distinct_1"
    ] == pytest.approx(4 / 4)


@dataclass(frozen=True)
class Unmasker(Parrot):
    """Says how it was asked."""

    Request: ClassVar[type] = UnmaskRequest

    def sample(self, model, request, key):
        return [Text(f"{request.sampler} {request.steps} {i}") for i in range(request.n)]


def test_samples_are_made_by_the_sampler_that_is_recorded():
    scoring = UnmaskScoring(samples=4, sampler="confidence", steps=7)
    figures = score_language_model(
        Model(Unmasker(), None, None, 0), {"loss": 2.0}, Nothing(), scoring, jax.random.key(0)
    )
    assert figures["distinct_1"] == pytest.approx(6 / 12), "confidence, 7 and four numbers, in twelve words"
    assert (figures["sampler"], figures["steps"]) == ("confidence", 7)


def test_one_sample_has_nothing_to_be_compared_with():
    with pytest.raises(UserError, match="samples is 1"):
        TokenScoring(samples=1)
