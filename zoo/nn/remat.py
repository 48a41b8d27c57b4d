"""Rematerialisation: a block stores only its input for the backward pass and recomputes the rest.

Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from zoo.nn.cpu import remat as cpu
from zoo.nn.platform import by_platform


def rematerialised(module: Any, wanted: bool = True) -> Callable[..., Any]:
    """Returns the module's call; if wanted, one that recomputes its intermediate results in the backward pass.

    The module must not change its state. Its first argument, x, is an array; others are pytrees of arrays. The first
    array that it returns depends on x.
    """
    if not wanted:
        return module
    graphdef, state = nnx.split(module)
    return lambda x, *args, **settings: _call(graphdef, state, x, args, settings)


@by_platform(cpu=cpu.call)
def _call(graphdef, state, x, args, settings):
    def call(state, x, args, settings):
        return nnx.merge(graphdef, state)(x, *args, **settings)

    return jax.checkpoint(call)(state, x, args, settings)
