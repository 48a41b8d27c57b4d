"""Targets of a masked language model and the corrupted input that hides them, drawn row by row.

Devlin et al. 2019, "BERT", section 3.1 and appendix A.1; redrawn for every (seed, step, row), as in Liu et al. 2019,
"RoBERTa" (dynamic masking).
Letters in shapes: b rows, t tokens, k targets.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from zoo.core.random import uniform


class Targets(NamedTuple):
    """The tokens to predict in each row, in the order in which they were drawn."""

    positions: jax.Array
    """Their positions, int32 [b k]."""
    labels: jax.Array
    """Their ids, int32 [b k]."""
    counted: jax.Array
    """Which of the k are targets, bool [b k]: a short row has fewer."""


def choose_targets(
    tokens: Int[Array, "b t"],
    special: tuple[int, ...],
    share: float,
    key: Key[Array, ""],
    rows: Int[Array, " b"],
) -> Targets:
    """Draws `share` of each row's tokens without replacement: at least one, never special ones."""
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
    """Returns the tokens with targets replaced: 80 % by `mask`, 10 % by a random token, 10 % unchanged."""
    kind, other = jnp.moveaxis(uniform(key, rows, (2, targets.labels.shape[1])), 1, 0)
    drawn = (other * vocab_size).astype(jnp.int32)
    return put(tokens, targets, jnp.where(kind < 0.8, mask, jnp.where(kind < 0.9, drawn, targets.labels)))


def put(tokens: Int[Array, "b t"], targets: Targets, values: Int[Array, "b k"]) -> Int[Array, "b t"]:
    """Returns the tokens with `values` at the targets."""
    values = jnp.where(targets.counted, values, targets.labels)
    return tokens.at[jnp.arange(len(tokens))[:, None], targets.positions].set(values)


def order_of(targets: Targets, length: int) -> Int[Array, "b t"]:
    """Returns each token's rank in the factorisation order: 0 if it is not a target, else 1, 2, ... as drawn."""
    turn = 1 + jnp.arange(targets.positions.shape[1])[None, :]
    rank = jnp.zeros((len(targets.positions), length), jnp.int32)
    return rank.at[jnp.arange(len(rank))[:, None], targets.positions].set(jnp.where(targets.counted, turn, 0))
