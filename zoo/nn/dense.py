"""Dense layers whose gradients stay plain matrix products on the CPU."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
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


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def activated_matmul(
    activation: Callable[[jax.Array], jax.Array], x: Float[Array, "n h"], kernel: Float[Array, "i o"]
) -> Float[Array, "n o"]:
    """The product activation(x) @ kernel, which remembers x alone and works activation(x) out again for gradients."""
    return activation(x) @ kernel


def _forward(activation, x, kernel):
    return activation(x) @ kernel, (x, kernel)


def _backward(activation, saved, gradient):
    x, kernel, gradient = settle((*saved, gradient))
    hidden, pull = jax.vjp(activation, x if activation is identity else late(x, gradient))
    hidden, hidden_gradient = settle((hidden, jax.lax.dot_general(gradient, kernel, (((1,), (1,)), ((), ())))))
    kernel_gradient = jax.lax.dot_general(hidden, gradient, (((0,), (0,)), ((), ())))
    return settle((*pull(hidden_gradient), kernel_gradient))


activated_matmul.defvjp(_forward, _backward)
matmul = partial(activated_matmul, identity)


class Dense(nnx.Module):
    """activation(x) @ kernel + bias over the last axis.

    Args:
        features_in: size of the last axis of the kernel's input.
        features_out: size of the last axis of the output.
        bias: whether there is a bias, which starts at zero.
        scale: standard deviation of the kernel's initial values.
        rngs: source of the initial values.
        activation: what happens to the input first.
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
    ):
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), (features_in, features_out)))
        self.bias = nnx.Param(jnp.zeros(features_out)) if bias else None
        self.activation = activation

    def __call__(self, x: Float[Array, "b t i"]) -> Float[Array, "b t o"]:
        """Maps the features of every position."""
        y = activated_matmul(self.activation, rearrange(x, "b t i -> (b t) i"), self.kernel[...])
        if self.bias is not None:
            y = y + self.bias[...][None, :]
        return rearrange(y, "(b t) o -> b t o", b=x.shape[0])
