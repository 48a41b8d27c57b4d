"""Beam search: transformers' results on kept references, and what must hold of any beam search."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import no_compilation
from paths import REFERENCES
from token_cases import END, LENGTHS, make_net, prompts_of, write
from transformers_cases import MODELS, load_reference

from zoo.sampling.tokens.beam import beam_search

CASES = len(json.loads((REFERENCES / "gpt2" / "expected.json").read_text())["beam"])


@pytest.mark.slow
@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.parametrize("model", MODELS)
def test_transformers_finds_the_same(model, case):
    reference = load_reference(REFERENCES / model)
    expected = reference.lists["beam"][case]
    found = beam_search(
        reference.net,
        [np.array(prompt) for prompt in expected["prompts"]],
        num_beams=expected["num_beams"],
        max_new_tokens=expected["new_tokens"],
        end_of_text=expected["end"],
        length_penalty=expected["length_penalty"],
        early_stopping=expected["early_stopping"],
        context=reference.family.context,
    )
    for hypotheses, texts, scores in zip(found, expected["found"], expected["scores"], strict=True):
        assert [tokens.tolist() for tokens, _ in hypotheses][: len(texts)] == texts
        # rtol: a sum of log-probabilities in float32, which processors round differently.
        np.testing.assert_allclose([score for _, score in hypotheses][: len(scores)], scores, rtol=2e-6, atol=1e-4)


def log_probability(net, prompt, continuation) -> float:
    """log P(continuation | prompt), by one look at the whole text."""
    tokens = np.concatenate([prompt, continuation])[None]
    logits = jax.jit(net.__call__)(jnp.asarray(tokens, jnp.int32))[0]
    log_probs = jax.nn.log_softmax(logits)[len(prompt) - 1 : -1]
    return float(log_probs[np.arange(len(continuation)), continuation].sum())


@pytest.mark.slow
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_scores_are_log_probabilities(length_penalty):
    net = make_net()
    found = beam_search(
        net, prompts_of(LENGTHS), num_beams=3, max_new_tokens=6, end_of_text=END, length_penalty=length_penalty
    )
    for prompt, hypotheses in zip(prompts_of(LENGTHS), found, strict=True):
        scores = [score for _, score in hypotheses]
        assert scores == sorted(scores, reverse=True)
        for tokens, score in hypotheses:
            expected = log_probability(net, prompt, tokens) / len(tokens) ** length_penalty
            np.testing.assert_allclose(score, expected, rtol=1e-4)


def test_a_beam_as_wide_as_the_tree_finds_the_optimum():
    vocab, steps, end = 4, 3, 3
    net = make_net(vocab=vocab, context=8)
    prompt = np.array([1, 2])
    texts = [
        text
        for n in range(1, steps + 1)
        for text in itertools.product(range(vocab), repeat=n)
        if end not in text[:-1] and (text[-1] == end or n == steps)
    ]
    scores = {text: log_probability(net, prompt, np.array(text)) / len(text) for text in texts}
    best = sorted(texts, key=lambda text: -scores[text])[:10]
    (found,) = beam_search(
        net, [prompt], num_beams=vocab**steps, max_new_tokens=steps, end_of_text=end, early_stopping="never"
    )
    assert [tuple(tokens.tolist()) for tokens, _ in found[:10]] == best


def test_one_beam_is_greedy():
    net, prompts = make_net(), prompts_of(LENGTHS)
    greedy = write(net, prompts, tokens=12)
    beams = beam_search(net, prompts, num_beams=1, max_new_tokens=12, end_of_text=END)
    assert [tokens.tolist() for ((tokens, _),) in beams] == greedy


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_a_batch_of_prompts_is_each_alone(early_stopping):
    net = make_net()
    settings = {"num_beams": 3, "max_new_tokens": 10, "end_of_text": END, "early_stopping": early_stopping}
    together = beam_search(net, prompts_of(LENGTHS), **settings)
    for prompt, hypotheses in zip(prompts_of(LENGTHS), together, strict=True):
        (alone,) = beam_search(net, [prompt], **settings)
        assert [tokens.tolist() for tokens, _ in alone] == [tokens.tolist() for tokens, _ in hypotheses]
        np.testing.assert_allclose([s for _, s in alone], [s for _, s in hypotheses], rtol=1e-4)


def test_other_settings_compile_nothing():
    net = make_net()
    beam_search(net, [np.array([1, 2])], num_beams=3, max_new_tokens=6, end_of_text=END)
    with no_compilation():
        beam_search(
            net,
            [np.arange(9) % 5],
            num_beams=3,
            max_new_tokens=9,
            end_of_text=2,
            length_penalty=0.5,
            early_stopping="never",
        )
