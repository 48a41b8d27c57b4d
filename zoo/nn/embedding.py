"""A table of vectors, looked up by number."""

import jax
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.nn.dense import matmul


class Embedding(nnx.Module):
    """One vector for each of `count` symbols; the same table can turn vectors back into logits (Press and Wolf 2017).

    Args:
        count: how many symbols there are.
        features: size of a vector.
        scale: standard deviation of the initial values.
        rngs: source of the initial values.
    """

    def __init__(self, count: int, features: int, *, scale: float, rngs: nnx.Rngs):
        self.table = nnx.Param(scale * jax.random.normal(rngs.params(), (count, features)))

    def __call__(self, symbols: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """The vectors of the symbols."""
        return self.table[...][symbols]

    def logits(self, x: Float[Array, "b t d"]) -> Float[Array, "b t count"]:
        """The product of every vector with the whole table."""
        return rearrange(matmul(rearrange(x, "b t d -> (b t) d"), self.table[...].T), "(b t) n -> b t n", b=x.shape[0])
