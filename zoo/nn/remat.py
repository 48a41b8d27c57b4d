"""Rematerialisation: a block that keeps only its input for gradients, and computes the rest again.

Chen et al. 2016, "Training deep nets with sublinear memory cost". `jax.checkpoint` does this too, but what it computes
again depends on the gradient through nothing that XLA's CPU compiler keeps, so that compiler would compute it early and
hold it; see `late`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx

from zoo.nn.dense import late


def rematerialised(module: Any, wanted: bool = True) -> Callable[..., Any]:
    """The module's call, or, if wanted, the same with its inner results computed again in the backward pass.

    The module must not change what it remembers. Its first argument, x, is an array; others are pytrees of arrays. The
    first array that it returns depends on x.
    """
    if not wanted:
        return module
    graphdef, state = nnx.split(module)
    return lambda x, *args, **settings: _call(graphdef, state, x, args, settings)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _call(graphdef, state, x, args, settings):
    return nnx.merge(graphdef, state)(x, *args, **settings)


def _forward(graphdef, *saved):
    return _call(graphdef, *saved), saved


def _backward(graphdef, saved, gradient):
    # The barrier keeps compilers from finding the first pass's results equal to these.
    (state, x, args, settings), gradient = jax.lax.optimization_barrier((saved, gradient))
    x = late(x, jax.tree.leaves(gradient)[0])
    _, pull = jax.vjp(partial(_call.fun, graphdef), state, x, args, settings)
    return pull(gradient)


_call.defvjp(_forward, _backward)
