"""Sources of images: the embedded sets, files or TFDS, read and split."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from annotated_types import Gt, Lt
from jaxtyping import Int32, UInt8

from zoo.core.data import Data, Split
from zoo.core.errors import UserError, require
from zoo.data.images import arrays as image_arrays
from zoo.data.images.augment import NO_AUGMENTATION, Augment
from zoo.data.images.files import LabelledImages, is_picture, read_folder, read_picture
from zoo.data.images.fitting import Fitting, colour
from zoo.data.images.image_set import ImageSet, Labelled, kind_of
from zoo.data.specs import ImageSpec
from zoo.data.splits import Part, Parts, Shares, cut_by_hash, make_parts

MNIST_DEV = 5_000 / image_arrays.MNIST_TRAINING
Source = TypeVar("Source", bound="ImageFiles")
SPLITS = {"train", "training", "test", "val", "valid", "validation"}


@dataclass(frozen=True)
class ImageFiles(Data):
    """Settings of images from files or TFDS, how they are resized and split; subclasses embed others."""

    path: str = ""
    """A folder of images (PNG, JPEG, WebP, BMP, or the first frame of a GIF; two or more subfolders are classes), an
    .npz or .npy file of images [n h w c] (in an .npz: 'images' and optional 'labels'), or one image to score."""

    held_out: Annotated[float, Gt(0), Lt(1)] = 0.1
    """Share of the images that is held out, chosen by a hash of their contents: half is dev, half test. If an .npz has
    test images, these are test, and half of this share of the other images is dev. MNIST has a fixed split."""

    held_out_path: str = ""
    """Images to score instead, a folder or file like `path`; all of `path` is then trained on. Half of them are dev and
    half test, or all are dev if test images are given too."""

    test_path: str = ""
    """Images for test only, a folder or file like `path`."""

    tfds: str = ""
    """A TensorFlow Datasets set prepared on this machine as array_record, such as 'cifar10', instead of `path`."""

    tfds_split: str = "train"
    """The split of the TFDS set to train on."""

    tfds_held_out_split: str = ""
    """The split of the TFDS set to score, like `held_out_path`; empty: the share `held_out` of `tfds_split`."""

    tfds_test_split: str = ""
    """The split of the TFDS set for test only."""

    tfds_dir: str = ""
    """The folder of prepared TFDS sets; empty: TFDS's default."""

    size: int | Literal["auto"] = "auto"
    """Height and width that images are resized to; 0: unchanged, all must have one size. auto: unchanged if all have
    one size, of multiples of 4; else the largest of 64, 32 and 16 that is at most the median shorter side, or 8."""

    fit: Literal["auto", "crop", "pad"] = "crop"
    """'crop' resizes the shorter side and crops the longer one at both ends; 'pad' pads with the background and only
    shrinks, never enlarges; 'auto' pads images that are smaller than the size and crops the others."""

    channels: Literal[0, 1, 3] = 0
    """1: grey; 3: colour; 0: unchanged."""

    background: str = ""
    """Colour behind transparent images and around padded ones, a name or #rrggbb; empty: white, or black for MNIST."""

    def __post_init__(self) -> None:
        require(self, "data.", ("size", "auto, or 0 or more pixels", self.size == "auto" or self.size >= 0))
        if self.tfds and (self.path or self.held_out_path or self.test_path):
            raise UserError("--data.tfds and --data.path name two sources of images: give one of them")
        if (self.held_out_path or self.test_path) and not self.path:
            flag = "held-out-path" if self.held_out_path else "test-path"
            raise UserError(f"--data.{flag} goes with --data.path: give both")

    @property
    def name(self) -> str:
        """Name of the source."""
        return f"{self.tfds} {self.tfds_split}" if self.tfds else self.path

    @property
    def is_embedded(self) -> bool:
        """Whether the images are embedded in this package: no others are named."""
        return not (self.path or self.tfds)

    def fitting(self: Source, spec: Any) -> Source:
        """Returns these settings with the channels and, if square, the size of the images of an earlier run."""
        size = spec.height if spec.height == spec.width else self.size
        channels: Any = spec.channels
        return replace(self, size=size, channels=channels)

    def of_image(self: Source, path: str, spec: Any) -> Source:
        """Returns these settings for one image file, resized and cropped to the run's size; see `Data.of_image`."""
        if not Path(path).is_file():
            raise UserError(f"image is {path!r}, and there is no such file; give the path of an image")
        return replace(self.fitting(spec), path=path, tfds="", held_out_path="", test_path="")

    def image_set(
        self,
        *,
        batch_size: int,
        seed: int,
        spec: ImageSpec | None = None,
        split: Split = "dev",
        augment: Augment = NO_AUGMENTATION,
    ) -> ImageSet:
        """Reads the images and splits them; see `Data.open`."""
        pictures = self.pictures(split, (spec.height, spec.width) if spec else "auto")
        channels = max(part.images.shape[-1] for part in pictures.each)
        shapes = dict.fromkeys(part.images.shape[1:3] for part in pictures.each)
        if len(shapes) > 1:
            kinds = " and ".join(f"{width}x{height}" for height, width in shapes)
            raise UserError(f"training and held-out images differ in size, {kinds}: give --data.size, such as 64")
        ((height, width),) = shapes
        augment.check(height, width, channels)
        classes = spec.classes if spec else tuple(dict.fromkeys(sum((part.classes for part in pictures.each), ())))
        found = ImageSpec(height, width, channels, classes)
        if spec is not None and spec != found:
            raise UserError(_misfit(found, spec, self.name))
        return ImageSet(
            spec=found,
            parts=pictures.map(
                lambda part: Labelled(
                    _with_channels(part.images, channels), _labels(part, classes, self.name), part.captions
                )
            ),
            batch_size=batch_size,
            seed=seed,
            name=self.name,
            skipped=sum(part.skipped for part in pictures.each),
            augmentation=augment,
            split=split,
        )

    def excerpt(self: Source, folder: Path) -> Source:
        """Returns these settings for 96 training images, 16x16 unless a size is set; see `Data.excerpt`."""
        path = folder / "excerpt.npz"
        some = self.image_set(batch_size=96, seed=0).batch_at(0)
        np.savez(path, images=some["image"], labels=some["label"])
        alone = replace(self, tfds="", held_out_path="", test_path="")
        return replace(alone, path=str(path), size=self._pixels or 16)

    @property
    def _pixels(self) -> int:
        """The size in the settings; 0: none."""
        return 0 if self.size == "auto" else self.size

    def pictures(
        self, split: Split = "dev", mixed: tuple[int, int] | Literal["auto"] = "auto"
    ) -> Parts[LabelledImages]:
        """Reads the images of each part, held-out ones in hash order; `all` is the whole source, in hash order too.

        Args:
            split: which rows are held out.
            mixed: (height, width) for images of different sizes if the settings give no size; auto: chosen from theirs.

        Raises:
            UserError: there are no images, they cannot be read, or there are fewer distinct images than parts.
        """
        if split != "all" and is_picture(self.path):
            raise UserError(f"{self.path} is one file: give a folder of pictures, or an .npz or .npy file")
        train, test = self._read(self.path, self.tfds_split, mixed)
        mixed = train.images.shape[1:3]  # other parts are resized to the size of the training images
        if split == "all":
            return Parts.whole(self._cut(train if test is None else join(train, test), {}, "dev")["dev"])
        dev = self._read_other(self.held_out_path, self.tfds_held_out_split, mixed)
        test = self._read_other(self.test_path, self.tfds_test_split, mixed) or test
        return make_parts(train, dev, test, self._share(), self._cut)

    def _share(self) -> float:
        """Share of the images that is held out if no others are named."""
        return self.held_out

    def _cut(self, pictures: LabelledImages, shares: Shares, rest: Part) -> dict[Part, LabelledImages]:
        """Cuts images into parts by a hash of their contents before resizing; see `cut_by_hash`."""
        source = self.held_out_path or self.tfds_held_out_split if rest == "dev" else self.name
        places = cut_by_hash(pictures.digests, shares, rest, "picture", source)
        return {
            part: replace(pictures.take(at), skipped=pictures.skipped * (part == rest)) for part, at in places.items()
        }

    def _read_other(self, path: str, tfds_split: str, mixed: tuple[int, int]) -> LabelledImages | None:
        """Reads held-out images that have a source of their own; None if none is named."""
        return self._read(path, tfds_split, mixed)[0] if path or tfds_split else None

    def _read(
        self, path: str, tfds_split: str, mixed: tuple[int, int] | Literal["auto"]
    ) -> tuple[LabelledImages, LabelledImages | None]:
        """Reads the images of a source, and its test images if present."""
        fitting = self._fitting(self.background or "white", mixed)
        if self.tfds:
            return image_arrays.read_tfds(self.tfds, tfds_split, self.tfds_dir, fitting), None
        return _read_path(path, fitting)

    def _fitting(self, background: str, mixed: tuple[int, int] | Literal["auto"]) -> Fitting:
        """Returns the conversion of images that the settings select."""
        size = (self._pixels, self._pixels) if self._pixels else None
        return Fitting(size, self.fit, self.channels, colour(background), mixed if self.size == "auto" else None)


@dataclass(frozen=True)
class ImageSource(ImageFiles):
    """Settings of a source of images: MNIST by default, or the emoji, a folder, an array file or a TFDS set."""

    embedded: Literal["mnist", "emoji"] = "mnist"
    """Images embedded in this package, used unless `path` or `tfds` is given. mnist: handwritten digits, 28x28, grey;
    dev is 5,000 of the 60,000 training images, test the 10,000 test images. emoji: 1,911 emoji, 64x64, colour, labelled
    by category."""

    @property
    def name(self) -> str:
        """Name of the source."""
        return super().name or {"mnist": "MNIST", "emoji": "Noto emoji"}[self.embedded]

    def _share(self) -> float:
        return 2 * MNIST_DEV if self.is_embedded and self.embedded == "mnist" else self.held_out

    def _read(
        self, path: str, tfds_split: str, mixed: tuple[int, int] | Literal["auto"]
    ) -> tuple[LabelledImages, LabelledImages | None]:
        if not self.is_embedded:
            return super()._read(path, tfds_split, mixed)
        is_mnist = self.embedded == "mnist"
        fitting = self._fitting(self.background or ("black" if is_mnist else "white"), mixed)
        return image_arrays.mnist(fitting) if is_mnist else (image_arrays.emoji(fitting), None)


def _read_path(path: str, fitting: Fitting) -> tuple[LabelledImages, LabelledImages | None]:
    if Path(path).suffix.lower() in (".npz", ".npy"):
        return image_arrays.read_arrays(path, fitting)
    if is_picture(path):
        return read_picture(path, fitting), None
    pictures = read_folder(path, fitting)
    if pictures.classes and SPLITS.issuperset(name.lower() for name in pictures.classes):
        train, *others = sorted(pictures.classes, key=lambda name: not name.lower().startswith("train"))
        raise UserError(
            f"the folders in {path} are splits, not classes: give --data.path {Path(path, train)} "
            f"--data.held-out-path {Path(path, others[0])}"
        )
    return pictures, None


def join(one: LabelledImages, other: LabelledImages) -> LabelledImages:
    """Concatenates images of one source with the same classes."""
    channels = max(part.images.shape[-1] for part in (one, other))
    return LabelledImages(
        np.concatenate([_with_channels(part.images, channels) for part in (one, other)]),
        np.concatenate([one.labels, other.labels]),
        one.digests + other.digests,
        one.classes,
        one.skipped + other.skipped,
        one.names + other.names,
        one.captions + other.captions,
    )


def _with_channels(images: UInt8[np.ndarray, "n h w c"], channels: int) -> UInt8[np.ndarray, "n h w c2"]:
    """Repeats the grey channel to get `channels`, if needed."""
    return images if images.shape[-1] == channels else images.repeat(channels, axis=-1)


def _labels(pictures: LabelledImages, classes: tuple[str, ...], name: str) -> Int32[np.ndarray, " n"]:
    """Returns labels as indices into `classes`."""
    if not classes:
        return np.full(len(pictures.labels), -1, np.int32)
    if not pictures.classes and len(pictures.images) == 1:
        return pictures.labels  # one file, which is in no folder of a class
    if not pictures.classes:
        raise UserError(f"images of {name} have no labels, and the run's have: {_some(classes)}")
    unknown = set(pictures.classes) - set(classes)
    if unknown:
        raise UserError(f"{name} has the class {min(unknown)!r}, and the run has {_some(classes)}")
    # Label -1 takes the last entry, which is -1.
    return np.array([*map(classes.index, pictures.classes), -1], np.int32)[pictures.labels]


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _misfit(found: ImageSpec, wanted: ImageSpec, name: str) -> str:
    """Returns the error message for images that do not fit the run, with the flags that convert them."""
    flags = [f"--data.size {wanted.height}"] * (found.height != wanted.height and wanted.height == wanted.width)
    flags += [f"--data.channels {wanted.channels}"] * (found.channels != wanted.channels)
    right = " ".join(flags) or "images of that size"
    kinds = [kind_of(spec) for spec in (found, wanted)]
    return f"images of {name} are {kinds[0]}, and the run's are {kinds[1]}: give {right}"
