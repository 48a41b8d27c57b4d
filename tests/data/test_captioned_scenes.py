"""Captioned digits: the generator, what is held out, the grammar and its inverse, and the pictures."""

from dataclasses import replace
from itertools import product

import jax
import numpy as np
import pytest

from zoo.core.errors import UserError
from zoo.data.captions import CaptionedImages, draws, scene_set
from zoo.data.captions.grammar import parse, write
from zoo.data.captions.rendering import Digits, digits_of, render, shrink
from zoo.data.captions.scenes import COLOURS, PLACES, Object, Scene, array_of, scene_of
from zoo.data.images.arrays import read_mnist

RED_3_LEFT_OF_PURPLE_5 = Scene((Object(3, "red", "left"), Object(5, "purple", "right")))


@pytest.fixture(autouse=True)
def _plain_digits(request, monkeypatch):
    """Squares instead of MNIST's digits, of another grey in each part, unless a test asks for MNIST."""
    if "mnist" not in request.keywords and "mnist" not in request.node.name:
        grey = {"train": 255, "dev": 170, "test": 85, "all": 40}
        parts = {}
        for part, level in grey.items():
            images = np.zeros((10, 28, 28, 1), np.uint8)
            images[:, 4:24, 4:24] = level
            parts[part] = Digits.of(images, np.arange(10))
        monkeypatch.setattr(scene_set, "digits_of", parts.__getitem__)


def scenes(batch_size=8, seed=0, split="dev", spec=None, **settings):
    return CaptionedImages(**settings).open(length=None, batch_size=batch_size, seed=seed, spec=spec, split=split)


def texts(data, batch):
    rows = zip(batch["caption"], batch["caption_length"], strict=True)
    return [data.captions.tokenizer.decode(row[1 : length - 1]) for row, length in rows]


def pairs(objects):
    """Which scenes of two digits there are: both coloured digits and their relation, each as one number."""
    two = objects[objects[:, 1, 0] >= 0].astype(int)
    left_of, above = (
        (two[..., 2] == [PLACES.index(name) for name in names]).all(1)
        for names in (("left", "right"), ("top", "bottom"))
    )
    assert (left_of ^ above).all()
    return set(np.unique(np.ravel_multi_index((*two[..., :2].reshape(-1, 4).T, above.astype(int)), (10, 6, 10, 6, 2))))


# ------------------------------------------------------------------------------------------- numbers


def test_numbers_are_splitmix64_and_functions_of_seed_purpose_and_row():
    state = np.array([1234567 + draws.GOLDEN], np.uint64)
    assert int(draws._mix(state)[0]) == 6457827717110365317  # as in Vigna's splitmix64.c
    row = np.arange(40_000)
    whole = draws.uniforms(3, "scene", row, 3)
    np.testing.assert_array_equal(whole[100:120], draws.uniforms(3, "scene", row[100:120], 3))
    np.testing.assert_array_equal(whole[:, :2], draws.uniforms(3, "scene", row, 2))
    assert 0 <= whole.min() < whole.max() < 1
    np.testing.assert_allclose(whole.mean(0), 0.5, atol=0.01)
    columns = [*whole.T, *draws.uniforms(4, "scene", row, 1).T, *draws.uniforms(3, "caption", row, 1).T]
    np.testing.assert_allclose(np.cov(columns), np.eye(5) / 12, atol=0.002)
    later = np.concatenate([columns[0][1:], columns[0][:1]])
    assert abs(np.corrcoef(columns[0], later)[0, 1]) < 0.02


# ---------------------------------------------------------------------------------- batches and splits


def test_batches_are_functions_of_seed_and_row_and_not_of_how_they_are_cut():
    data, other = scenes(), scenes(batch_size=2)
    whole = data.batch_at(3)
    assert whole["image"].shape == (8, 32, 32, 3)
    assert whole["caption"].shape == (8, 33)
    assert {name: array.dtype.name for name, array in whole.items()} == {
        "image": "uint8", "label": "int32", "scene": "int32", "caption": "int32", "caption_length": "int32",
        "row": "int32", "valid": "bool",
    }  # fmt: skip
    assert (whole["label"] == -1).all()
    for name in ("image", "caption", "caption_length", "scene"):
        np.testing.assert_array_equal(data.batch_at(3, slice(2, 5))[name], whole[name][2:5])
        np.testing.assert_array_equal(other.batch_at(13)[name], whole[name][2:4])  # rows 26 and 27 of all
        assert (scenes(seed=1).batch_at(3)[name] != whole[name]).any()
        assert (data.batch_at(4)[name] != whole[name]).any()


@pytest.mark.parametrize("split", ["dev", "test", "all"])
def test_held_out_rows_do_not_depend_on_seed_or_batch_and_end(split):
    one, other = (scenes(size, seed, split, held_out_scenes=11) for size, seed in ((4, 0), (3, 9)))
    parts = [
        {name: np.concatenate([batch[name][batch["valid"]] for batch in batches]) for name in batches[0]}
        for batches in ([data.held_out_at(i) for i in range(data.held_out_batches)] for data in (one, other))
    ]
    for name in parts[0]:
        np.testing.assert_array_equal(parts[0][name], parts[1][name])
    np.testing.assert_array_equal(parts[0]["row"], np.arange(11))
    np.testing.assert_array_equal(parts[0]["held_out"], np.arange(11) % 2)
    np.testing.assert_array_equal(one.held_out_at(1, slice(1, 3))["image"], one.held_out_at(1)["image"][1:3])
    assert parts[0]["image"].max() <= {"dev": 170, "test": 85, "all": 40}[split]


def test_held_out_combinations_are_never_trained_on():
    data = scenes()
    trained = data.training_scenes(np.arange(100_000)).objects
    seen = pairs(trained)
    row = np.arange(20_000)
    held_out = {split: data.on(split).held_out_scene(row) for split in ("dev", "test")}
    new = {split: pairs(drawn.objects[drawn.held_out == 1]) for split, drawn in held_out.items()}
    assert [len(new[split]) for split in ("dev", "test")] == [360, 360]  # 5 % of 60 x 60 x 2 each
    assert not seen & (new["dev"] | new["test"])
    assert not new["dev"] & new["test"]
    assert len(seen) == 7200 - 720
    for drawn in held_out.values():
        assert pairs(drawn.objects[drawn.held_out == 0]) <= seen
        assert (drawn.objects[drawn.held_out == 1][:, 1, 0] >= 0).all()
    assert (trained[:, 1, 0] < 0).mean() == pytest.approx(0.25, abs=0.01)
    assert all(len(np.unique(trained[..., axis])) == count + 1 for axis, count in enumerate((10, 6, 9)))
    fewer = scenes(held_out=0.5)
    assert len(pairs(fewer.training_scenes(np.arange(60_000)).objects)) == 3600


def test_captions_say_what_is_in_the_picture():
    data = scenes(batch_size=50, caption_dropout=0.0)
    for batch in (data.batch_at(0), data.held_out_at(0)):
        for caption, objects in zip(texts(data, batch), batch["scene"], strict=True):
            scene, asked = scene_of(objects), parse(caption)
            assert scene.fulfils(asked)
            assert scene == asked or asked.objects[0].place == ""
            np.testing.assert_array_equal(array_of(scene), objects)
    assert len(set(texts(data, data.batch_at(0)))) > 45


def test_dropped_captions_are_a_share_of_the_training_rows():
    assert draws.dropped(0, np.arange(50_000), 0.1).mean() == pytest.approx(0.1, abs=0.005)
    small = {"batch_size": 100, "size": 16, "digit_size": 7}
    data, whole = scenes(**small, caption_dropout=0.3), scenes(**small, caption_dropout=0.0)
    batch, full = data.batch_at(1), whole.batch_at(1)
    empty = batch["caption_length"] == 2
    np.testing.assert_array_equal(empty, draws.dropped(0, np.arange(100, 200), 0.3))
    assert 15 < empty.sum() < 45
    assert (batch["caption"][empty] == data.captions.end).all()
    for name in ("caption", "caption_length"):
        np.testing.assert_array_equal(batch[name][~empty], full[name][~empty])
        np.testing.assert_array_equal(data.held_out_at(0)[name], whole.held_out_at(0)[name])
    np.testing.assert_array_equal(batch["scene"], full["scene"])
    np.testing.assert_array_equal(data.batch_at(1, slice(40, 90))["caption"], batch["caption"][40:90])
    assert ((data.batch_at(2)["caption_length"] == 2) != empty).any()
    assert full["caption_length"].min() > 2


def test_cut_captions_are_counted():
    settings = {"batch_size": 100, "caption_dropout": 0.0, "size": 16, "digit_size": 7, "held_out_scenes": 100}
    data, full = scenes(**settings, caption_length=8), scenes(**settings)
    batch, whole = data.batch_at(0), full.batch_at(0)
    assert batch["caption"].shape == (100, 9)
    longer = whole["caption_length"] > 9
    np.testing.assert_array_equal(batch["caption_length"], np.minimum(whole["caption_length"], 9))
    np.testing.assert_array_equal(batch["caption"][:, :8], whole["caption"][:, :8])
    assert (batch["caption"][longer][:, 8] == data.captions.end).all()
    assert 0 < longer.mean() < 1
    assert data.coverage() == {
        "cut_caption_share": pytest.approx((full.held_out_at(0)["caption_length"] > 9).mean()),
        "unknown_share": 0,
    }
    assert full.coverage() == {"cut_caption_share": 0, "unknown_share": 0}
    row = np.arange(scene_set.SOME)
    words = [len(text.split()) for text in scene_set.write(data.training_scenes(row), 0, row)]
    assert f"{np.mean(np.array(words) > 7):.1%} longer than 7 and cut" in data.describe()
    assert "cut" not in full.describe()


# -------------------------------------------------------------------------------------------- grammar


def every_caption(scene):
    return {write(scene, numbers) for numbers in product((0.0, 0.6), (0.0, 0.8), *[(0.0, 0.99)] * 6)}


@pytest.mark.parametrize(
    ("scene", "count"),
    [
        (
            RED_3_LEFT_OF_PURPLE_5,
            48,
        ),  # 2 orders x (2 relations + 1 pair of sides) x 3, three x purple, violet x 5, five
        (Scene((Object(7, "yellow", "top"), Object(2, "cyan", "bottom"))), 48),
        (Scene((Object(5, "blue", "middle"),)), 6),
        (Scene((Object(0, "purple", "lower right"),)), 12),
    ],
)
def test_every_caption_of_a_scene_means_it(scene, count):
    captions = every_caption(scene)
    assert len(captions) == count
    for caption in captions:
        assert scene.fulfils(parse(caption))
        assert len(scene.objects) == 1 or parse(caption) == scene


def test_a_scene_is_the_same_from_either_end():
    for caption in (
        "a red 3 left of a purple 5",
        "a violet five to the right of a red three",
        "A red three on the left and a purple 5  on the right.",
        "purple 5 on the right and red 3 on the left",
    ):
        assert parse(caption) == RED_3_LEFT_OF_PURPLE_5
    turned = parse("a purple 5 left of a red 3")
    assert turned != RED_3_LEFT_OF_PURPLE_5
    assert not turned.fulfils(RED_3_LEFT_OF_PURPLE_5)
    assert parse("a red 3 above a purple 5") not in (RED_3_LEFT_OF_PURPLE_5, turned)
    assert parse("a blue 7") == Scene((Object(7, "blue"),))
    assert not parse("a blue 7").fulfils(parse("a blue 7 in the middle"))
    assert not RED_3_LEFT_OF_PURPLE_5.fulfils(parse("a red 3"))


@pytest.mark.parametrize(
    "caption",
    ["", "a red", "a red 10", "a pink 3", "a red 3 a blue 5", "a red 3 near a blue 5", "3 red left of a blue 5",
     "a red 3 on the left", "a red 3 on the left and a blue 5 on the left", "a red 3 left of a blue 5 above a red 3",
     "a red 3 on the left and a blue 5 at the top"],
)  # fmt: skip
def test_other_texts_mean_nothing(caption):
    assert parse(caption) is None


def test_the_vocabulary_has_all_words_and_names_unknown_ones():
    data = scenes()
    words = {word for captions in map(every_caption, _one_of_each()) for text in captions for word in text.split()}
    assert {word.strip() for word in data.captions.tokenizer.words} == words
    assert data.captions.unknown_words("A Red 3 beside a pink 7, a pink one") == ("beside", "pink", ",")
    assert data.captions.unknown_words("a red 3") == ()
    assert scenes(tokenizer="characters").captions.unknown_words("a red 3!?!") == ("!", "?")
    assert scenes(tokenizer="bytes", caption_length=70).captions.unknown_words("ß") == ()


def _one_of_each():
    colours = list(COLOURS)
    things = [(digit, colours[digit % 6]) for digit in range(10)]
    yield from (Scene((Object(*thing, PLACES[4 + i % 5]),)) for i, thing in enumerate(things))
    yield from (Scene((Object(3, "red", a), Object(4, "blue", b))) for a, b in (("left", "right"), ("top", "bottom")))


@pytest.mark.parametrize("kind", ["characters", "bytes", "bpe"])
def test_other_tokenizers(kind):
    data = scenes(tokenizer=kind, vocabulary=300, caption_length=80, caption_dropout=0.0)
    batch = data.batch_at(0)
    for caption, objects in zip(texts(data, batch), batch["scene"], strict=True):
        assert scene_of(objects).fulfils(parse(caption))
    again = scenes(tokenizer=kind, vocabulary=300, caption_length=80, spec=data.spec)
    assert again.spec == data.spec


# ------------------------------------------------------------------------------------------- pictures


def test_digits_lie_where_their_places_say():
    """Of squares of full ink: each colour fills a square of 14 pixels, and squares have a gap between them."""
    data = scenes(batch_size=200)
    batch = data.batch_at(0)
    palette = np.array([*COLOURS.values()])
    for image, objects in zip(batch["image"], batch["scene"], strict=True):
        boxes, names = [], []
        ink = image.any(-1)
        assert ink.sum() == 14 * 14 * (objects[:, 0] >= 0).sum()
        for _, colour, place in objects[objects[:, 0] >= 0]:
            rows, columns = np.nonzero((image == palette[colour]).all(-1))
            boxes.append((rows.min(), rows.max(), columns.min(), columns.max()))
            names.append(PLACES[place])
        if len(boxes) == 1:
            (top, _, left, _), name = boxes[0], names[0]
            low, high = (4, 14)
            row = "upper" if top <= low else "lower" if top >= high else ""
            column = "left" if left <= low else "right" if left >= high else ""
            assert name == (f"{row} {column}" if row and column else "middle")
        elif objects[0, 1] != objects[1, 1]:
            (top, bottom, left, right), (top_2, _, left_2, _) = boxes
            beside, below = left_2 - right > 1, top_2 - bottom > 1
            assert (beside, below) == (names[0] == "left", names[0] == "top")
            assert abs(top_2 - top if beside else left_2 - left) <= 3


def test_digits_are_made_smaller_by_area():
    images = np.zeros((2, 28, 28), np.uint8)
    images[0, 2:22, 7:27] = np.random.default_rng(0).integers(1, 256, (20, 20))
    images[1, 10:20, 8:16] = 200
    small = shrink(images, 14)
    finer = images[0, 2:22, 7:27].repeat(7, 0).repeat(7, 1)  # 140 pixels, ten for each of the 14
    np.testing.assert_allclose(255 * small[0], finer.reshape(14, 10, 14, 10).mean((1, 3)), rtol=1e-5)
    assert small[1].mean() * 255 == pytest.approx(200 * 80 / 400)
    rows, columns = small[1].sum(1), small[1].sum(0)
    np.testing.assert_allclose(rows, rows[::-1], atol=1e-5)
    np.testing.assert_allclose(columns, columns[::-1], atol=1e-5)
    assert (shrink(np.full((1, 28, 28), 255, np.uint8), 9) == pytest.approx(1.0)) is True


def test_scenes_of_test_are_of_mnist_test_digits():
    images, labels = read_mnist()
    found = digits_of("test")
    assert sorted(image.tobytes() for image in found.images) == sorted(image.tobytes() for image in images[60_000:])
    np.testing.assert_array_equal(np.diff(found.begin), np.bincount(labels[60_000:]))
    dev, train = digits_of("dev"), digits_of("train")
    assert (len(dev.images), len(train.images)) == (5_000, 55_000)
    training = {image.tobytes() for image in images[:60_000]}
    assert {image.tobytes() for image in dev.images} <= training
    data = scenes(batch_size=40)
    drawn = data.on("test").held_out_scene(np.arange(40))
    pictures = render(drawn, found, 32, 14)
    of_digit = {digit: shrink(images[60_000:][labels[60_000:] == digit][..., 0], 14) for digit in range(10)}
    palette = np.array([*COLOURS.values()], np.float32)
    for picture, objects in zip(pictures, drawn.objects, strict=True):
        if objects[1, 0] < 0:
            digit, colour, _ = objects[0]
            ink = of_digit[digit].sum((1, 2)) * palette[colour].sum()
            assert picture.any()
            assert abs(ink - picture.sum(dtype=np.int64)).min() < 40


def test_preview_and_fingerprint():
    data = scenes(caption_dropout=0.0)
    (sheet,) = data.preview(jax.random.key(0))
    assert sheet.name == "batch"
    assert sheet.pixels.shape[1] == 8 * 132 + 4
    under = sheet.pixels[4 + 128 :]
    assert (under < 128).any(-1).reshape(len(under), -1).any()
    prints = {scenes(**settings).fingerprint() for settings in ({}, {"digit_size": 12}, {"tokenizer": "bytes"})}
    assert len(prints) == 3
    assert scenes(seed=5, batch_size=3, split="test").fingerprint() == data.fingerprint()


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 28}, r"data.size is 28; it must be at least 29 pixels, for two digits of data.digit_size 14"),
        ({"digit_size": 16}, r"data.size is 'auto'; it must be at least 33"),
        ({"caption_dropout": 1.0}, "data.caption_dropout is 1.0; it must be from 0 to below 1"),
        ({"caption_length": 1}, "data.caption_length is 1; it must be at least 2"),
        ({"channels": 1}, "data.channels is 1; it must be 0 or 3"),
        ({"tokenizer": "words", "vocabulary": 2}, "vocabulary 2 is too small"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        scenes(**settings)
    scenes(**{"size": 29, "digit_size": 14})


def test_a_run_of_other_images_is_refused():
    spec = scenes().spec
    assert scenes(spec=replace(spec, caption=None)).spec == spec
    with pytest.raises(UserError, match=r"give --data\.size 40"):
        scenes(spec=replace(spec, height=40, width=40))
    with pytest.raises(UserError, match="2 classes"):
        scenes(spec=replace(spec, classes=("a", "b")))
    with pytest.raises(UserError, match=r"--data\.tokenizer words"):
        CaptionedImages(tokenizer="bytes").check_tokenizer(spec)
