"""Images from files: folders, kinds of pixels, pictures of different sizes, files that are none, masks."""

import io
import logging
from dataclasses import replace

import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
from image_data_cases import all_images, all_labels, arrays, open_images, save

from zoo.core.errors import UserError
from zoo.data.images import Images
from zoo.data.images import files as image_files
from zoo.data.images.files import read_image, read_mask
from zoo.data.images.fitting import Fitting
from zoo.data.specs import ImageSpec

WHITE = (255, 255, 255)


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures in two classes, in all formats."""
    fine = {"quality": 100, "subsampling": 0}
    for i, pixels in enumerate(arrays(12, 16)):
        suffix, options = list({"png": {}, "jpg": fine, "webp": {"lossless": True}, "bmp": {}}.items())[i % 4]
        save(tmp_path / "photos" / ("cats", "dogs")[i % 2] / "deep", pixels, f"{i:02d}.{suffix}", **options)
    return tmp_path / "photos"


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


@pytest.mark.parametrize(("size", "found"), [((80, 70), (64, 64)), ((80, 72), (72, 80)), ((20, 18), (16, 16))])
def test_one_size_stays_if_networks_can_halve_it_twice(tmp_path, caplog, size, found):
    with caplog.at_level(logging.INFO, "zoo"):
        data = open_images(Images(path=photos(tmp_path, [size] * 5)))
    assert data.spec == ImageSpec(*found, 3)
    told = f"are {size[0]}x{size[1]} and are brought to {found[1]}x{found[0]}; --data.size gives another" in caplog.text
    assert told == (found != size[::-1])


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
