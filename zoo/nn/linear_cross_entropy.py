"""Cross-entropy of a projection onto a vocabulary, without the logits of all positions at once.

With features x_i, a table E of a vector a symbol, a bias b (or none), targets y_i and weights w_i (1 where a position
counts, else 0):

    l = sum_i w_i (logsumexp(E x_i + b) - (E x_i + b)_(y_i))
    g_i = w_i (softmax(E x_i + b) - 1_(y_i))
    dl/dx_i = g_i E        dl/dE = sum_i g_i x_i^T        dl/db = sum_i g_i

This product is most of a word-level model's work, and its logits most of its memory. So positions are taken a chunk at
a time, and the gradients come with the loss, from the logits of the chunk at hand: [positions vocabulary] is never held
(Hsu et al. 2024, "Liger kernel"; Wijmans et al. 2024, "Cut your losses"). A vocabulary below `SMALL` is one product.

Which chunks: `zoo.nn.cpu.packed_cross_entropy` and, on accelerators, `zoo.nn.spread_cross_entropy`.

Products have the dtype of x; their sums, the softmax and the gradients of table and bias are float32.
"""

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from zoo.nn.cpu.packed_cross_entropy import packed_rows, packed_sum
from zoo.nn.dense import wide_matmul
from zoo.nn.losses import cross_entropy
from zoo.nn.platform import by_platform
from zoo.nn.spread_cross_entropy import spread_rows, spread_sum

SMALL = 1024
"""Vocabularies below this are one product: their logits are no larger than what a block of the network remembers."""


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
    return _sum(x, table, bias, targets, counted)


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
    return _rows(x, table, bias, targets, counted)


def _plain_rows(x, table, bias, targets, counted):
    logits = rearrange(wide_matmul(rearrange(x, "b t d -> (b t) d"), table.T), "(b t) v -> b t v", b=len(x))
    if bias is not None:
        logits = logits + bias[None, None, :]
    return (cross_entropy(logits, targets) * counted.astype(jnp.float32)).sum(1)


@by_platform(cpu=packed_sum, accelerator=spread_sum)
def _sum(x, table, bias, targets, counted):
    return _plain_rows(x, table, bias, targets, counted).sum()


_rows = by_platform(cpu=packed_rows, accelerator=spread_rows)(_plain_rows)
