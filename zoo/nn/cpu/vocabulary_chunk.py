"""Cross-entropy of one chunk of positions, with the gradients of its sum; see `zoo.nn.linear_cross_entropy`.

Also used on accelerators, where the barriers do nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.nn.arithmetic import product
from zoo.nn.cpu.barriers import settle

Gradients = tuple[jax.Array, jax.Array, jax.Array]
"""Gradients of x, table and bias, the last two in float32; an empty array without a bias."""


def chunk_logits(x: Float[Array, "k d"], table: Float[Array, "v d"], bias: Float[Array, " v"] | None) -> jax.Array:
    """Returns logits [k v] in float32: the product of every x with every vector of the table, plus the bias."""
    logits = product(x, table, (1, 1))
    return logits if bias is None else logits + bias[None, :]


def chunk_gradients(x, table, bias, target, counts):
    """Returns the cross-entropy of a chunk's positions in nats, [k], and the gradients of their sum."""
    words = jnp.arange(len(table))[None, :]
    logits = settle(chunk_logits(x, table, bias))
    highest = logits.max(1, keepdims=True)
    e = jnp.exp(logits - highest)
    normaliser = e.sum(1, keepdims=True)
    chosen = jnp.take_along_axis(logits, target[:, None], axis=1)
    nats = (jnp.log(normaliser) + highest - chosen)[:, 0]
    weight = counts[:, None].astype(jnp.float32)
    wide = e * (weight / normaliser) - jnp.where(words == target[:, None], weight, 0.0)
    of_bias = jnp.zeros(0) if bias is None else wide.sum(0)
    g, x = settle((wide.astype(x.dtype), x))
    of_x, of_table = product(g, table).astype(x.dtype), product(g, x, (0, 0))
    return jnp.where(counts, nats, 0.0), (of_x, of_table, of_bias)


def summed(rows: Callable[..., jax.Array], gradients: Callable[..., tuple[jax.Array, Gradients]]) -> Callable[..., Any]:
    """Returns a function that sums `rows` (x, table, bias, targets, counted), with `gradients` as its gradient."""

    @jax.custom_vjp
    def total(x, table, bias, targets, counted):
        return rows(x, table, bias, targets, counted).sum()

    def forward(x, table, bias, targets, counted):
        nats, (of_x, of_table, of_bias) = gradients(x, table, bias, targets, counted)
        return nats, (of_x, of_table.astype(table.dtype), None if bias is None else of_bias.astype(bias.dtype))

    def backward(gradients, g):
        return *jax.tree.map(lambda z: (g * z).astype(z.dtype), gradients), None, None

    total.defvjp(forward, backward)
    return total
