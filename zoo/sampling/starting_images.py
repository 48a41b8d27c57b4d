"""Images that samplers start from: files or held-out images."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8

from zoo.core.errors import UserError
from zoo.core.family import Model
from zoo.data.images.coded import images_of
from zoo.data.images.files import read_image


def given_pictures(names: Iterable[str], model: Model) -> UInt8[np.ndarray, "n h w c"]:
    """Returns images of the model's size.

    Args:
        names: paths of files, or indices of held-out images, from 0.
        model: its spec gives the size; its data gives the held-out images.

    Raises:
        UserError: a file cannot be read, an index is too large, or the data is not available.
    """
    return np.stack([_held_out(int(name), model) if name.isdecimal() else read_image(name, model.spec.image)
                     for name in names])  # fmt: skip


def count_held_out(model: Model) -> int:
    """Returns the number of held-out images.

    Raises:
        UserError: the data is not available.
    """
    if model.data is None:
        raise UserError("held-out pictures are asked for, but the data is not at hand: give files")
    data = model.data()
    last = data.held_out_batches - 1
    return last * len(data.held_out_at(0)["row"]) + int(data.held_out_at(last)["valid"].sum())


def _held_out(number: int, model: Model) -> UInt8[np.ndarray, "h w c"]:
    if model.data is None:
        raise UserError(f"held-out picture {number} is asked for, but the data is not at hand: give a file")
    data, count = model.data(), count_held_out(model)
    size = len(data.held_out_at(0)["row"])
    if number >= count:
        raise UserError(f"held-out picture {number} is asked for, but there are {count}, numbered from 0")
    return images_of(data).held_out_at(number // size)["image"][number % size]
