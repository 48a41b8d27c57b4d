"""Rematerialisation that XLA's CPU compiler respects.

What `jax.checkpoint` recomputes depends on the gradient through nothing that this compiler keeps, so it would compute
that early and hold it; see `late`.
"""

from functools import partial

import jax
from flax import nnx

from zoo.nn.cpu.barriers import late


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def call(graphdef, state, x, args, settings):
    """A module's call that keeps its arguments alone for the gradient; see `zoo.nn.remat`."""
    return nnx.merge(graphdef, state)(x, *args, **settings)


def _forward(graphdef, *saved):
    return call(graphdef, *saved), saved


def _backward(graphdef, saved, gradient):
    # The barrier keeps compilers from finding the first pass's results equal to these.
    (state, x, args, settings), gradient = jax.lax.optimization_barrier((saved, gradient))
    x = late(x, jax.tree.leaves(gradient)[0])
    _, pull = jax.vjp(partial(call.fun, graphdef), state, x, args, settings)
    return pull(gradient)


call.defvjp(_forward, _backward)
