"""Writes to a cache of keys and values that XLA's CPU compiler does not fuse into the reads after them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def apart(write: Callable) -> Callable:
    """Wraps `write` (cache, keys, values, slot) so that XLA's CPU compiler does not repeat it where the cache is read.

    With one row, the compiler would fuse the write into every loop that reads the cache and copy the whole cache for
    each. It does not fuse across `lax.cond`.
    """

    def guarded(cache, k, v, slot):
        if k.shape[0] > 1:
            return write(cache, k, v, slot)
        return jax.lax.cond(jnp.asarray(slot) >= 0, lambda: write(cache, k, v, slot), lambda: cache)

    return guarded
