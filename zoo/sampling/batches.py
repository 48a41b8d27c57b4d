"""Runs a compiled function over many samples in batches of one size."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def in_batches(make: Callable[[jax.Array], jax.Array], n: int, batch_size: int, first: int = 0) -> np.ndarray:
    """Returns samples `first` .. `first + n - 1` on the host.

    Args:
        make: maps sample indices [b] to samples [b ...]; a sample may depend only on its own index.
        n: number of samples.
        batch_size: largest batch; the last batch is padded to the same size, so that it does not recompile.
        first: index of the first sample.
    """
    size = min(batch_size, 1 << max(n - 1, 0).bit_length())
    parts = [np.asarray(make(first + begin + jnp.arange(size))) for begin in range(0, n, size)]
    return np.concatenate(parts)[:n]


def over_rows(f: Callable[[jax.Array], jax.Array], array: jax.Array, batch_size: int) -> np.ndarray:
    """Returns f(array) for an array [n ...], at most `batch_size` rows at a time; f must treat rows independently."""
    last = len(array) - 1
    return in_batches(lambda rows: f(array[jnp.minimum(rows, last)]), len(array), batch_size)
