"""Read accuracy: how often a picture of coloured digits shows what its caption asks for, as a trained reader tells.

A sample is right in an attribute (digit, colour, place) if both objects are, and there are as many objects as asked
for. What a caption does not name, such as the place of a digit alone, may be anything.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int32, Integer, UInt8

from zoo.core.data import DataSet
from zoo.core.family import Metrics
from zoo.metrics.retrieval import first_rows, share

ATTRIBUTES = ("digit", "colour", "place")

Read = Callable[[UInt8[np.ndarray, "n h w c"]], Int32[np.ndarray, "n 2 3"]]
"""Tells what is in pictures, as arrays like a batch's `scene`."""


def right_attributes(
    read: Integer[np.ndarray, "n 2 3"], asked: Integer[np.ndarray, "n 2 3"]
) -> Bool[np.ndarray, "n 3"]:
    """Returns which attributes of each picture are right.

    Args:
        read: what is in the pictures; -1 for an object that is not there.
        asked: what the captions ask for; -1 for what they do not name. An object without a digit is not asked for.
    """
    as_many = ((read[..., 0] >= 0) == (asked[..., 0] >= 0)).all(1)
    return ((read == asked) | (asked < 0)).all(1) & as_many[:, None]


def read_accuracy(
    read: Integer[np.ndarray, "n 2 3"], asked: Integer[np.ndarray, "n 2 3"], held_out: Bool[np.ndarray, " n"]
) -> Metrics:
    """Returns the shares of pictures that are right, with 95 % intervals.

    Args:
        read, asked: see `right_attributes`.
        held_out: whether the combination that is asked for was not trained on.

    Returns:
        `read_ATTRIBUTE` and `read_all` over all pictures, and `seen_...` and `unseen_...` of the two kinds.
    """
    right = right_attributes(read, asked)
    parts = {"": np.ones(len(right), bool), "seen_": ~held_out, "unseen_": held_out}
    figures: Metrics = {}
    for prefix, rows in parts.items():
        if rows.any():
            for name, hits in zip(ATTRIBUTES, right[rows].T, strict=True):
                figures |= share(f"{prefix}read_{name}", hits)
            figures |= share(f"{prefix}read_all", right[rows].all(1))
    return figures


def own_accuracy(read: Read, data: DataSet, most: int) -> Metrics:
    """Returns `read_accuracy` of a reader on the first held-out scenes themselves, `most` of them at most."""
    rows = first_rows(data, ("image", "scene", "held_out"), most)
    return read_accuracy(read(rows["image"]), rows["scene"], rows["held_out"] == 1) | {"scenes": len(rows["image"])}
