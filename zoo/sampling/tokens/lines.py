"""Files with one prompt or source per line; only a line that cannot be encoded has an empty result."""

import logging
from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from zoo.core.errors import UserError
from zoo.data.sources import read_every_line

log = logging.getLogger("zoo")


def encode_lines(
    path: str, encode: Callable[[str], Int[np.ndarray, " t"]]
) -> list[tuple[str, Int[np.ndarray, " t"] | None]]:
    """Returns each line of a file with its tokens; None, and a logged warning, for a line that cannot be encoded.

    Args:
        path: a UTF-8 text file.
        encode: returns the tokens of a line, or raises a UserError, whose message is logged with the line's number.

    Raises:
        UserError: the file cannot be read.
    """
    encoded: list[tuple[str, Int[np.ndarray, " t"] | None]] = []
    for number, line in enumerate(read_every_line(path), start=1):
        try:
            encoded.append((line, encode(line)))
        except UserError as error:
            log.warning("line %d of %s has an empty result: %s", number, path, error)
            encoded.append((line, None))
    return encoded
