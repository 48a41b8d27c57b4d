"""Attention with a custom gradient, for the CPU.

Queries are [b h t d], keys and values [b h s d]. Causal attention (s = t) takes the queries in up to four chunks, each
with the keys up to its own last position only, which saves up to 3/8 of the work. With scores
s = q k^T / sqrt(d) + mask, e = exp(s - max), l = sum e, the output is o = e v / l; given its gradient g (Dao et al.
2022, "FlashAttention", appendix B):

    delta = sum_d(g o)        ds = e (g v^T - delta) / l
    dq = ds k / sqrt(d)       dk = ds^T q / sqrt(d)       dv = e^T g / l

Causal attention stores e for the gradient; full attention, as between the positions of an image, recomputes e, which
takes less memory. Products that would transpose the large [t s] matrices transpose small operands instead, since XLA's
CPU compiler has a fast path for plain batched products only.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.nn.cpu.barriers import late, settle


def _chunks(queries: int, keys: int, causal: bool) -> list[tuple[int, int, int]]:
    """Returns (first query, end, number of keys) per chunk: up to four equal ranges of 64 or more queries, else one."""
    count = next((n for n in (4, 3, 2) if queries % n == 0 and queries // n >= 64), 1) if causal else 1
    size = queries // count
    return [(i * size, (i + 1) * size, (i + 1) * size if causal else keys) for i in range(count)]


def _features_first(x: Float[Array, "b h t d"]) -> Float[Array, "b h d t"]:
    return settle(x.swapaxes(2, 3))


def causal_attention(
    q: Float[Array, "b h t d"], k: Float[Array, "b h t d"], v: Float[Array, "b h t d"], mask: Float[Array, "#b t t"]
) -> Float[Array, "b h t d"]:
    """softmax(q k^T / sqrt(d) + mask) v, where the mask hides at least every later position."""
    return _attention(True, q, k, v, mask)


def full_attention(
    q: Float[Array, "b h t d"],
    k: Float[Array, "b h s d"],
    v: Float[Array, "b h s d"],
    mask: Float[Array, "#b #t s"] | None = None,
) -> Float[Array, "b h t d"]:
    """softmax(q k^T / sqrt(d) + mask) v with any mask; None: every query sees every key."""
    mask = jnp.zeros((1, q.shape[2], k.shape[2])) if mask is None else mask
    return _attention(False, q, k, v, mask)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(causal, q, k, v, mask):
    return _forward(causal, q, k, v, mask)[0]


def _products(left: Float[Array, "b h t d"], right: Float[Array, "b h s d"]) -> Float[Array, "b h t s"]:
    return jnp.einsum("bhtd,bhsd->bhts", left, right, preferred_element_type=jnp.float32)


def _exponentials(q, k, mask):
    scores = _products(q, k) + mask[:, None]
    return jnp.exp(scores - scores.max(-1, keepdims=True))


def _forward(causal, q, k, v, mask):
    q = q * q.shape[-1] ** -0.5
    parts, weights, sums = [], [], []
    for first, last, met in _chunks(q.shape[2], k.shape[2], causal):
        e = _exponentials(q[:, :, first:last], k[:, :, :met], mask[:, first:last, :met])
        total = e.sum(-1, keepdims=True)
        e = e.astype(v.dtype)
        parts.append((e @ v[:, :, :met] / total).astype(v.dtype))
        weights.append(e if causal else None)
        sums.append(total)
    o = jnp.concatenate(parts, axis=2)
    return o, (q, k, v, o, mask, weights, jnp.concatenate(sums, axis=2))


def _backward(causal, saved, g):
    q, k, v, o, mask, weights, sums = saved
    q, k, v = late((q, k, v), g)
    delta = (g.astype(jnp.float32) * o).sum(-1, keepdims=True) / sums
    g = (g / sums).astype(v.dtype)
    g, delta = settle((g, delta))
    g_t, q_t = _features_first(g), _features_first(q)
    dq, dk, dv = [], jnp.zeros_like(k.swapaxes(2, 3)), jnp.zeros_like(k.swapaxes(2, 3))
    for (first, last, met), e in zip(_chunks(q.shape[2], k.shape[2], causal), weights, strict=True):
        if e is None:
            e = settle(_exponentials(q, k, mask).astype(v.dtype))
        dv = dv.at[..., :met].add(settle(g_t[..., first:last] @ e))
        grown = _products(g[:, :, first:last], v[:, :, :met])
        ds = settle((e * (grown - delta[:, :, first:last])).astype(v.dtype))
        dk = dk.at[..., :met].add(settle(q_t[..., first:last] @ ds))
        dq.append(ds @ k[:, :, :met])
    dq = jnp.concatenate(dq, axis=2) * q.shape[-1] ** -0.5
    return *settle((dq, _features_first(dk), _features_first(dv))), jnp.zeros_like(mask)


_attention.defvjp(_forward, _backward)


def one_query_einsum(letters: str, left: Float[Array, "b g q x"], right: Float[Array, "b g s d"], **settings):
    """`jnp.einsum`; for a single query as a matrix-vector product, which is faster on the CPU."""
    if left.shape[2] > 1:
        return jnp.einsum(letters, left, right, **settings)
    return jnp.einsum(letters.replace("q", ""), left[:, :, 0], right, **settings)[:, :, None]
