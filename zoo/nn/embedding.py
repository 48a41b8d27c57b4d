"""Embedding table."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from zoo.nn.dense import wide_matmul


class Embedding(nnx.Module):
    """A vector for each of `count` symbols; the table can also be the output layer (Press and Wolf 2017).

    Args:
        count: number of symbols.
        features: size of a vector.
        scale: standard deviation of the initial values.
        rngs: source of the initial values.
        dtype: dtype of the returned vectors, and so of the following layers' computation.
    """

    def __init__(self, count: int, features: int, *, scale: float, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.dtype = jnp.dtype(dtype)
        self.table = nnx.Param(scale * jax.random.normal(rngs.params(), (count, features)))

    def __call__(self, symbols: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Returns the symbols' vectors, cast after the gather, so that the table's gradient is a float32 sum."""
        return self.table[...][symbols].astype(self.dtype)

    def logits(self, x: Float[Array, "b t d"], first: int | None = None) -> Float[Array, "b t count"]:
        """Returns the product of every vector with the table, or its `first` rows, in float32."""
        y = wide_matmul(rearrange(x, "b t d -> (b t) d"), self.table[:first].T)
        return rearrange(y, "(b t) n -> b t n", b=x.shape[0])
