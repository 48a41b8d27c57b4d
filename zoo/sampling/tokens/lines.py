"""Files with a prompt or a source on each line: a line that cannot be read has an empty result, and no other has."""

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
    """Each line of a file with its tokens, or None, and a warning with the line's number, where it has none.

    Args:
        path: a UTF-8 text file.
        encode: gives the tokens of a line, or raises a UserError that says why it cannot.

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
