"""Many samples by a function that is compiled for one batch size."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def in_batches(make: Callable[[jax.Array], jax.Array], n: int, batch_size: int, first: int = 0) -> np.ndarray:
    """Samples `first` .. `first + n - 1`, on the host.

    Args:
        make: maps sample indices [b] to samples [b ...]; each must depend on its own index alone.
        n: how many.
        batch_size: at most how many at once; the last batch is filled up, so that nothing compiles anew for it.
        first: the first sample's index.
    """
    size = min(batch_size, 1 << max(n - 1, 0).bit_length())
    parts = [np.asarray(make(first + begin + jnp.arange(size))) for begin in range(0, n, size)]
    return np.concatenate(parts)[:n]


def over_rows(f: Callable[[jax.Array], jax.Array], array: jax.Array, batch_size: int) -> np.ndarray:
    """f of an array [n ...], at most `batch_size` rows at once; f maps rows one by one."""
    last = len(array) - 1
    return in_batches(lambda rows: f(array[jnp.minimum(rows, last)]), len(array), batch_size)
