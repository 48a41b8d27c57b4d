"""Images from what is embedded, from arrays and from TFDS."""

import io
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from image_data_cases import all_images, all_labels, arrays, by_hash, open_images, save, three_parts

from zoo.core.errors import UserError
from zoo.data.images import Images
from zoo.data.images.arrays import read_emoji, read_mnist
from zoo.data.specs import ImageSpec

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


# ------------------------------------------------------------------------------------------- bad input


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
