"""Read accuracy by hand, and a reader on scenes that it must tell."""

import jax
import numpy as np
import pytest

from zoo.core.errors import UserError
from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.captions import CaptionedImages
from zoo.data.captions.grammar import parse
from zoo.data.captions.scenes import array_of, scene_of
from zoo.harness.config import Run
from zoo.harness.loop import fit
from zoo.metrics.reading import own_accuracy, read_accuracy, right_attributes
from zoo.reader import Reader


def scenes(*captions):
    return np.stack([array_of(parse(caption)) for caption in captions])


def test_every_attribute_is_right_by_itself():
    read = scenes("a red 3 left of a blue 7")
    cases = {
        "a red 3 left of a blue 7": (True, True, True),
        "a blue 7 right of a red three": (True, True, True),
        "a red 8 left of a blue 7": (False, True, True),
        "a red 3 left of a green 7": (True, False, True),
        "a red 3 above a blue 7": (True, True, False),
        "a blue 7 left of a red 3": (False, False, True),
        "a red 3": (False, False, False),  # another number of objects
    }
    for caption, expected in cases.items():
        assert tuple(right_attributes(read, scenes(caption))[0].tolist()) == expected, caption


def test_a_place_that_is_not_named_may_be_any():
    read = scenes("a red 3 in the upper left", "a red 3 in the middle")
    assert right_attributes(read, scenes("a red 3", "a red 3")).all()
    assert right_attributes(read, scenes(*["a red 3 in the upper left"] * 2)).tolist() == [
        [True] * 3,
        [True, True, False],
    ]


def test_an_empty_picture_is_right_in_nothing():
    assert not right_attributes(np.full((1, 2, 3), -1, np.int32), scenes("a red 3")).any()


def test_shares_are_of_all_seen_and_unseen_pictures():
    asked = scenes(*["a red 3 left of a blue 7"] * 4)
    read = scenes(
        "a red 3 left of a blue 7", "a red 3 left of a blue 1", "a red 3 above a blue 7", "a red 3 over a blue 1"
    )
    figures = read_accuracy(read, asked, np.array([False, False, False, True]))
    found = {name: value for name, value in figures.items() if not name.endswith(("_low", "_high"))}
    assert found == pytest.approx(
        {
            "read_digit": 0.5, "read_colour": 1.0, "read_place": 0.5, "read_all": 0.25,
            "seen_read_digit": 2 / 3, "seen_read_colour": 1.0, "seen_read_place": 2 / 3, "seen_read_all": 1 / 3,
            "unseen_read_digit": 0.0, "unseen_read_colour": 1.0, "unseen_read_place": 0.0, "unseen_read_all": 0.0,
        }
    )  # fmt: skip
    assert figures["read_all_low"] < 0.25 < figures["read_all_high"]


@pytest.fixture(scope="module")
def data():
    settings = CaptionedImages(size=16, digit_size=7, held_out_scenes=48, caption_dropout=0.0)
    return settings.open(length=None, batch_size=32, seed=0)


def test_a_reader_of_the_truth_is_always_right(data):
    truth = {data.held_out_at(i)["image"].tobytes(): data.held_out_at(i)["scene"] for i in range(2)}
    known = np.concatenate([*truth.values()])

    def read(images):
        return known[: len(images)]

    figures = own_accuracy(read, data, 40)
    assert figures["scenes"] == 40
    assert {figures[f"{kind}read_all"] for kind in ("", "seen_", "unseen_")} == {1.0}
    turned = own_accuracy(lambda images: known[: len(images)][:, ::-1], data, 1000)
    assert turned["scenes"] == 48
    assert turned["unseen_read_place"] == 0.0


@pytest.fixture(scope="module")
def model(data):
    family, setup = Reader(width=8, features=32, dropout=0.0), Setup(Optimizer(learning_rate=5e-3), 20, 32)
    state = family.init(data.spec, setup, jax.random.key(0))
    step = jax.jit(family.step)
    for i in range(20):
        batch = {name: value for name, value in data.batch_at(i).items() if name in ("image", "scene", "row")}
        state, _ = step(state, batch, i, jax.random.key(i))
    return Model(family, data.spec, state, 20, lambda: data)


def test_what_is_read_is_what_evaluation_counts(data, model):
    batch = data.held_out_at(0)
    rows = jax.jit(model.family.evaluate)(model.state, batch, jax.random.key(0))
    read = model.family.read(model, batch["image"])
    right = right_attributes(read, batch["scene"])
    there = batch["scene"][..., 0] >= 0
    hits, count = rows["digit_accuracy"]
    assert count.tolist() == there.sum(1).tolist()
    assert hits.tolist() == ((read[..., 0] == batch["scene"][..., 0]) & there).sum(1).tolist()
    whole, _ = rows["all_right"]
    # Evaluation asks for every attribute, also an absent one's; reading takes an object without a digit as absent.
    assert (right.all(1) >= (np.asarray(whole) == 1)).all()


def test_samples_show_what_is_read(model):
    made = model.family.sample(model, model.family.Request(n=3), jax.random.key(0))
    assert [cell.pixels.shape[1:] for cell in made] == [(112, 3)] * 3
    assert all(cell.pixels.shape[0] > 112 for cell in made)  # the text stands below the picture


def test_a_reader_needs_scenes():
    with pytest.raises(UserError, match="Reader"):
        fit(Run(family=Reader(), data=CaptionedImages(source="emoji", size=16), steps=1))


def test_scenes_are_told_as_captions_have_them():
    assert str(scene_of(scenes("a blue 7 right of a red 3")[0])) == "red 3 (left), blue 7 (right)"
