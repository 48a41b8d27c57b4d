"""Which tokens of a row a masked language model is to predict, and what it sees in their place; drawn row by row.

Devlin et al. 2019, "BERT", section 3.1 and appendix A.1; anew for every (seed, step, row), as Liu et al. 2019,
"RoBERTa", have it.
Letters in shapes: b rows, t tokens, k tokens to predict.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from zoo.core.random import uniform


class Targets(NamedTuple):
    """The tokens that rows are to predict, in the order in which they were drawn."""

    positions: jax.Array
    """Where they are, int32 [b k]."""
    labels: jax.Array
    """What they are, int32 [b k]."""
    counted: jax.Array
    """Which of the k are meant, bool [b k]: a short row has fewer."""


def choose_targets(
    tokens: Int[Array, "b t"],
    special: tuple[int, ...],
    share: float,
    key: Key[Array, ""],
    rows: Int[Array, " b"],
) -> Targets:
    """Draws `share` of each row's tokens, at least one and special ones never, without replacement."""
    text = (tokens[:, :, None] != jnp.array(special)[None, None, :]).all(-1)
    noise = uniform(key, rows, (tokens.shape[1],))
    most = max(1, round(share * tokens.shape[1]))
    drawn, positions = jax.lax.top_k(jnp.where(text, noise, -1.0), most)
    count = jnp.maximum(1, jnp.round(share * text.sum(1)))
    counted = (drawn >= 0) & (jnp.arange(most)[None, :] < count[:, None])
    return Targets(positions, jnp.take_along_axis(tokens, positions, 1), counted)


def corrupt(
    tokens: Int[Array, "b t"], targets: Targets, mask: int, vocab_size: int, key: Key[Array, ""], rows: Int[Array, " b"]
) -> Int[Array, "b t"]:
    """The tokens with targets replaced: 80 % by `mask`, 10 % by a token drawn from all, 10 % by themselves."""
    kind, other = jnp.moveaxis(uniform(key, rows, (2, targets.labels.shape[1])), 1, 0)
    drawn = (other * vocab_size).astype(jnp.int32)
    return put(tokens, targets, jnp.where(kind < 0.8, mask, jnp.where(kind < 0.9, drawn, targets.labels)))


def put(tokens: Int[Array, "b t"], targets: Targets, values: Int[Array, "b k"]) -> Int[Array, "b t"]:
    """The tokens with other values at the targets."""
    values = jnp.where(targets.counted, values, targets.labels)
    return tokens.at[jnp.arange(len(tokens))[:, None], targets.positions].set(values)


def order_of(targets: Targets, length: int) -> Int[Array, "b t"]:
    """Each token's rank in the factorisation order: 0 where it is not predicted, else 1, 2, ... as it was drawn."""
    turn = 1 + jnp.arange(targets.positions.shape[1])[None, :]
    rank = jnp.zeros((len(targets.positions), length), jnp.int32)
    return rank.at[jnp.arange(len(rank))[:, None], targets.positions].set(jnp.where(targets.counted, turn, 0))
