"""Runs a compiled function over many samples in batches of one size."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def in_batches(make: Callable[[jax.Array], Any], n: int, at_once: int) -> Any:
    """Returns samples 0 .. n - 1 on the host.

    Args:
        make: maps sample indices [b] to samples: an array [b ...] or a tree of such. A sample depends only on its own
            index; the surplus has indices from n on.
        n: number of samples.
        at_once: samples that one call makes, at most; the last call makes as many as the others, so that it does not
            recompile, and the surplus is dropped.

    Returns:
        An array [n ...] or a tree of such.
    """
    size = min(at_once, 1 << max(n - 1, 0).bit_length())
    parts = [jax.device_get(make(begin + jnp.arange(size))) for begin in range(0, n, size)]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:n], *parts)


def over_rows(f: Callable[[Any], Any], arrays: Any, at_once: int) -> Any:
    """Returns f(arrays) on the host, for an array [n ...] or a tree of such, at most `at_once` rows at a time.

    f must treat rows independently; see `in_batches`.
    """
    n = len(jax.tree.leaves(arrays)[0])

    def part(rows: jax.Array) -> Any:
        place = np.minimum(rows, n - 1)
        return f(jax.tree.map(lambda array: array[place], arrays))

    return in_batches(part, n, at_once)
