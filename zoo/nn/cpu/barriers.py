"""What keeps XLA's CPU compiler from moving work to where it is slow or takes memory.

On other platforms these do nothing: their compilers need the freedom. So a form that is written with them can serve
other platforms too.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from zoo.nn.platform import by_platform


@by_platform(cpu=jax.lax.optimization_barrier)
def settle(arrays):
    """The arrays unchanged; XLA does not fuse across this point.

    On the CPU, XLA moves the transposes that belong to weight gradients out of the matrix product and into slow
    element-by-element loops, a third of the time of a Transformer's training step.
    """
    return arrays


def _tied(arrays, gradient: Float[Array, "..."]):
    zero = 0.0 * gradient[(0,) * gradient.ndim]
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), arrays)


@by_platform(cpu=_tied)
def late(arrays, gradient: Float[Array, "..."]):
    """The arrays unchanged, but not before the gradient is there.

    What a backward pass recomputes from saved arrays does not depend on the gradient, so XLA's CPU compiler would do
    it at once, in the forward pass, and keep the result: the memory that was to be saved. Adding zero times one
    element of the gradient is a dependence that it cannot remove.
    """
    return arrays


def _kept_lean(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return jax.checkpoint(f)


@by_platform(cpu=_kept_lean)
def lean(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """f, which keeps its argument alone for the gradient and recomputes the rest.

    Of a convolution after a normalisation, the rest is the normalised image, a quarter of the memory of a training
    step on the CPU. Other compilers recompute it by themselves.
    """
    return f
