"""Pictures of scenes: MNIST's digits, made smaller, in colour on black.

Letters in shapes: b scenes, each with two objects; d height and width of a digit in pixels; s those of the canvas.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from zoo.core.data import Split
from zoo.data.captions.draws import below
from zoo.data.captions.scenes import COLOURS, PLACES, Drawn
from zoo.data.images.arrays import read_mnist
from zoo.data.images.dataset import Images
from zoo.data.splits import Part, Parts

INK = 20
"""Height and width of the box that MNIST's digits fill, in the middle of 28 x 28 pixels up to the centre of mass."""


@dataclass(frozen=True, eq=False)
class Digits:
    """Handwritten digits, sorted by digit.

    Attributes:
        images: black background.
        begin: where the images of each digit begin, and the end of the last.
    """

    images: UInt8[np.ndarray, "n 28 28"]
    begin: Int64[np.ndarray, " 11"]

    @classmethod
    def of(cls, images: UInt8[np.ndarray, "n 28 28 1"], labels: np.ndarray) -> "Digits":
        """Sorts images by label."""
        order = np.argsort(labels, kind="stable")
        return cls(images[order, ..., 0], np.searchsorted(labels[order], np.arange(11)))

    def pick(self, digit: np.ndarray, number: np.ndarray) -> UInt8[np.ndarray, "*b 28 28"]:
        """Returns an image of each digit, chosen by a number in [0, 1)."""
        return self.images[self.begin[digit] + below(number, self.begin[digit + 1] - self.begin[digit])]


@functools.cache
def digits() -> Parts[Digits]:
    """Returns MNIST's digits by part, those of `Images`: dev is cut from the training images."""
    return Images().pictures().map(lambda part: Digits.of(part.images, part.labels))


@functools.cache
def digits_of(part: Part | Split) -> Digits:
    """Returns the digits that scenes of a part are made of; for `all`, MNIST's 70,000."""
    if part == "all":
        return Digits.of(*read_mnist())
    return digits().train if part == "train" else digits().held_out[part]


def least_canvas(digit_size: int) -> int:
    """Returns the smallest height and width of a canvas on which there is a pixel between two digits."""
    return 2 * digit_size + 1


def render(drawn: Drawn, source: Digits, size: int, digit_size: int) -> UInt8[np.ndarray, "b s s 3"]:
    """Returns the pictures of scenes.

    Args:
        drawn: the scenes.
        source: the handwritten digits.
        size: height and width of the canvas, at least `least_canvas(digit_size)`.
        digit_size: height and width of a digit.
    """
    canvas = np.zeros((len(drawn.objects), size, size, 3), np.uint8)
    corners = place(drawn, size, digit_size)
    palette = np.array([*COLOURS.values()], np.float32)
    span = np.arange(digit_size)
    scene, thing = np.nonzero(drawn.objects[..., 0] >= 0)
    digit, colour, _ = drawn.objects[scene, thing].T
    ink = shrink(source.pick(digit, drawn.numbers[scene, 2 + thing]), digit_size)
    top, left = corners[scene, thing].T
    rows, columns = (top[:, None] + span)[:, :, None], (left[:, None] + span)[:, None, :]
    canvas[scene[:, None, None], rows, columns] = np.round(ink[..., None] * palette[colour][:, None, None, :])
    return canvas


def place(drawn: Drawn, size: int, digit_size: int) -> Int64[np.ndarray, "b 2 2"]:
    """Returns the row and column of the upper left pixel of each object.

    A digit alone is in a quarter of the places it may take, at a corner, or in the middle. Two digits have at least one
    pixel between them in the direction of their relation, and are shifted by at most a quarter of a digit in the other.
    """
    n = drawn.numbers[:, 4:]
    slack, quarter = size - digit_size, (size - digit_size) // 4
    name = drawn.objects[:, 0, 2]
    is_far = np.stack([_named(name, "lower left", "lower right"), _named(name, "upper right", "lower right")], -1)
    inset = below(n[:, :2], quarter + 1)
    middle = slack // 2 - quarter // 2 + below(n[:, :2], 2 * (quarter // 2) + 1)
    alone = np.where(_named(name, "middle")[:, None], middle, np.where(is_far, slack - inset, inset))

    free = size - 2 * digit_size
    first = below(n[:, 0], free)
    second = first + digit_size + 1 + below(n[:, 1], free - first)
    across = below(n[:, 2], slack + 1)
    shift = below(n[:, 3], 2 * (digit_size // 4) + 1) - digit_size // 4
    along = np.stack([first, second], -1)
    beside = np.stack([across, np.clip(across + shift, 0, slack)], -1)
    is_beside = _named(name, "left")[:, None]
    pair = np.stack([np.where(is_beside, beside, along), np.where(is_beside, along, beside)], -1)
    return np.where((drawn.objects[:, 1, 0] >= 0)[:, None, None], pair, alone[:, None])


def _named(place: np.ndarray, *names: str) -> Bool[np.ndarray, " b"]:
    return np.isin(place, [PLACES.index(name) for name in names])


def shrink(images: UInt8[np.ndarray, "k 28 28"], size: int) -> Float32[np.ndarray, "k d d"]:
    """Returns digits in [0, 1] at another size: the box of their ink, averaged over the area of each new pixel.

    The box is `INK` pixels high and wide, with the ink in its middle.
    """
    top, left = (_corner(np.asarray((images > 0).any(axis))) for axis in (2, 1))
    span = np.arange(INK)
    rows, columns = (top[:, None] + span)[:, :, None], (left[:, None] + span)[:, None, :]
    box = images[np.arange(len(images))[:, None, None], rows, columns]
    weights = _areas(size)
    return weights @ (box.astype(np.float32) / 255) @ weights.T


def _corner(inked: Bool[np.ndarray, "k 28"]) -> Int64[np.ndarray, " k"]:
    """Returns where a span of `INK` pixels begins whose middle is that of the inked ones."""
    n = inked.shape[1]
    first, end = inked.argmax(1), n - inked[:, ::-1].argmax(1)
    return np.clip((first + end - INK) // 2, 0, n - INK)


@functools.cache
def _areas(size: int) -> Float32[np.ndarray, "d 20"]:
    """Returns the share of each of `size` pixels that each of `INK` pixels on the same length covers."""
    edges = np.arange(size + 1) * INK / size
    old = np.arange(INK)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return (np.clip(overlap, 0, None) * size / INK).astype(np.float32)
