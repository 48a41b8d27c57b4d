"""Images in memory, in training batches and held-out batches."""

import functools
import zlib
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int32, Int64, UInt8

from zoo.core.artifacts import Artifacts, grid
from zoo.core.data import Batch, DataSet, Split
from zoo.data.images.augment import Augment
from zoo.data.order import Shuffled, held_out_rows
from zoo.data.specs import ImageSpec
from zoo.data.splits import Parts

PREVIEW = 64
"""Maximum number of images in the picture of the first batch."""


class Labelled(NamedTuple):
    """Images with labels, and with captions if they have any."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]
    """Indices into `spec.classes`; -1 for no label."""
    captions: tuple[tuple[str, ...], ...] = ()
    """Captions of each image; empty if the images have none."""


@dataclass(frozen=True, eq=False)
class ImageSet(DataSet):
    """Images in memory. An epoch visits each training image once, in an order drawn from (seed, epoch)."""

    spec: ImageSpec
    parts: Parts[Labelled]
    batch_size: int
    seed: int
    name: str
    skipped: int
    augmentation: Augment
    split: Split = "dev"

    @property
    def images(self) -> UInt8[np.ndarray, "n h w c"]:
        """The training images."""
        return self.parts.train.images

    @property
    def labels(self) -> Int32[np.ndarray, " n"]:
        """Their labels."""
        return self.parts.train.labels

    @property
    def held_out_images(self) -> UInt8[np.ndarray, "m h w c"]:
        """The held-out images of the split."""
        return self.parts.held_out[self.split].images

    @property
    def held_out_labels(self) -> Int32[np.ndarray, " m"]:
        """Their labels."""
        return self.parts.held_out[self.split].labels

    @functools.cached_property
    def order(self) -> Shuffled:
        """The training image of each row, counted over all batches."""
        return Shuffled(len(self.images), self.seed)

    def drawn(self, step: int, rows: slice) -> tuple[Int32[np.ndarray, " b"], Int64[np.ndarray, " b"]]:
        """Returns the rows of training batch `step`, in the batch and counted over all batches."""
        row = np.arange(self.batch_size, dtype=np.int32)[rows]
        return row, step * self.batch_size + row.astype(np.int64)

    @property
    def held_out_batches(self) -> int:
        """Number of batches that hold all images of the split."""
        return -(-len(self.held_out_images) // self.batch_size)

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch `step`: `image` uint8 [b h w c], `label` and `row` int32 [b], `valid` bool [b].

        A batch may span two epochs.
        """
        row, drawn = self.drawn(step, rows)
        place = self.order[drawn]
        return {
            "image": self.images[place],
            "label": self.labels[place],
            "row": row,
            "valid": np.ones(row.shape, bool),
        }

    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index`, in hash order; `row` is the image's index in the whole split.

        Rows past the end of the split repeat its last image and have `valid` false.
        """
        row, place, valid = held_out_rows(index, rows, len(self.held_out_images), self.batch_size)
        return {
            "image": self.held_out_images[place],
            "label": self.held_out_labels[place],
            "row": row,
            "valid": valid,
        }

    def augment(self, batch: dict[str, Any], key: jax.Array) -> dict[str, Any]:
        """Augments each image at random, as set by `augmentation`."""
        return batch | {"image": self.augmentation.apply(batch["image"], key, batch["row"])}

    def preview(self, key: jax.Array) -> Artifacts:
        """Returns a grid of up to 64 augmented images of the first batch."""
        image = jax.jit(self.augment)(self.batch_at(0), key)["image"]
        return [replace(grid(np.asarray(image)[:PREVIEW]), name="batch")]

    def fingerprint(self) -> str:
        """Returns a CRC-32 checksum of the training images and labels."""
        return f"{zlib.crc32(self.labels.tobytes(), zlib.crc32(self.images.tobytes())):08x}"

    def describe(self) -> str:
        """Returns the number of images, their size and their number of classes in one line."""
        spec = self.spec
        classes = f"{len(spec.classes)} classes" if spec.classes else "no labels"
        skipped = f"; {self.skipped} unreadable files skipped" if self.skipped else ""
        return (
            f"{self.name}: {self.parts.sizes('images', lambda part: len(part.images))}, "
            f"{kind_of(spec)}, {classes}{skipped}"
        )


def kind_of(spec: ImageSpec) -> str:
    """Returns the size and the kind of images in words."""
    return f"{spec.width}x{spec.height} in {'grey' if spec.channels == 1 else 'colour'}"
