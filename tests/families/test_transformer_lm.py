"""The Transformer language model: causality, loss, documents, cached decoding, initialisation."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.core.errors import UserError
from zoo.nn.losses import counted
from zoo.transformer_lm import Transformer, TransformerLM, document_numbers

VOCAB, END = 11, 0
GPT2 = TransformerLM(layers=2, heads=4, width=32, context=16, mlp="gelu_tanh", bias=True)
LLAMA = replace(GPT2, kv_heads=2, positions="rope", norm="rmsnorm", mlp="swiglu", bias=False, tied=False)
SHAPES = pytest.mark.parametrize("family", [GPT2, LLAMA], ids=["gpt2", "llama"])


def make_net(family, scale=10.0):
    """A network with weights `scale` times their usual start, so that every path matters."""
    graphdef, params = nnx.split(Transformer(family, VOCAB, END, nnx.Rngs(0)))
    return nnx.merge(graphdef, jax.tree.map(lambda x: x * scale if x.ndim > 1 else x, params))


def tokens(seed, *shape):
    """Random tokens without end-of-text."""
    return jax.random.randint(jax.random.key(seed), shape, 1, VOCAB)


class Given(nnx.Module):
    """Stands for an embedding whose vectors are already known."""

    def __init__(self, embedding, vectors):
        self.embedding, self.vectors = embedding, vectors

    def __call__(self, symbols):
        return self.vectors

    def logits(self, x, first=None):
        return self.embedding.logits(x, first)


def influence(net, x, target):
    """How much each position's embedding moves the log probability of one target: gradient norms [t]."""

    graphdef, params = nnx.split(net)

    def log_probability(vectors):
        inside = nnx.merge(graphdef, params)
        inside.embedding = Given(inside.embedding, vectors)
        return jax.nn.log_softmax(inside(x)[0, target])[3]

    return np.asarray(jnp.linalg.norm(jax.grad(log_probability)(net.embedding(x))[0], axis=-1))


def make_batch(x, length=None):
    rows = jnp.arange(x.shape[0])
    length = jnp.full(x.shape[0], x.shape[1]) if length is None else jnp.asarray(length)
    return {"tokens": x, "length": length, "row": rows, "valid": rows >= 0}


@SHAPES
def test_a_prediction_depends_on_what_came_before_and_on_nothing_later(family):
    moved = influence(make_net(family), tokens(0, 1, 12), target=6)
    assert (moved[:7] > 1e-6).all()
    assert (moved[7:] == 0).all()


def test_attention_across_documents_is_blocked_only_when_asked():
    x = tokens(0, 1, 12).at[0, 4:6].set(END)
    assert (influence(make_net(GPT2), x, target=9)[:5] > 1e-6).all()
    moved = influence(make_net(replace(GPT2, document_mask=True)), x, target=9)
    assert (moved[:5] == 0).all()
    assert (moved[5:10] > 1e-6).all()


@SHAPES
def test_padding_never_changes_a_loss(family):
    net, x = make_net(family), tokens(0, 2, 13)
    total, weight, _ = family.loss(net, make_batch(x, [8, 13]), None)
    assert weight == 7 + 12
    other, _, _ = family.loss(net, make_batch(x.at[0, 8:].set(END), [8, 13]), None)
    assert total == pytest.approx(float(other), abs=1e-4)
    alone = sum(family.loss(net, make_batch(row[None, :n]), None)[0] for row, n in ((x[0], 8), (x[1], 13)))
    assert total == pytest.approx(float(alone), abs=1e-3)


def test_the_loss_is_minus_the_log_probability_of_the_next_tokens():
    net, x = make_net(GPT2), tokens(1, 1, 6)
    log_probability = np.asarray(jax.nn.log_softmax(net(x[:, :-1])[0]))
    by_hand = -sum(log_probability[t, x[0, t + 1]] for t in range(5))
    assert GPT2.loss(net, make_batch(x), None)[0] == pytest.approx(float(by_hand), abs=1e-4)


def test_a_document_boundary_carries_no_loss():
    x = jnp.array([[END, 3, 4, END, END, 5, END]])
    batch = make_batch(x)
    np.testing.assert_array_equal(counted(batch, END)[0], [True, True, True, False, True, True])
    np.testing.assert_array_equal(document_numbers(x, END)[0], [0, 0, 0, 0, 1, 1, 1])
    assert GPT2.loss(make_net(GPT2), batch, None)[1] == 5


@pytest.mark.parametrize(
    "family", [GPT2, LLAMA, replace(GPT2, document_mask=True)], ids=["gpt2", "llama", "document_mask"]
)
def test_cached_decoding_equals_the_full_forward(family):
    """Rows of 9, 7 and 4 tokens, left-padded: five slots at once, the rest one by one."""
    net, lengths, slots = make_net(family), (9, 7, 4), 9
    prompts = [tokens(i, 1, n).at[0, 1:3].set(END) for i, n in enumerate(lengths)]
    padded = jnp.concatenate([jnp.pad(p, ((0, 0), (slots - p.shape[1], 0)), constant_values=5) for p in prompts])
    start = slots - jnp.array(lengths)
    full = [jax.jit(lambda x: net(x))(prompt)[0] for prompt in prompts]
    extend = jax.jit(lambda x, cache, slot: net.extend(x, cache, slot, start))
    logits, cache = extend(padded[:, :5], net.init_cache(3, 12), 0)
    for slot in range(5, slots + 1):
        for row, first in enumerate(start.tolist()):
            if slot > first:
                np.testing.assert_allclose(logits[row], full[row][slot - first - 1], atol=2e-5)
        if slot < slots:
            logits, cache = extend(padded[:, slot : slot + 1], cache, slot)


def test_every_array_of_a_cache_leads_with_the_row():
    cache = make_net(LLAMA).init_cache(3, 5)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(cache))


def test_dropout_noise_is_a_row_s_own():
    family = replace(GPT2, dropout=0.3)
    net, x, key = make_net(family), tokens(0, 4, 8), jax.random.key(1)
    noisy = jax.jit(lambda x, rows: net(x, key=key, rows=rows))
    whole = noisy(x, jnp.arange(4))
    parts = [noisy(x[i : i + 2], jnp.arange(i, i + 2)) for i in (0, 2)]
    np.testing.assert_allclose(whole, jnp.concatenate(parts), atol=1e-5)
    same = noisy(jnp.broadcast_to(x[:1], (2, 8)), jnp.arange(2))
    assert not np.allclose(same[0], same[1], atol=1e-2)
    assert not np.allclose(whole, net(x), atol=1e-2)


def test_attention_weights_are_those_of_the_forward_pass():
    weights = make_net(GPT2).attention_weights(tokens(0, 2, 6))
    assert weights.shape == (2, 2, 4, 6, 6)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
    assert not np.triu(np.asarray(weights), 1).any()


@SHAPES
def test_it_starts_at_the_uniform_loss_with_gpt2_s_scales(family):
    family = replace(family, layers=8, width=64)
    net = make_net(family, scale=1.0)
    total, weight, _ = family.loss(net, make_batch(tokens(0, 8, 17)), None)
    assert total / weight == pytest.approx(math.log(VOCAB), abs=0.05)
    block = net.blocks[3]
    assert float(block.mlp.up.kernel[...].std()) == pytest.approx(0.02, rel=0.05)
    for kernel in (block.attention.out.kernel, block.mlp.down.kernel):
        assert float(kernel[...].std()) == pytest.approx(0.02 / 4, rel=0.05)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", 0),
        ("heads", 3),
        ("heads", 0),
        ("kv_heads", 3),
        ("kv_heads", -1),
        ("width", 30),
        ("context", 0),
        ("dropout", 1.0),
        ("mlp_width", -4),
        ("rope_theta", 0.0),
        ("norm_epsilon", 0.0),
    ],
)
def test_settings_that_make_no_network_are_named(field, value):
    with pytest.raises(UserError, match=str(value)):
        replace(GPT2, **{field: value})


def test_rotary_positions_need_even_heads():
    with pytest.raises(UserError, match="even"):
        TransformerLM(width=12, heads=4, positions="rope")


def test_the_mlp_is_as_wide_as_its_paper_has_it():
    assert TransformerLM(width=128).hidden == 512
    assert TransformerLM(width=128, mlp="swiglu").hidden == 344
    assert TransformerLM(width=128, mlp_width=100).hidden == 100
