"""Computation on a batch of images in parts, so that intermediate results fit into a cache and take little memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float


def in_chunks(f: Callable[..., jax.Array], most: int, add: bool, *images: Float[Array, "b _ _ _"]) -> jax.Array:
    """Applies f to equal parts of the batch, one after another.

    Args:
        f: a function of images.
        most: maximum images of a part; values below 1 count as 1.
        add: whether to sum the parts' results; otherwise they are images and are concatenated.
        images: arrays with the same batch size.
    """
    b = len(images[0])
    count = next(n for n in range(1, b + 1) if b % n == 0 and b // n <= max(most, 1))
    if count == 1:
        return f(*images)
    # Strided, so that each device holds an equal share of every part.
    parts = [rearrange(x, "(b n) h w c -> b n h w c", n=count) for x in images]

    def part(i: Any) -> jax.Array:
        return f(*(jax.lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in parts))

    shape = jax.eval_shape(part, 0)
    if add:
        return jax.lax.fori_loop(0, count, lambda i, total: total + part(i), jnp.zeros(shape.shape, shape.dtype))
    y = jnp.zeros((b // count, count, *shape.shape[1:]), shape.dtype)
    y = jax.lax.fori_loop(0, count, lambda i, y: jax.lax.dynamic_update_index_in_dim(y, part(i), i, 1), y)
    return rearrange(y, "b n h w o -> (b n) h w o")
