"""Chooses the next token from logits. The settings (`Knobs`) apply in this order:

    repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw

Each setting is an array with one value per row, so that a new value does not recompile. Letters: b rows, v tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


class Knobs(NamedTuple):
    """Sampling settings, each with one value per row, [b]; see `TokenRequest`."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array


def penalize(logits: Float[Array, "b v"], seen: Bool[Array, "b v"], penalty: Float[Array, " b"]) -> Float[Array, "b v"]:
    """Repetition penalty: for seen tokens, positive logits are divided by the penalty and negative ones multiplied.

    Keskar et al. 2019, "CTRL", section 4.1, corrected for negative logits.
    """
    lowered = jnp.where(logits < 0, logits * penalty[:, None], logits / penalty[:, None])
    return jnp.where(seen, lowered, logits)


def truncate(
    logits: Float[Array, "b v"], top_k: Int[Array, " b"], top_p: Float[Array, " b"], min_p: Float[Array, " b"]
) -> Float[Array, "b v"]:
    """Sets logits excluded by top-k, top-p and min-p to minus infinity; ties with the last kept token are kept."""

    def by_rank(logits: jax.Array) -> jax.Array:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        last = jnp.clip(top_k, 1, logits.shape[-1])[:, None] - 1
        kth = jnp.where(top_k[:, None] > 0, jnp.take_along_axis(ranked, last, axis=-1), -jnp.inf)
        probability = jax.nn.softmax(jnp.where(ranked >= kth, ranked, -jnp.inf), axis=-1)
        likelier = jnp.cumsum(probability, axis=-1) - probability
        nucleus = jnp.where(likelier < top_p[:, None], ranked, jnp.inf).min(axis=-1, keepdims=True)
        nucleus = jnp.where(top_p[:, None] < 1, nucleus, -jnp.inf)
        return jnp.where(logits >= jnp.maximum(kth, nucleus), logits, -jnp.inf)

    ranks_matter = jnp.any((top_k > 0) | (top_p < 1))
    logits = jax.lax.cond(ranks_matter, by_rank, lambda same: same, logits)
    floor = logits.max(axis=-1, keepdims=True) + jnp.log(min_p)[:, None]
    return jnp.where(logits >= floor, logits, -jnp.inf)


def choose(
    logits: Float[Array, "b v"], seen: Bool[Array, "b v"], knobs: Knobs, keys: Key[Array, " b"]
) -> Int[Array, " b"]:
    """Returns the next token of each row: the likeliest if its temperature is 0, else a sample drawn with its key.

    Samples are argmax(logits + Gumbel noise). Steps that no row needs are skipped.
    """
    logits = logits.astype(jnp.float32)
    logits = jax.lax.cond(
        jnp.any(knobs.repetition_penalty != 1),
        lambda: penalize(logits, seen, knobs.repetition_penalty),
        lambda: logits,
    )
    likeliest = _argmax(logits)

    def draw() -> jax.Array:
        drawn = knobs.temperature > 0
        scaled = logits / jnp.where(drawn, knobs.temperature, 1.0)[:, None]
        kept = truncate(scaled, knobs.top_k, knobs.top_p, knobs.min_p)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        return jnp.where(drawn, _argmax(kept + noise), likeliest)

    return jax.lax.cond(jnp.any(knobs.temperature > 0), draw, lambda: likeliest)


def _argmax(x: Float[Array, "b v"]) -> Int[Array, " b"]:
    # XLA's CPU compiler vectorises these two reductions, but not argmax's one reduction over (value, index) pairs.
    highest = x.max(axis=-1, keepdims=True)
    return jnp.where(x == highest, jnp.arange(x.shape[1])[None, :], x.shape[1] - 1).min(axis=-1)
