import hashlib
import io
import logging
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest

from zoo.core.errors import UserError
from zoo.data.images import Images
from zoo.data.images import files as image_files
from zoo.data.images.arrays import read_emoji, read_mnist
from zoo.data.images.augment import Augment
from zoo.data.images.files import Fitting, read_image, read_mask
from zoo.data.specs import ImageSpec

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def open_images(settings, batch_size=4, seed=0, spec=None, split="dev"):
    return settings.open(length=None, batch_size=batch_size, seed=seed, spec=spec, split=split)


def three_parts(data):
    """Images and labels of train, dev and test."""
    return (data.images, data.labels), *(
        (data.on(split).held_out_images, data.on(split).held_out_labels) for split in ("dev", "test")
    )


def all_images(data):
    return np.concatenate([images for images, _ in three_parts(data)])


def all_labels(data):
    return np.concatenate([labels for _, labels in three_parts(data)])


def by_hash(images):
    return np.array(sorted(images, key=lambda image: hashlib.sha256(image.tobytes()).digest()))


def arrays(n=11, size=6, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), np.uint8)


def save(folder, pixels, name, **options):
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(np.squeeze(pixels))
    image.save(path, **options)
    return path


@pytest.fixture
def npz(tmp_path):
    """Eleven images in three classes; one is there twice, and three begin alike."""
    images = arrays()
    images[7] = images[2]
    images[3:5, :1] = images[5, :1]
    path = tmp_path / "images.npz"
    np.savez(path, images=images, labels=np.arange(11) % 3)
    return Images(path=str(path), held_out=0.3), images


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures in two classes, in all formats."""
    fine = {"quality": 100, "subsampling": 0}
    for i, pixels in enumerate(arrays(12, 16)):
        suffix, options = list({"png": {}, "jpg": fine, "webp": {"lossless": True}, "bmp": {}}.items())[i % 4]
        save(tmp_path / "photos" / ("cats", "dogs")[i % 2] / "deep", pixels, f"{i:02d}.{suffix}", **options)
    return tmp_path / "photos"


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


# ------------------------------------------------------------------------------------------- embedded


def test_mnist():
    data = open_images(Images())
    assert data.describe() == (
        "MNIST: 55,000 images to train on, 5,000 for dev and 10,000 for test, 28x28 in grey, 10 classes"
    )
    images, labels = read_mnist()
    (train, train_labels), (dev, dev_labels), (test, test_labels) = three_parts(data)
    counts = np.bincount(train_labels) + np.bincount(dev_labels)
    np.testing.assert_array_equal(counts[:3], [5923, 6742, 5958])  # as published
    np.testing.assert_array_equal(np.bincount(test_labels)[:3], [980, 1135, 1032])
    ranked = by_hash(images[:60000])
    np.testing.assert_array_equal(dev, ranked[:5000])
    np.testing.assert_array_equal(by_hash(train), ranked[5000:])
    np.testing.assert_array_equal(test, by_hash(images[60000:]))
    whole = open_images(Images(), split="all")
    assert whole.describe() == "MNIST: all of 70,000 images, 28x28 in grey, 10 classes"
    np.testing.assert_array_equal(labels[:8], [5, 0, 4, 1, 9, 2, 1, 3])
    assert images[:60000].mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert images[:60000].std() / 255 == pytest.approx(0.3081, abs=1e-4)
    padded = open_images(Images(size=32, fit="pad"))
    np.testing.assert_array_equal(padded.images[:, 2:-2, 2:-2], data.images)
    assert padded.images.sum(dtype=np.int64) == data.images.sum(dtype=np.int64)


def test_emoji():
    data = open_images(Images(embedded="emoji", size=32))
    assert data.spec.height == data.spec.width == 32
    assert data.spec.channels == 3
    assert [len(part) for part, _ in three_parts(data)] == [1718, 97, 96]
    pixels, facts = read_emoji()
    captions = {fact["caption"]: i for i, fact in enumerate(facts)}
    heart = captions["red heart"]
    assert facts[heart]["characters"].startswith("\N{HEAVY BLACK HEART}")
    assert facts[heart]["category"] == "Smileys & Emotion"
    alpha = pixels[heart][..., 3:] / 255
    over = np.round(pixels[heart][..., :3] * alpha + 255 * (1 - alpha)).reshape(32, 2, 32, 2, 3).mean((1, 3))
    place = abs(all_images(data) - over).mean((1, 2, 3)).argmin()
    np.testing.assert_allclose(all_images(data)[place], over, atol=1.1)
    label = all_labels(data)[place]
    assert data.spec.classes[label] == "Smileys & Emotion"
    assert (data.images[:, 0, 0] == 255).all(-1).mean() > 0.9
    black = open_images(Images(embedded="emoji", size=32, background="black"))
    assert (black.images[:, 0, 0] == 0).all(-1).mean() > 0.9


# --------------------------------------------------------------------------------------------- folders


def test_folders_are_classes(folder):
    data = open_images(Images(path=str(folder)))
    assert data.spec == ImageSpec(16, 16, 3, ("cats", "dogs"))
    expected = arrays(12, 16)
    for image, label in zip(data.images, data.labels, strict=True):
        distance = abs(expected.astype(int) - image).mean((1, 2, 3))
        assert distance.argmin() % 2 == label
        assert distance.min() < 25  # JPEG on noise
    save(folder, arrays(1, 16)[0] ^ 3, "at_the_top.png")
    with_top = open_images(Images(path=str(folder)))
    labels = all_labels(with_top)
    assert sorted(np.unique(labels, return_counts=True)[1]) == [1, 6, 6]
    assert labels.min() == -1


def test_one_folder_is_no_class_and_hidden_files_are_left_out(tmp_path):
    for i, pixels in enumerate(arrays(3)):
        save(tmp_path / "all", pixels, f"{i}.PNG", format="png")
    (tmp_path / "all" / "._0.png").write_bytes(b"a resource fork")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "0.png").write_bytes(b"")
    (tmp_path / "all" / "again").symlink_to(tmp_path)
    data = open_images(Images(path=str(tmp_path)))
    assert data.spec.classes == ()
    assert len(data.images) == 1
    assert len(all_images(data)) == 3
    assert data.skipped == 0
    assert (all_labels(data) == -1).all()


def picture(kind):
    """One picture in many modes, and the pixels that it must come to, over white."""
    ramp = np.linspace(0, 255, 36).round().astype(np.uint8).reshape(6, 6)
    colours = np.stack([ramp, ramp[::-1], ramp.T], -1)
    half = np.full((6, 6, 1), 128, np.uint8)
    match kind:
        case "grey":
            return PIL.Image.fromarray(ramp), ramp[..., None]
        case "grey and alpha":
            return PIL.Image.fromarray(np.dstack([ramp, half])), 255 - (255.0 - ramp[..., None]) * 128 / 255
        case "16 bits":
            return PIL.Image.fromarray(ramp.astype(np.uint16) * 257), ramp[..., None]
        case "one bit":
            return PIL.Image.fromarray(ramp > 99), np.where(ramp > 99, 255, 0)[..., None]
        case "colour":
            return PIL.Image.fromarray(colours), colours
        case "colour and alpha":
            return PIL.Image.fromarray(np.dstack([colours, half])), 255 - (255.0 - colours) * 128 / 255
        case "palette":
            return PIL.Image.fromarray(colours).quantize(256), colours
        case "palette and alpha":
            palette = PIL.Image.fromarray(colours).quantize(256)
            palette.info["transparency"] = 0
            clear = np.asarray(palette)[..., None] == 0
            return palette, np.where(clear, 255, colours)


@pytest.mark.parametrize(
    "kind",
    [
        "grey", "grey and alpha", "16 bits", "one bit", "colour", "colour and alpha", "palette", "palette and alpha",
    ],
)  # fmt: skip
def test_every_kind_of_pixels(tmp_path, kind):
    image, expected = picture(kind)
    options = {"transparency": 0} if kind == "palette and alpha" else {}
    path = save(tmp_path, image, "a.png", **options)
    with PIL.Image.open(path) as opened:
        assert Fitting()(opened).shape == expected.shape
    spec = ImageSpec(6, 6, expected.shape[-1])
    np.testing.assert_allclose(read_image(str(path), spec), expected, atol=1.01)
    in_colour = read_image(str(path), replace(spec, channels=3))
    np.testing.assert_allclose(in_colour, np.broadcast_to(expected, (6, 6, 3)), atol=1.01)
    luma = expected @ [0.299, 0.587, 0.114] if expected.shape[-1] == 3 else expected[..., 0]
    np.testing.assert_allclose(read_image(str(path), replace(spec, channels=1))[..., 0], luma, atol=1.6)


def test_other_formats(tmp_path):
    flat = np.full((8, 8, 3), (200, 40, 90), np.uint8)
    spec = ImageSpec(8, 8, 3)
    cmyk = PIL.Image.fromarray(flat).convert("CMYK")
    for name, image in (("a.jpg", flat), ("cmyk.jpg", cmyk), ("a.webp", flat), ("a.bmp", flat)):
        np.testing.assert_allclose(read_image(str(save(tmp_path, image, name)), spec), flat, atol=4)
    frames = [PIL.Image.fromarray(x) for x in (flat, 255 - flat)]
    path = save(tmp_path, frames[0], "two.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(read_image(str(path), spec), flat, atol=4)


def test_orientation_of_cameras_is_honoured(tmp_path):
    upright = arrays(1, 8)[0][:, :6]
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned; the picture has to be turned by 90 degrees clockwise
    path = save(tmp_path, np.rot90(upright), "a.png", exif=exif.tobytes())
    np.testing.assert_array_equal(read_image(str(path), ImageSpec(8, 6, 3)), upright)


def test_crop_covers_and_pad_keeps_everything(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = (10, 200, 30)
    image = PIL.Image.fromarray(wide)
    for size, border in ((4, 0), (8, 0), (6, 1), (16, 3)):  # a filter sees a little of what is cut
        inner = Fitting((size, size))(image)[:, border : size - border]
        np.testing.assert_allclose(inner, np.broadcast_to((10, 200, 30), inner.shape), atol=12 if border else 0)
    padded = Fitting((12, 12), "pad", background=(0, 0, 255))(image)
    assert (padded[:4] == (0, 0, 255)).all()
    assert (padded[8:] == (0, 0, 255)).all()
    np.testing.assert_allclose(padded[5:7, 5:7], np.broadcast_to((10, 200, 30), (2, 2, 3)), atol=12)
    larger = Fitting((30, 30), "pad", background=WHITE)(image)
    np.testing.assert_array_equal(larger[11:19, 3:27], wide)
    assert (larger != 255).any(-1).sum() == 8 * 24


def test_large_photographs_are_close_to_their_average(tmp_path):
    smooth = np.asarray(PIL.Image.fromarray(arrays(1, 40)[0]).resize((480, 480), PIL.Image.Resampling.BICUBIC))
    path = save(tmp_path, smooth, "photo.jpg", quality=95, subsampling=0)
    for factor in (2, 4, 8):
        side = 480 // factor
        average = smooth.reshape(side, factor, side, factor, 3).mean((1, 3))
        np.testing.assert_allclose(read_image(str(path), ImageSpec(side, side, 3)), average, atol=8)


# --------------------------------------------------------------------------------- pictures of different sizes


def photos(folder, sizes, seed=0):
    for i, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng([seed, i]).integers(0, 256, (height, width, 3), np.uint8)
        save(folder, pixels, f"{i}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(70, 90), (100, 64), (64, 64), (200, 20), (65, 65)], 64),
        ([(63, 90), (40, 33), (32, 32), (90, 90)], 32),
        ([(20, 30), (16, 16), (17, 99)], 16),
        ([(3, 4), (5, 6), (7, 8)], 8),
    ],
)
def test_pictures_of_different_sizes_are_brought_to_one_that_fits_most(tmp_path, caplog, sizes, side):
    with caplog.at_level(logging.INFO, "zoo"):
        data = open_images(Images(path=photos(tmp_path, sizes)))
    assert data.spec == ImageSpec(side, side, 3)
    np.testing.assert_array_equal(
        np.sort(all_images(data).reshape(len(sizes), -1), 0),
        np.sort(all_images(open_images(Images(path=str(tmp_path), size=side))).reshape(len(sizes), -1), 0),
    )
    (record,) = caplog.records
    assert f"brought to {side}x{side}" in record.getMessage()
    with pytest.raises(UserError, match="differ in size"):
        open_images(Images(path=str(tmp_path), size=0))


def test_pictures_of_one_size_stay_as_they_are(tmp_path, caplog):
    """Also one that lies on its side and says so."""
    photos(tmp_path, [(12, 20)] * 4)
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    save(tmp_path, np.random.default_rng(1).integers(0, 256, (12, 20, 3), np.uint8), "lying.png", exif=exif)
    with caplog.at_level(logging.INFO, "zoo"):
        assert open_images(Images(path=str(tmp_path))).spec == ImageSpec(20, 12, 3)
    assert not caplog.records


def test_held_out_pictures_and_other_sources_are_brought_to_the_size_of_the_run(tmp_path):
    path = photos(tmp_path / "train", [(40, 50), (33, 60), (90, 34)])
    other = photos(tmp_path / "other", [(9, 9), (12, 10), (70, 80)], seed=1)
    data = open_images(Images(path=path, held_out_path=other))
    assert data.spec == ImageSpec(32, 32, 3)
    assert open_images(Images(path=other), spec=data.spec, split="all").spec == data.spec
    assert open_images(Images(path=other)).spec == ImageSpec(8, 8, 3)


def test_fit_auto_pads_what_is_smaller_and_crops_the_rest(tmp_path):
    for name, size in (("small", (20, 24)), ("large", (60, 40))):
        image = PIL.Image.open(photos(tmp_path / name, [size]) + "/0.png")
        as_pad, as_crop, auto = (Fitting((32, 32), fit)(image) for fit in ("pad", "crop", "auto"))
        assert (as_pad != as_crop).any()
        np.testing.assert_array_equal(auto, as_pad if name == "small" else as_crop)
    same, padded = (open_images(Images(size=32, fit=fit)).images[:5] for fit in ("auto", "pad"))
    np.testing.assert_array_equal(same, padded)


# ------------------------------------------------------------------------------------------- bad input


def test_odd_files_are_skipped_counted_and_named(folder, caplog):
    (folder / "cats" / "notes.png").write_text("not a picture")
    whole = save(folder, arrays(1, 64)[0], "x.jpg").read_bytes()
    (folder / "x.jpg").unlink()
    (folder / "dogs" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "dogs" / "empty.webp").write_bytes(b"")
    (folder / "readme.txt").write_text("about these photos")
    with caplog.at_level(logging.INFO, "zoo"):
        data = open_images(Images(path=str(folder), size=8))
    assert data.skipped == 3
    assert "3 unreadable files skipped" in data.describe()
    warning, told = (record.getMessage() for record in caplog.records)
    assert "3 of 15 pictures" in warning
    for name in ("notes.png (it is not PNG, JPEG", "cut.jpg (image file is truncated", "empty.webp"):
        assert name in warning
    assert "readme.txt" in told
    assert len(all_images(data)) == 12


def test_extreme_sizes(tmp_path, monkeypatch):
    save(tmp_path, np.full((1, 1, 3), 7, np.uint8), "one.png")
    save(tmp_path, np.full((3, 20000, 3), 9, np.uint8), "wide.png")
    save(tmp_path, np.full((20000, 2), 11, np.uint8), "tall.png")
    for fit in ("crop", "pad"):
        data = open_images(Images(path=str(tmp_path), size=8, fit=fit))
        images = all_images(data)
        assert data.skipped == 0
        assert {int(image[3, 3, 0]) for image in images} == {7, 9, 11}
    limit = PIL.Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 5000)  # Pillow would refuse what is twice as large
    assert len(all_images(open_images(Images(path=str(tmp_path), size=8)))) == 3
    assert PIL.Image.MAX_IMAGE_PIXELS == 5000
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(image_files, "MOST_PIXELS", 50000)
    save(tmp_path, np.full((2, 2, 3), 13, np.uint8), "two.png")
    data = open_images(Images(path=str(tmp_path), size=8))
    assert data.skipped == 1


def bad_folders(tmp_path):
    """Folders by name, each with what is said of it."""
    (tmp_path / "empty").mkdir()
    yield "empty", {}, "no PNG, JPEG, WebP, BMP or GIF file is in"
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a")
    yield "text", {}, "its 1 files are of other kinds, such as a.txt"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("a")
    yield "broken", {}, r"none of the 1 picture files in .* can be read: a.png \(it is not"
    save(tmp_path / "one", arrays(1)[0], "a.png")
    yield "one", {}, "one has 1 different picture, too few for train, dev and test: give at least 3"
    save(tmp_path / "twice", arrays(1)[0], "a.png")
    save(tmp_path / "twice", arrays(1)[0], "b.png")
    yield "twice", {}, "twice has 1 different picture, too few for train, dev and test: give at least 3"
    save(tmp_path / "sizes", arrays(1)[0], "a.png")
    save(tmp_path / "sizes", arrays(1, 8)[0], "b.png")
    yield "sizes", {"size": 0}, r"differ in size \(a.png is 6x6, b.png is 8x8\): give --data.size"
    for name in ("train", "test"):
        save(tmp_path / "splits" / name, arrays(1, seed=len(name))[0], "a.png")
    yield "splits", {}, "--data.path .*splits/train --data.held-out-path .*splits/test"
    yield "missing", {}, "there is no folder .*missing"
    yield "one/a.png", {}, "is one file: give a folder"
    yield "missing.npz", {}, "there is no file .*missing.npz"
    (tmp_path / "text.npz").write_text("text")
    yield "text.npz", {}, "cannot be read as NumPy arrays"
    yield "sizes", {"size": 4, "held_out_path": str(tmp_path / "empty")}, "no PNG"


def test_bad_folders(tmp_path):
    for name, settings, message in bad_folders(tmp_path):
        with pytest.raises(UserError, match=message) as raised:
            open_images(Images(path=str(tmp_path / name), **settings))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"images": arrays()[:, 0, 0]}, r"shape \(11, 3\)"),
        ({"images": arrays().transpose(0, 3, 1, 2)}, "move the channels last"),
        ({"images": arrays().astype(np.float32)}, "holds float32, from 0 to 255"),
        ({"images": np.full((5, 4, 4), np.nan)}, "holds float64, from nan"),
        ({"images": arrays().astype(np.int64)}, "holds int64"),
        ({"images": np.array([["a"]])}, "shape"),
        ({"images": arrays()[:0]}, "shape"),
        ({"a": arrays(), "b": arrays()}, "name the array of images 'images'"),
        ({"images": arrays(), "labels": np.zeros(5, int)}, "11 whole numbers"),
        ({"images": arrays(), "labels": np.zeros(11)}, "11 whole numbers"),
        ({"images": arrays(), "labels": np.arange(11) - 2}, "from -2 to 8"),
        ({"images": arrays(), "labels": np.arange(11) * 1000}, "a label is 10000"),
        ({"images": arrays(), "labels": np.arange(11), "classes": ["a", "b"]}, "from 0 to 1"),
        ({"images": np.array([None, 1])}, "allow_pickle"),
    ],
)
def test_bad_arrays(tmp_path, contents, message):
    path = tmp_path / "a.npz"
    np.savez(path, **contents)
    with pytest.raises(UserError, match=message):
        open_images(Images(path=str(path)))


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


# --------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16, bool])
def test_arrays_of_other_types(tmp_path, dtype):
    images = arrays(channels=1)[..., 0]
    if dtype is bool:
        images = np.where(images > 127, np.uint8(255), np.uint8(0))
    scale = 257.0 if dtype is np.uint16 else 1 / 255
    np.save(tmp_path / "a.npy", (images * scale).astype(dtype))
    data = open_images(Images(path=str(tmp_path / "a.npy")))
    assert data.spec == ImageSpec(6, 6, 1)
    found = {image.tobytes() for image in all_images(data)}
    assert found == {image.tobytes() for image in images}


def test_arrays_with_a_split_and_names_of_classes(tmp_path):
    images, labels = arrays(), np.arange(11) % 2
    np.savez(tmp_path / "a.npz", x_train=images[:8], y_train=labels[:8, None], x_test=images[8:], y_test=labels[8:])
    data = open_images(Images(path=str(tmp_path / "a.npz")))
    (train, _), (dev, _), (test, test_labels) = three_parts(data)
    np.testing.assert_array_equal(test, by_hash(images[8:]))
    for image, label in zip(test, test_labels, strict=True):
        assert label == next(labels[i] for i in range(11) if (images[i] == image).all())
    np.testing.assert_array_equal(dev, by_hash(images[:8])[:1])
    np.testing.assert_array_equal(train, [image for image in images[:8] if (image != dev[0]).any()])
    np.savez(tmp_path / "b.npz", images=images, labels=labels - 1, classes=["only"])
    named = open_images(Images(path=str(tmp_path / "b.npz")))
    assert named.spec.classes == ("only",)
    assert set(named.labels.tolist()) == {-1, 0}
    same = open_images(Images(path=str(tmp_path / "b.npz"), held_out_path=str(tmp_path / "b.npz")))
    np.testing.assert_array_equal(same.images, images)
    held_out = np.concatenate([part for part, _ in three_parts(same)[1:]])
    np.testing.assert_array_equal(by_hash(held_out), by_hash(images))


def test_arrays_are_fitted_like_files(tmp_path):
    images = arrays(5, 8, 4)
    np.save(tmp_path / "a.npy", images)
    for i, image in enumerate(images):
        save(tmp_path / "folder", image, f"{i}.png")
    for settings in (
        Images(size=4),
        Images(size=12, fit="pad", background="red"),
        Images(size=5, channels=1),
        Images(),
    ):
        sets = [open_images(replace(settings, path=str(tmp_path / name))) for name in ("a.npy", "folder")]
        one, other = (np.sort([image.tobytes() for image in all_images(x)]) for x in sets)
        np.testing.assert_array_equal(one, other)


# --------------------------------------------------------------------------------- specs of earlier runs


def test_a_spec_keeps_its_classes_and_refuses_other_images(folder, tmp_path):
    settings = Images(path=str(folder))
    spec = ImageSpec(16, 16, 3, ("birds", "dogs", "cats"))
    data = open_images(settings, spec=spec)
    assert data.spec == spec
    assert set(data.labels.tolist()) == {1, 2}
    assert (open_images(settings, spec=replace(spec, classes=())).labels == -1).all()
    with pytest.raises(UserError, match="has the class 'dogs', and the run has cats"):
        open_images(settings, spec=replace(spec, classes=("cats",)))
    with pytest.raises(UserError, match=r"16x16 in colour, and the run's are 8x8 in grey: give .*size 8 .*channels 1"):
        open_images(settings, spec=ImageSpec(8, 8, 1, spec.classes))
    open_images(replace(settings, size=8, channels=1), spec=ImageSpec(8, 8, 1, spec.classes))
    np.save(tmp_path / "a.npy", arrays(size=16))
    with pytest.raises(UserError, match="have no labels, and the run's have: birds, dogs, cats"):
        open_images(Images(path=str(tmp_path / "a.npy")), spec=spec)


# ----------------------------------------------------------------------------------------- one picture


def test_masks_are_not_resized(tmp_path):
    mask = np.zeros((8, 6), np.uint8)
    mask[2:5] = 255
    clear = np.dstack([np.full((8, 6), 255, np.uint8), mask])
    spec = ImageSpec(8, 6, 3)
    for name, pixels in (("a.png", mask), ("one_bit.png", mask > 0), ("alpha.png", clear)):
        found = read_mask(str(save(tmp_path, pixels, name)), spec)
        np.testing.assert_array_equal(found[..., 0], mask > 0)
    with pytest.raises(UserError, match=r"mask .*a.png is 6x8; it must be 28x28"):
        read_mask(str(tmp_path / "a.png"), ImageSpec(28, 28, 1))


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_pictures_that_are_none(tmp_path, read):
    (tmp_path / "text.png").write_text("text")
    file = io.BytesIO()
    PIL.Image.fromarray(arrays(1, 64)[0]).save(file, "jpeg")
    (tmp_path / "cut.jpg").write_bytes(file.getvalue()[:900])
    for name, message in (
        ("text.png", "cannot be read as a picture: it is not PNG"),
        ("cut.jpg", "cannot be read as a picture: image file is truncated"),
        ("missing.png", "there is no file"),
        ("", "there is no file"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            read(str(tmp_path / name), ImageSpec(64, 64, 3))
        assert "\n" not in str(raised.value)


# ------------------------------------------------------------------------------------------------ TFDS


@pytest.fixture
def tfds_folder(tmp_path):
    """A prepared set of grey images, split in two, in array_record files."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    label = tfds.features.ClassLabel(names=["odd", "even"])
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(6, 6, 1)), "label": label})
    splits = []
    for split, count in (("train", 7), ("test", 3)):
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="tiny", split=split, filetype_suffix="array_record"
        )
        writer = ArrayRecordWriter(str(folder / f"tiny-{split}.array_record-00000-of-00001"), "group_size:1")
        size = 0
        for i, image in enumerate(arrays(count, channels=1, seed=count)):
            png = io.BytesIO()
            PIL.Image.fromarray(image[..., 0]).save(png, "png")
            png.seek(0)
            record = features.serialize_example(features.encode_example({"image": png, "label": i % 2}))
            writer.write(record)
            size += len(record)
        writer.close()
        info = tfds.core.SplitInfo(name=split, shard_lengths=[count], num_bytes=size, filename_template=template)
        splits.append(info)
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=splits, filename_template=None, check_data=False
    )
    return str(tmp_path)


def test_tfds(tfds_folder):
    data = open_images(Images(tfds="tiny", tfds_dir=tfds_folder, tfds_held_out_split="test"))
    assert data.spec == ImageSpec(6, 6, 1, ("odd", "even"))
    np.testing.assert_array_equal(data.images, arrays(7, channels=1, seed=7))
    (_, dev, test), held_out = (part for part, _ in three_parts(data)), arrays(3, channels=1, seed=3)
    np.testing.assert_array_equal(test, by_hash(held_out)[:2])
    np.testing.assert_array_equal(dev, by_hash(held_out)[2:])
    alone = open_images(Images(tfds="tiny", tfds_dir=tfds_folder, tfds_test_split="test", held_out=0.6))
    assert [len(part) for part, _ in three_parts(alone)] == [5, 2, 3]
    np.testing.assert_array_equal(data.labels, np.arange(7) % 2)
    half = open_images(Images(tfds="tiny", tfds_dir=tfds_folder, held_out=0.8, size=3))
    assert [len(part) for part, _ in three_parts(half)] == [1, 3, 3]
    with pytest.raises(UserError, match="validation"):
        open_images(Images(tfds="tiny", tfds_dir=tfds_folder, tfds_split="validation"))
