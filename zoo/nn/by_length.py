"""Rows of similar length without most of their padding, in one compiled program.

Arrays of a compiled program have one shape, so a batch is as long as the longest row that may ever come. Where a batch
holds rows of similar length, most of that is padding. Here a function is compiled for a few lengths, and each batch
takes the shortest that holds it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Sums = tuple[Float[Array, ""], Any]
"""A number to differentiate, and whatever else is of one shape at every length."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def at_length(
    function: Callable[..., Sums], lengths: Sequence[int], needed: Int[Array, ""], params: Any, *rest: Any
) -> Sums:
    """function(length, params, *rest) at the least of the lengths that is no less than `needed`.

    The first result can be differentiated by the params. A choice between branches would save for the way back what
    every branch would have to save, and fill it with zeros for those not taken; so the gradient is made on the way
    there, within the branch.

    Args:
        function: must give one result at every length that is no less than `needed`.
        lengths: rising; the last holds every batch.
        needed: of this batch.
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
