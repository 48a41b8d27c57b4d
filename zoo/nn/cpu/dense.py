"""The dense product with a custom gradient of two plain matrix products.

Given the gradient g of y = f(x) W,

    dW = f(x)^T g        dx = f'(x) (g W^T)

Barriers keep XLA's CPU compiler from moving transposes out of these products. Both products take operands in the dtype
of x, like the forward product, which is useful on accelerators too; dW is float32, without rounding.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.nn.arithmetic import identity, product
from zoo.nn.cpu.barriers import late, settle


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def activated_matmul(
    activation: Callable[[jax.Array], jax.Array], wide: bool, x: Float[Array, "n h"], kernel: Float[Array, "i o"]
) -> Float[Array, "n o"]:
    """Implements `zoo.nn.dense.activated_matmul`; stores only x for the gradient and recomputes activation(x)."""
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
