"""A text cut in windows that follow it, with or without overlap, in which every token is a target once."""

import numpy as np
from jaxtyping import Integer

from zoo.core.data import Batch
from zoo.data.tokenizers import Tokenizer


def text_windows(tokenizer: Tokenizer, tokens: Integer[np.ndarray, " t"], length: int, stride: int) -> Batch:
    """All windows of `length` targets along a text, each `stride` targets after the one before.

    A window scores its last `stride` targets only, the first window all of its own; so each target is scored once and
    reads at least `length - stride` tokens of context besides its input, save for those at the beginning of the text.

    Args:
        tokenizer: of the text.
        tokens: at least two.
        length: targets in a window.
        stride: from 1 to `length`; `length` means windows without overlap.

    Returns:
        What `TextBlocks.held_out_at` returns, for all windows w in the order of the text, and `first` int32 [w], the
        first target of each that is scored; `characters` and `bytes` are those of the scored targets.
    """
    targets = len(tokens) - 1
    row = np.arange(1 + max(0, -(-(targets - length) // stride)), dtype=np.int32)
    begin = stride * row.astype(np.int64)
    count = np.minimum(targets - begin, length)
    first = np.where(row == 0, 0, length - stride)
    place = np.arange(length + 1)[None, :]
    window = tokens[np.minimum(begin[:, None] + place, targets)]
    window = np.where(place <= count[:, None], window, tokenizer.end_of_text).astype(np.int32)
    scored = np.where(place[:, :-1] >= first[:, None], window[:, 1:], tokenizer.end_of_text)  # which is of no length
    return {
        "tokens": window,
        "length": (count + 1).astype(np.int32),
        "row": row,
        "valid": np.ones(row.shape, bool),
        "first": first.astype(np.int32),
        "characters": tokenizer.character_lengths()[scored].sum(axis=1, dtype=np.int32),
        "bytes": tokenizer.byte_lengths()[scored].sum(axis=1, dtype=np.int32),
    }
