"""Writes all tokens of a text at once and goes over the doubtful ones again (Ghazvininejad et al. 2019, Mask-Predict).

A network here is a function `predict(tokens [b t], unknown [b t]) -> logits [b t v]` of tokens some of which it must
not look at. At first none of them is known. Each of T iterations chooses the unknown ones from the network's logits;
all but the n least probable, n = t (T - i) / T after iteration i, are known in the next (section 3.2, eq. 1 to 4).

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
    """Writes `length` tokens in every row.

    Args:
        predict: see the module.
        length: t.
        iterations: T; 1 chooses every token without knowing the others.
        knobs: how tokens are drawn, the same at each position of a row.
        keys: noise, one key a row.

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
