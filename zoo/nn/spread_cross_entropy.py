"""Cross-entropy of a large vocabulary on accelerators: a scan over chunks that hold some positions of every row.

Such chunks can be sharded over a device mesh by rows. The vocabulary is padded to a multiple of `ALIGNED`, which matrix
units need for full speed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from zoo.nn.cpu.vocabulary_chunk import Gradients, chunk_gradients, chunk_logits, summed
from zoo.nn.losses import cross_entropy

WIDE_CHUNK = 2048
"""Positions per chunk, over all rows."""
ALIGNED = 128
"""Multiple to which the vocabulary is padded."""


class _Spread(NamedTuple):
    """The inputs of a scan over c chunks of k positions of every row."""

    parts: tuple[jax.Array, jax.Array, jax.Array]
    """x [c b k d], targets and counted [c b k]; padding of the last chunk does not count."""
    table: jax.Array
    """[v + spare, d] in the dtype of x."""
    bias: jax.Array
    """[v + spare] in float32, -inf for the spare symbols, whose probability is then 0."""


def _spread(x, table, bias, targets, counted) -> _Spread:
    (b, t, _), v = x.shape, len(table)
    count = -(-t // max(1, WIDE_CHUNK // b))
    spare, spare_v = -t % count, -v % ALIGNED

    def cut(z):
        z = jnp.pad(z, [(0, 0), (0, spare)] + [(0, 0)] * (z.ndim - 2))
        return rearrange(z, "b (c k) ... -> c b k ...", c=count)

    bias = jnp.zeros(v) if bias is None else bias.astype(jnp.float32)
    return _Spread(
        (cut(x), cut(targets), cut(counted)),
        jnp.pad(table.astype(x.dtype), ((0, spare_v), (0, 0))),
        jnp.pad(bias, (0, spare_v), constant_values=-jnp.inf),
    )


def _flat(x, targets, counted):
    return rearrange(x, "b k d -> (b k) d"), targets.reshape(-1), counted.reshape(-1)


def spread_rows(x, table, bias, targets, counted):
    """Returns the sum of cross-entropy of each row, [b]."""
    spread = _spread(x, table, bias, targets, counted)

    def one(nats, part):
        x, target, counts = _flat(*part)
        now = cross_entropy(chunk_logits(x, spread.table, spread.bias)[None], target[None])[0]
        return nats + jnp.where(counts, now, 0.0).reshape(len(nats), -1).sum(1), None

    return jax.lax.scan(one, jnp.zeros(len(x)), spread.parts)[0]


def spread_gradients(x, table, bias, targets, counted) -> tuple[jax.Array, Gradients]:
    """Returns the sum of cross-entropy of all rows, and its gradients."""
    spread, (b, t, _), v = _spread(x, table, bias, targets, counted), x.shape, len(table)

    def one(sums, part):
        total, of_table, of_bias = sums
        x, target, counts = _flat(*part)
        nats, (of_x, more, more_bias) = chunk_gradients(x, spread.table, spread.bias, target, counts)
        of_x = rearrange(of_x, "(b k) d -> b k d", b=b)
        return (total + nats.sum(), of_table + more, of_bias + more_bias), of_x

    zeros = (jnp.zeros(()), jnp.zeros(spread.table.shape), jnp.zeros(spread.bias.shape))
    (total, of_table, of_bias), of_x = jax.lax.scan(one, zeros, spread.parts)
    of_x = rearrange(of_x, "c b k d -> b (c k) d")[:, :t]
    return total, (of_x, of_table[:v], of_bias[: 0 if bias is None else v])


spread_sum = summed(spread_rows, spread_gradients)
