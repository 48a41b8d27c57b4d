"""Multi-head attention with grouped queries, rotary positions and a decoding cache.

Vaswani et al. 2017, "Attention is all you need"; Ainslie et al. 2023, "GQA"; Su et al. 2021, "RoFormer" (rotary
positions, in the form that rotates the first half of a head against the second). For each head, with queries q,
keys k and values v of `d` features and an additive mask m (0 for visible keys, very negative for hidden ones):

    attention(q, k, v) = softmax(q k^T / sqrt(d) + m) v

It is computed by `zoo.nn.attend.attend`. Layers compute in the dtype of their input; the softmax is float32.

Letters in shapes: b rows, t queries, s keys, h heads of queries, g heads of keys and values, d features of a head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from zoo.nn.arithmetic import add_vector
from zoo.nn.attend import Mask, attend, attention_weights
from zoo.nn.cpu.cache import apart
from zoo.nn.dense import Dense, matmul
from zoo.nn.platform import by_platform


class KeyValue(NamedTuple):
    """Keys and values of one layer, [b g s d] each."""

    keys: jax.Array
    values: jax.Array


def rotary_angles(positions: Int[Array, "b t"], features: int, theta: float) -> Float[Array, "b t half"]:
    """Returns angles p * theta^(-2i / d) for feature pairs i = 0 .. d/2 - 1 at positions p."""
    frequencies = theta ** (-jnp.arange(0, features, 2, dtype=jnp.float32) / features)
    return positions[:, :, None] * frequencies[None, None, :]


def rotate(x: Float[Array, "b h t d"], angles: Float[Array, "#b t half"]) -> Float[Array, "b h t d"]:
    """Rotates feature pairs (i, i + d/2) of every head by the position's angles."""
    cos, sin = (f(angles)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def _write(
    cache: KeyValue, k: Float[Array, "b g t d"], v: Float[Array, "b g t d"], slot: Int[Array, ""] | int
) -> KeyValue:
    """Returns the cache with these keys and values written from `slot` on."""
    return KeyValue(
        jax.lax.dynamic_update_slice_in_dim(cache.keys, k, slot, axis=2),
        jax.lax.dynamic_update_slice_in_dim(cache.values, v, slot, axis=2),
    )


write = by_platform(cpu=apart(_write))(_write)


class Attention(nnx.Module):
    """Self-attention or attention to a source, with a joint projection to queries, keys and values.

    Args:
        width: features of a position.
        heads: query heads; a head has width / heads features.
        kv_heads: heads of keys and values, each shared by heads / kv_heads query heads.
        bias: whether the projections have biases.
        scale: standard deviation of the input projection's initial values.
        out_scale: standard deviation of the output projection's initial values.
        rate: dropout of the attention weights.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        *,
        bias: bool,
        scale: float,
        out_scale: float,
        rate: float,
        rngs: nnx.Rngs,
    ):
        self.heads, self.kv_heads, self.features, self.rate = heads, kv_heads, width // heads, rate
        self.qkv = Dense(width, (heads + 2 * kv_heads) * self.features, bias=bias, scale=scale, rngs=rngs)
        self.out = Dense(width, width, bias=bias, scale=out_scale, rngs=rngs)

    def project(
        self, x: Float[Array, "b t width"], angles: Float[Array, "#b t half"] | None
    ) -> tuple[Float[Array, "b h t d"], Float[Array, "b g t d"], Float[Array, "b g t d"]]:
        """Returns queries, keys and values, heads first; queries and keys are rotated if angles are given."""
        heads = rearrange(self.qkv(x), "b t (n d) -> b n t d", d=self.features)
        q, k, v = jnp.split(heads, [self.heads, self.heads + self.kv_heads], axis=1)
        return (q, k, v) if angles is None else (rotate(q, angles), rotate(k, angles), v)

    def queries(self, x: Float[Array, "b t width"]) -> Float[Array, "b h t d"]:
        """Returns the queries, not rotated."""
        return self._part(x, slice(None, self.heads * self.features))

    def keys_values(self, source: Float[Array, "b s width"]) -> KeyValue:
        """Returns keys and values of a source, not rotated."""
        return KeyValue(*jnp.split(self._part(source, slice(self.heads * self.features, None)), 2, axis=1))

    def _part(self, x: Float[Array, "b t width"], columns: slice) -> Float[Array, "b n t d"]:
        """Applies some columns of the joint projection; returns heads first."""
        y = matmul(rearrange(x, "b t i -> (b t) i"), self.qkv.kernel[...][:, columns])
        if self.qkv.bias is not None:
            y = add_vector(y, self.qkv.bias[...][columns])
        return rearrange(y, "(b t) (n d) -> b n t d", b=x.shape[0], d=self.features)

    def weights(
        self, x: Float[Array, "b t width"], mask: Mask, angles: Float[Array, "#b t half"] | None
    ) -> Float[Array, "b h t t"]:
        """Returns the attention weights, for inspection."""
        q, k, _ = self.project(x, angles)
        return attention_weights(q, k, mask.additive(x.shape[1], x.shape[1]))

    def __call__(
        self,
        x: Float[Array, "b t width"],
        mask: Mask,
        angles: Float[Array, "#b t half"] | None = None,
        *,
        cache: KeyValue | None = None,
        slot: Int[Array, ""] | int = 0,
        source: Float[Array, "b s width"] | KeyValue | None = None,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b t width"], KeyValue | None]:
        """Attends to x, or to the cache after writing x to it from `slot` on, or to a source (its features or its
        `keys_values`). Returns the output and the new cache."""
        if source is None:
            q, k, v = self.project(x, angles)
        else:
            q, (k, v) = self.queries(x), source if isinstance(source, KeyValue) else self.keys_values(source)
        if cache is not None:
            k, v = cache = write(cache, k, v, slot)
        mixed = attend(q, k, v, mask, rate=self.rate, key=key, rows=rows, cached=cache is not None)
        return self.out(rearrange(mixed, "b h t d -> b t (h d)")), cache

    def init_cache(self, batch: int, length: int, dtype: DTypeLike = jnp.float32) -> KeyValue:
        """Returns an empty cache of `length` slots; dtype is the network's computation dtype."""
        zeros = jnp.zeros((batch, self.kv_heads, length, self.features), dtype)
        return KeyValue(zeros, zeros)
