"""The recurrent language model: its carry, what a loss depends on, and sampling from states instead of a window."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import no_compilation
from flax import nnx
from token_cases import prompts_of, write

from zoo.core.errors import UserError
from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.specs import BlockSpec
from zoo.data.tokenizers import Characters
from zoo.harness.trained import inference_state
from zoo.lstm_lm import LSTMLM, RecurrentLM
from zoo.sampling.tokens.beam import beam_search
from zoo.sampling.tokens.request import TokenRequest

VOCAB, END = 12, 11
LSTM = LSTMLM(layers=2, width=16, embedding=8, context=8)
FAMILIES = pytest.mark.parametrize("family", [LSTM, replace(LSTM, cell="gru", tied=True)], ids=["lstm", "gru-tied"])
LETTERS = Characters("abcdefghijk")


def make_net(family=LSTM, scale=3.0):
    """A network with weights `scale` times their usual start, so that its texts vary."""
    graphdef, params = nnx.split(RecurrentLM(family, VOCAB, END, nnx.Rngs(0)))
    return nnx.merge(graphdef, jax.tree.map(lambda x: x * scale if x.ndim > 1 else x, params))


def tokens(seed, *shape):
    return jax.random.randint(jax.random.key(seed), shape, 0, END)


def make_batch(net, x, length=None, carry=None, continues=False):
    rows = jnp.arange(x.shape[0])
    length = jnp.full(x.shape[0], x.shape[1]) if length is None else jnp.asarray(length)
    carry = net.init_carry(x.shape[0]) if carry is None else carry
    flags = {"valid": rows >= 0, "continues": jnp.full(x.shape[0], continues)}
    return {"tokens": x, "length": length, "row": rows, "carry": carry} | flags


@pytest.fixture
def training():
    """A state at its start with SGD, and its step."""
    setup = Setup(Optimizer("sgd", 0.0, schedule="constant", momentum=0.0), total_steps=10, batch_size=3)
    state = LSTM.init(BlockSpec(LETTERS), setup, jax.random.key(0))
    step = jax.jit(lambda state, batch: LSTM.step(state, batch, jnp.int32(0), jax.random.key(0)))
    return state, step


def batch_without_carry(x, continues):
    batch = make_batch(make_net(), x, continues=continues)
    return {name: value for name, value in batch.items() if name != "carry"}


def test_a_row_goes_on_from_where_it_ended(training):
    """Two steps on the halves of a text have the loss of the whole; SGD of rate 0 leaves the weights alone."""
    state, step = training
    x = tokens(0, 3, 17)
    net = state.net.net()
    whole, count, _ = LSTM.loss(net, make_batch(net, x), None)
    state, first = step(state, batch_without_carry(x[:, :9], continues=False))
    after, second = step(state, batch_without_carry(x[:, 8:], continues=True))
    assert (first["loss"] + second["loss"]) / 2 == pytest.approx(float(whole / count), rel=1e-5)
    _, anew = step(state, batch_without_carry(x[:, 8:], continues=False))
    assert anew["loss"] != pytest.approx(float(second["loss"]), rel=1e-5)
    # Each row for itself.
    mixed = batch_without_carry(x[:, 8:], continues=True) | {"continues": jnp.array([True, False, True])}
    carry = step(state, mixed)[0].carry.value[1][0]
    np.testing.assert_allclose(carry[::2], after.carry.value[1][0][::2], atol=1e-6)
    assert not np.allclose(carry[1], after.carry.value[1][0][1], atol=1e-4)


def test_held_out_windows_start_from_zeros(training):
    state, step = training
    x = tokens(0, 3, 9)
    batch = batch_without_carry(x, continues=True) | {"characters": jnp.full(3, 8), "bytes": jnp.full(3, 8)}
    before = LSTM.evaluate(state, batch, jax.random.key(0))["loss"]
    state, _ = step(state, batch_without_carry(x, continues=True))
    assert np.abs(state.carry.value[0][0]).max() > 0
    jax.tree.map(np.testing.assert_array_equal, LSTM.evaluate(state, batch, jax.random.key(0))["loss"], before)


@FAMILIES
def test_a_prediction_depends_on_what_came_before_and_on_nothing_later(family):
    net, x = make_net(family), tokens(0, 1, 12)
    graphdef, params = nnx.split(net)

    def logit(moved):
        inside = nnx.merge(graphdef, params)
        y, _ = inside.recurrent(inside.embedding(x) + moved, inside.init_carry(1))
        return inside._logits(inside._to_head(y))[0, 6, 3]

    influence = jnp.linalg.norm(jax.jit(jax.grad(logit))(jnp.zeros((1, 12, 8)))[0], axis=-1)
    assert (influence[:7] > 1e-6).all()
    assert (influence[7:] == 0).all()


@FAMILIES
def test_padding_never_changes_a_loss(family):
    net, x = make_net(family), tokens(0, 2, 13)
    loss = jax.jit(lambda batch: family.loss(net, batch, None)[:2])
    total, weight = loss(make_batch(net, x, [8, 13]))
    assert weight == 7 + 12
    assert total == pytest.approx(float(loss(make_batch(net, x.at[0, 8:].set(END), [8, 13]))[0]), rel=1e-5)
    alone = [loss(make_batch(net, jnp.broadcast_to(row, (2, 13)), [n, 0]))[0] for row, n in ((x[0], 8), (x[1], 13))]
    assert total == pytest.approx(float(sum(alone)), rel=1e-5)


@FAMILIES
def test_reading_on_equals_the_full_forward(family):
    """Rows of 9, 7 and 4 tokens behind padding: five slots at once, the rest one by one."""
    net, lengths, slots = make_net(family), (9, 7, 4), 9
    prompts = [tokens(i, 1, n) for i, n in enumerate(lengths)]
    padded = jnp.concatenate([jnp.pad(p, ((0, 0), (slots - p.shape[1], 0)), constant_values=5) for p in prompts])
    start = slots - jnp.array(lengths)
    full = [net(prompt, net.init_carry(1))[0][0] for prompt in prompts]
    extend = jax.jit(lambda x, cache, slot: net.extend(x, cache, slot, start))
    logits, cache = extend(padded[:, :5], net.init_cache(3, 12), 0)
    for slot in range(5, slots + 1):
        for row, first in enumerate(start.tolist()):
            if slot > first:
                np.testing.assert_allclose(logits[row], full[row][slot - first - 1], atol=2e-5)
        if slot < slots:
            logits, cache = extend(padded[:, slot : slot + 1], cache, slot)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(cache))


def test_texts_are_written_past_any_context():
    """Greedy texts are those of the whole text read at once, however long; other prompts compile nothing."""
    net = make_net()
    net.end_of_text = -1
    prompts = prompts_of((1, 3, 40))
    texts = write(net, prompts, tokens=50, context=None)
    for prompt, text in zip(prompts, texts, strict=True):
        whole = jnp.asarray(np.concatenate([prompt, text]))[None, :-1]
        logits, _ = net(whole, net.init_carry(1))
        np.testing.assert_array_equal(logits[0, len(prompt) - 1 :].argmax(-1), text)
    with no_compilation():
        write(net, prompts_of((7, 2, 33)), tokens=71, context=None)


def test_a_batch_of_prompts_is_each_alone():
    net, prompts = make_net(), prompts_of((1, 3, 40, 7))
    request = TokenRequest(temperature=1.0, top_p=0.9, repetition_penalty=1.1)
    together = write(net, prompts, request=request, tokens=30, context=None)
    assert len({tuple(text) for text in together}) == 4
    for row, prompt in enumerate(prompts[:2]):
        assert write(net, [prompt], request=request, rows=[row], tokens=30, context=None) == [together[row]]


def test_beams_carry_their_own_states():
    net, prompts = make_net(), prompts_of((1, 3, 9))
    settings = {"max_new_tokens": 8, "end_of_text": END}
    greedy = write(net, prompts, tokens=8, context=None)
    assert [tokens.tolist() for ((tokens, _),) in beam_search(net, prompts, num_beams=1, **settings)] == greedy
    for prompt, found in zip(prompts, beam_search(net, prompts, num_beams=4, **settings), strict=True):
        for text, score in found:
            whole = jnp.asarray(np.concatenate([prompt, text]))[None]
            log_probs = jax.nn.log_softmax(net(whole[:, :-1], net.init_carry(1))[0][0])
            expected = log_probs[jnp.arange(len(prompt) - 1, whole.shape[1] - 1), text].mean()
            np.testing.assert_allclose(score, expected, rtol=1e-4)


def test_it_takes_the_transformers_flags(training):
    state, _ = training
    model = Model(LSTM, BlockSpec(LETTERS), inference_state(state), 0)
    ask = {"n": 2, "prompt": "abc", "max_new_tokens": 12}
    greedy = LSTM.sample(model, TokenRequest(**ask, temperature=0.0), jax.random.key(0))
    first = LSTM.sample(model, TokenRequest(**ask, top_k=1), jax.random.key(1))
    assert [text.text for text in greedy] == [text.text for text in first]
    assert all(text.text.startswith("abc") for text in greedy)
    drawn = LSTM.sample(model, TokenRequest(**ask), jax.random.key(0))
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("width", [8, 16])
def test_a_tied_head_is_the_embedding(width):
    net = make_net(replace(LSTM, width=width, tied=True))
    assert (net.head is None) == (width == 8)
    x = jax.random.normal(jax.random.key(0), (1, 1, width))
    vector = x if net.head is None else x @ net.head.kernel[...]
    np.testing.assert_allclose(net._logits(net._to_head(x))[0, 0], net.embedding.table[...] @ vector[0, 0], atol=1e-4)


def test_it_starts_near_the_uniform_loss():
    net = RecurrentLM(replace(LSTM, width=64), VOCAB, END, nnx.Rngs(0))
    total, weight, _ = LSTM.loss(net, make_batch(net, tokens(0, 8, 17)), None)
    assert total / weight == pytest.approx(math.log(VOCAB), abs=0.15)


@pytest.mark.parametrize(
    ("field", "value"), [("layers", 0), ("width", 0), ("embedding", -1), ("context", 0), ("dropout", 1.0)]
)
def test_settings_that_make_no_network_are_named(field, value):
    with pytest.raises(UserError, match=str(value)):
        replace(LSTM, **{field: value})
