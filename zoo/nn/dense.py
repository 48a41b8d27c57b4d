"""Dense layers, in the precision of their input, whose gradients stay plain matrix products on the CPU.

Parameters are float32. A layer computes in the dtype of its input: it casts its matrix to that dtype, and the product
is summed in float32. Vectors are added in float32 and the sum is cast, so that their gradients, which are sums over
many positions, are float32 sums: a bfloat16 sum stops growing at 256 times its terms.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def settle(arrays):
    """Keeps XLA's CPU compiler from fusing across this point; elsewhere it does nothing.

    On the CPU, XLA moves the transposes that belong to weight gradients out of the matrix product and into slow
    element-by-element loops, a third of the time of a Transformer's training step. Other compilers need the fusions.
    """
    return jax.lax.platform_dependent(arrays, cpu=jax.lax.optimization_barrier, default=lambda same: same)


def late(arrays, gradient: Float[Array, "..."]):
    """The arrays unchanged, but on the CPU not before the gradient is there.

    What a backward pass works out again from saved arrays does not depend on the gradient, so XLA's CPU compiler would
    do it at once, in the forward pass, and keep the result: the memory that was to be saved. Adding zero times one
    element of the gradient is a dependence that it cannot remove.
    """

    def tie(arrays):
        zero = 0.0 * gradient[(0,) * gradient.ndim]
        return jax.tree.map(lambda x: x + zero.astype(x.dtype), arrays)

    return jax.lax.platform_dependent(arrays, cpu=tie, default=lambda same: same)


def identity(x: jax.Array) -> jax.Array:
    """x, for where an activation is asked for."""
    return x


def product(
    left: Float[Array, "..."],
    right: Float[Array, "..."],
    axes: tuple[int, int] = (1, 0),
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "..."]:
    """The product of two matrices, summed along an axis of each in float32, in a dtype.

    Matrix units of GPUs and TPUs sum in float32 and round once, whatever they return. On the CPU a product that returns
    bfloat16 rounds its partial sums too, so there the float32 product is rounded.
    """
    wide = jnp.float32 if jax.default_backend() == "cpu" else dtype
    dimensions = ((axes[:1], axes[1:]), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=wide).astype(dtype)


def add_vector(x: Float[Array, "... d"], vector: Float[Array, " d"]) -> Float[Array, "... d"]:
    """x plus a vector at every position: added in float32, returned in the dtype of x."""
    return (x + jnp.expand_dims(vector, range(x.ndim - 1))).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def activated_matmul(
    activation: Callable[[jax.Array], jax.Array], wide: bool, x: Float[Array, "n h"], kernel: Float[Array, "i o"]
) -> Float[Array, "n o"]:
    """The product activation(x) @ kernel, computed in the dtype of x and summed in float32.

    It saves x alone for the gradient and recomputes activation(x).

    Args:
        activation: a function of x.
        wide: whether the result stays float32, as logits do; otherwise it has the dtype of x.
        x: of any floating-point dtype.
        kernel: float32; so is its gradient.
    """
    return _forward(activation, wide, x, kernel)[0]


def _forward(activation, wide, x, kernel):
    return product(activation(x), kernel.astype(x.dtype), dtype=jnp.float32 if wide else x.dtype), (x, kernel)


def _backward(activation, wide, saved, gradient):
    x, kernel, gradient = settle((*saved, gradient.astype(saved[0].dtype)))
    hidden, pull = jax.vjp(activation, x if activation is identity else late(x, gradient))
    hidden_gradient = product(gradient, kernel.astype(x.dtype), (1, 1), x.dtype)
    hidden, hidden_gradient = settle((hidden, hidden_gradient))
    return settle((*pull(hidden_gradient), product(hidden, gradient, (0, 0))))


activated_matmul.defvjp(_forward, _backward)
matmul = partial(activated_matmul, identity, False)
wide_matmul = partial(activated_matmul, identity, True)


class Dense(nnx.Module):
    """activation(x) @ kernel + bias over the last axis.

    Args:
        features_in: size of the last axis of the kernel's input.
        features_out: size of the last axis of the output.
        bias: whether there is a bias, which starts at zero.
        scale: standard deviation of the kernel's initial values.
        rngs: source of the initial values.
        activation: what happens to the input first.
        wide: whether the output is float32, as of logits, rather than of the input's dtype.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        bias: bool,
        scale: float,
        rngs: nnx.Rngs,
        activation: Callable[[jax.Array], jax.Array] = identity,
        wide: bool = False,
    ):
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), (features_in, features_out)))
        self.bias = nnx.Param(jnp.zeros(features_out)) if bias else None
        self.activation, self.wide = activation, wide

    def __call__(self, x: Float[Array, "b t i"]) -> Float[Array, "b t o"]:
        """Maps the features of every position."""
        y = activated_matmul(self.activation, self.wide, rearrange(x, "b t i -> (b t) i"), self.kernel[...])
        if self.bias is not None:
            y = add_vector(y, self.bias[...])
        return rearrange(y, "(b t) o -> b t o", b=x.shape[0])
