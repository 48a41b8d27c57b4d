"""Mixed-precision arithmetic of layers.

Parameters are float32. A layer computes in the dtype of its input: it casts its matrix to that dtype, and the product
accumulates in float32. Vectors are added in float32 and the sum is cast, so that their gradients, which sum over many
positions, accumulate in float32: a bfloat16 sum stops growing at 256 times its terms.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from zoo.nn.platform import by_platform


def identity(x: jax.Array) -> jax.Array:
    """Returns x: the activation of a linear layer."""
    return x


def _dot(left, right, axes, dtype):
    return jax.lax.dot_general(left, right, ((axes[:1], axes[1:]), ((), ())), preferred_element_type=dtype)


def _rounded_once(left, right, axes=(1, 0), dtype=jnp.float32):
    """`product` on accelerators, which round once for any output dtype; the CPU would also round partial sums."""
    return _dot(left, right, axes, dtype)


@by_platform(accelerator=_rounded_once)
def product(
    left: Float[Array, "..."],
    right: Float[Array, "..."],
    axes: tuple[int, int] = (1, 0),
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "..."]:
    """Matrix product, contracted over one axis of each operand in float32 and rounded once to `dtype`."""
    return _dot(left, right, axes, jnp.float32).astype(dtype)


def add_vector(x: Float[Array, "... d"], vector: Float[Array, " d"]) -> Float[Array, "... d"]:
    """Adds a vector at every position in float32; returns the dtype of x."""
    return (x + jnp.expand_dims(vector, range(x.ndim - 1))).astype(x.dtype)
