"""The arithmetic of layers in the precision of their input.

Parameters are float32. A layer computes in the dtype of its input: it casts its matrix to that dtype, and the product
is summed in float32. Vectors are added in float32 and the sum is cast, so that their gradients, which are sums over
many positions, are float32 sums: a bfloat16 sum stops growing at 256 times its terms.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from zoo.nn.platform import by_platform


def identity(x: jax.Array) -> jax.Array:
    """x, for where an activation is asked for."""
    return x


def _dot(left, right, axes, dtype):
    return jax.lax.dot_general(left, right, ((axes[:1], axes[1:]), ((), ())), preferred_element_type=dtype)


def _rounded_once(left, right, axes=(1, 0), dtype=jnp.float32):
    """Matrix units sum in float32 and round once, whatever they return; the CPU would round partial sums too."""
    return _dot(left, right, axes, dtype)


@by_platform(accelerator=_rounded_once)
def product(
    left: Float[Array, "..."],
    right: Float[Array, "..."],
    axes: tuple[int, int] = (1, 0),
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "..."]:
    """The product of two matrices, summed along an axis of each in float32 and rounded once to a dtype."""
    return _dot(left, right, axes, jnp.float32).astype(dtype)


def add_vector(x: Float[Array, "... d"], vector: Float[Array, " d"]) -> Float[Array, "... d"]:
    """x plus a vector at every position: added in float32, returned in the dtype of x."""
    return (x + jnp.expand_dims(vector, range(x.ndim - 1))).astype(x.dtype)
