"""Writing to a cache of keys and values that is read soon after."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def apart(write: Callable) -> Callable:
    """`write` of (cache, keys, values, slot), which XLA's CPU compiler does not repeat where the cache is read.

    With one row, the compiler makes the write part of every loop that reads what was written, and copies the whole
    cache for each. It does not look past a condition.
    """

    def guarded(cache, k, v, slot):
        if k.shape[0] > 1:
            return write(cache, k, v, slot)
        return jax.lax.cond(jnp.asarray(slot) >= 0, lambda: write(cache, k, v, slot), lambda: cache)

    return guarded
