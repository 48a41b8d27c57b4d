"""Noise drawn row by row, so that results do not depend on how a batch is split.

Row r of the global batch draws from `fold_in(key, r)` on every device and in every microbatch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def row_keys(key: Key[Array, ""], rows: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key for each row of the global batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def split(key: Key[Array, ""] | None, n: int) -> list:
    """Splits a key into n keys; without a key, as in evaluation, returns n times None."""
    return [None] * n if key is None else list(jax.random.split(key, n))


def dropout(
    x: Float[Array, "b ..."], rate: float, key: Key[Array, ""] | None, rows: Int[Array, " b"] | None
) -> Float[Array, "b ..."]:
    """Sets each element to zero with probability `rate` and scales the others up by 1 / (1 - rate).

    Srivastava et al. 2014, "Dropout". Without a key, as in evaluation, nothing is dropped.
    """
    if key is None or rate == 0.0:
        return x
    if rows is None:
        rows = jnp.arange(x.shape[0])
    keep = jax.vmap(lambda row_key: jax.random.bernoulli(row_key, 1.0 - rate, x.shape[1:]))(row_keys(key, rows))
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def normal(key: Key[Array, ""], rows: Int[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Standard normal noise of the given shape for each row."""
    return jax.vmap(lambda row_key: jax.random.normal(row_key, shape))(row_keys(key, rows))


def uniform(key: Key[Array, ""], rows: Int[Array, " b"], shape: tuple[int, ...] = ()) -> Float[Array, "b ..."]:
    """Noise uniform in [0, 1), of the given shape for each row."""
    return jax.vmap(lambda row_key: jax.random.uniform(row_key, shape))(row_keys(key, rows))


def spread(key: Key[Array, ""], rows: Int[Array, " b"]) -> Float[Array, " b"]:
    """Numbers uniform in [0, 1), evenly spread over consecutive rows.

    Multiples of the golden ratio, shifted by one uniform number, modulo 1: the mean over a batch varies less than with
    independent numbers (Kingma et al. 2021, "Variational diffusion models", appendix I, with a regular grid).
    """
    offset = jax.random.bits(key, (), jnp.uint32)
    turns = rows.astype(jnp.uint32) * jnp.uint32(2654435769) + offset  # 2^32 / golden ratio; wraps at 2^32
    return (turns >> 8).astype(jnp.float32) / 2**24
