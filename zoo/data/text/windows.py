"""Consecutive windows of a text, with or without overlap, in which every target is scored once."""

import numpy as np
from jaxtyping import Integer

from zoo.core.data import Batch
from zoo.data.tokenizers import Tokenizer


def text_windows(tokenizer: Tokenizer, tokens: Integer[np.ndarray, " t"], length: int, stride: int) -> Batch:
    """Returns all windows of `length` targets along a text, each `stride` targets after the previous one.

    The first window scores all its targets, the others only their last `stride`; so each target is scored once, with at
    least `length - stride` tokens of context besides its input, except at the beginning of the text.

    Args:
        tokenizer: the text's tokenizer.
        tokens: at least two.
        length: targets per window.
        stride: from 1 to `length`; `length` gives windows without overlap.

    Returns:
        The arrays of `TextBlocks.held_out_at`, for all windows w in text order, and `first` int32 [w], the first scored
        target of each window; `characters` and `bytes` count the scored targets only.
    """
    targets = len(tokens) - 1
    row = np.arange(1 + max(0, -(-(targets - length) // stride)), dtype=np.int32)
    begin = stride * row.astype(np.int64)
    count = np.minimum(targets - begin, length)
    first = np.where(row == 0, 0, length - stride)
    place = np.arange(length + 1)[None, :]
    window = tokens[np.minimum(begin[:, None] + place, targets)]
    window = np.where(place <= count[:, None], window, tokenizer.end_of_text).astype(np.int32)
    scored = np.where(place[:, :-1] >= first[:, None], window[:, 1:], tokenizer.end_of_text)  # whose length is 0
    return {
        "tokens": window,
        "length": (count + 1).astype(np.int32),
        "row": row,
        "valid": np.ones(row.shape, bool),
        "first": first.astype(np.int32),
        "characters": tokenizer.character_lengths()[scored].sum(axis=1, dtype=np.int32),
        "bytes": tokenizer.byte_lengths()[scored].sum(axis=1, dtype=np.int32),
    }
