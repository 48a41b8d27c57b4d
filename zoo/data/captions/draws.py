"""Random numbers as a pure function of (seed, purpose, row), for many rows at once."""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer, UInt64

Purpose = Literal["scene", "caption", "dropout", "task"]
"""What numbers are for; those for different purposes are independent."""

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / golden ratio, the increment of SplitMix64."""


def uniforms(seed: int, purpose: Purpose, row: Integer[np.ndarray, " b"], count: int) -> Float64[np.ndarray, "b count"]:
    """Returns `count` numbers uniform in [0, 1) for each row.

    A number is the hash of its seed, purpose, row and place by the finaliser of SplitMix64 (Steele et al. 2014, "Fast
    splittable pseudorandom number generators"), so that it does not depend on which rows are drawn with it.

    Args:
        seed: any integer.
        purpose: what they are for.
        row: numbers of the rows, counted over all batches.
        count: numbers per row.
    """
    start = np.array([(seed % 2**64 + GOLDEN * (1 + get_args(Purpose).index(purpose))) % 2**64], np.uint64)
    of_row = _mix(_mix(start) + np.uint64(GOLDEN) * (row.astype(np.uint64) + np.uint64(1)))
    place = np.uint64(GOLDEN) * np.arange(1, count + 1, dtype=np.uint64)
    return (_mix(of_row[:, None] + place[None, :]) >> np.uint64(11)) * 2.0**-53


def below(u: Float64[np.ndarray, "*b"], count: Integer[np.ndarray, "*b"] | int) -> Int64[np.ndarray, "*b"]:
    """Returns whole numbers from 0 to below `count`, from numbers uniform in [0, 1)."""
    return (u * count).astype(np.int64)


def dropped(seed: int, row: Int64[np.ndarray, " b"], share: float) -> Bool[np.ndarray, " b"]:
    """Returns which of the rows have the empty caption, a given share of all rows."""
    return uniforms(seed, "dropout", row, 1)[:, 0] < share


def _mix(z: UInt64[np.ndarray, "*b"]) -> UInt64[np.ndarray, "*b"]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
