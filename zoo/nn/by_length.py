"""Computation on padded batches cut to one of a few lengths, in one compiled program.

A compiled program has fixed shapes, so every batch is padded to the longest possible row. If a batch holds rows of
similar length, most of it is padding. Here a function is compiled for a few lengths, and each batch uses the shortest
that is long enough.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Sums = tuple[Float[Array, ""], Any]
"""A scalar to differentiate, and auxiliary results whose shapes do not depend on the length."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def at_length(
    function: Callable[..., Sums], lengths: Sequence[int], needed: Int[Array, ""], params: Any, *rest: Any
) -> Sums:
    """Returns function(length, params, *rest) at the smallest of the lengths that is at least `needed`.

    The first result is differentiable in the params. Differentiating `lax.switch` stores residuals for every branch, so
    each branch computes its gradient in the forward pass.

    Args:
        function: must return the same result for every length that is at least `needed`.
        lengths: ascending; the last is enough for every batch.
        needed: the length that this batch needs.
        params: a pytree of arrays.
        rest: further arguments.
    """
    return _choose([partial(function, length) for length in lengths], lengths, needed, params, *rest)


def _choose(branches: Sequence[Callable[..., Any]], lengths: Sequence[int], needed: Any, *arguments: Any) -> Any:
    index = (needed > jnp.array(lengths[:-1])).sum()
    return jax.lax.switch(index, branches, *arguments)


def _forward(function, lengths, needed, params, *rest):
    branches = [jax.value_and_grad(partial(function, length), has_aux=True) for length in lengths]
    sums, gradient = _choose(branches, lengths, needed, params, *rest)
    return sums, (gradient, len(rest))


def _backward(function, lengths, saved, of_sums):
    gradient, others = saved
    return None, jax.tree.map(lambda x: of_sums[0].astype(x.dtype) * x, gradient), *[None] * others


at_length.defvjp(_forward, _backward)
