"""Images from files: decoded, made opaque, and converted to one size and number of channels."""

import hashlib
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageColor
import PIL.ImageOps
from jaxtyping import Bool, Int32, Integer, UInt8

from zoo.core.errors import UserError
from zoo.data.images.fitting import Fitting
from zoo.data.specs import ImageSpec

log = logging.getLogger("zoo")

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
KINDS = "PNG, JPEG, WebP, BMP or GIF"

MOST_PIXELS = 200_000_000
"""Larger images are skipped, since decoding one would take gigabytes. Pillow warns at about half as many."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of one size in memory.

    Attributes:
        images: uint8 [n h w c].
        labels: indices into `classes`; -1 for none.
        digests: SHA-256 of each image before resizing: of its file, or of its pixels if it comes from an array.
        classes: class names.
        skipped: number of files that could not be read.
        names: path of each image's file in its folder, with forward slashes; empty if the images are not files.
        captions: captions of each image, at least one; empty if the images have none.
    """

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]
    digests: tuple[bytes, ...]
    classes: tuple[str, ...] = ()
    skipped: int = 0
    names: tuple[str, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()

    def take(self, places: Integer[np.ndarray, " k"]) -> "LabelledImages":
        """Returns some of the images, by number."""
        return replace(
            self,
            images=self.images[places],
            labels=self.labels[places],
            digests=tuple(self.digests[i] for i in places),
            names=tuple(self.names[i] for i in places) if self.names else (),
            captions=tuple(self.captions[i] for i in places) if self.captions else (),
        )


def read_folder(path: str, fitting: Fitting) -> LabelledImages:
    """Reads all images under a folder; its subfolders are the classes, if there are two or more.

    Unreadable files are skipped, counted and named in the log.

    Raises:
        UserError: there is no such folder, no readable image in it, or images differ in size and no size is given.
    """
    root = Path(path).expanduser()
    files, others = _find(root)
    if not files:
        found = f"; its {len(others)} files are of other kinds, such as {others[0].name}" if others else ""
        raise UserError(f"no {KINDS} file is in {path} or its folders{found}: give a folder of pictures")
    images, digests, read, unreadable = [], [], [], []
    with _own_limits(), ThreadPoolExecutor() as pool:
        if fitting.mixed is not None:
            fitting = fitting.settled([size for size in pool.map(_size_of, files) if size], path)
        for file, result in _read_all(pool, files, fitting):
            if isinstance(result, str):
                unreadable.append(f"{file.relative_to(root)} ({result})")
                continue
            images.append(result[0])
            digests.append(result[1])
            read.append(file)
            if images[-1].shape[:2] != images[0].shape[:2]:
                sizes = (f"{read[i].relative_to(root)} is {images[i].shape[1]}x{images[i].shape[0]}" for i in (0, -1))
                raise UserError(f"pictures in {path} differ in size ({', '.join(sizes)}): give --data.size, such as 64")
    if unreadable:
        named = "; ".join(unreadable[:5]) + ("; ..." if len(unreadable) > 5 else "")
        if not images:
            raise UserError(f"none of the {len(files)} picture files in {path} can be read: {named}")
        log.warning(
            "%d of %d pictures in %s cannot be read and are skipped: %s", len(unreadable), len(files), path, named
        )
    if others:
        log.info("%d files in %s are not %s, such as %s", len(others), path, KINDS, others[0].relative_to(root))
    folders = [file.relative_to(root).parts[0] if file.parent != root else None for file in read]
    classes = tuple(sorted({folder for folder in folders if folder is not None}))
    index = {name: i for i, name in enumerate(classes)} if len(classes) > 1 else {}
    labels = np.array([-1 if folder is None else index.get(folder, -1) for folder in folders], np.int32)
    names = tuple(file.relative_to(root).as_posix() for file in read)
    return LabelledImages(stack(images), labels, tuple(digests), classes if index else (), len(unreadable), names)


def is_picture(path: str) -> bool:
    """Whether the path is a file with the name of an image."""
    return path.lower().endswith(SUFFIXES) and Path(path).expanduser().is_file()


def read_picture(path: str, fitting: Fitting) -> LabelledImages:
    """Reads one image, without a label.

    Raises:
        UserError: it cannot be read.
    """
    image = _read_one(path, fitting)
    return LabelledImages(image[None], np.full(1, -1, np.int32), (hashlib.sha256(image.tobytes()).digest(),))


def _find(root: Path) -> tuple[list[Path], list[Path]]:
    """Returns the image files under a folder and files of other kinds, sorted; hidden files are left out."""
    if root.is_file():
        raise UserError(f"{root} is one file: give a folder of pictures, or an .npz or .npy file")
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give a folder of pictures, or an .npz or .npy file")
    pictures: list[Path] = []
    others: list[Path] = []
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in [] if real in seen else names:
            if not name.startswith("."):
                (pictures if name.lower().endswith(SUFFIXES) else others).append(Path(folder, name))
        seen.add(real)  # a link to a parent folder would make the walk endless
    return sorted(pictures), sorted(others)


def _read_all(pool: Executor, files: Sequence[Path], fitting: Fitting) -> Iterator[tuple[Path, Any]]:
    """Yields each file with its pixels and digest, or with the reason why it cannot be read; logs progress."""

    def read(file: Path) -> tuple[UInt8[np.ndarray, "h w c"], bytes] | str:
        try:
            return _decode(file, fitting), hashlib.sha256(file.read_bytes()).digest()
        except Exception as error:  # Pillow's decoders raise exceptions of many types
            return _reason(error)

    told, chunk = time.monotonic(), 512
    for first in range(0, len(files), chunk):
        if time.monotonic() - told > 10:
            told = time.monotonic()
            log.info("read %s of %s pictures", f"{first:,}", f"{len(files):,}")
        part = files[first : first + chunk]
        yield from zip(part, pool.map(read, part), strict=True)


def _size_of(file: Path) -> tuple[int, int] | None:
    """Returns (height, width) of an image after EXIF orientation, from the file's header; None if unreadable."""
    try:
        with PIL.Image.open(file, formats=FORMATS) as image:
            lies = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) >= 5
            return (image.width, image.height) if lies else (image.height, image.width)
    except Exception:  # Pillow's decoders raise exceptions of many types; `read_folder` names the file
        return None


def _decode(file: Path, fitting: Fitting) -> UInt8[np.ndarray, "h w c"]:
    with PIL.Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"its {image.width}x{image.height} pixels are more than {MOST_PIXELS:,}")
        return fitting(image)


def _reason(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return f"it is not {KINDS}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _own_limits() -> Iterator[None]:
    """Disables Pillow's pixel limit, which `MOST_PIXELS` replaces, and its warnings about odd files."""
    before = PIL.Image.MAX_IMAGE_PIXELS
    PIL.Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = before


def stack(images: list[Any]) -> UInt8[np.ndarray, "n h w c"]:
    """Stacks images in one array and frees them on the way; grey images become colour if any image is colour."""
    channels = max(image.shape[-1] for image in images)
    stacked = np.empty((len(images), *images[0].shape[:2], channels), np.uint8)
    for i in range(len(images)):
        stacked[i] = images[i]  # repeats a grey channel
        images[i] = None
    return stacked


def read_image(
    path: str, spec: ImageSpec, background: tuple[int, int, int] = (255, 255, 255)
) -> UInt8[np.ndarray, "h w c"]:
    """Reads one image for a model with that spec: resized to cover the size, and centre-cropped.

    Raises:
        UserError: there is no such file, or it is not an image.
    """
    return _read_one(path, Fitting((spec.height, spec.width), "crop", spec.channels, background))


def read_image_as_it_is(path: str, spec: ImageSpec) -> UInt8[np.ndarray, "h w c"]:
    """Reads one image of the spec's size, which is not resized.

    Raises:
        UserError: there is no such file, it is not an image, or it has another size.
    """
    image = _read_one(path, Fitting(None, "crop", spec.channels, (255, 255, 255)))
    if image.shape[:2] != (spec.height, spec.width):
        raise UserError(
            f"the image {path} is {image.shape[1]}x{image.shape[0]}; it must be {spec.width}x{spec.height}, as the "
            "model's"
        )
    return image


def read_mask(path: str, spec: ImageSpec) -> Bool[np.ndarray, "h w 1"]:
    """Reads a mask, an image of the spec's size: true where it is white, false where it is black or transparent.

    Raises:
        UserError: there is no such file, it is not an image, or it has another size. Masks are not resized, since that
            would change which pixels they select.
    """
    mask = _read_one(path, Fitting(None, "crop", 1, (0, 0, 0)))
    if mask.shape[:2] != (spec.height, spec.width):
        raise UserError(
            f"the mask {path} is {mask.shape[1]}x{mask.shape[0]}; it must be {spec.width}x{spec.height}, as the images"
        )
    return mask >= 128


def _read_one(path: str, fitting: Fitting) -> UInt8[np.ndarray, "h w c"]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"there is no file {path}: give a {KINDS} picture")
    with _own_limits():
        try:
            return _decode(file, fitting)
        except Exception as error:  # Pillow's decoders raise exceptions of many types
            raise UserError(f"{path} cannot be read as a picture: {_reason(error)}") from None
