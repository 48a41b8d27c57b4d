"""Mask-Predict (Ghazvininejad et al. 2019): predicts all tokens in parallel, then repredicts the least certain ones.

The network is a function `predict(tokens [b t], unknown [b t]) -> logits [b t v]`, which must ignore the tokens where
`unknown` is true. At first all are unknown. Each of T iterations chooses the unknown tokens from the logits; after
iteration i, the n = t (T - i) / T least probable tokens become unknown again (section 3.2, eq. 1 to 4).

Letters in shapes: b rows, t tokens, v vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.sampling.tokens.logits import Knobs, choose

Predict = Callable[[Int[Array, "b t"], Bool[Array, "b t"]], Float[Array, "b t v"]]


def mask_predict(
    predict: Predict, length: int, *, iterations: Int[Array, ""] | int, knobs: Knobs, keys: Key[Array, " b"]
) -> tuple[Int[Array, "b t"], Float[Array, "b t"]]:
    """Generates `length` tokens in every row.

    Args:
        predict: see the module's docstring.
        length: t.
        iterations: T; with 1, tokens are chosen independently of each other.
        knobs: sampling settings of each row, the same at all its positions.
        keys: one key per row.

    Returns:
        The tokens, and the log-probability of each when it was chosen.
    """
    b = keys.shape[0]
    each = Knobs(*(repeat(knob, "b -> (b t)", t=length) for knob in knobs))

    def iterate(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        tokens, log_probability, unknown = state
        logits = predict(tokens, unknown)
        here = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, i), length))(keys)
        flat = rearrange(logits, "b t v -> (b t) v")
        chosen = choose(flat, jnp.zeros(flat.shape, bool), each, rearrange(here, "b t -> (b t)"))
        log_chosen = jnp.take_along_axis(jax.nn.log_softmax(flat.astype(jnp.float32)), chosen[:, None], axis=1)
        tokens = jnp.where(unknown, rearrange(chosen, "(b t) -> b t", b=b), tokens)
        log_probability = jnp.where(unknown, rearrange(log_chosen, "(b t) 1 -> b t", b=b), log_probability)
        doubtful = length * (iterations - i - 1) // iterations
        rank = jnp.argsort(jnp.argsort(log_probability, axis=1), axis=1)
        return tokens, log_probability, rank < doubtful

    start = (jnp.zeros((b, length), jnp.int32), jnp.zeros((b, length)), jnp.ones((b, length), bool))
    tokens, log_probability, _ = jax.lax.fori_loop(0, iterations, iterate, start)
    return tokens, log_probability
