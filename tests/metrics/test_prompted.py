"""Scores of samples of captions, with judges that are right by construction."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.core.artifacts import Image, Text
from zoo.core.errors import UserError
from zoo.core.extractor import Extractor
from zoo.core.family import Model
from zoo.data.captions import CaptionedImages, CaptionedTokens
from zoo.data.captions.rows import shown
from zoo.data.specs import ImageSpec, LineSpec
from zoo.data.tokenizers import Bytes
from zoo.flow_matching import FlowMatching, FlowScoring
from zoo.metrics.captioned import conditional_bits, descriptions, turned_rows
from zoo.metrics.prompted import (
    agree_samples,
    caption_gain,
    check_clip,
    check_reader,
    held_out_prompts,
    read_samples,
    turned_captions,
    variety,
)
from zoo.metrics.retrieval import read_pairs
from zoo.metrics.tokens import TokenScoring
from zoo.sampling.prompts import PromptRequest, best_of_many
from zoo.transformer_lm import TransformerLM

DATA = CaptionedImages(size=16, digit_size=7, caption_length=16, held_out_scenes=24, caption_dropout=0.0)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def data():
    return DATA.open(length=None, batch_size=10, seed=0)


@pytest.fixture(scope="module")
def truth(data):
    """Scenes by the bytes of their pictures."""
    batches = [data.held_out_at(i) for i in range(data.held_out_batches)]
    return {i.tobytes(): s for batch in batches for i, s in zip(batch["image"], batch["scene"], strict=True)}


@dataclass(frozen=True)
class Knows:
    """A reader that knows the scenes; others are empty to it."""

    truth: object

    def read(self, model, images):
        empty = np.full((2, 3), -1, np.int32)
        return np.stack([self.truth.get(image.tobytes(), empty) for image in images])


def judged(family, spec=None):
    return Extractor("judge", "v1", lambda images: (images, images), model=Model(family, spec, None, 0))


def test_prompts_are_the_held_out_captions_and_begin_again(data):
    captions = [text for i in range(3) for text in shown(data.captions, data.held_out_at(i), 10)][:24]
    assert held_out_prompts(data, data.captions, 5) == tuple(captions[:5])
    assert held_out_prompts(data, data.captions, 30) == (*captions, *captions[:6])


def test_the_scenes_themselves_are_read_right_and_others_wrong(data, truth):
    images = read_pairs(data)["image"]
    figures = read_samples(images, data, judged(Knows(truth)))
    assert figures["read_all"] == figures["unseen_read_all"] == figures["reader_read_all"] == 1.0
    shifted = read_samples(np.roll(images, 1, 0), data, judged(Knows(truth)))
    assert shifted["read_all"] < 0.2
    assert shifted["reader_read_all"] == 1.0


def test_what_reads_no_scenes_or_compares_no_captions_is_told(data):
    for check, name in ((check_reader, "reader"), (check_clip, "clip")):
        with pytest.raises(UserError, match=f"{name} is runs/x, which"):
            check("runs/x", Extractor("file", "v1", lambda images: (images, images)), data.spec)
    plain = ImageSpec(16, 16, 3)
    with pytest.raises(UserError, match="reads captioned digits, and the images are of other data"):
        check_reader("runs/x", judged(Knows({})), plain)
    with pytest.raises(UserError, match="these have none"):
        check_clip("runs/x", judged(Pairs(data)), plain)


class Pairs:
    """A CLIP that knows the captions of held-out images: vectors are one-hot in the caption."""

    def __init__(self, data):
        self.known = list(dict.fromkeys(held_out_prompts(data, data.captions, 24)))
        pairs, self.spec = read_pairs(data), data.captions
        texts = held_out_prompts(data, data.captions, 24)
        self.of = {image.tobytes(): self.known.index(text) for image, text in zip(pairs["image"], texts, strict=True)}

    def image_vectors(self, model, images):
        return np.eye(len(self.known))[[self.of.get(image.tobytes(), 0) for image in images]]

    def text_vectors(self, model, caption, length):
        texts = shown(self.spec, {"caption": caption, "caption_length": length}, len(caption))
        return np.eye(len(self.known))[[self.known.index(text) for text in texts]]


def test_agreement_with_captions(data):
    images, clip = read_pairs(data)["image"], judged(Pairs(data), data.spec)
    figures = agree_samples(images, data, clip)
    assert figures["clip_score"] == figures["real_clip_score"] == 100.0
    assert figures["r_precision"] == 1.0
    others = agree_samples(np.roll(images, 1, 0), data, clip)
    assert others["r_precision"] < 0.2
    assert others["real_r_precision"] == 1.0


def test_the_best_of_many_are_kept_prompt_by_prompt(data):
    pictures, family = read_pairs(data)["image"], Pairs(data)
    judge = judged(family, data.spec)
    model = Model(None, data.spec, None, 0, extractor=lambda name, spec: judge)
    first, second = family.known[0], family.known[1]
    right = {name: pictures[[*family.of.values()].index(i)] for i, name in enumerate((first, second))}
    wrong = pictures[-1]

    def draw(request):
        assert request.n == 4 * 3
        # Of the six of each prompt, the last two are right.
        names = [request.captions[i % 2] for i in range(12)]
        return [Image(right[name] if i >= 8 else wrong) for i, name in enumerate(names)]

    asked = PromptRequest(n=4, prompt=(first, second), rank_by="runs/clip", candidates=3)
    made = best_of_many(asked, model, draw)
    for image, name in zip(made, (first, second, first, second), strict=True):
        np.testing.assert_array_equal(image.pixels, right[name])
    with pytest.raises(UserError, match="no prompt to agree with"):
        best_of_many(replace(asked, prompt=None), model, draw)
    judge = judged(Knows({}))
    with pytest.raises(UserError, match="rank_by is runs/clip, which compares no images"):
        best_of_many(asked, model, draw)


@dataclass(frozen=True)
class Matching:
    """A loss that is smaller for the right caption: by the number of its tokens, which the scene's mean ink encodes."""

    def evaluate(self, state, batch, key):
        wanted = jnp.asarray(state)[batch["row"]]
        return {"loss": (2.0 * jnp.abs(batch["caption_length"] - wanted), jnp.full(len(wanted), 2.0))}


def test_the_gain_of_the_right_caption_is_paired(data):
    lengths = read_pairs(data)["caption_length"]
    figures = caption_gain(Model(Matching(), data.spec, lengths, 0), turned_captions(data), KEY)
    differences = []
    for i in range(3):
        batch = data.held_out_at(i)
        other = np.roll(batch["caption_length"], 1)
        keep = (
            batch["valid"] & np.roll(batch["valid"], 1) & (batch["caption"] != np.roll(batch["caption"], 1, 0)).any(1)
        )
        differences += np.abs(other - batch["caption_length"])[keep].tolist()
    assert figures["caption_gain"] == pytest.approx(np.mean(differences))
    assert figures["caption_gain_share"] == pytest.approx(np.mean(np.array(differences) > 0))


@dataclass(frozen=True)
class MatchingTokens:
    """A loss that is 0 for the right caption and 1 for any other."""

    def evaluate(self, state, batch, key):
        wrong = (batch["tokens"] != jnp.asarray(state)[batch["row"]]).any(1)
        return {"loss": (3.0 * wrong, jnp.full(len(wrong), 3.0))}


def test_the_gain_of_the_right_caption_in_rows_of_tokens():
    tokens = CaptionedTokens(size=9, digit_size=4, caption_length=16, held_out_scenes=24, tell=0.5)
    data = tokens.open(length=1000, batch_size=10, seed=0)
    rows, pairs = [data.asked_at(i, "draw") for i in range(3)], [*turned_rows(data)]
    begin = data.spec.begin("draw") + 1
    for row, (own, turned) in zip(rows, pairs, strict=True):
        np.testing.assert_array_equal(own["tokens"], row["tokens"])
        np.testing.assert_array_equal(turned["tokens"][:, begin:], own["tokens"][:, begin:])
        np.testing.assert_array_equal(turned["tokens"][1:, :begin], own["tokens"][:-1, :begin])
    right = np.concatenate([own["tokens"] for own in rows])
    figures = caption_gain(Model(MatchingTokens(), data.spec, right, 0), pairs, KEY)
    assert figures["caption_gain"] == figures["caption_gain_share"] == 1.0


def test_variety_is_0_for_one_image_of_a_caption_and_1_if_captions_are_ignored():
    def same(captions):
        return np.array([int(text) for text in captions], np.uint8).reshape(-1, 1, 1, 1)

    def ignored(captions):
        return np.random.default_rng(0).integers(0, 255, (len(captions), 4, 4, 3), np.uint8)

    flat = Extractor("flat", "v1", lambda images: (images.reshape(len(images), -1).astype(np.float32),) * 2)
    captions = tuple(map(str, range(10)))
    assert variety(same, captions, 3, flat) == {"variety": 0.0}
    assert variety(ignored, captions, 8, flat)["variety"] == pytest.approx(1, abs=0.05)


# ---------------------------------------------------------------------------------------------- descriptions


@dataclass(frozen=True)
class Tells:
    """Describes held-out scenes of the model's data by their captions, in some words, but every third wrongly."""

    words: tuple = ("", "")

    @dataclass(frozen=True)
    class Request:
        n: int
        image: tuple
        temperature: float

    def sample(self, model, request, key):
        assert request.temperature == 0
        scenes = model.data().reference
        captions = held_out_prompts(scenes, scenes.spec.caption, 24)
        texts = [captions[int(number)].replace(*self.words) for number in request.image]
        return [Text("a red zebra" if i % 3 == 0 else text) for i, text in enumerate(texts)]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_descriptions_count_by_meaning_and_are_of_the_split(split):
    tokens = CaptionedTokens(size=9, digit_size=4, caption_length=16, held_out_scenes=24, tell=0.5)
    dev, data = (tokens.open(length=1000, batch_size=10, seed=0, split=name) for name in ("dev", split))
    found = descriptions(Model(Tells(), data.spec, None, 0, data=lambda: dev), data, 12, KEY)
    assert found["caption_right"] == pytest.approx(8 / 12)
    assert found["seen_caption_right"] == pytest.approx(4 / 6)
    captions = held_out_prompts(data.reference, data.spec.caption, 24)
    assert any("to the left of" in text for text in captions)
    reworded = Tells(("to the left of", "left of"))
    assert descriptions(Model(reworded, data.spec, None, 0, data=lambda: dev), data, 12, KEY) == found


@dataclass(frozen=True)
class Counts:
    """A loss that is the number of scored targets of each row."""

    def evaluate(self, state, batch, key):
        n = batch["tokens"].shape[1] - 1 - batch["first"]
        return {"loss": (n.astype(jnp.float32), jnp.ones(len(n)))}


def test_conditional_bits_are_of_what_each_task_asks_for():
    tokens = CaptionedTokens(size=9, digit_size=4, caption_length=16, held_out_scenes=24, tell=0.5)
    data = tokens.open(length=1000, batch_size=10, seed=0)
    found = conditional_bits(Model(Counts(), data.spec, None, 0), data, KEY)
    assert found["image_given_caption_bits"] == pytest.approx(9 * 9 * 3 / np.log(2))
    assert found["caption_given_image_bits"] == pytest.approx(16 / np.log(2))
    without = replace(tokens, tell=0.0).open(length=1000, batch_size=10, seed=0)
    assert "caption_given_image_bits" not in conditional_bits(Model(Counts(), data.spec, None, 0), without, KEY)


def test_a_judge_needs_captions_and_samples(data):
    with pytest.raises(UserError, match="reader is 'runs/x'; it must be given with a number of samples"):
        FlowScoring(reader="runs/x")
    with pytest.raises(UserError, match="clip is 'runs/x'; it must be given with a number of samples"):
        TokenScoring(clip="runs/x")
    scoring, judge = FlowScoring(samples=8, reader="runs/x"), judged(Knows({}))
    with pytest.raises(UserError, match="reader is runs/x, which judges by captions, and the model reads none"):
        scoring.check(FlowMatching(conditional=False), data.spec, lambda name, spec: judge)
    assert scoring.check(FlowMatching(), data.spec, lambda name, spec: judge) == {}
    with pytest.raises(UserError, match="variety is 4; it must be 0 without samples, or at least 2"):
        FlowScoring(variety=4)
    with pytest.raises(UserError, match="variety is 4, which is of samples of captions, and the model reads none"):
        FlowScoring(samples=8, variety=4).check(FlowMatching(conditional=False), data.spec, lambda name, spec: judge)
    assert scoring.features == "runs/x"
    assert replace(scoring, extractor="mnist").features == "mnist"
    with pytest.raises(UserError, match="judges by captions"):
        TokenScoring(samples=8, reader="runs/x").check(TransformerLM(), LineSpec(Bytes()), lambda name, spec: judge)
