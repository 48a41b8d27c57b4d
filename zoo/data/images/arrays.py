"""Images from arrays: the embedded sets, .npz and .npy files, and TensorFlow Datasets."""

import functools
import hashlib
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Int32, Integer, Shaped, UInt8

from zoo.core.errors import UserError
from zoo.data.images.files import LabelledImages, stack
from zoo.data.images.fitting import Fitting
from zoo.data.sources import open_tfds

MNIST_TRAINING = 60_000

NAMES = (
    ("images", "labels", "held_out_images", "held_out_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
"""Names of the arrays in .npz files: this project's, Keras's and MedMNIST's; all but the first in a row are
optional."""


@functools.cache
def read_mnist() -> tuple[UInt8[np.ndarray, "n 28 28 1"], Int32[np.ndarray, " n"]]:
    """Returns MNIST: 60,000 training images, then 10,000 test images; see `zoo/data/embedded/README.md`."""
    file = io.BytesIO(_unpacked("mnist.npy.xz"))
    images, labels = np.load(file)[..., None], np.load(file).astype(np.int32)
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


@functools.cache
def read_emoji() -> tuple[UInt8[np.ndarray, "n 64 64 4"], list[dict[str, Any]]]:
    """Returns Noto emoji with alpha channel, and a `caption`, `keywords`, `category` and `characters` for each."""
    images = np.load(io.BytesIO(_unpacked("emoji.npy.xz")))
    images.flags.writeable = False
    return images, json.loads(_unpacked("emoji.json.xz"))


def _unpacked(name: str) -> bytes:
    return lzma.decompress((resources.files("zoo.data") / "embedded" / name).read_bytes())


def mnist(fitting: Fitting) -> tuple[LabelledImages, LabelledImages]:
    """Returns MNIST's training and test images."""
    images, labels = read_mnist()
    classes = tuple(map(str, range(10)))
    train, test = (
        fit_arrays(images[part], labels[part], classes, fitting)
        for part in (slice(MNIST_TRAINING), slice(MNIST_TRAINING, None))
    )
    return train, test


def emoji(fitting: Fitting) -> LabelledImages:
    """Returns Noto emoji, labelled by category."""
    images, facts = read_emoji()
    classes = tuple(sorted({fact["category"] for fact in facts}))
    labels = np.array([classes.index(fact["category"]) for fact in facts], np.int32)
    return fit_arrays(images, labels, classes, fitting)


def fit_arrays(
    images: UInt8[np.ndarray, "n h w c"], labels: Int32[np.ndarray, " n"], classes: tuple[str, ...], fitting: Fitting
) -> LabelledImages:
    """Converts images to one size and number of channels; the input is grey or colour, with or without alpha."""
    height, width, channels = images.shape[1:]
    size = fitting.size or (height, width)
    digests = tuple(hashlib.sha256(image.tobytes()).digest() for image in images)
    if channels in (1, 3) and fitting.channels in (0, channels):
        if size == (height, width):
            return LabelledImages(images, labels, digests, classes)
        if fitting.pads(height, width) and size[0] >= height and size[1] >= width:
            behind = PIL.Image.new("RGB", (1, 1), fitting.background).convert("L" if channels == 1 else "RGB")
            padded = np.empty((len(images), *size, channels), np.uint8)
            padded[:] = np.array(behind).reshape(channels)
            top, left = (size[0] - height) // 2, (size[1] - width) // 2
            padded[:, top : top + height, left : left + width] = images
            return LabelledImages(padded, labels, digests, classes)
    with ThreadPoolExecutor() as pool:
        return LabelledImages(stack(list(pool.map(fitting.array, images))), labels, digests, classes)


def read_arrays(path: str, fitting: Fitting) -> tuple[LabelledImages, LabelledImages | None]:
    """Reads images, and held-out images if present, from an .npz or .npy file.

    A .npy file is an array of images [n h w] or [n h w c]: uint8, uint16, bool, or floats from 0 to 1. An .npz file
    holds one such array of any name, or arrays named as in one row of `NAMES`; labels are integers from 0, or -1 for
    none. An array `classes` of strings names the classes.

    Raises:
        UserError: the file is missing or has another format.
    """
    arrays = _load(Path(path).expanduser())
    names = next((names for names in NAMES if names[0] in arrays), None)
    if names is None:
        found = [name for name, array in arrays.items() if array.ndim >= 3]
        if len(found) != 1:
            raise UserError(f"{path} holds {', '.join(arrays) or 'nothing'}: name the array of images 'images'")
        names = (found[0], *NAMES[0][1:])
    labels = [arrays[name] for name in names[1::2] if name in arrays]
    classes = tuple(map(str, arrays["classes"])) if "classes" in arrays else _numbered(labels)
    parts = [
        fit_arrays(
            images := _pixels(arrays[image_name], f"{image_name} in {path}"),
            _labels(arrays.get(label_name), len(images), classes, f"{label_name} in {path}"),
            classes,
            fitting,
        )
        for image_name, label_name in (names[:2], names[2:])
        if image_name in arrays
    ]
    return parts[0], parts[1] if len(parts) > 1 else None


def _load(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise UserError(f"there is no file {file}: give a folder of pictures, or an .npz or .npy file")
    try:
        loaded = np.load(file, allow_pickle=False)
        return {"images": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read as NumPy arrays: {error}") from None


def _pixels(array: Shaped[np.ndarray, "..."], what: str) -> UInt8[np.ndarray, "n h w c"]:
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 2, 3, 4) or 0 in array.shape:
        hint = "; move the channels last" if array.ndim == 4 and array.shape[1] in (1, 3) else ""
        raise UserError(f"{what} has the shape {array.shape}; images are [n h w] or [n h w c] with c from 1 to 4{hint}")
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return np.round(array / np.float32(257)).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating) and array.min() >= 0 and array.max() <= 1:  # excludes NaN
        return np.round(array * np.float32(255)).astype(np.uint8)
    between = f", from {array.min():g} to {array.max():g}" if np.issubdtype(array.dtype, np.number) else ""
    raise UserError(f"{what} holds {array.dtype}{between}; pixels are uint8, or floats from 0 to 1")


def _numbered(labels: list[np.ndarray]) -> tuple[str, ...]:
    """Returns the class names 0, 1, ... up to the largest label."""
    most = max(
        (int(array.max()) for array in labels if array.size and np.issubdtype(array.dtype, np.integer)), default=-1
    )
    if most >= sum(array.size for array in labels):
        raise UserError(f"a label is {most}, which is more than there are images; classes count from 0")
    return tuple(map(str, range(most + 1)))


def _labels(
    array: Shaped[np.ndarray, "..."] | None, n: int, classes: tuple[str, ...], what: str
) -> Int32[np.ndarray, " n"]:
    if array is None:
        return np.full(n, -1, np.int32)
    if array.size != n or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{what} has the shape {array.shape} of {array.dtype}; it must be {n} whole numbers")
    if array.min() < -1 or array.max() >= len(classes):
        raise UserError(
            f"{what} has labels from {array.min()} to {array.max()}; they must be from 0 to {len(classes) - 1}, "
            "or -1 for none"
        )
    return array.reshape(n).astype(np.int32)


def read_tfds(
    name: str,
    split: str,
    folder: str,
    fitting: Fitting,
    captions_of: Callable[[Any], tuple[str, ...]] | None = None,
) -> LabelledImages:
    """Reads the features `image` and, if present, `label` of a prepared TFDS set; see `sources.open_tfds`.

    Args:
        name: name of the set.
        split: such as "train".
        folder: folder of prepared sets; "" for TFDS's default.
        fitting: converts the images.
        captions_of: returns a record's captions; None: the images have none.

    Raises:
        UserError: there is no such set or split, it has no images, or they differ in size and no size is given.
    """
    source = open_tfds(name, split, folder)
    features = source.dataset_info.features
    if "image" not in features:
        raise UserError(f"TFDS set {name!r} has no feature 'image': it has {', '.join(features)}")
    classes = tuple(getattr(features["label"], "names", None) or ()) if "label" in features else ()
    if fitting.mixed is not None and "image" in features and None in (features["image"].shape or (None,)):
        fitting = fitting.settled([record["image"].shape[:2] for record in source], f"TFDS set {name!r}")
    images, labels, digests, captions = [], [], [], []
    for record in source:
        pixels: Integer[np.ndarray, "h w c"] = _pixels(record["image"][None], f"'image' of TFDS set {name!r}")[0]
        digests.append(hashlib.sha256(pixels.tobytes()).digest())
        images.append(fitting.array(pixels))
        labels.append(int(record["label"]) if classes else -1)
        if captions_of is not None:
            captions.append(captions_of(record))
        if images[-1].shape[:2] != images[0].shape[:2]:
            sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (images[0], images[-1]))
            raise UserError(f"images of TFDS set {name!r} differ in size ({sizes}): give --data.size, such as 64")
    if not images:
        raise UserError(f"split {split!r} of TFDS set {name!r} is empty")
    return LabelledImages(stack(images), np.array(labels, np.int32), tuple(digests), classes, captions=tuple(captions))
