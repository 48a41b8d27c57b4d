"""What a CLIP is used for: finding pictures and captions, classes without training on them, features for FID."""

import itertools
import json
import logging
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_cases import DATA, TINY, opened, tiny_state

from zoo import Run
from zoo.clip import CLIPRequest, CLIPScoring
from zoo.core.captioned import captioned
from zoo.core.errors import UserError
from zoo.core.family import Model
from zoo.data.images.pixels import from_pixels
from zoo.harness.extractors import load_extractor, write_extractor
from zoo.harness.trained import Trained, inference_state
from zoo.metrics.images import compare
from zoo.metrics.intervals import wilson_interval
from zoo.metrics.retrieval import chance, found, read_pairs, recalls

KEY = jax.random.key(3)


@pytest.fixture(scope="module", autouse=True)
def _few_sizes():
    """Eight rows at once, so that one size is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.clip.AT_ONCE", 8)
        yield


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(TINY, opened().spec, inference_state(tiny_state()), 0, opened)


NAMES = ("a red 3", "a blue 7", "a green 2 above a red 1", "a yellow seven", "two")
PROMPT = "a red 3 zebra"


@pytest.fixture(scope="module")
def pairs() -> dict[str, np.ndarray]:
    return read_pairs(opened())


@pytest.fixture(scope="module")
def vectors(model, pairs) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Unit vectors by the towers themselves: of the held-out pictures, and by text."""
    spec = model.spec.caption
    texts = [*texts_of(pairs), *NAMES, PROMPT]
    rows = [jnp.asarray(array) for array in (pairs["image"], *spec.rows(texts))]
    net = model.state.net.eval_net()
    towers = jax.jit(lambda image, caption, length: (net.image(from_pixels(image)), net.text(caption, length)))(*rows)
    u, v = (np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in towers)
    return u, dict(zip(texts, v, strict=True))


def texts_of(pairs) -> list[str]:
    tokenizer = opened().captions.tokenizer
    rows = zip(pairs["caption"], pairs["caption_length"], strict=True)
    return [tokenizer.decode(caption[1 : length - 1]) for caption, length in rows]


def test_recall_of_a_table_by_hand():
    """Captions 0 and 3 are equal; row 2 has a tie, which counts against it."""
    scores = np.array([[1, 5, 0, 6], [2, 3, 1, 0], [4, 1, 4, 1], [0, 1, 9, 2.0]])
    right = np.eye(4, dtype=bool)
    right[0, 3] = right[3, 0] = True
    assert found(scores, right, 1).tolist() == [True, True, False, False]
    assert found(scores, right, 2).tolist() == [True, True, True, True]
    figures = recalls(scores, right, "image", "caption")
    assert figures["image_to_caption_recall_at_1"] == 0.5
    assert figures["caption_to_image_recall_at_1"] == 0.25  # the best of columns: 2, 0, 3, 0
    assert figures["image_to_caption_recall_at_5"] == figures["chance_recall_at_5"] == 1.0
    low, high = wilson_interval(0.5, 4)
    assert (figures["image_to_caption_recall_at_1_low"], figures["image_to_caption_recall_at_1_high"]) == (low, high)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_chance_is_the_mean_over_all_orders(k):
    right = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [1, 1, 1, 1, 0]], bool)
    orders = list(itertools.permutations(range(5)))
    hits = [[row[list(order[:k])].any() for order in orders] for row in right]
    assert chance(right, k) == pytest.approx(np.mean(hits))


def test_scores_are_of_the_first_pairs_and_of_exact_captions(model, pairs, vectors):
    figures = TINY.score(model, {}, opened(), CLIPScoring(pairs=12), KEY)
    texts = texts_of(pairs)[:12]
    v = np.stack([vectors[1][text] for text in texts])
    right = np.array([[a == b for a in texts] for b in texts])
    expected = recalls(vectors[0][:12] @ v.T, right, "image", "caption")
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["pairs"] == 12
    assert len(pairs["label"]) == 20
    assert TINY.score(model, {}, opened(), CLIPScoring(pairs=0), KEY) == {}


def test_a_class_is_the_caption_that_agrees_most(model, pairs, vectors, caplog):
    expected = (vectors[0] @ np.stack([vectors[1][name] for name in NAMES]).T).argmax(1)
    assert TINY.classify(model, pairs["image"], NAMES).tolist() == expected.tolist()
    labelled = pairs | {"label": np.where(np.arange(20) == 4, -1, np.arange(20) % 5)}
    known = replace(model, spec=replace(model.spec, classes=NAMES))
    figures = TINY._zero_shot(known, labelled)
    assert figures["zero_shot_accuracy"] == pytest.approx(np.delete(expected == labelled["label"], 4).mean())
    with caplog.at_level(logging.WARNING, "zoo"):
        assert TINY._zero_shot(replace(known, spec=replace(model.spec, classes=("a zebra",))), labelled) == {}
    assert "lack the class name 'a zebra'" in caplog.text


def test_a_prompt_finds_the_pictures_that_agree_most(model, pairs, vectors, caplog):
    products = vectors[0] @ vectors[1][PROMPT]
    order = np.argsort(-products)[:3]
    with caplog.at_level(logging.WARNING, "zoo"):
        made = TINY.sample(model, CLIPRequest(n=3, prompt=PROMPT.upper()), KEY)
    assert "has 'zebra'; read as unknown" in caplog.text
    labels = [f"{products[i]:.2f} {texts_of(pairs)[i]}" for i in order]
    cells = captioned(pairs["image"][order], labels)
    assert len(made) == 3
    for image, cell in zip(made, cells, strict=True):
        np.testing.assert_array_equal(image.pixels, cell)


def test_pictures_are_shown_above_the_caption_that_agrees_most(model, pairs, vectors):
    texts = texts_of(pairs)
    products = vectors[0] @ np.stack([vectors[1][text] for text in texts]).T
    labels = [f"{row.max():.2f} {texts[row.argmax()]}" for row in products]
    cells = captioned(pairs["image"], labels)
    made = TINY.sample(model, CLIPRequest(n=21), KEY)
    assert sorted(image.pixels.tobytes() for image in made) == sorted(cell.tobytes() for cell in cells)


def test_requests_that_cannot_be_met_are_refused_in_a_sentence(model):
    for request, words in (
        (CLIPRequest(prompt="  "), "prompt is empty"),
        (CLIPRequest(prompt="red " * 40), "prompt has 40 tokens, but captions have at most 31"),
    ):
        with pytest.raises(UserError, match=words):
            TINY.sample(model, request, KEY)
    with pytest.raises(UserError, match="the data is not at hand"):
        TINY.sample(replace(model, data=None), CLIPRequest(), KEY)


def test_a_clip_is_an_extractor_without_classes(model, tmp_path):
    trained = Trained(Run(TINY, DATA, batch_size=8), model, tmp_path)
    about = write_extractor(trained, tmp_path / "clip.safetensors")
    assert "held_out_accuracy" not in about
    assert json.loads(about["family"])["class"] == "zoo.clip:CLIP"
    extractor = load_extractor(str(tmp_path / "clip.safetensors"), replace(model.spec, caption=None))
    images = read_pairs(opened().on("test"))["image"]
    features, logits = extracted = extractor(images)
    assert logits.shape == (20, 0)
    assert features.var(0, ddof=1).sum() == pytest.approx(100, rel=1e-3)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(units, TINY.image_vectors(model, images), atol=0.01)
    figures = compare(extracted, extracted)
    assert figures["fid"] == pytest.approx(0, abs=1e-3)
    assert "classifier_score" not in figures
    with pytest.raises(UserError, match="features of images that are 16x16 in colour, and these are 28x28 in grey"):
        load_extractor(str(tmp_path / "clip.safetensors"), replace(model.spec, height=28, width=28, channels=1))
