"""The order of training rows, and the rows of held-out batches."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer


class Shuffled:
    """Training order: each of `count` items once per epoch, in an order drawn from (seed, epoch).

    Args:
        count: number of items.
        seed: any integer.
    """

    def __init__(self, count: int, seed: int):
        import grain

        self._order = grain.MapDataset.range(count).seed(seed % 2**32).shuffle().repeat()

    def __getitem__(self, i: Integer[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Returns the items of training rows i, counted over all batches from step 0."""
        return np.array([self._order[int(row)] for row in i], np.int64)


class HeldOutRows(NamedTuple):
    """The rows of a held-out batch.

    Attributes:
        row: index in the whole split, so that noise in an evaluation does not depend on the batch size.
        place: the same, but the last item of the split past its end.
        valid: false past the end of the split.
    """

    row: Int32[np.ndarray, " b"]
    place: Int64[np.ndarray, " b"]
    valid: Bool[np.ndarray, " b"]


def held_out_rows(index: int, rows: slice, count: int, batch_size: int) -> HeldOutRows:
    """Returns part of the rows of held-out batch `index` of a split with `count` items."""
    row = index * batch_size + np.arange(batch_size, dtype=np.int32)[rows]
    return HeldOutRows(row, np.minimum(row, count - 1).astype(np.int64), row < count)
