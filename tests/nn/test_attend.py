"""Attention's programs against the textbook form: cuDNN's path by JAX's own implementation, and chunks of queries."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradients import assert_same_with_gradients, normal

from zoo.core.random import row_keys
from zoo.nn.attend import (
    Mask,
    attend,
    attention_weights,
    chunked_attention,
    cudnn_serves,
    fused_attention,
    weighted_sum,
)

LENGTHS = jnp.array([3, 13], jnp.int32)
MASKS = {
    "nothing": Mask(),
    "causal": Mask(causal=True),
    "lengths": Mask(lengths=LENGTHS),
    "both": Mask(causal=True, lengths=LENGTHS),
}
VISIBLE = jnp.asarray(np.random.default_rng(0).random((2, 13, 13)) < 0.5).at[:, :, 0].set(True)


def seen_by_hand(mask, b=2, t=13, s=13):
    """Key by key, as the mask's docstring says."""
    lengths, visible = (None if part is None else np.asarray(part) for part in (mask.lengths, mask.visible))
    seen = np.ones((b, t, s), bool)
    for row, query, key in np.ndindex(b, t, s):
        seen[row, query, key] = (
            (not mask.causal or key <= query)
            and (lengths is None or key < lengths[row])
            and (visible is None or bool(visible[row, query, key]))
        )
    return seen


def textbook(mask, q, k, v):
    """The form of the papers, written out with keys repeated for the heads that share them."""
    k, v = (jnp.repeat(z, q.shape[1] // z.shape[1], axis=1) for z in (k, v))
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5
    seen = jnp.asarray(seen_by_hand(mask))[:, None]
    weights = jnp.exp(scores) * seen
    return jnp.einsum("bhts,bhsd->bhtd", weights / weights.sum(-1, keepdims=True), v)


def qkv(heads=4, shared=2, features=8):
    return normal(0, 2, heads, 13, features), normal(1, 2, shared, 13, features), normal(2, 2, shared, 13, features)


@pytest.mark.parametrize("mask", [*MASKS.values(), Mask(causal=True, visible=VISIBLE)], ids=[*MASKS, "visible"])
@pytest.mark.parametrize("size", [4, 64])
def test_chunked_attention_is_the_textbook_form(mask, size):
    chunked = jax.jit(partial(chunked_attention, mask=mask, size=size))
    assert_same_with_gradients(chunked, partial(textbook, mask), *qkv())


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_the_path_of_cudnn_is_the_textbook_form(mask):
    fused = jax.jit(partial(fused_attention, mask=mask, implementation="xla"))
    assert_same_with_gradients(fused, partial(textbook, mask), *qkv())


@pytest.mark.parametrize("mask", [*MASKS.values(), Mask(visible=VISIBLE)], ids=[*MASKS, "visible"])
def test_the_path_of_the_cpu_is_the_textbook_form(mask):
    assert_same_with_gradients(jax.jit(partial(attend, mask=mask)), partial(textbook, mask), *qkv())


def test_a_row_of_length_0_gives_no_nan():
    mask = Mask(lengths=jnp.array([0, 5], jnp.int32))
    for program in (partial(fused_attention, implementation="xla"), chunked_attention, attend):
        value, gradients = jax.value_and_grad(lambda *a, f=program: f(*a, mask)[1].sum(), (0, 1, 2))(*qkv())
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in gradients)


def test_chunks_drop_weights_by_row_and_query():
    (q, k, v), key, rows, rate = qkv(), jax.random.key(3), jnp.array([5, 2]), 0.4
    kept = np.empty((2, 4, 13, 13), bool)
    for b, row_key in enumerate(row_keys(key, rows)):
        for t in range(13):
            kept[b, :, t] = jax.random.bernoulli(jax.random.fold_in(row_key, t), 1 - rate, (4, 13))

    def plain(q, k, v):
        weights = attention_weights(q, k, Mask(causal=True).additive(13, 13))
        return weighted_sum(jnp.where(kept, weights / (1 - rate), 0.0), v)

    for size in (4, 64):
        chunked = partial(chunked_attention, mask=Mask(causal=True), rate=rate, key=key, rows=rows, size=size)
        assert_same_with_gradients(jax.jit(chunked), plain, q, k, v)
    assert 0.5 < kept.mean() < 0.7


@pytest.mark.parametrize(
    "program", [chunked_attention, partial(fused_attention, implementation="xla")], ids=["chunks", "fused"]
)
def test_bfloat16_is_near_float32(program):
    wide, mask = qkv(), Mask(causal=True)
    narrow = tuple(x.astype(jnp.bfloat16) for x in wide)
    expected, pull_expected = jax.vjp(lambda *a: program(*a, mask), *wide)
    found, pull = jax.vjp(lambda *a: program(*a, mask), *narrow)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.03)
    towards = normal(9, *expected.shape)
    for a, b in zip(pull(towards.astype(jnp.bfloat16)), pull_expected(towards), strict=True):
        assert a.dtype == jnp.bfloat16
        assert jnp.linalg.norm(a.astype(jnp.float32) - b) < 0.02 * jnp.linalg.norm(b)


def test_gradients_of_keys_are_added_over_chunks_in_float32():
    # Of 4,096 chunks of one query, each of which adds 1 to a value's gradient, bfloat16 sums would stop at 256.
    q = jnp.zeros((1, 1, 4096, 8), jnp.bfloat16)
    k = v = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda v: chunked_attention(q, k, v, Mask(), size=1).astype(jnp.float32).sum()))(v)
    np.testing.assert_array_equal(gradient.astype(jnp.float32), 4096)


def test_no_array_of_queries_by_keys_is_held_at_4096_tokens():
    heads, t = 4, 4096
    shapes = [jax.ShapeDtypeStruct((1, heads, t, 16), jnp.float32)] * 3
    key, rows = jax.random.key(0), jnp.arange(1)

    def temporaries(program, **settings):
        def loss(q, k, v):
            return jnp.square(program(q, k, v, Mask(causal=True), **settings)).sum()

        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    whole = heads * t * t * 4
    assert temporaries(partial(fused_attention, implementation="xla")) > whole, "the plain form does hold it"
    assert temporaries(chunked_attention) < whole / 4
    assert temporaries(chunked_attention, rate=0.1, key=key, rows=rows) < whole / 2


@pytest.mark.parametrize(
    ("served", "capability", "features", "dtype", "mask"),
    [
        (True, "9.0", 64, "bfloat16", Mask(causal=True)),
        (True, "9.0", 256, "float16", Mask(lengths=LENGTHS)),
        (True, "10.0", 128, "bfloat16", Mask()),
        (True, "8.0", 128, "bfloat16", Mask()),
        (False, "8.0", 256, "bfloat16", Mask()),
        (False, "7.5", 64, "float16", Mask()),
        (False, "9.0", 512, "bfloat16", Mask()),
        (False, "9.0", 60, "bfloat16", Mask()),
        (False, "9.0", 64, "float32", Mask()),
        (False, "9.0", 64, "bfloat16", Mask(visible=VISIBLE)),
        (False, "gfx942", 64, "bfloat16", Mask()),
        (False, "", 64, "bfloat16", Mask()),
    ],
)
def test_cudnn_serves_where_jax_says_it_does(served, capability, features, dtype, mask):
    assert cudnn_serves(capability, jnp.zeros((1, 1, 2, features), dtype), mask) is served


@pytest.mark.parametrize(
    ("capability", "dtype", "settings", "program"),
    [
        ("9.0", "bfloat16", {}, "fused_attention"),
        ("9.0", "float32", {}, "chunked_attention"),
        ("9.0", "bfloat16", {"rate": 0.5, "key": 0}, "chunked_attention"),
        ("9.0", "bfloat16", {"rate": 0.5}, "fused_attention"),
        ("9.0", "bfloat16", {"cached": True}, "chunked_attention"),
        (None, "bfloat16", {}, "chunked_attention"),
    ],
)
def test_off_the_cpu_the_program_follows_the_device(monkeypatch, capability, dtype, settings, program):
    class Device:
        pass

    device = Device()
    if capability:
        device.compute_capability = capability
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu" if capability else "tpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    for name in ("fused_attention", "chunked_attention"):
        monkeypatch.setattr(f"zoo.nn.attend.{name}", lambda *_, name=name, **__: name)
    settings = settings | ({"key": jax.random.key(0)} if "key" in settings else {})
    q = jnp.zeros((1, 2, 4, 64), dtype)
    assert attend.__wrapped__(q, q, q, Mask(causal=True), **settings) == program
