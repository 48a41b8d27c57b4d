"""Barriers that keep XLA's CPU compiler from moving computation where it is slow or takes memory.

On other platforms they do nothing, since their compilers need the freedom; forms with barriers can be used there too.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from zoo.nn.platform import by_platform


@by_platform(cpu=jax.lax.optimization_barrier)
def settle(arrays):
    """The arrays unchanged; XLA does not fuse across this point.

    On the CPU, XLA moves the transposes of weight gradients out of the matrix product into slow elementwise loops,
    which took a third of the time of a Transformer's training step.
    """
    return arrays


def _tied(arrays, gradient: Float[Array, "..."]):
    zero = 0.0 * gradient[(0,) * gradient.ndim]
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), arrays)


@by_platform(cpu=_tied)
def late(arrays, gradient: Float[Array, "..."]):
    """The arrays unchanged, but not available before the gradient.

    What a backward pass recomputes from saved arrays does not depend on the gradient, so XLA's CPU compiler would
    compute it in the forward pass and keep the result, which defeats the purpose. Adding zero times one element of the
    gradient is a dependence that it cannot remove.
    """
    return arrays


def _kept_lean(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return jax.checkpoint(f)


@by_platform(cpu=_kept_lean)
def lean(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Returns f, storing only its argument for the backward pass and recomputing the rest.

    For a convolution after a normalisation, the rest is the normalised image, a quarter of a training step's memory on
    the CPU. Other compilers recompute it without this.
    """
    return f
