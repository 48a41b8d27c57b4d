"""Captioned emoji: concepts, what is held out, and words."""

import logging
import re

import numpy as np
import pytest

from zoo.data.captions import CaptionedImages
from zoo.data.captions.emoji import captions_of, choose_held_out, concepts_of
from zoo.data.images.arrays import read_emoji


@pytest.fixture(scope="module")
def told():
    """What the log says when the emoji are read."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    log = logging.getLogger("zoo")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    yield messages
    log.setLevel(level)
    log.removeHandler(handler)


@pytest.fixture(scope="module")
def emoji(told):
    found = CaptionedImages(source="emoji", size=8).pictures()
    return {"train": found.train, **found.held_out}


def words(captions):
    return set(re.findall(r"\w+|[^\w\s]", captions.lower()))


def test_no_concept_is_in_two_parts(emoji):
    _, facts = read_emoji()
    part_of = {captions[0]: name for name, part in emoji.items() for captions in part.captions}
    assert len(part_of) == sum(len(part.images) for part in emoji.values()) == 1641
    for variants in (
        ("person biking", "man biking", "woman biking"),
        ("construction worker", "man construction worker", "woman construction worker"),
        ("prince", "princess", "person with crown"),
        ("Santa Claus", "Mrs. Claus", "Mx Claus"),
        ("merman", "mermaid", "merperson"),
        ("person running", "man running facing right"),
        ("women holding hands", "woman and man holding hands", "people holding hands"),
        ("kiss", "kiss: woman, man"),
        ("light skin tone", "medium-dark skin tone"),
        ("men’s room", "women’s room"),
    ):
        assert len({part_of[name] for name in variants}) == 1, variants
    # By their characters: without marks of gender and direction, and a man and a woman as a person.
    bare = {}
    for fact in facts:
        if fact["category"] != "Flags":
            characters = fact["characters"].translate({0x1F468: 0x1F9D1, 0x1F469: 0x1F9D1})
            same = re.sub("\u200d[\u2640\u2642\u27a1]|\ufe0f", "", characters)
            bare.setdefault(same, set()).add(part_of[fact["caption"]])
    assert max(map(len, bare.values())) == 1
    assert len(set(concepts_of([fact for fact in facts if fact["category"] != "Flags"]))) == 1415


def test_a_tenth_of_the_concepts_is_held_out_and_flags_are_not_there(emoji):
    _, facts = read_emoji()
    concept = dict(zip([fact["caption"] for fact in facts], concepts_of(facts), strict=True))
    counts = {name: len({concept[captions[0]] for captions in part.captions}) for name, part in emoji.items()}
    assert counts["dev"] + counts["test"] == 142  # of 1,415
    assert counts["dev"] == counts["test"]
    flags = {fact["caption"] for fact in facts if fact["category"] == "Flags"}
    assert len(flags) == 270
    assert not flags & {captions[0] for part in emoji.values() for captions in part.captions}
    assert "Flags" not in {part.classes[label] for part in emoji.values() for label in part.labels}


def test_no_held_out_name_has_a_word_that_training_lacks(emoji, told):
    known = set().union(*(words(caption) for captions in emoji["train"].captions for caption in captions))
    for split in ("dev", "test"):
        for captions in emoji[split].captions:
            assert words(captions[0]) <= known
    assert sum("have words in their names that no other has, and are trained on" in message for message in told) == 1


@pytest.mark.slow
@pytest.mark.parametrize("split", ["dev", "all"])
def test_emoji_in_batches(split):
    data = CaptionedImages(source="emoji", size=8).open(length=None, batch_size=32, seed=0, split=split)
    assert len(data.held_out_captions) == (1641 if split == "all" else len(data.held_out_images))
    assert data.coverage() == {"cut_caption_share": 0, "unknown_share": 0}
    batch = data.held_out_at(0)
    assert batch["image"].shape == (32, 8, 8, 3)
    assert batch["caption"].shape == (32, 33)


def test_pictures_are_those_of_their_names(emoji):
    pixels, facts = read_emoji()
    place = {fact["caption"]: i for i, fact in enumerate(facts)}
    for name in ("red heart", "green square"):
        part = next(part for part in emoji.values() if any(captions[0] == name for captions in part.captions))
        i = next(i for i, captions in enumerate(part.captions) if captions[0] == name)
        rgba = pixels[place[name]].astype(float)
        over = rgba[..., :3] * rgba[..., 3:] / 255 + 255 - rgba[..., 3:]
        np.testing.assert_allclose(part.images[i], over.reshape(8, 8, 8, 8, 3).mean((1, 3)), atol=2)
    assert (emoji["train"].images[:, 0, 0] > 240).all(-1).mean() > 0.7


def test_half_of_the_captions_is_the_name_and_all_keywords_occur():
    fact = {"caption": "red heart", "keywords": ["emotion", "heart", "love", "red", "red heart"]}
    captions = captions_of(fact)
    assert captions.count("red heart") == len(captions) / 2 == 4
    lists = [caption for caption in captions if not caption.startswith("red heart")]
    assert sorted(word for caption in lists for word in caption.split(", ")) == ["emotion", "heart", "love", "red"]
    assert all(f"red heart, {words}" in captions for words in lists)
    assert captions_of({"caption": "family", "keywords": []}) == ("family",)


def test_concepts_are_held_out_only_if_all_their_words_stay_known():
    captions = (("red cat",), ("red dog", "cat"), ("blue dog",), ("blue bird", "red"), ("bird",))
    concepts = ("a", "b", "c", "d", "d")
    # a: red and cat are in b. Then b has the only cat left, which a needs; c: blue is in d, dog in b.
    assert choose_held_out("abcd", concepts, captions, 4) == (["a", "c"], 2)
    assert choose_held_out("abcd", concepts, captions, 1) == (["a"], 0)
    # b first: red and dog are in others, and its keyword cat is no part of its name. Then c has the last dog.
    assert choose_held_out("bcda", concepts, captions, 4)[0] == ["b"]
