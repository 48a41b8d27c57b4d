"""Sequence to sequence: beams, greedy search and alignments."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seq2seq_cases import FAMILIES, LENGTH, NETWORKS, SPEC, log_probability, make_batch, make_net

from zoo.data.specs import PairSpec
from zoo.data.tokenizers import Characters
from zoo.sampling.tokens.translation import pad, translate


def sources_of(lengths):
    draw = np.random.default_rng(5)
    end = SPEC.source.end_of_text
    return [np.append(draw.integers(0, 10, n), end).astype(np.int32) for n in lengths]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["luong", "bahdanau-gru", "transformer"])
def test_a_beam_as_wide_as_the_tree_finds_the_optimum(name):
    steps, spec = 3, PairSpec(SPEC.source, Characters("PQ"))
    family = replace(FAMILIES[name], context=steps)
    net, (source,) = make_net(family, spec), sources_of([2])
    end, symbols = spec.target.end_of_text, spec.target.vocab_size
    texts = [
        text
        for n in range(1, steps + 1)
        for text in itertools.product(range(symbols), repeat=n)
        if end not in text[:-1] and (text[-1] == end or n == steps)
    ]
    tokens, lengths = pad(spec.source, [source], 1, steps)
    memory = net.encode(jnp.asarray(tokens), jnp.arange(steps)[None] < lengths[:, None])
    wide = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(texts), *x.shape[1:])), memory)
    read = jnp.array([[end, *text[:-1], *[end] * (steps - len(text))] for text in texts], jnp.int32)
    log_probs = np.asarray(jax.nn.log_softmax(net.decode(read, wide)))
    scores = {text: sum(log_probs[i, t, symbol] for t, symbol in enumerate(text)) for i, text in enumerate(texts)}
    best = sorted(texts, key=lambda text: -scores[text])[:8]
    (found,) = translate(net, spec, [source], length=steps, num_beams=symbols**steps)
    assert [tuple(target.tokens.tolist()) for target in found[:8]] == best
    np.testing.assert_allclose([target.score for target in found[:8]], [scores[text] for text in best], rtol=1e-4)


@pytest.mark.parametrize("name", ["transformer", pytest.param("luong", marks=pytest.mark.slow)])
def test_one_beam_is_greedy_and_sources_side_by_side_are_each_alone(name):
    net, sources = make_net(FAMILIES[name]), sources_of((1, 7, 3, 5, 2))
    alone = [translate(net, SPEC, [source], length=LENGTH, num_beams=3)[0] for source in sources]
    together = translate(net, SPEC, sources, length=LENGTH, num_beams=3)
    for one, many in zip(alone, together, strict=True):
        assert [target.text for target in one] == [target.text for target in many]
        np.testing.assert_allclose([t.score for t in one], [t.score for t in many], rtol=1e-4, atol=1e-5)
    for source, found in zip(sources[:2], together, strict=False):
        for target in found:
            expected = log_probability(net, source, target.tokens)
            np.testing.assert_allclose(target.score, expected, rtol=1e-4, atol=1e-5)
    greedy = translate(net, SPEC, sources, length=LENGTH, num_beams=1)
    assert len({found[0].text for found in greedy}) > 1
    tokens, lengths = pad(SPEC.source, sources, len(sources), LENGTH)
    memory = net.encode(jnp.asarray(tokens), jnp.arange(LENGTH)[None] < lengths[:, None])
    decode = jax.jit(net.decode)
    written = np.full((len(sources), LENGTH + 1), SPEC.target.end_of_text, np.int32)
    for t in range(LENGTH):
        written[:, t + 1] = decode(jnp.asarray(written[:, :-1]), memory)[:, t].argmax(-1)
    for row, (found,) in enumerate(greedy):
        assert found.tokens.tolist() == written[row, 1 : len(found.tokens) + 1].tolist()


@pytest.mark.slow
@NETWORKS
def test_an_alignment_is_a_distribution_over_the_real_source(name):
    net, batch = make_net(FAMILIES[name]), make_batch()
    real = jnp.arange(LENGTH)[None] < batch["source_length"][:, None]
    weights = np.asarray(net.alignment(batch["target"][:, :-1], net.encode(batch["source"], real)))
    assert weights.shape == (4, LENGTH, LENGTH)
    assert (weights[~np.broadcast_to(np.asarray(real)[:, None], weights.shape)] == 0).all()
    np.testing.assert_allclose(weights.sum(-1), name != "none", atol=1e-5)
