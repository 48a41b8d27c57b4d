"""Images for image models: from the embedded sets, the user's files or TFDS, in memory, shuffled and augmented."""

import functools
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Bool, Int32, UInt8

from zoo.core.artifacts import Artifacts, grid
from zoo.core.errors import UserError, require
from zoo.data import image_arrays
from zoo.data.augment import Augment
from zoo.data.dataset import Batch, Data, DataSet, Shuffled
from zoo.data.image_files import Fitting, Pictures, colour, read_folder
from zoo.data.specs import ImageSpec

PREVIEW = 64
SPLITS = {"train", "training", "test", "val", "valid", "validation"}


@dataclass(frozen=True)
class Images(Data):
    """Images: MNIST unless another set, a folder, an array or a TFDS set is named."""

    embedded: Literal["mnist", "emoji"] = "mnist"
    """Images that come with this package: MNIST's handwritten digits, 28x28 and grey, held out are its 10,000 test
    images; or 1,911 emoji, 64x64 and coloured, by category. Unless `path` or `tfds` is given."""

    path: str = ""
    """A folder of pictures (PNG, JPEG, WebP, BMP or a GIF's first; the folders in it, if there are two or more, are
    classes), or an .npz or .npy file of images [n h w c] ('images', with 'labels', in an .npz)."""

    held_out: float = 0.1
    """Share of the images that is never trained on, chosen by a hash of their contents. MNIST is split already, and so
    is an .npz with held-out images."""

    held_out_path: str = ""
    """Images to score instead, a folder or file like `path`; all of `path` is then trained on."""

    tfds: str = ""
    """A TensorFlow Datasets set that is prepared on this machine as array_record, such as 'cifar10', instead of
    `path`."""

    tfds_split: str = "train"
    """The split of the TFDS set to train on."""

    tfds_held_out_split: str = ""
    """The split of the TFDS set to score; empty: the share `held_out` of `tfds_split`."""

    tfds_dir: str = ""
    """The folder of prepared TFDS sets; empty: where TFDS keeps them."""

    size: int = 0
    """Height and width that images are brought to; 0: as they are, all of one size."""

    fit: Literal["crop", "pad"] = "crop"
    """How: 'crop' resizes the shorter side and cuts the longer one at both ends; 'pad' surrounds with background, and
    makes smaller only what is larger."""

    channels: Literal[0, 1, 3] = 0
    """1: grey; 3: colour; 0: as the images are."""

    background: str = ""
    """Colour behind transparent images and around padded ones, a name or #rrggbb; empty: white, and black for MNIST."""

    augment: Augment = field(default_factory=Augment)
    """Random changes to training images."""

    def __post_init__(self) -> None:
        require(
            self,
            "data.",
            ("held_out", "above 0 and below 1", 0 < self.held_out < 1),
            ("size", "0 or more pixels", self.size >= 0),
        )
        if self.tfds and (self.path or self.held_out_path):
            raise UserError("--data.tfds and --data.path name two sources of images: give one of them")
        if self.held_out_path and not self.path:
            raise UserError("--data.held-out-path goes with --data.path: give both")

    def open(self, *, length: int | None, batch_size: int, seed: int, spec: ImageSpec | None = None) -> "ImageSet":
        """Reads the images and splits them; see `Data.open`."""
        name = self.tfds or self.path or {"mnist": "MNIST", "emoji": "Noto emoji"}[self.embedded]
        train, held_out = self._read()
        if held_out is None:
            train, held_out = split_pictures(train, self.held_out, name)
        channels = max(part.images.shape[-1] for part in (train, held_out))
        images, held_out_images = (_with_channels(part.images, channels) for part in (train, held_out))
        if images.shape[1:] != held_out_images.shape[1:]:
            kinds = " and ".join(_kind(*part.shape[1:]) for part in (images, held_out_images))
            raise UserError(f"training and held-out images differ in size, {kinds}: give --data.size, such as 64")
        self.augment.check(*images.shape[1:])
        classes = spec.classes if spec else tuple(dict.fromkeys(train.classes + held_out.classes))
        height, width, channels = images.shape[1:]
        found = ImageSpec(height, width, channels, classes)
        if spec not in (None, found):
            raise UserError(_misfit(found, spec, name))
        return ImageSet(
            spec=found,
            images=images,
            labels=_labels(train, classes, name),
            held_out_images=held_out_images,
            held_out_labels=_labels(held_out, classes, name),
            batch_size=batch_size,
            seed=seed,
            name=name,
            skipped=train.skipped + held_out.skipped,
            augmentation=self.augment,
        )

    def _read(self) -> tuple[Pictures, Pictures | None]:
        """Pictures to train on, and those to hold out where they are apart already."""
        embedded = not (self.path or self.tfds)
        behind = self.background or ("black" if embedded and self.embedded == "mnist" else "white")
        size = (self.size, self.size) if self.size else None
        fitting = Fitting(size, self.fit, self.channels, colour(behind))
        if self.tfds:
            train, held_out = (
                image_arrays.read_tfds(self.tfds, split, self.tfds_dir, fitting) if split else None
                for split in (self.tfds_split, self.tfds_held_out_split)
            )
            assert train is not None
            return train, held_out
        if embedded:
            return image_arrays.mnist(fitting) if self.embedded == "mnist" else (image_arrays.emoji(fitting), None)
        train, held_out = _read_path(self.path, fitting)
        return train, _read_path(self.held_out_path, fitting)[0] if self.held_out_path else held_out


def _read_path(path: str, fitting: Fitting) -> tuple[Pictures, Pictures | None]:
    if Path(path).suffix.lower() in (".npz", ".npy"):
        return image_arrays.read_arrays(path, fitting)
    pictures = read_folder(path, fitting)
    if pictures.classes and SPLITS.issuperset(name.lower() for name in pictures.classes):
        train, *others = sorted(pictures.classes, key=lambda name: not name.lower().startswith("train"))
        raise UserError(
            f"the folders in {path} are splits, not classes: give --data.path {Path(path, train)} "
            f"--data.held-out-path {Path(path, others[0])}"
        )
    return pictures, None


def split_pictures(pictures: Pictures, share: float, name: str) -> tuple[Pictures, Pictures]:
    """Splits pictures into those to train on and those to hold out, by their contents alone.

    Held out are those whose SHA-256 is smallest, `share` of the different pictures but at least one; so the split
    depends neither on the order of files nor on the size that they are brought to, and no picture is on both sides.

    Raises:
        UserError: there are no two different pictures.
    """
    ranked = sorted(set(pictures.digests))
    if len(ranked) < 2:
        raise UserError(f"{name} has one picture, and at least two are needed: one to train on and one to hold out")
    chosen = set(ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)])
    out = np.array([digest in chosen for digest in pictures.digests])

    def part(which: Bool[np.ndarray, " n"], skipped: int) -> Pictures:
        digests = tuple(digest for digest, taken in zip(pictures.digests, which, strict=True) if taken)
        return Pictures(pictures.images[which], pictures.labels[which], digests, pictures.classes, skipped)

    return part(~out, pictures.skipped), part(out, 0)


def _with_channels(images: UInt8[np.ndarray, "n h w c"], channels: int) -> UInt8[np.ndarray, "n h w c2"]:
    """Grey images as coloured ones, where that is asked for."""
    return images if images.shape[-1] == channels else images.repeat(channels, axis=-1)


def _labels(pictures: Pictures, classes: tuple[str, ...], name: str) -> Int32[np.ndarray, " n"]:
    """The pictures' labels as indices into `classes`."""
    if not classes:
        return np.full(len(pictures.labels), -1, np.int32)
    if not pictures.classes:
        raise UserError(f"images of {name} have no labels, and the run's have: {_some(classes)}")
    unknown = set(pictures.classes) - set(classes)
    if unknown:
        raise UserError(f"{name} has the class {min(unknown)!r}, and the run has {_some(classes)}")
    # Label -1 takes the last entry, which is -1.
    return np.array([*map(classes.index, pictures.classes), -1], np.int32)[pictures.labels]


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _kind(height: int, width: int, channels: int) -> str:
    return f"{width}x{height} in {'grey' if channels == 1 else 'colour'}"


def _misfit(found: ImageSpec, wanted: ImageSpec, name: str) -> str:
    """How to bring images to what a run was trained on."""
    flags = [f"--data.size {wanted.height}"] * (found.height != wanted.height and wanted.height == wanted.width)
    flags += [f"--data.channels {wanted.channels}"] * (found.channels != wanted.channels)
    right = " ".join(flags) or "images of that size"
    kinds = [_kind(spec.height, spec.width, spec.channels) for spec in (found, wanted)]
    return f"images of {name} are {kinds[0]}, and the run's are {kinds[1]}: give {right}"


@dataclass(frozen=True, eq=False)
class ImageSet(DataSet):
    """Images in memory. An epoch visits each training image once, in an order drawn from (seed, epoch).

    Attributes:
        images: to train on, uint8 [n h w c].
        labels: indices into `spec.classes`, int32 [n]; -1 where there is none.
        held_out_images: never trained on.
        held_out_labels: theirs.
    """

    spec: ImageSpec
    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]
    held_out_images: UInt8[np.ndarray, "m h w c"]
    held_out_labels: Int32[np.ndarray, " m"]
    batch_size: int
    seed: int
    name: str
    skipped: int
    augmentation: Augment

    @functools.cached_property
    def _order(self) -> Shuffled:
        return Shuffled(len(self.images), self.seed)

    @property
    def held_out_batches(self) -> int:
        """Batches that hold the whole held-out split."""
        return -(-len(self.held_out_images) // self.batch_size)

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch `step`: `image` uint8 [b h w c], `label` and `row` int32 [b], `valid` bool [b].

        Batches go on from one epoch to the next, within a batch too.
        """
        row = np.arange(self.batch_size, dtype=np.int32)[rows]
        place = self._order[step * self.batch_size + row.astype(np.int64)]
        return {
            "image": self.images[place],
            "label": self.labels[place],
            "row": row,
            "valid": np.ones(row.shape, bool),
        }

    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index`, in order. `row` is the image's index in the whole split.

        Rows past the end of the split repeat its last image and are not valid.
        """
        row = index * self.batch_size + np.arange(self.batch_size, dtype=np.int32)[rows]
        place = np.minimum(row, len(self.held_out_images) - 1)
        return {
            "image": self.held_out_images[place],
            "label": self.held_out_labels[place],
            "row": row,
            "valid": row < len(self.held_out_images),
        }

    def augment(self, batch: dict[str, Any], key: jax.Array) -> dict[str, Any]:
        """Changes each image at random, as the settings ask."""
        return batch | {"image": self.augmentation.apply(batch["image"], key, batch["row"])}

    def preview(self, key: jax.Array) -> Artifacts:
        """Up to 64 images of the first batch in a grid."""
        image = jax.jit(self.augment)(self.batch_at(0), key)["image"]
        return [replace(grid(np.asarray(image)[:PREVIEW]), name="batch")]

    def fingerprint(self) -> str:
        """A check sum of the training images and labels."""
        return f"{zlib.crc32(self.labels.tobytes(), zlib.crc32(self.images.tobytes())):08x}"

    def describe(self) -> str:
        """How many images of what size, and in how many classes, in one line."""
        spec = self.spec
        classes = f"{len(spec.classes)} classes" if spec.classes else "no labels"
        skipped = f"; {self.skipped} unreadable files skipped" if self.skipped else ""
        return (
            f"{self.name}: {len(self.images):,} images to train on and {len(self.held_out_images):,} held out, "
            f"{_kind(spec.height, spec.width, spec.channels)}, {classes}{skipped}"
        )
