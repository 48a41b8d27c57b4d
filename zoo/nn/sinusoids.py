"""Sines and cosines of a number at geometrically falling frequencies, as features of times and positions.

Vaswani et al. 2017, "Attention is all you need", section 3.5.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LONGEST = 10_000.0
"""The ratio of the first frequency, 1, to the last."""


def time_features(t: Float[Array, " b"], features: int, cos_first: bool, shift: int) -> Float[Array, "b features"]:
    """Sines and cosines of t; with shift 1 the lowest frequency is exactly 1 / 10000."""
    half = features // 2
    frequencies = jnp.exp(-math.log(LONGEST) * jnp.arange(half) / (half - shift))
    angles = t[:, None] * frequencies[None, :]
    waves = [jnp.cos(angles), jnp.sin(angles)] if cos_first else [jnp.sin(angles), jnp.cos(angles)]
    return jnp.pad(jnp.concatenate(waves, axis=1), ((0, 0), (0, features % 2)))


def grid_features(rows: int, columns: int, features: int) -> Float[np.ndarray, "t features"]:
    """Features of the places of a grid, row by row: the first half those of the column, the second of the row.

    Each half has its sines before its cosines, as in the code of Dosovitskiy et al.'s successors (MAE, DiT).

    Args:
        rows: number of rows.
        columns: number of columns; t = rows * columns.
        features: size of a vector, a multiple of 4.
    """
    row, column = (place.ravel() for place in np.mgrid[:rows, :columns])
    frequencies = LONGEST ** -(np.arange(features // 4) / (features // 4))
    angles = [place[:, None] * frequencies[None, :] for place in (column, row)]
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1).astype(np.float32)
