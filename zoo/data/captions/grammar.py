"""The grammar of captions of scenes, and its inverse.

    caption   thing RELATION thing              a red 3 left of a blue 7
              thing SIDE "and" thing SIDE       a yellow seven at the top and a green two at the bottom
              thing                             a purple 5
              thing CORNER                      a purple 5 in the upper left
    thing     "a" COLOUR DIGIT

Each of the words in capitals has synonyms, and either of two digits may come first.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import cycle

from zoo.data.captions.scenes import ALONE, COLOURS, RELATIONS, Object, Scene

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

DIGIT_WORDS = {digit: (str(digit), name) for digit, name in enumerate(NAMES)}

COLOUR_WORDS = {colour: (colour,) for colour in COLOURS} | {
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
}

RELATION_WORDS = {
    ("left", "right"): ("left of", "to the left of"),
    ("right", "left"): ("right of", "to the right of"),
    ("top", "bottom"): ("above", "over"),
    ("bottom", "top"): ("below", "under"),
}
"""Phrases by the place of the thing before them and of the thing after them."""

SIDE_WORDS = {
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
}

CORNER_WORDS = {
    "upper left": ("in the upper left", "in the top left"),
    "upper right": ("in the upper right", "in the top right"),
    "lower left": ("in the lower left", "in the bottom left"),
    "lower right": ("in the lower right", "in the bottom right"),
    "middle": ("in the middle", "in the center"),
}

CHOICES = 8
"""Random numbers that a caption uses."""


def write(scene: Scene, numbers: Sequence[float]) -> str:
    """Writes one of a scene's captions.

    Args:
        scene: one digit or two, with their places.
        numbers: `CHOICES` numbers in [0, 1), which select order, form and synonyms.
    """
    turned, form, *words = numbers
    if len(scene.objects) == 1:
        (alone,) = scene.objects
        return _thing(alone, words) + (f" {_of(CORNER_WORDS[alone.place], words[4])}" if form < 0.5 else "")
    one, other = scene.objects if turned < 0.5 else scene.objects[::-1]
    first, second = _thing(one, words), _thing(other, words[2:])
    if form < 0.7:
        return f"{first} {_of(RELATION_WORDS[one.place, other.place], words[4])} {second}"
    return f"{first} {_of(SIDE_WORDS[one.place], words[4])} and {second} {_of(SIDE_WORDS[other.place], words[5])}"


def _thing(thing: Object, numbers: Sequence[float]) -> str:
    return f"a {_of(COLOUR_WORDS[thing.colour], numbers[0])} {_of(DIGIT_WORDS[thing.digit], numbers[1])}"


def _of(words: tuple[str, ...], number: float) -> str:
    return words[int(number * len(words))]


def parse(caption: str) -> Scene | None:
    """Returns the exact meaning of a caption, or None if the grammar has no such caption.

    Letter case, white space, a full stop at the end, and articles do not matter.
    """
    text = " ".join(caption.lower().split()).removesuffix(".").rstrip()
    if found := _RELATED.fullmatch(text):
        colour, digit, relation, colour_2, digit_2 = found.groups()
        places = _PLACES_OF[relation]
        return Scene((_object(colour, digit, places[0]), _object(colour_2, digit_2, places[1])))
    if found := _SIDES.fullmatch(text):
        colour, digit, side, colour_2, digit_2, side_2 = found.groups()
        places = _PLACE_OF[side], _PLACE_OF[side_2]
        if places not in RELATION_WORDS:
            return None
        return Scene((_object(colour, digit, places[0]), _object(colour_2, digit_2, places[1])))
    if found := _ALONE.fullmatch(text):
        colour, digit, corner = found.groups()
        return Scene((_object(colour, digit, _PLACE_OF[corner] if corner else ""),))
    return None


def _object(colour: str, digit: str, place: str) -> Object:
    return Object(_DIGIT_OF[digit], _COLOUR_OF[colour], place)


def examples() -> Iterator[str]:
    """Yields captions in which each phrase of the grammar occurs, those that a vocabulary is made from."""
    colours = cycle(word for words in COLOUR_WORDS.values() for word in words)
    digits = cycle(word for words in DIGIT_WORDS.values() for word in words)
    things = (f"a {colour} {digit}" for colour, digit in zip(colours, digits, strict=True))
    for words in CORNER_WORDS.values():
        yield from (f"{next(things)} {word}" for word in words)
    for words in RELATION_WORDS.values():
        yield from (f"{next(things)} {word} {next(things)}" for word in words)
    for one, other in RELATION_WORDS:
        for word, word_2 in zip(SIDE_WORDS[one], SIDE_WORDS[other], strict=True):
            yield f"{next(things)} {word} and {next(things)} {word_2}"
    yield from (next(things) for _ in range(len(COLOURS) * len(NAMES)))


def _any(words: Sequence[str]) -> str:
    """A group that matches one of the phrases, the longest that fits."""
    return "(" + "|".join(sorted(words, key=len, reverse=True)) + ")"


_COLOUR_OF = {word: colour for colour, words in COLOUR_WORDS.items() for word in words}
_DIGIT_OF = {word: digit for digit, words in DIGIT_WORDS.items() for word in words}
_PLACES_OF = {word: places for places, words in RELATION_WORDS.items() for word in words}
_PLACE_OF = {word: place for place, words in (SIDE_WORDS | CORNER_WORDS).items() for word in words}

_THING = rf"(?:a |the )?{_any([*_COLOUR_OF])} {_any([*_DIGIT_OF])}"
_SIDE = _any([word for words in SIDE_WORDS.values() for word in words])
_RELATED = re.compile(rf"{_THING} {_any([*_PLACES_OF])} {_THING}")
_SIDES = re.compile(rf"{_THING} {_SIDE} and {_THING} {_SIDE}")
_ALONE = re.compile(rf"{_THING}(?: {_any([word for words in CORNER_WORDS.values() for word in words])})?")

assert set(CORNER_WORDS) == set(ALONE)
assert set(RELATIONS) <= set(RELATION_WORDS)
