"""Rematerialisation that XLA's CPU compiler respects.

This compiler drops the dependence on the gradient by which `jax.checkpoint` delays recomputation, so it would recompute
in the forward pass and keep the results; see `late` in `zoo.nn.cpu.barriers`.
"""

from functools import partial

import jax
from flax import nnx

from zoo.nn.cpu.barriers import late


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def call(graphdef, state, x, args, settings):
    """Calls a module, storing only its arguments for the backward pass; see `zoo.nn.remat`."""
    return nnx.merge(graphdef, state)(x, *args, **settings)


def _forward(graphdef, *saved):
    return call(graphdef, *saved), saved


def _backward(graphdef, saved, gradient):
    # The barrier keeps compilers from merging this recomputation with the forward pass.
    (state, x, args, settings), gradient = jax.lax.optimization_barrier((saved, gradient))
    x = late(x, jax.tree.leaves(gradient)[0])
    _, pull = jax.vjp(partial(call.fun, graphdef), state, x, args, settings)
    return pull(gradient)


call.defvjp(_forward, _backward)
