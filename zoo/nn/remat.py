"""Rematerialisation: a block that keeps only its input for gradients, and computes the rest again.

Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


def rematerialised(module: Any, wanted: bool = True) -> Callable[..., Any]:
    """The module's call, or, if wanted, the same with its inner results computed again in the backward pass.

    The module must not change what it remembers. Arguments are pytrees of arrays.
    """
    if not wanted:
        return module
    graphdef, state = nnx.split(module)

    @jax.checkpoint
    def call(state, args, settings):
        return nnx.merge(graphdef, state)(*args, **settings)

    return lambda *args, **settings: call(state, args, settings)
