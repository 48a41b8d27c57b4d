"""Dense layers, computed in the dtype of their input; see `zoo.nn.arithmetic`."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from zoo.nn.arithmetic import add_vector, identity, product
from zoo.nn.cpu import dense as cpu
from zoo.nn.platform import by_platform


@by_platform(cpu=cpu.activated_matmul, accelerator=cpu.activated_matmul)
def activated_matmul(
    activation: Callable[[jax.Array], jax.Array], wide: bool, x: Float[Array, "n h"], kernel: Float[Array, "i o"]
) -> Float[Array, "n o"]:
    """The product activation(x) @ kernel, computed in the dtype of x and summed in float32.

    Args:
        activation: a function of x.
        wide: whether the result is float32, as for logits; otherwise it has the dtype of x.
        x: inputs of any floating-point dtype.
        kernel: float32, as is its gradient.
    """
    return product(activation(x), kernel.astype(x.dtype), dtype=jnp.float32 if wide else x.dtype)


matmul = partial(activated_matmul, identity, False)
wide_matmul = partial(activated_matmul, identity, True)


class Dense(nnx.Module):
    """activation(x) @ kernel + bias over the last axis.

    Args:
        features_in: size of the last axis of activation(x).
        features_out: size of the last axis of the output.
        bias: whether to add a bias, initially zero.
        scale: standard deviation of the kernel's initial values.
        rngs: source of the initial values.
        activation: applied to the input.
        wide: whether the output is float32, as for logits, rather than of the input's dtype.
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
        """Maps every position independently."""
        y = activated_matmul(self.activation, self.wide, rearrange(x, "b t i -> (b t) i"), self.kernel[...])
        if self.bias is not None:
            y = add_vector(y, self.bias[...])
        return rearrange(y, "(b t) o -> b t o", b=x.shape[0])
