"""Scenes of one or two coloured digits, as attributes: which there are, which are held out, and their drawing.

A scene is an object alone in a corner or in the middle, or two objects, one left of or above the other. "a left of b"
and "b right of a" are one scene, whose first object is a: objects are in the order of `PLACES`. Letters in shapes: b
rows; the axes [b 2 3] are objects, and for each its digit, colour and place as numbers, -1 for an object that is not
there.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int16, Int32, Int64, Integer

from zoo.core.data import Split
from zoo.data.captions.draws import below, uniforms
from zoo.data.splits import Part, cut_by_hash, digest

COLOURS = {
    "red": (255, 64, 64),
    "yellow": (255, 232, 48),
    "green": (48, 208, 72),
    "cyan": (48, 224, 240),
    "blue": (72, 112, 255),
    "purple": (216, 72, 255),
}
"""The six colours, with red, green and blue of 255."""

PLACES = ("left", "right", "top", "bottom", "upper left", "upper right", "lower left", "lower right", "middle")
"""Names of places: the first four of two digits, the others of a digit alone."""

RELATIONS = (("left", "right"), ("top", "bottom"))
"""Places of the first and the second of two digits."""

ALONE = PLACES[4:]

SINGLE = 0.25
"""Share of the scenes with one digit."""

HELD_OUT_SEED: Mapping[Split, int] = {"dev": 101, "test": 102, "all": 103}
"""Seeds of held-out scenes and their captions."""

DRAWS = 10
"""Random numbers that a scene uses."""


@dataclass(frozen=True)
class Object:
    """A coloured digit at a place."""

    digit: int
    colour: str
    place: str = ""
    """One of `PLACES`; empty in the meaning of a caption that names none."""

    def __str__(self) -> str:
        return f"{self.colour} {self.digit}{f' ({self.place})' if self.place else ''}"


@dataclass(frozen=True)
class Scene:
    """What is in a picture, or what a caption asks for: one or two objects, in the order of their places."""

    objects: tuple[Object, ...]

    def __post_init__(self) -> None:
        in_order = sorted(self.objects, key=lambda thing: PLACES.index(thing.place) if thing.place else -1)
        object.__setattr__(self, "objects", tuple(in_order))

    def fulfils(self, asked: "Scene") -> bool:
        """Whether the scene is what a caption asks for; a place that the caption does not name may be any."""
        return len(self.objects) == len(asked.objects) and all(
            (here.digit, here.colour) == (there.digit, there.colour) and there.place in ("", here.place)
            for here, there in zip(self.objects, asked.objects, strict=True)
        )

    def __str__(self) -> str:
        return ", ".join(map(str, self.objects))


def scene_of(objects: Integer[np.ndarray, "2 3"]) -> Scene:
    """Returns the scene that a row of a batch's `scene` array describes."""
    colours = tuple(COLOURS)
    found = [Object(int(d), colours[c], PLACES[p]) for d, c, p in objects if d >= 0]
    return Scene(tuple(found))


def array_of(scene: Scene) -> Int32[np.ndarray, "2 3"]:
    """The reverse of `scene_of`; a place that is not named is -1."""
    found = np.full((2, 3), -1, np.int32)
    for i, thing in enumerate(scene.objects):
        place = PLACES.index(thing.place) if thing.place else -1
        found[i] = thing.digit, tuple(COLOURS).index(thing.colour), place
    return found


@functools.cache
def combinations() -> Int16[np.ndarray, "7200 2 3"]:
    """Returns all scenes of two digits: 60 coloured digits, 60 others, and 2 relations."""
    digit, colour, relation = np.arange(10), np.arange(len(COLOURS)), np.arange(len(RELATIONS))
    axes = np.meshgrid(relation, digit, colour, digit, colour, indexing="ij")
    r, d1, c1, d2, c2 = (axis.reshape(-1) for axis in axes)
    places = np.array([[PLACES.index(name) for name in pair] for pair in RELATIONS])[r]
    first, second = np.stack([d1, c1, places[:, 0]], -1), np.stack([d2, c2, places[:, 1]], -1)
    found = np.stack([first, second], 1).astype(np.int16)
    found.flags.writeable = False
    return found


@functools.lru_cache(maxsize=4)
def cut(held_out: float) -> Mapping[Part, Int64[np.ndarray, " _"]]:
    """Assigns the scenes of two digits to parts by a hash, so that the parts are the same for all seeds.

    Args:
        held_out: share of the scenes that are not trained on: half are dev, half test.

    Returns:
        Indices into `combinations()`.
    """
    digests = [digest(str(scene_of(objects))) for objects in combinations()]
    half = held_out / 2
    return cut_by_hash(digests, {"test": half, "dev": half}, "train", "scene", "captioned digits")


@dataclass(frozen=True, eq=False)
class Drawn:
    """Scenes as attributes."""

    objects: Int32[np.ndarray, "b 2 3"]
    """Digit, colour and place of each object."""
    held_out: Int32[np.ndarray, " b"]
    """1 if the combination is not trained on, else 0."""
    numbers: Float64[np.ndarray, "b k"]
    """Random numbers for the choice of handwritten digits and of their exact positions."""


def draw_training(seed: int, row: Int64[np.ndarray, " b"], held_out: float) -> Drawn:
    """Draws the training scenes of rows, counted over all batches; held-out combinations are never among them."""
    numbers = uniforms(seed, "scene", row, DRAWS)
    return _draw(numbers, cut(held_out)["train"], np.zeros(len(row), np.int32))


def draw_held_out(row: Int64[np.ndarray, " b"], held_out: float, split: Split) -> Drawn:
    """Draws the scenes of rows of a split, which depend on no seed.

    Rows with even numbers are drawn as in training, rows with odd numbers from the held-out combinations of the split;
    those of dev and test are different ones, and `all` has both.
    """
    parts = cut(held_out)
    unseen = parts[split] if split != "all" else np.concatenate([parts["dev"], parts["test"]])
    numbers = uniforms(HELD_OUT_SEED[split], "scene", row, DRAWS)
    odd = (row % 2).astype(np.int32)
    seen, new = _draw(numbers, parts["train"], odd), _draw(numbers, unseen, odd, single=0.0)
    return Drawn(np.where(odd[:, None, None], new.objects, seen.objects), odd, numbers)


def _draw(
    numbers: Float64[np.ndarray, "b k"],
    allowed: Int64[np.ndarray, " m"],
    held_out: Int32[np.ndarray, " b"],
    single: float = SINGLE,
) -> Drawn:
    """Draws scenes of one digit, all of which are trained on, or of two digits in one of the allowed combinations."""
    which, choice = numbers[:, 0], numbers[:, 1]
    pairs = combinations()[allowed[below(choice, len(allowed))]].astype(np.int32)
    kinds = 10 * len(COLOURS) * len(ALONE)
    digit, colour, place = np.unravel_index(below(choice, kinds), (10, len(COLOURS), len(ALONE)))
    alone = np.full_like(pairs, -1)
    alone[:, 0] = np.stack([digit, colour, place + len(PLACES) - len(ALONE)], -1)
    return Drawn(np.where((which < single)[:, None, None], alone, pairs), held_out, numbers)
