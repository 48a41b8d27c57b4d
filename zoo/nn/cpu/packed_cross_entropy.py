"""Cross-entropy of a large vocabulary on the CPU, in chunks of the positions that count.

Positions that count are sorted to the front, and only the chunks that they fill are computed, so padding costs nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from zoo.nn.cpu.vocabulary_chunk import Gradients, chunk_gradients, chunk_logits, summed
from zoo.nn.losses import cross_entropy

CHUNK = 256
"""Positions per chunk."""


class _Packed(NamedTuple):
    """Positions sorted with those that count first, padded to whole chunks; n positions, c chunks."""

    x: jax.Array
    """[c CHUNK d]"""
    targets: jax.Array
    """[c CHUNK]"""
    counted: jax.Array
    """[c CHUNK]"""
    chunks: jax.Array
    """Number of chunks that hold a position that counts."""
    place: jax.Array
    """The index of each position after sorting, [n]."""


def _pack(x, targets, counted) -> _Packed:
    counted = counted.reshape(-1)
    order = jnp.argsort(~counted, stable=True)
    spare = -len(order) % CHUNK

    def front(z):
        z = z[order]
        return rearrange(jnp.pad(z, [(0, spare)] + [(0, 0)] * (z.ndim - 1)), "(c k) ... -> c k ...", k=CHUNK)

    chunks = (counted.sum() + CHUNK - 1) // CHUNK
    return _Packed(
        front(rearrange(x, "b t d -> (b t) d")), front(targets.reshape(-1)), front(counted), chunks, jnp.argsort(order)
    )


def packed_rows(x, table, bias, targets, counted):
    """Returns the sum of cross-entropy of each row, [b]."""
    packed, table = _pack(x, targets, counted), table.astype(x.dtype)

    def one(i, nats):
        now = cross_entropy(chunk_logits(packed.x[i], table, bias)[None], packed.targets[i][None])[0]
        return nats.at[i].set(jnp.where(packed.counted[i], now, 0.0))

    nats = jax.lax.fori_loop(0, packed.chunks, one, jnp.zeros(packed.targets.shape))
    return nats.reshape(-1)[packed.place].reshape(targets.shape).sum(1)


def packed_gradients(x, table, bias, targets, counted) -> tuple[jax.Array, Gradients]:
    """Returns the sum of cross-entropy of all rows, and its gradients."""
    packed, narrow = _pack(x, targets, counted), table.astype(x.dtype)

    def one(i, sums):
        total, of_x, of_table, of_bias = sums
        nats, (x, table, b) = chunk_gradients(packed.x[i], narrow, bias, packed.targets[i], packed.counted[i])
        return total + nats.sum(), of_x.at[i].set(x), of_table + table, of_bias + b

    of_bias = jnp.zeros(0 if bias is None else len(bias))
    zeros = (jnp.zeros(()), jnp.zeros_like(packed.x), jnp.zeros(table.shape), of_bias)
    total, of_x, of_table, of_bias = jax.lax.fori_loop(0, packed.chunks, one, zeros)
    of_x = rearrange(of_x, "c k d -> (c k) d")[packed.place].reshape(x.shape)
    return total, (of_x, of_table, of_bias)


packed_sum = summed(packed_rows, packed_gradients)
