"""Attention as one function of queries, keys, values and a mask, with implementations for each device.

    attention(q, k, v) = softmax(q k^T / sqrt(d) + m) v          m is 0 for visible keys, very negative for hidden ones

This is `textbook_attention`, the plain form. The CPU uses `zoo.nn.cpu.causal_attention`, or the textbook form with a
cache or dropout. NVIDIA GPUs use cuDNN's fused attention (Dao et al. 2022, "FlashAttention") if it supports the case.
Otherwise accelerators take queries in chunks and recompute their weights in the backward pass (Rabe and Staats 2021,
"Self-attention does not need O(n^2) memory"). The last two never hold the weights of all queries. Queries are
[b h t d], keys and values [b g s d]; query head i uses key head i // (h / g).
"""

from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.core.random import dropout, row_keys
from zoo.nn.cpu.causal_attention import causal_attention, full_attention, one_query_einsum
from zoo.nn.platform import by_platform

HIDDEN = -1e30
"""Mask value of hidden keys; finite, so that a query without visible keys gives no NaN."""
CHUNK = 256
"""Queries per chunk, at most."""


def additive_mask(visible: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Returns 0 for visible keys, `HIDDEN` for others."""
    return jnp.where(visible, 0.0, HIDDEN)


@partial(jax.tree_util.register_dataclass, data_fields=["lengths", "visible"], meta_fields=["causal"])
@dataclass(frozen=True)
class Mask:
    """An attention mask: the conjunction of its parts; without parts, all keys are visible.

    Attributes:
        causal: whether query i sees only keys 0 .. i; there are then as many queries as keys.
        lengths: number of real keys of each row, int32 [b]; the others are padding.
        visible: any other mask, bool [b|1, t|1, s].
    """

    causal: bool = False
    # Without shape annotations, since JAX also puts objects that are not arrays into a pytree's fields.
    lengths: Any = None
    visible: Any = None

    def seen(self, queries: Int[Array, " t"], keys: int) -> Bool[Array, "#b #t s"] | None:
        """Returns which of `keys` keys the queries at some positions see, [b|1, t|1, s]; None if they see all."""
        places, parts = jnp.arange(keys), []
        if self.causal:
            parts.append((places[None, :] <= queries[:, None])[None])
        if self.lengths is not None:
            parts.append((places[None, :] < self.lengths[:, None])[:, None])
        if self.visible is not None:
            parts.append(self.visible if self.visible.shape[1] == 1 else self.visible[:, queries])
        return reduce(jnp.logical_and, parts) if parts else None

    def additive(self, queries: int, keys: int) -> Float[Array, "#b #t s"]:
        """Returns the additive mask m of all queries."""
        seen = self.seen(jnp.arange(queries), keys)
        return jnp.zeros((1, queries, keys)) if seen is None else additive_mask(seen)


# --------------------------------------------------------------------------------------- the textbook form


def attention_weights(
    q: Float[Array, "b h t d"], k: Float[Array, "b g s d"], mask: Float[Array, "#b #t s"]
) -> Float[Array, "b h t s"]:
    """softmax(q k^T / sqrt(d) + mask) in float32; query head i uses key head i // (h / g)."""
    groups = k.shape[1]
    product = partial(_einsum, "bgqd,bgsd->bgqs", preferred_element_type=jnp.float32)
    scores = product(rearrange(q, "b (g r) t d -> b g (r t) d", g=groups), k)
    scores = rearrange(scores, "b g (r t) s -> b (g r) t s", t=q.shape[2])
    return jax.nn.softmax(scores * q.shape[-1] ** -0.5 + mask[:, None], axis=-1)


def weighted_sum(weights: Float[Array, "b h t s"], v: Float[Array, "b g s d"]) -> Float[Array, "b h t d"]:
    """Returns the sum of values weighted by attention."""
    groups = v.shape[1]
    product = partial(_einsum, "bgqs,bgsd->bgqd", preferred_element_type=jnp.float32)
    mixed = product(rearrange(weights, "b (g r) t s -> b g (r t) s", g=groups), v).astype(v.dtype)
    return rearrange(mixed, "b g (r t) d -> b (g r) t d", t=weights.shape[2])


@by_platform(cpu=one_query_einsum)
def _einsum(letters: str, left: Float[Array, "b g q x"], right: Float[Array, "b g s d"], **settings) -> jax.Array:
    return jnp.einsum(letters, left, right, **settings)


def textbook_attention(q, k, v, mask, *, rate=0.0, key=None, rows=None, cached=False):
    """softmax(q k^T / sqrt(d) + m) v, holding the weights of all queries; see `attend` for the arguments."""
    weights = attention_weights(q, k, mask.additive(q.shape[2], k.shape[2])).astype(v.dtype)
    return weighted_sum(dropout(weights, rate, key, rows), v)


# ------------------------------------------------------------------------------------- the choice of program


def attend(
    q: Float[Array, "b h t d"],
    k: Float[Array, "b g s d"],
    v: Float[Array, "b g s d"],
    mask: Mask,
    *,
    rate: float = 0.0,
    key: Key[Array, ""] | None = None,
    rows: Int[Array, " b"] | None = None,
    cached: bool = False,
) -> Float[Array, "b h t d"]:
    """softmax(q k^T / sqrt(d) + m) v, by the device's implementation.

    Args:
        q: queries.
        k: keys; h / g query heads share each key head.
        v: values.
        mask: the keys that each query sees.
        rate: dropout of the weights.
        key: dropout key; None means evaluation.
        rows: each row's index in the global batch, for noise that does not depend on how the batch is split.
        cached: whether keys and values come from a decoding cache, where no gradients are needed.
    """
    return _attend(q, k, v, mask, rate=rate, key=None if rate == 0.0 else key, rows=rows, cached=cached)


def _cpu_attention(q, k, v, mask, *, rate, key, rows, cached):
    if cached or key is not None:
        return textbook_attention(q, k, v, mask, rate=rate, key=key, rows=rows)
    k, v = (repeat(z, "b g s d -> b (g serves) s d", serves=q.shape[1] // k.shape[1]) for z in (k, v))
    return (causal_attention if mask.causal else full_attention)(q, k, v, mask.additive(q.shape[2], k.shape[2]))


def _accelerator_attention(q, k, v, mask, *, rate, key, rows, cached):
    device = jax.local_devices()[0]
    if key is None and not cached and cudnn_serves(getattr(device, "compute_capability", ""), q, mask):
        return fused_attention(q, k, v, mask)
    return chunked_attention(q, k, v, mask, rate=rate, key=key, rows=rows)


_attend = by_platform(cpu=_cpu_attention, accelerator=_accelerator_attention)(textbook_attention)


# ------------------------------------------------------------------------------------------ fused, by cuDNN


def cudnn_serves(compute_capability: str, q: Float[Array, "b h t d"], mask: Mask) -> bool:
    """Whether cuDNN's fused attention supports these queries and this mask.

    It requires 16-bit floats and heads of a multiple of 8 features, up to 128 (Ampere) or 256 (Hopper and later).
    Masks other than causal and lengths would have to be a bias, for which it computes an unneeded gradient.

    Args:
        compute_capability: compute capability of the device, such as "9.0"; any other string means no NVIDIA GPU.
        q: queries.
        mask: the keys that they see.
    """
    try:
        generation = float(compute_capability)
    except ValueError:
        return False
    features = q.shape[-1]
    fits = features % 8 == 0 and features <= (256 if generation >= 9 else 128)
    return generation >= 8 and fits and mask.visible is None and q.dtype in (jnp.bfloat16, jnp.float16)


def fused_attention(
    q: Float[Array, "b h t d"],
    k: Float[Array, "b g s d"],
    v: Float[Array, "b g s d"],
    mask: Mask,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> Float[Array, "b h t d"]:
    """Attention by `jax.nn.dot_product_attention`, for masks without `visible`.

    A row of length 0 (padding of the batch) sees its first key, since a softmax over no keys would be NaN.
    """
    lengths = None if mask.lengths is None else jnp.maximum(mask.lengths, 1)
    q, k, v = (rearrange(z, "b h t d -> b t h d") for z in (q, k, v))
    mixed = jax.nn.dot_product_attention(
        q, k, v, is_causal=mask.causal, key_value_seq_lengths=lengths, implementation=implementation
    )
    return rearrange(mixed, "b t h d -> b h t d")


# ----------------------------------------------------------------------------------------------- in chunks


def chunked_attention(
    q: Float[Array, "b h t d"],
    k: Float[Array, "b g s d"],
    v: Float[Array, "b g s d"],
    mask: Mask,
    *,
    rate: float = 0.0,
    key: Key[Array, ""] | None = None,
    rows: Int[Array, " b"] | None = None,
    size: int = CHUNK,
) -> Float[Array, "b h t d"]:
    """Textbook attention for at most `size` queries at a time; the backward pass recomputes the weights.

    Gradients of keys and values are summed over chunks in float32. See `attend` for the arguments.
    """
    t, dtype = q.shape[2], v.dtype
    count = -(-t // size)
    length = -(-t // count)
    wide_k, wide_v = k.astype(jnp.float32), v.astype(jnp.float32)

    @jax.checkpoint
    def one(q, first):
        queries = jnp.minimum(first + jnp.arange(length), t - 1)
        seen = mask.seen(queries, k.shape[2])
        additive = jnp.zeros((1, 1, k.shape[2])) if seen is None else additive_mask(seen)
        weights = attention_weights(q, wide_k.astype(dtype), additive)
        if key is not None:
            weights = _drop(weights, rate, key, rows, queries)
        return weighted_sum(weights.astype(dtype), wide_v.astype(dtype))

    if count == 1:
        return one(q, 0)
    filled = jnp.pad(q, ((0, 0), (0, 0), (0, count * length - t), (0, 0)))
    parts = rearrange(filled, "b h (c t) d -> c b h t d", c=count)
    mixed = jax.lax.map(lambda part: one(*part), (parts, length * jnp.arange(count)))
    return rearrange(mixed, "c b h t d -> b h (c t) d")[:, :, :t]


def _drop(weights, rate, key, rows, queries):
    """Dropout with a key per row and query, so that it does not depend on the chunks."""
    rows = jnp.arange(len(weights)) if rows is None else rows
    keys = jax.vmap(row_keys, in_axes=(0, None))(row_keys(key, rows), queries)

    def draw(key):
        return jax.random.bernoulli(key, 1.0 - rate, (weights.shape[1], weights.shape[3]))

    keep = rearrange(jax.vmap(jax.vmap(draw))(keys), "b t h s -> b h t s")
    return jnp.where(keep, weights / (1.0 - rate), 0.0)
