"""The order in which training rows are taken."""

import numpy as np
from jaxtyping import Int64, Integer


class Shuffled:
    """The order of training: each of `count` items once an epoch, in an order drawn from (seed, epoch).

    Args:
        count: how many items there are.
        seed: any integer.
    """

    def __init__(self, count: int, seed: int):
        import grain

        self._order = grain.MapDataset.range(count).seed(seed % 2**32).shuffle().repeat()

    def __getitem__(self, i: Integer[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Which items training rows i are, counted over all batches from step 0."""
        return np.array([self._order[int(row)] for row in i], np.int64)
