"""A table of vectors, looked up by number."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from zoo.nn.dense import wide_matmul


class Embedding(nnx.Module):
    """One vector for each of `count` symbols; the same table can turn vectors back into logits (Press and Wolf 2017).

    Args:
        count: how many symbols there are.
        features: size of a vector.
        scale: standard deviation of the initial values.
        rngs: source of the initial values.
        dtype: of the vectors that are looked up, in which the layers after them compute.
    """

    def __init__(self, count: int, features: int, *, scale: float, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.dtype = jnp.dtype(dtype)
        self.table = nnx.Param(scale * jax.random.normal(rngs.params(), (count, features)))

    def __call__(self, symbols: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """The vectors of the symbols, cast after they are gathered: the table's gradient is a float32 sum."""
        return self.table[...][symbols].astype(self.dtype)

    def logits(self, x: Float[Array, "b t d"]) -> Float[Array, "b t count"]:
        """The product of every vector with the whole table, in float32."""
        y = wide_matmul(rearrange(x, "b t d -> (b t) d"), self.table[...].T)
        return rearrange(y, "(b t) n -> b t n", b=x.shape[0])
