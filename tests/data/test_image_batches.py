"""Batches and splits of images, and settings that make none."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from image_data_cases import all_images, all_labels, arrays, by_hash, open_images, save, three_parts

from zoo.core.errors import UserError
from zoo.data.images import Images
from zoo.data.images.augment import Augment
from zoo.data.specs import ImageSpec


@pytest.fixture
def npz(tmp_path):
    """Eleven images in three classes; one is there twice, and three begin alike."""
    images = arrays()
    images[7] = images[2]
    images[3:5, :1] = images[5, :1]
    path = tmp_path / "images.npz"
    np.savez(path, images=images, labels=np.arange(11) % 3)
    return Images(path=str(path), held_out=0.3), images


# --------------------------------------------------------------------------------------------- batches


def test_batches_are_functions_of_seed_and_step(npz):
    settings, _ = npz
    one, other, seeded = open_images(settings), open_images(settings), open_images(settings, seed=1)
    for step in (5, 0, 900, 5):
        np.testing.assert_array_equal(one.batch_at(step)["image"], other.batch_at(step)["image"])
    assert any((one.batch_at(step)["image"] != seeded.batch_at(step)["image"]).any() for step in range(3))


@pytest.mark.parametrize("at", ["batch_at", "held_out_at"])
def test_rows_are_part_of_the_global_batch(npz, at):
    data = open_images(npz[0], batch_size=6)
    whole = getattr(data, at)(0)
    for rows in (slice(0, 2), slice(2, 6), slice(5, None)):
        part = getattr(data, at)(0, rows)
        assert part.keys() == whole.keys()
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][rows])


def test_shapes_and_types(npz):
    data = open_images(npz[0])
    assert data.spec == ImageSpec(6, 6, 3, ("0", "1", "2"))
    for batch in (data.batch_at(0), data.held_out_at(0)):
        assert batch["image"].shape == (4, 6, 6, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == batch["row"].dtype == np.int32
        assert batch["valid"].dtype == bool
        np.testing.assert_array_equal(batch["row"], np.arange(4))


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_an_epoch_visits_each_image_once_and_epochs_differ(npz, batch_size):
    data = open_images(npz[0], batch_size=batch_size)
    n = len(data.images)
    steps = -(-4 * n // batch_size)
    drawn = np.concatenate([data.batch_at(step)["image"] for step in range(steps)])
    epochs = [[image.tobytes() for image in drawn[i * n : (i + 1) * n]] for i in range(4)]
    assert all(sorted(epoch) == sorted(image.tobytes() for image in data.images) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_every_held_out_image_comes_once(npz, batch_size, split):
    data = open_images(replace(npz[0], held_out=0.6), batch_size=batch_size).on(split)
    assert len(data.held_out_images) >= 3
    batches = [data.held_out_at(index) for index in range(data.held_out_batches)]
    for batch in batches:
        assert batch["image"].shape[0] == batch_size
        assert batch["valid"].any()
    images, labels, row = (
        np.concatenate([batch[name][batch["valid"]] for batch in batches]) for name in ("image", "label", "row")
    )
    np.testing.assert_array_equal(images, data.held_out_images)
    np.testing.assert_array_equal(labels, data.held_out_labels)
    np.testing.assert_array_equal(row, np.arange(len(images)))


def test_split_keeps_equal_images_together_whatever_their_order(npz, tmp_path):
    settings, images = npz
    ranked = [image.tobytes() for image in by_hash(list({image.tobytes(): image for image in images}.values()))]
    for share, held_out in ((0.1, 1), (0.4, 2), (0.8, 4)):
        data = open_images(replace(settings, held_out=share))
        train, dev, test = (list(dict.fromkeys(image.tobytes() for image in part)) for part, _ in three_parts(data))
        assert (test, dev) == (ranked[:held_out], ranked[held_out : 2 * held_out])
        assert set(train) == set(ranked[2 * held_out :])
        assert sorted(image.tobytes() for image in all_images(data)) == sorted(image.tobytes() for image in images)
        np.savez(tmp_path / "reversed.npz", images=images[::-1], labels=np.arange(11)[::-1] % 3)
        other = open_images(Images(path=str(tmp_path / "reversed.npz"), held_out=share))
        for split in ("dev", "test"):
            np.testing.assert_array_equal(data.on(split).held_out_images, other.on(split).held_out_images)
        for image, label in zip(all_images(data), all_labels(data), strict=True):
            assert label in {i % 3 for i in range(11) if (images[i] == image).all()}


def test_the_first_held_out_images_are_of_all_classes(tmp_path):
    """In the order of files, the first 60 of 300 pictures sorted by class were of 3 classes."""
    labels = np.arange(300) // 20
    np.savez(tmp_path / "a.npz", images=arrays(300), labels=labels, held_out_images=arrays(300, seed=1),
             held_out_labels=labels)  # fmt: skip
    test = open_images(Images(path=str(tmp_path / "a.npz")), batch_size=60).on("test")
    assert len(set(test.held_out_at(0)["label"].tolist())) >= 13
    assert sorted(test.held_out_labels) == sorted(labels)


def test_a_source_of_any_size_can_be_scored_whole(npz, tmp_path):
    settings, images = npz
    data = open_images(settings, split="all")
    np.testing.assert_array_equal(data.held_out_images, by_hash(images))
    assert data.describe().endswith("images.npz: all of 11 images, 6x6 in colour, 3 classes")
    save(tmp_path / "one", images[0], "a.png")
    one = open_images(Images(path=str(tmp_path / "one")), spec=ImageSpec(6, 6, 3), split="all")
    np.testing.assert_array_equal(one.held_out_at(0)["image"][0], images[0])
    assert one.held_out_at(0)["valid"].tolist() == [True, False, False, False]
    np.savez(tmp_path / "a.npz", x_train=images[:8], x_test=images[8:])
    both = open_images(Images(path=str(tmp_path / "a.npz"), held_out_path="missing"), split="all")
    np.testing.assert_array_equal(both.held_out_images, by_hash(images))


def test_images_to_score_that_are_named_are_dev_and_test(npz, tmp_path):
    settings, images = npz
    other, last = arrays(5, seed=7), arrays(2, seed=8)
    np.save(tmp_path / "other.npy", other)
    np.save(tmp_path / "last.npy", last)
    settings = Images(path=settings.path, held_out=0.4)
    np.savez(tmp_path / "images.npz", images=images)
    halved = three_parts(open_images(replace(settings, held_out_path=str(tmp_path / "other.npy"))))
    for (found, _), expected in zip(halved, (images, by_hash(other)[2:], by_hash(other)[:2]), strict=True):
        np.testing.assert_array_equal(found, expected)
    apart = replace(settings, held_out_path=str(tmp_path / "other.npy"), test_path=str(tmp_path / "last.npy"))
    for (found, _), expected in zip(three_parts(open_images(apart)), (images, by_hash(other), by_hash(last)),
                                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(found, expected)
    train, dev, test = (found for found, _ in three_parts(open_images(replace(apart, held_out_path=""))))
    assert {image.tobytes() for image in dev} == {image.tobytes() for image in by_hash(images)[: len(dev)]}
    assert len({image.tobytes() for image in dev}) == 2
    assert len(train) + len(dev) == 11
    np.testing.assert_array_equal(test, by_hash(last))
    np.save(tmp_path / "other.npy", other[:1])
    with pytest.raises(UserError, match=r"other.npy has 1 different picture, too few for dev and test: give .* 2"):
        open_images(replace(settings, held_out_path=str(tmp_path / "other.npy")))


def test_split_does_not_depend_on_the_size(tmp_path):
    for i, pixels in enumerate(arrays(9, 16)):
        save(tmp_path / str(i % 2), pixels, f"{i}.png")
    large, small = (open_images(Images(path=str(tmp_path), size=size, held_out=0.4)) for size in (16, 4))
    averaged = large.held_out_images.reshape(-1, 4, 4, 4, 4, 3).mean((2, 4))
    np.testing.assert_allclose(small.held_out_images, averaged, atol=0.51)
    np.testing.assert_array_equal(small.held_out_labels, large.held_out_labels)
    assert len(small.held_out_labels) == 2


def test_augmentation_is_for_training_and_seen_in_the_preview(npz):
    data = open_images(replace(npz[0], augment=Augment(flip=1.0)))
    batch = data.batch_at(0)
    changed = jax.jit(data.augment)(batch, jax.random.key(0))
    np.testing.assert_array_equal(changed["image"], batch["image"][:, :, ::-1])
    np.testing.assert_array_equal(changed["label"], batch["label"])
    (picture,) = data.preview(jax.random.key(0))
    assert picture.name == "batch"
    np.testing.assert_array_equal(picture.pixels[2:8, 2:8], batch["image"][0, :, ::-1])


def test_fingerprint_follows_images_and_labels(npz, tmp_path):
    settings, images = npz
    prints = {
        open_images(settings).fingerprint(),
        open_images(replace(settings, augment=Augment(flip=0.5))).fingerprint(),
    }
    assert len(prints) == 1
    np.savez(tmp_path / "other.npz", images=images, labels=np.arange(1, 12) % 3)
    prints.add(open_images(Images(path=str(tmp_path / "other.npz"), held_out=0.3)).fingerprint())
    np.savez(tmp_path / "more.npz", images=images ^ 1, labels=np.arange(11) % 3)
    prints.add(open_images(Images(path=str(tmp_path / "more.npz"), held_out=0.3)).fingerprint())
    assert len(prints) == 3


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "a", "tfds": "b"}, "two sources"),
        ({"held_out": 0.0}, "held_out is 0.0"),
        ({"size": -1}, "size is -1"),
        ({"held_out_path": "a"}, "held-out-path goes with --data.path"),
        ({"test_path": "a"}, "test-path goes with --data.path"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        Images(**settings)


def test_bad_colour_augmentation_and_tfds(npz):
    settings, _ = npz
    with pytest.raises(UserError, match="'blackish' is no colour"):
        open_images(replace(settings, background="blackish"))
    with pytest.raises(UserError, match="the images are grey"):
        open_images(replace(settings, channels=1, augment=Augment(hue=5.0)))
    with pytest.raises(UserError, match="no_such_set"):
        open_images(Images(tfds="no_such_set", tfds_dir="nowhere"))
