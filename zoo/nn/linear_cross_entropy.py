"""Cross-entropy of a linear projection onto a vocabulary, without the logits of all positions at once.

With features x_i, a table E with a vector per symbol, an optional bias b, targets y_i and weights w_i (1 for positions
that count, else 0):

    l = sum_i w_i (logsumexp(E x_i + b) - (E x_i + b)_(y_i))
    g_i = w_i (softmax(E x_i + b) - 1_(y_i))
    dl/dx_i = g_i E        dl/dE = sum_i g_i x_i^T        dl/db = sum_i g_i

This product is most of a word-level model's work, and its logits are most of its memory. Positions are therefore taken
in chunks, and each chunk computes its loss and gradients together, so that [positions vocabulary] is never held (Hsu et
al. 2024, "Liger kernel"; Wijmans et al. 2024, "Cut your losses"). A vocabulary below `SMALL` is one product. The chunks
are those of `zoo.nn.cpu.packed_cross_entropy` on the CPU and of `zoo.nn.spread_cross_entropy` on accelerators.

Products take operands in the dtype of x; their sums, the softmax and the gradients of table and bias are float32.
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
"""Vocabularies below this size are one product: their logits are no larger than one block's activations."""


def linear_cross_entropy(
    x: Float[Array, "b t d"],
    table: Float[Array, "v d"],
    targets: Int[Array, "b t"],
    counted: Bool[Array, "b t"],
    bias: Float[Array, " v"] | None = None,
) -> Float[Array, ""]:
    """Returns the sum of cross-entropy over positions that count, in nats; differentiable in x, table and bias."""
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
    """Returns each row's sum of cross-entropy over positions that count, in nats; for evaluation only."""
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
