"""Images as rows of tokens for models of tokens, from the same sources as `Images`."""

import functools
import zlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from einops import rearrange
from jaxtyping import Int32, Int64, Integer, Key, UInt8

from zoo.core.artifacts import Artifacts, Image, grid
from zoo.core.codec import Coder
from zoo.core.data import Batch, Split
from zoo.core.errors import UserError, require
from zoo.data.images import pixels
from zoo.data.images.coded import CodedImages
from zoo.data.images.codes import encode_all
from zoo.data.images.image_set import PREVIEW, ImageSet
from zoo.data.images.source import ImageSource
from zoo.data.images.tokens import ImageTokenSpec, Tokens, spec_of_codes, spec_of_pixels


@dataclass(frozen=True)
class ImageTokens(ImageSource):
    """Images as tokens: MNIST by default, or the emoji, a folder, an array file or a TFDS set."""

    tokens: Tokens = "patches"
    """pixels: grey levels, or black and white pixels, row by row; patches: patches of black and white pixels; codes:
    the codes of a trained codec."""

    patch: tuple[int, int] = (2, 4)
    """Height and width of a patch in pixels."""

    binary: bool = False
    """Whether pixels are black or white instead of grey levels; patches always are. They are drawn anew in each epoch,
    white with the probability of the grey level, and once for held-out images."""

    codec: str = ""
    """The run directory of the codec of `codes`, such as a VQ-VAE's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            "data.",
            ("codec", "a run directory for --data.tokens codes", self.tokens != "codes" or self.codec != ""),
            ("codec", f"empty for --data.tokens {self.tokens}", self.tokens == "codes" or self.codec == ""),
            ("binary", f"left out for --data.tokens {self.tokens}", self.tokens == "pixels" or not self.binary),
        )

    def fitting(self, spec: ImageTokenSpec) -> "ImageTokens":
        """Returns these settings with the size, channels and kind of tokens of an earlier run."""
        return replace(
            super().fitting(spec.image),
            tokens=spec.tokens,
            patch=spec.patch if spec.tokens == "patches" else self.patch,
            binary=spec.tokens == "pixels" and spec.binary,
        )

    def excerpt(self, folder: Path) -> "ImageTokens":
        """Returns these settings for 96 training images of 8x8 pixels; see `Data.excerpt`."""
        return replace(super().excerpt(folder), size=8)

    def open(
        self,
        *,
        length: int | None,
        batch_size: int,
        seed: int,
        spec: ImageTokenSpec | None = None,
        split: Split = "dev",
        codec: Coder | None = None,
    ) -> "ImageTokenSet":
        """Reads the images and splits them; see `Data.open`."""
        images = self.image_set(
            batch_size=batch_size, seed=seed, spec=None if spec is None else spec.image, split=split
        )
        found = self._spec(images, codec)
        if spec is not None and spec != found:
            raise UserError(f"tokens are {_kind(found)}, and the run's are {_kind(spec)}: give the run's --data.tokens")
        if length is None or length < found.longest:
            raise UserError(
                f"family.context is {length}, and an image has {found.longest} tokens; it must be at least that"
            )
        return ImageTokenSet(found, images, codec, split)

    def _spec(self, images: "ImageSet", codec: Coder | None) -> ImageTokenSpec:
        if self.tokens == "codes":
            assert codec is not None, "the harness loads the codec"
            return spec_of_codes(images.spec, codec, self.codec)
        return spec_of_pixels(images.spec, self.patch if self.tokens == "patches" else None, self.binary)


def _kind(spec: ImageTokenSpec) -> str:
    size = " of {} x {} pixels".format(*spec.patch) if spec.tokens == "patches" else ""
    codec = f", codec {spec.codec}" if spec.codec else ""
    return f"{spec.tokens}{size}, {spec.symbols} symbols{codec}"


@dataclass(frozen=True, eq=False)
class BlackAndWhite(ImageSet):
    """Images drawn in black and white, anew in each epoch: what a model of their tokens learns, and is compared with.

    Grey images are no reference for such samples: FID between MNIST's dev images and drawings of them is 9.3.
    """

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        batch, (_, drawn), n = super().batch_at(step, rows), self.drawn(step, rows), len(self.images)
        noise = drawn // n * n + self.order[drawn]
        return batch | {"image": _black_or_white(batch["image"], jax.random.key(self.seed % 2**32), noise)}

    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        batch, key = super().held_out_at(index, rows), jax.random.key(pixels.HELD_OUT_NOISE)
        return batch | {"image": _black_or_white(batch["image"], key, batch["row"].astype(np.int64))}


@dataclass(frozen=True, eq=False)
class ImageTokenSet(CodedImages):
    """Images in memory as tokens: `tokens` int32 [b, n + 1], `end` and the n tokens of the image.

    An epoch visits each training image once. Black and white pixels are drawn anew in each epoch. Codes of a codec that
    draws its input at random are those of one of `DRAWINGS` drawings, number epoch mod `DRAWINGS`.
    """

    spec: ImageTokenSpec

    @functools.cached_property
    def reference(self) -> ImageSet:
        if self.codec is not None or not self.spec.binary:
            return self.held_out
        return BlackAndWhite(**{field.name: getattr(self.held_out, field.name) for field in fields(ImageSet)})

    @functools.cached_property
    def _codes(self) -> Integer[np.ndarray, "drawings m n"] | None:
        """The codes of the training images, by drawing."""
        if self.codec is None:
            return None
        return rearrange(encode_all(self.codec, self.images.images), "drawings m h w -> drawings m (h w)")

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch `step`: `tokens`, `length` and `row` int32, `valid` bool [b]."""
        if self._codes is None:
            batch = self.reference.batch_at(step, rows)
            return self._batch(self.spec.encode(batch["image"]), batch["row"], batch["valid"])
        row, drawn = self.images.drawn(step, rows)
        place, epoch = self.images.order[drawn], drawn // len(self.images.images)
        return self._batch(self._codes[epoch % len(self._codes), place], row, np.ones(row.shape, bool))

    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index`; `images` and `dims` int32 [b] count the images and pixel values of each row."""
        batch = self.reference.held_out_at(index, rows)
        image, row = batch["image"], batch["row"].astype(np.int64)
        tokens = self.spec.tokenize(image, row, self.codec)
        one = np.ones(row.shape, np.int32)
        counts = {"images": one} if self.codec else {"images": one, "dims": one * image[0].size}
        return self._batch(tokens, batch["row"], batch["valid"]) | counts

    def _batch(self, tokens: Integer[np.ndarray, "b n"], row: Int32[np.ndarray, " b"], valid: Any) -> Batch:
        tokens = np.insert(tokens.astype(np.int32), 0, self.spec.end, axis=1)
        length = np.full(row.shape, tokens.shape[1], np.int32)
        return {"tokens": tokens, "length": length, "row": row, "valid": valid}

    def preview(self, key: jax.Array) -> Artifacts:
        """Returns the first batch's tokens, up to 64 rows, as a grid of images."""
        made = self.spec.decode(list(self.batch_at(0)["tokens"][:PREVIEW, 1:]), self.codec)
        shown = grid([image for image in made if isinstance(image, Image)])
        return [replace(shown, name="batch")]

    def fingerprint(self) -> str:
        """Returns a CRC-32 checksum of the images and the kind of tokens."""
        return f"{zlib.crc32(_kind(self.spec).encode(), int(self.images.fingerprint(), 16)):08x}"

    def describe(self) -> str:
        """Returns the images and the kind and number of tokens in one line."""
        return f"{self.images.describe()}; {self.spec.longest} tokens an image ({_kind(self.spec)})"


def _black_or_white(
    image: UInt8[np.ndarray, "b h w c"], key: Key[jax.Array, ""], noise: Int64[np.ndarray, " b"]
) -> UInt8[np.ndarray, "b h w c"]:
    """Returns images of 0 and 255, drawn as `zoo.data.images.pixels.binarise` does."""
    return (255 * np.asarray(_binarise(image, key, (noise % 2**31).astype(np.int32)))).astype(np.uint8)


_binarise = jax.jit(pixels.binarise)
