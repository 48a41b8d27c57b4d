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


def choose_all(
    logits: Float[Array, "b t v"], knobs: Knobs, keys: Key[Array, " b"]
) -> tuple[Int[Array, "b t"], Float[Array, "b t"]]:
    """Returns a token for every position, each chosen independently of the others, and its log-probability.

    Args:
        logits: the distributions of the tokens; the log-probability is by these, before temperature and truncation.
        knobs: sampling settings of each row, the same at all its positions.
        keys: one key per row.
    """
    b, t, _ = logits.shape
    flat = rearrange(logits, "b t v -> (b t) v")
    each = Knobs(*(repeat(knob, "b -> (b t)", t=t) for knob in knobs))
    here = rearrange(jax.vmap(lambda key: jax.random.split(key, t))(keys), "b t -> (b t)")
    chosen = choose(flat, jnp.zeros(flat.shape, bool), each, here)
    log_chosen = jnp.take_along_axis(jax.nn.log_softmax(flat.astype(jnp.float32)), chosen[:, None], axis=1)
    return rearrange(chosen, "(b t) -> b t", b=b), rearrange(log_chosen, "(b t) 1 -> b t", b=b)


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

    def iterate(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        tokens, log_probability, unknown = state
        here = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        chosen, log_chosen = choose_all(predict(tokens, unknown), knobs, here)
        tokens = jnp.where(unknown, chosen, tokens)
        log_probability = jnp.where(unknown, log_chosen, log_probability)
        doubtful = length * (iterations - i - 1) // iterations
        rank = jnp.argsort(jnp.argsort(log_probability, axis=1), axis=1)
        return tokens, log_probability, rank < doubtful

    start = (jnp.zeros((b, length), jnp.int32), jnp.zeros((b, length)), jnp.ones((b, length), bool))
    tokens, log_probability, _ = jax.lax.fori_loop(0, iterations, iterate, start)
    return tokens, log_probability
