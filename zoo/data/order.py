"""The order of training rows."""

import numpy as np
from jaxtyping import Int64, Integer


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
