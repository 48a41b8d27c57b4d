"""Emoji with captions from their English names and keywords, split by concept.

Variants of an emoji by gender, age within a gender, direction or skin tone are one concept, so that none of them is in
training if another is held out. There are no flags.
"""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from zoo.core.data import Split
from zoo.data.captions.own import Captions
from zoo.data.images.arrays import emoji, read_emoji
from zoo.data.images.files import LabelledImages
from zoo.data.images.fitting import Fitting
from zoo.data.splits import Parts, digest
from zoo.data.tokenizers import Words

log = logging.getLogger("zoo")

KEYWORDS = 3
"""Maximum number of keywords in a caption."""

DROPPED_MARKS = re.compile("[\ufe0f\u200d\u2640\u2642\u27a1\U0001f3fb-\U0001f3ff]")
"""Marks of a presentation, a joint, a gender, a direction and a skin tone."""

ADULT = re.compile("[\U0001f468\U0001f469]")
"""A man and a woman; a person is U+1F9D1."""

GENDERED = {
    "person": ("man", "woman", "men", "women", "people", "boy", "girl", "child", "male", "female"),
    "older": ("old",),
    "person with crown": ("prince", "princess"),
    "christmas person": ("santa claus", "mrs. claus", "mx claus"),
}
"""Words that mean the same but for gender or number, by the words that stand for them."""

_GENDERED = re.compile(
    r"\b(?:"
    + "|".join(f"(?P<g{i}>{'|'.join(map(re.escape, words))})" for i, words in enumerate(GENDERED.values()))
    + r")(?![\w.])"
)
_SKIN = re.compile(r"(?:(?:medium-)?light|(?:medium-)?dark|medium) (?=skin tone)")


def captioned_emoji(fitting: Fitting) -> tuple[LabelledImages, tuple[str, ...]]:
    """Returns all emoji but flags, with their captions and the SHA-256 of each one's concept; and the concepts."""
    _, facts = read_emoji()
    kept = np.array([i for i, fact in enumerate(facts) if fact["category"] != "Flags"], np.int64)
    pictures = emoji(fitting).take(kept)
    chosen = [facts[i] for i in kept]
    concepts = concepts_of(chosen)
    captions = tuple(captions_of(fact) for fact in chosen)
    return replace(pictures, digests=tuple(map(digest, concepts)), captions=captions), concepts


def captions_of(fact: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the captions of an emoji: its name, as often as all others; some keywords; its name and some keywords.

    Keywords are in an order given by a hash, so that those that follow one another in the alphabet are not together.
    """
    name = fact["caption"]
    keywords = sorted(
        (word for word in fact["keywords"] if word != name),
        key=lambda word: hashlib.sha256(f"{name}: {word}".encode()).digest(),
    )
    groups = [keywords[i : i + KEYWORDS] for i in range(0, len(keywords), KEYWORDS)]
    others = [", ".join(group) for group in groups] + [", ".join([name, *group]) for group in groups]
    return (name,) * max(1, len(others)) + tuple(others)


def concepts_of(facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Returns the concept of each emoji, named by the first emoji of it.

    Emoji are of one concept if their characters are the same but for marks of gender, direction and skin tone, or if
    their names are, or if both are of one concept with a third.
    """
    concept = list(range(len(facts)))

    def root(i: int) -> int:
        while concept[i] != i:
            i = concept[i]
        return i

    first: dict[str, int] = {}
    for i, fact in enumerate(facts):
        for key in ("name " + _neutral_name(fact["caption"]), "characters " + _neutral(fact["characters"])):
            one, other = sorted((root(first.setdefault(key, i)), root(i)))
            concept[other] = one
    return tuple(facts[root(i)]["caption"] for i in range(len(facts)))


def _neutral(characters: str) -> str:
    return ADULT.sub("\U0001f9d1", DROPPED_MARKS.sub("", characters)) or characters


def _neutral_name(name: str) -> str:
    """Returns an emoji's name without gender, number and skin tone; families and couples are one concept each."""
    name = _SKIN.sub("", name.lower())
    if name.startswith(("family", "kiss:", "couple with heart")):
        return name.partition(":")[0]
    words = [*GENDERED]
    name = _GENDERED.sub(lambda found: words[next(i for i in range(len(words)) if found[f"g{i}"])], name)
    return name.replace("person and person", "person").removesuffix(" facing right")


def split_emoji(fitting: Fitting, share: float, split: Split) -> Parts[LabelledImages]:
    """Returns the emoji by part; of the concepts, a share is held out, half dev and half test.

    Args:
        fitting: converts the images.
        share: share of the concepts.
        split: `all`: none is kept for training.
    """
    pictures, concepts = captioned_emoji(fitting)
    ranked = sorted(set(concepts), key=digest)
    if split == "all":
        return Parts.whole(_of(pictures, concepts, ranked))
    count = max(2, round(share * len(ranked)))
    held_out, passed = choose_held_out(ranked, concepts, pictures.captions, count)
    if passed:
        log.info(
            "emoji: %d of the first %d concepts have words in their names that no other has, and are trained on",
            passed, passed + len(held_out),
        )  # fmt: skip
    test, dev = held_out[: len(held_out) // 2], held_out[len(held_out) // 2 :]
    train = np.flatnonzero(~np.isin(concepts, held_out))
    return Parts(pictures.take(train), {"dev": _of(pictures, concepts, dev), "test": _of(pictures, concepts, test)})


def _of(pictures: LabelledImages, concepts: Sequence[str], ranked: Sequence[str]) -> LabelledImages:
    """Returns the pictures of some concepts, in the order of these."""
    rank = {concept: i for i, concept in enumerate(ranked)}
    chosen = [i for i, concept in enumerate(concepts) if concept in rank]
    return pictures.take(np.array(sorted(chosen, key=lambda i: rank[concepts[i]]), np.int64))


def choose_held_out(
    ranked: Sequence[str], concepts: Sequence[str], captions: Captions, count: int
) -> tuple[list[str], int]:
    """Chooses concepts whose names have only words that the captions of training concepts have.

    Args:
        ranked: the concepts, in the order in which they are tried.
        concepts: concept of each image.
        captions: captions of each image, its name first.
        count: number of concepts to choose.

    Returns:
        The chosen concepts, fewer if no others can be held out; and how many were tried in vain.
    """
    words: dict[str, set[str]] = {concept: set() for concept in ranked}
    names: dict[str, set[str]] = {concept: set() for concept in ranked}
    for concept, of_image in zip(concepts, captions, strict=True):
        words[concept].update(word for caption in of_image for word in Words.cut(caption.lower()))
        names[concept].update(Words.cut(of_image[0].lower()))
    concepts_with = Counter(word for concept in ranked for word in words[concept])
    held_out: list[str] = []
    needed: set[str] = set()
    passed = 0
    for concept in ranked:
        if len(held_out) == count:
            break
        wanted = needed | names[concept]
        if any(concepts_with[word] < 2 for word in wanted & words[concept]):
            passed += 1
            continue
        concepts_with.subtract(words[concept])
        held_out.append(concept)
        needed = wanted
    return held_out, passed
