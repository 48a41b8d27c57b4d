"""Cross-entropy of a projection onto a vocabulary, worked out at those positions only that carry loss.

With features x_i, a table E of a vector a word, targets y_i and weights w_i (1 where a position counts, else 0):

    l = sum_i w_i (logsumexp(E x_i) - E_(y_i) x_i)
    dl/dx_i = w_i (p_i - 1_(y_i)) E          dl/dE = sum_i w_i (p_i - 1_(y_i)) x_i^T          p_i = softmax(E x_i)

This product is most of a word-level model's work, and rows of texts are filled up with padding that needs none of it.
On the CPU, positions that count are brought to the front and taken a chunk at a time, as many chunks as they fill; the
gradients come with the loss, from the logits of the chunk at hand, so that [positions vocabulary] is never held
(Hsu et al. 2024, "Liger kernel"; Wijmans et al. 2024, "Cut your losses"). Elsewhere it is one product over all
positions, which a device mesh can split.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from zoo.nn.dense import settle
from zoo.nn.losses import cross_entropy

CHUNK = 256
"""Positions that are taken at once."""


@jax.custom_vjp
def linear_cross_entropy(
    x: Float[Array, "b t d"], table: Float[Array, "v d"], targets: Int[Array, "b t"], counted: Bool[Array, "b t"]
) -> Float[Array, ""]:
    """The summed cross-entropy of all positions that count, in nats; differentiable in x and the table."""
    return row_cross_entropy(x, table, targets, counted).sum()


def row_cross_entropy(
    x: Float[Array, "b t d"], table: Float[Array, "v d"], targets: Int[Array, "b t"], counted: Bool[Array, "b t"]
) -> Float[Array, " b"]:
    """The summed cross-entropy of each row's positions that count, in nats; for evaluation, without a gradient."""
    return jax.lax.platform_dependent(x, table, targets, counted, cpu=_packed_rows, default=_plain_rows)


def _plain_rows(x, table, targets, counted):
    logits = jnp.einsum("btd,vd->btv", x, table)
    return jnp.where(counted, cross_entropy(logits, targets), 0.0).sum(1)


def _plain_gradients(x, table, targets, counted):
    def total(x, table):
        return _plain_rows(x, table, targets, counted).sum()

    return jax.value_and_grad(total, (0, 1))(x, table)


class _Packed(NamedTuple):
    """Positions with those that count in front, filled up to whole chunks; n positions, c chunks."""

    x: jax.Array
    """[c CHUNK d]"""
    targets: jax.Array
    """[c CHUNK]"""
    counted: jax.Array
    """[c CHUNK]"""
    chunks: jax.Array
    """How many chunks hold a position that counts."""
    place: jax.Array
    """Where each position has gone to, [n]."""


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


def _logits(x, table):
    """[k v], the product of every x with every vector of the table."""
    return jax.lax.dot_general(x, table, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _packed_rows(x, table, targets, counted):
    packed = _pack(x, targets, counted)

    def one(i, nats):
        now = cross_entropy(_logits(packed.x[i], table)[None], packed.targets[i][None])[0]
        return nats.at[i].set(jnp.where(packed.counted[i], now, 0.0))

    nats = jax.lax.fori_loop(0, packed.chunks, one, jnp.zeros(packed.targets.shape))
    return nats.reshape(-1)[packed.place].reshape(targets.shape).sum(1)


def _packed_gradients(x, table, targets, counted):
    packed = _pack(x, targets, counted)
    words = jnp.arange(table.shape[0])[None, :]

    def one(i, sums):
        total, of_x, of_table = sums
        x, target, counts = packed.x[i], packed.targets[i], packed.counted[i]
        logits = settle(_logits(x, table))
        highest = logits.max(1, keepdims=True)
        e = jnp.exp(logits - highest)
        normaliser = e.sum(1, keepdims=True)
        chosen = jnp.take_along_axis(logits, target[:, None], axis=1)
        nats = (jnp.log(normaliser) + highest - chosen)[:, 0]
        weight = counts[:, None].astype(jnp.float32)
        g = e * (weight / normaliser) - jnp.where(words == target[:, None], weight, 0.0)
        g, x = settle((g.astype(table.dtype), x))
        of_table = of_table + jax.lax.dot_general(g, x, (((0,), (0,)), ((), ())))
        return total + jnp.where(counts, nats, 0.0).sum(), of_x.at[i].set(g @ table), of_table

    zeros = (jnp.zeros(()), jnp.zeros(packed.x.shape, table.dtype), jnp.zeros_like(table))
    total, of_x, of_table = jax.lax.fori_loop(0, packed.chunks, one, zeros)
    of_x = rearrange(of_x, "c k d -> (c k) d")[packed.place].reshape(x.shape)
    return total, (of_x.astype(x.dtype), of_table)


def _forward(x, table, targets, counted):
    gradients = partial(jax.lax.platform_dependent, cpu=_packed_gradients, default=_plain_gradients)
    return gradients(x, table, targets, counted)


def _backward(gradients, g):
    of_x, of_table = gradients
    return (g * of_x).astype(of_x.dtype), (g * of_table).astype(of_table.dtype), None, None


linear_cross_entropy.defvjp(_forward, _backward)
