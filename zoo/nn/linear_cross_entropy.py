"""Cross-entropy of a projection onto a vocabulary, without the logits of all positions at once.

With features x_i, a table E of a vector a symbol, a bias b (or none), targets y_i and weights w_i (1 where a position
counts, else 0):

    l = sum_i w_i (logsumexp(E x_i + b) - (E x_i + b)_(y_i))
    g_i = w_i (softmax(E x_i + b) - 1_(y_i))
    dl/dx_i = g_i E        dl/dE = sum_i g_i x_i^T        dl/db = sum_i g_i

This product is most of a word-level model's work, and its logits most of its memory. So positions are taken a chunk at
a time, and the gradients come with the loss, from the logits of the chunk at hand: [positions vocabulary] is never held
(Hsu et al. 2024, "Liger kernel"; Wijmans et al. 2024, "Cut your losses"). A vocabulary below `SMALL` is one product.

On the CPU, positions that count are brought to the front, and as many chunks are taken as they fill, since rows of
texts are filled up with padding that needs no work. Elsewhere a chunk holds some positions of every row, which a device
mesh can split, and the vocabulary is filled up to a multiple of `ALIGNED`, which matrix units need for full speed.

Products have the dtype of x; their sums, the softmax and the gradients of table and bias are float32.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from zoo.nn.dense import product, settle, wide_matmul
from zoo.nn.losses import cross_entropy

SMALL = 1024
"""Vocabularies below this are one product: their logits are no larger than what a block of the network remembers."""
CHUNK = 256
"""Positions that the CPU takes at once."""
WIDE_CHUNK = 2048
"""Positions, over all rows, that other devices take at once."""
ALIGNED = 128
"""Other devices' matrix units want multiples of this."""

Gradients = tuple[jax.Array, jax.Array, jax.Array]
"""By x, table and bias, the last two in float32; zeros of no size for a bias that there is not."""


def linear_cross_entropy(
    x: Float[Array, "b t d"],
    table: Float[Array, "v d"],
    targets: Int[Array, "b t"],
    counted: Bool[Array, "b t"],
    bias: Float[Array, " v"] | None = None,
) -> Float[Array, ""]:
    """The summed cross-entropy of all positions that count, in nats; differentiable in x, table and bias."""
    if len(table) < SMALL:
        return _plain_rows(x, table, bias, targets, counted).sum()
    return _in_chunks(x, table, bias, targets, counted)


def row_cross_entropy(
    x: Float[Array, "b t d"],
    table: Float[Array, "v d"],
    targets: Int[Array, "b t"],
    counted: Bool[Array, "b t"],
    bias: Float[Array, " v"] | None = None,
) -> Float[Array, " b"]:
    """The summed cross-entropy of each row's positions that count, in nats; for evaluation, without a gradient."""
    if len(table) < SMALL:
        return _plain_rows(x, table, bias, targets, counted)
    rows = partial(jax.lax.platform_dependent, cpu=_packed_rows, default=_spread_rows)
    return rows(x, table, bias, targets, counted)


def _plain_rows(x, table, bias, targets, counted):
    logits = rearrange(wide_matmul(rearrange(x, "b t d -> (b t) d"), table.T), "(b t) v -> b t v", b=len(x))
    if bias is not None:
        logits = logits + bias[None, None, :]
    return (cross_entropy(logits, targets) * counted.astype(jnp.float32)).sum(1)


@jax.custom_vjp
def _in_chunks(x, table, bias, targets, counted):
    return row_cross_entropy(x, table, targets, counted, bias).sum()


def _forward(x, table, bias, targets, counted):
    gradients = partial(jax.lax.platform_dependent, cpu=_packed_gradients, default=_spread_gradients)
    total, (of_x, of_table, of_bias) = gradients(x, table, bias, targets, counted)
    return total, (of_x, of_table.astype(table.dtype), None if bias is None else of_bias.astype(bias.dtype))


def _backward(gradients, g):
    return *jax.tree.map(lambda z: (g * z).astype(z.dtype), gradients), None, None


_in_chunks.defvjp(_forward, _backward)


# ------------------------------------------------------------------------------------------- one chunk


def _logits(x: Float[Array, "k d"], table: Float[Array, "v d"], bias: Float[Array, " v"] | None) -> jax.Array:
    """[k v] in float32: the product of every x with every vector of the table."""
    logits = product(x, table, (1, 1))
    return logits if bias is None else logits + bias[None, :]


def _chunk_gradients(x, table, bias, target, counts):
    """The nats of a chunk's positions, [k], and the gradients of their sum."""
    words = jnp.arange(len(table))[None, :]
    logits = settle(_logits(x, table, bias))
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


# ---------------------------------------------------------------------- on the CPU: positions that count in front


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


def _packed_rows(x, table, bias, targets, counted):
    packed, table = _pack(x, targets, counted), table.astype(x.dtype)

    def one(i, nats):
        now = cross_entropy(_logits(packed.x[i], table, bias)[None], packed.targets[i][None])[0]
        return nats.at[i].set(jnp.where(packed.counted[i], now, 0.0))

    nats = jax.lax.fori_loop(0, packed.chunks, one, jnp.zeros(packed.targets.shape))
    return nats.reshape(-1)[packed.place].reshape(targets.shape).sum(1)


def _packed_gradients(x, table, bias, targets, counted) -> tuple[jax.Array, Gradients]:
    packed, narrow = _pack(x, targets, counted), table.astype(x.dtype)

    def one(i, sums):
        total, of_x, of_table, of_bias = sums
        nats, (x, table, b) = _chunk_gradients(packed.x[i], narrow, bias, packed.targets[i], packed.counted[i])
        return total + nats.sum(), of_x.at[i].set(x), of_table + table, of_bias + b

    of_bias = jnp.zeros(0 if bias is None else len(bias))
    zeros = (jnp.zeros(()), jnp.zeros_like(packed.x), jnp.zeros(table.shape), of_bias)
    total, of_x, of_table, of_bias = jax.lax.fori_loop(0, packed.chunks, one, zeros)
    of_x = rearrange(of_x, "c k d -> (c k) d")[packed.place].reshape(x.shape)
    return total, (of_x, of_table, of_bias)


# --------------------------------------------------------------- elsewhere: some positions of every row at a time


class _Spread(NamedTuple):
    """What a scan over chunks of k positions of every row reads, and the table that it keeps."""

    parts: tuple[jax.Array, jax.Array, jax.Array]
    """x [c b k d], targets and counted [c b k]; positions that fill up the last chunk do not count."""
    table: jax.Array
    """[v + spare, d] in the dtype of x."""
    bias: jax.Array
    """[v + spare] in float32, so low for the spare symbols that they have no probability."""


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


def _spread_rows(x, table, bias, targets, counted):
    spread = _spread(x, table, bias, targets, counted)

    def one(nats, part):
        x, target, counts = _flat(*part)
        now = cross_entropy(_logits(x, spread.table, spread.bias)[None], target[None])[0]
        return nats + jnp.where(counts, now, 0.0).reshape(len(nats), -1).sum(1), None

    return jax.lax.scan(one, jnp.zeros(len(x)), spread.parts)[0]


def _spread_gradients(x, table, bias, targets, counted) -> tuple[jax.Array, Gradients]:
    spread, (b, t, _), v = _spread(x, table, bias, targets, counted), x.shape, len(table)

    def one(sums, part):
        total, of_table, of_bias = sums
        x, target, counts = _flat(*part)
        nats, (of_x, more, more_bias) = _chunk_gradients(x, spread.table, spread.bias, target, counts)
        of_x = rearrange(of_x, "(b k) d -> b k d", b=b)
        return (total + nats.sum(), of_table + more, of_bias + more_bias), of_x

    zeros = (jnp.zeros(()), jnp.zeros(spread.table.shape), jnp.zeros(spread.bias.shape))
    (total, of_table, of_bias), of_x = jax.lax.scan(one, zeros, spread.parts)
    of_x = rearrange(of_x, "c b k d -> b (c k) d")[:, :t]
    return total, (of_x, of_table[:v], of_bias[: 0 if bias is None else v])
