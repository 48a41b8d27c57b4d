"""Images from files: decoded, made opaque, and converted to one size and number of channels."""

import hashlib
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageColor
import PIL.ImageOps
from jaxtyping import Bool, Int32, UInt8

from zoo.core.errors import UserError
from zoo.data.specs import ImageSpec

log = logging.getLogger("zoo")

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
KINDS = "PNG, JPEG, WebP, BMP or GIF"

MOST_PIXELS = 200_000_000
"""Larger images are skipped, since decoding one would take gigabytes. Pillow warns at about half as many."""

LARGE = 16_000_000
"""Images with more pixels are decoded one at a time."""

_one_large = threading.Lock()


@dataclass(frozen=True)
class Fitting:
    """Converts images to one size and number of channels.

    Attributes:
        size: (height, width), or None to keep each image's own.
        fit: "crop" covers the size and crops the excess at both ends; it averages blocks of pixels if the scale is a
            whole number, and uses Lanczos resampling otherwise. "pad" never enlarges, and pads with the background.
            "auto" pads images smaller than the size, and crops the rest.
        channels: 1 for grey, 3 for colour, 0 for the image's own.
        background: the colour behind transparent pixels and around padded images.
        mixed: (height, width) for images of different sizes, if `size` is None; "auto": chosen from theirs; None:
            images of different sizes are rejected.
    """

    size: tuple[int, int] | None = None
    fit: Literal["auto", "crop", "pad"] = "crop"
    channels: int = 0
    background: tuple[int, int, int] = (255, 255, 255)
    mixed: tuple[int, int] | Literal["auto"] | None = None

    def settled(self, sizes: Sequence[tuple[int, int]], name: str) -> "Fitting":
        """Returns the settings with a size, if one may be chosen and is needed; the log names it.

        It is needed if sizes differ, or if a side of their one size cannot be halved twice, as networks do.

        Args:
            sizes: (height, width) of each image.
            name: name of the source.
        """
        alike = len(set(sizes)) < 2
        if (
            self.size is not None
            or self.mixed is None
            or (alike and not any(n % HALVED for n in min(sizes, default=())))
        ):
            return self
        size = choose_size(sizes) if self.mixed == "auto" else self.mixed
        smallest, largest = (pick(sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
        kinds = "{1}x{0}".format(*smallest)
        kinds = kinds if alike else f"of different sizes, from {kinds} to {'{1}x{0}'.format(*largest)},"
        log.info("pictures in %s are %s and are brought to %dx%d; --data.size gives another", name, kinds, *size[::-1])
        return replace(self, size=size)

    def pads(self, height: int, width: int) -> bool:
        """Returns whether an image of that size is padded to `size` rather than cropped."""
        smaller = self.size is not None and (height < self.size[0] or width < self.size[1])
        return self.fit == "pad" or (self.fit == "auto" and smaller)

    def __call__(self, image: PIL.Image.Image) -> UInt8[np.ndarray, "h w c"]:
        """Returns the pixels of an opened image, with its EXIF orientation applied."""
        if self.size is not None and not self.pads(image.height, image.width):
            # decodes a JPEG at reduced resolution if that is enough
            image.draft(None, (2 * self.size[1], 2 * self.size[0]))
        with _one_large if image.width * image.height > LARGE else nullcontext():
            return self._place(self._opaque(PIL.ImageOps.exif_transpose(image)))

    def array(self, pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h2 w2 c2"]:
        """Does the same for an array: grey or colour, with or without an alpha channel."""
        return self(PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))

    def _opaque(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """Converts to mode L or RGB without transparency; 16-bit grey is scaled to 8 bits."""
        if image.mode.startswith("I") or image.mode == "F":
            deep = np.clip(np.asarray(image, np.float32), 0, 65535)
            image = PIL.Image.fromarray(np.round(deep / 257).astype(np.uint8))
        is_grey = image.mode in ("1", "L", "LA", "La")
        if image.has_transparency_data:
            behind = PIL.Image.new("RGBA", image.size, self.background)
            image = PIL.Image.alpha_composite(behind, image.convert("RGBA"))
            is_grey = is_grey and len(set(self.background)) == 1
        return image.convert("L" if self.channels == 1 or (is_grey and self.channels == 0) else "RGB")

    def _place(self, image: PIL.Image.Image) -> UInt8[np.ndarray, "h w c"]:
        if self.size is not None and image.size != self.size[::-1]:
            height, width = self.size
            if not self.pads(image.height, image.width):
                share = min(image.width / width, image.height / height)
                cut = (max(1, round(width * share)), max(1, round(height * share)))
                left, top = (image.width - cut[0]) // 2, (image.height - cut[1]) // 2
                window = (left, top, left + cut[0], top + cut[1])
                if share.is_integer():
                    image = image.reduce(int(share), window)
                else:
                    image = image.resize((width, height), PIL.Image.Resampling.LANCZOS, window)
            else:
                share = min(1.0, width / image.width, height / image.height)
                within = (max(1, round(image.width * share)), max(1, round(image.height * share)))
                if share < 1:
                    image = image.resize(within, PIL.Image.Resampling.LANCZOS)
                padded = PIL.Image.new("RGB", (width, height), self.background).convert(image.mode)
                padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
                image = padded
        pixels = np.array(image)
        return pixels[..., None] if pixels.ndim == 2 else pixels


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of one size in memory.

    Attributes:
        images: uint8 [n h w c].
        labels: indices into `classes`; -1 for none.
        digests: SHA-256 of each image before resizing: of its file, or of its pixels if it comes from an array.
        classes: class names.
        skipped: number of files that could not be read.
    """

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]
    digests: tuple[bytes, ...]
    classes: tuple[str, ...] = ()
    skipped: int = 0


HALVED = 4
"""A factor of image sizes that suits all configs, whose networks halve images at least twice."""


def choose_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Returns a square size for images of different sizes: 64, 32 or 16, at most the median shorter side; else 8."""
    median = sorted(map(min, sizes))[len(sizes) // 2]
    side = next((side for side in (64, 32, 16) if side <= median), 8)
    return side, side


def colour(name: str) -> tuple[int, int, int]:
    """Returns red, green and blue of a colour name or `#rrggbb`.

    Raises:
        UserError: it is not a colour.
    """
    try:
        red, green, blue, *_ = PIL.ImageColor.getrgb(name)
    except ValueError:
        raise UserError(f"{name!r} is no colour: give a name such as black, or #rrggbb") from None
    return red, green, blue


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
    return LabelledImages(stack(images), labels, tuple(digests), classes if index else (), len(unreadable))


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
