"""Blocks: hand-written gradients against plain forms, noise per row, rotary positions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gradients import assert_same_with_gradients, normal

from zoo.core.random import dropout
from zoo.nets.transformer import ACTIVATIONS, GATED, gelu
from zoo.nn.attend import Mask, additive_mask, attention_weights, weighted_sum
from zoo.nn.attention import Attention, rotary_angles, rotate
from zoo.nn.cpu.causal_attention import causal_attention, full_attention
from zoo.nn.dense import Dense, activated_matmul
from zoo.nn.embedding import Embedding
from zoo.nn.losses import cross_entropy
from zoo.nn.norm import LayerNorm, RMSNorm


def plain_layer_norm(x, scale):
    moved = x - x.mean(-1, keepdims=True)
    return moved / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale[None, None, :]


def plain_rms_norm(x, scale):
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale[None, None, :]


def plain_attention(q, k, v, mask):
    return weighted_sum(attention_weights(q, k, mask), v)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activated_product_equals_the_plain_one(name):
    activation = ACTIVATIONS[name]
    x, kernel = normal(0, 6, 8), normal(1, 4 if name in GATED else 8, 5)
    assert_same_with_gradients(
        jax.jit(partial(activated_matmul, activation, False)), lambda x, kernel: activation(x) @ kernel, x, kernel
    )


def test_gelu_is_the_exact_one():
    x = jnp.linspace(-6, 6, 101)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "plain"),
    [(LayerNorm(8, epsilon=1e-5, bias=False), plain_layer_norm), (RMSNorm(8, epsilon=1e-5), plain_rms_norm)],
)
def test_norms_equal_their_plain_forms(norm, plain):
    def fast(x, scale):
        return nnx.merge(nnx.graphdef(norm), {"scale": scale})(x)

    assert_same_with_gradients(jax.jit(fast), plain, 2 + 3 * normal(0, 2, 3, 8), normal(1, 8))


@pytest.mark.parametrize("length", [5, 128, 192, 256])
def test_causal_attention_equals_the_plain_form(length):
    q, k, v = (normal(i, 2, 3, length, 4) for i in range(3))
    visible = jnp.tril(jnp.ones((length, length), bool))[None] & (normal(4, 2, length, length) < 1)
    mask = additive_mask(visible | jnp.eye(length, dtype=bool)[None])
    assert_same_with_gradients(
        jax.jit(partial(causal_attention, mask=mask)), partial(plain_attention, mask=mask), q, k, v
    )


def test_full_attention_equals_the_plain_form():
    q, k, v = (normal(i, 2, 3, 128, 4) for i in range(3))
    plain = partial(plain_attention, mask=jnp.zeros((1, 128, 128)))
    assert_same_with_gradients(jax.jit(full_attention), plain, q, k, v)


def test_attention_to_a_source_of_another_length_equals_the_plain_form():
    q, k, v = normal(0, 2, 3, 70, 4), normal(1, 2, 3, 130, 4), normal(2, 2, 3, 130, 4)
    for mask in (additive_mask(normal(4, 2, 70, 130) < 1), additive_mask(normal(5, 2, 1, 130) < 1)):
        assert_same_with_gradients(
            jax.jit(partial(full_attention, mask=mask)), partial(plain_attention, mask=mask), q, k, v
        )


def test_attention_to_itself_as_a_source_is_self_attention():
    attention = Attention(8, 4, 2, bias=True, scale=0.5, out_scale=0.5, rate=0.0, rngs=nnx.Rngs(0))
    x, mask = normal(0, 2, 5, 8), Mask()
    np.testing.assert_allclose(attention(x, mask)[0], attention(x, mask, source=x)[0], atol=1e-6)


def test_causal_attention_computes_in_bfloat16():
    q, k, v = (normal(i, 1, 2, 8, 4) for i in range(3))
    mask = additive_mask(jnp.tril(jnp.ones((8, 8), bool))[None])
    low = causal_attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)), mask)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), plain_attention(q, k, v, mask), atol=0.05)


def test_query_heads_share_keys_in_order():
    q, k = normal(0, 1, 4, 3, 8), normal(1, 1, 2, 3, 8)
    mask = jnp.zeros((1, 3, 3))
    shared = attention_weights(q, k, mask)
    np.testing.assert_allclose(shared, attention_weights(q, jnp.repeat(k, 2, axis=1), mask), atol=1e-6)


def test_dropout_of_attention_weights_differs_by_row_but_not_by_batch():
    attention = Attention(8, 2, 2, bias=False, scale=0.5, out_scale=0.5, rate=0.5, rngs=nnx.Rngs(0))
    x, mask = jnp.broadcast_to(normal(0, 1, 4, 8), (3, 4, 8)), Mask()
    run = partial(attention, mask=mask, key=jax.random.key(1))
    together, _ = run(x, rows=jnp.array([5, 6, 7]))
    alone, _ = run(x[1:2], rows=jnp.array([6]))
    np.testing.assert_allclose(together[1:2], alone, atol=1e-6)
    assert not np.allclose(together[0], together[1], atol=1e-3)


def test_dropout_keeps_the_mean_and_does_nothing_in_evaluation():
    x = jnp.ones((4, 5000))
    dropped = dropout(x, 0.3, jax.random.key(0), jnp.arange(4))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.7)}
    np.testing.assert_allclose(dropped.mean(1), 1.0, atol=0.05)
    assert dropout(x, 0.3, None, None) is x


def test_rotary_scores_depend_on_distance_alone():
    q, k = normal(0, 1, 1, 1, 8), normal(1, 1, 1, 1, 8)

    def score(query_position, key_position):
        turned = [
            rotate(x, rotary_angles(jnp.array([[p]]), 8, 100.0)) for x, p in ((q, query_position), (k, key_position))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(7, 3) == pytest.approx(score(14, 10), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-2)


def test_dense_and_embedding_start_at_their_scale():
    dense = Dense(300, 200, bias=True, scale=0.02, rngs=nnx.Rngs(0))
    assert float(dense.kernel[...].std()) == pytest.approx(0.02, rel=0.02)
    assert not dense.bias[...].any()
    assert float(Embedding(300, 200, scale=0.02, rngs=nnx.Rngs(0)).table[...].std()) == pytest.approx(0.02, rel=0.02)


def test_cross_entropy_is_minus_log_softmax_in_float32():
    logits, targets = 5 * normal(0, 2, 3, 7), jnp.array([[0, 6, 3], [1, 1, 2]])
    expected = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(targets)[..., None], -1)[..., 0]
    np.testing.assert_allclose(cross_entropy(logits, targets), expected, atol=1e-5)
    assert cross_entropy(logits.astype(jnp.bfloat16), targets).dtype == jnp.float32
