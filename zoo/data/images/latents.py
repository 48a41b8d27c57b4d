"""Latents of images by a trained codec, for models of arrays (latent diffusion: Rombach et al. 2022)."""

import functools
import zlib
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Float, UInt8

from zoo.core.artifacts import Artifacts, grid
from zoo.core.codec import Coder
from zoo.core.data import Batch
from zoo.data.images.coded import CodedImages
from zoo.data.images.codes import encode_all
from zoo.data.images.image_set import PREVIEW, ImageSet
from zoo.data.images.tokens import check_codec
from zoo.data.specs import ImageSpec, LatentSpec


@dataclass(frozen=True, eq=False)
class LatentSet(CodedImages):
    """Latents in memory: `image` float32 [b h w c].

    An epoch visits each training image once. Latents of a codec that draws its input at random are those of one of
    `zoo.data.images.codes.DRAWINGS` drawings, number epoch mod `DRAWINGS`.
    """

    spec: LatentSpec
    codec: Coder

    @functools.cached_property
    def _latents(self) -> Float[np.ndarray, "drawings m ..."]:
        return encode_all(self.codec, self.images.images, latents=True)

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch `step`: `image` float32 [b h w c], `label` and `row` int32, `valid` bool [b]."""
        row, drawn = self.images.drawn(step, rows)
        place, epoch = self.images.order[drawn], drawn // len(self.images.images)
        latents = self._latents[epoch % len(self._latents), place]
        return {
            "image": self.spec.from_codec(latents),
            "label": self.images.labels[place],
            "row": row,
            "valid": np.ones(row.shape, bool),
        }

    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index`, as `ImageSet.held_out_at`."""
        return self.encoded(self.held_out.held_out_at(index, rows))

    def encoded(self, batch: Batch) -> Batch:
        """Returns a batch of images with their latents in their place."""
        latents = np.asarray(self.codec.latents({"image": batch["image"], "row": batch["row"]}))
        return batch | {"image": self.spec.from_codec(latents)}

    def preview(self, key: jax.Array) -> Artifacts:
        """Returns the first batch's latents, up to 64 rows, decoded to a grid of images."""
        shown = show(self.spec, self.batch_at(0)["image"][:PREVIEW], self.codec)
        return [replace(grid(shown), name="batch")]

    def fingerprint(self) -> str:
        """Returns a CRC-32 checksum of the images and the codec."""
        return f"{zlib.crc32(self.spec.codec.encode(), int(self.images.fingerprint(), 16)):08x}"

    def describe(self) -> str:
        """Returns the images and the size of their latents in one line."""
        spec = self.spec
        return f"{self.images.describe()}; latents of {spec.height}x{spec.width} with {spec.channels} channels"


def latent_set(images: ImageSet, codec: Coder, name: str, spec: LatentSpec | None) -> LatentSet:
    """Returns images as latents, standardised by those of the training images or as in an earlier run.

    Args:
        images: the images.
        codec: encodes such images.
        name: the codec's run, for errors.
        spec: spec of an earlier run; None: made from the data.

    Raises:
        UserError: the codec encodes other images.
    """
    check_codec(images.spec, codec, name)
    if spec is None:
        latents = encode_all(codec, images.images, latents=True)
        spec = standardised(latents.reshape(-1, *latents.shape[2:]), images.spec, codec)
    return LatentSet(spec, images, codec, images.split)


def standardised(latents: Float[np.ndarray, "n ..."], image: ImageSpec, codec: Coder) -> LatentSpec:
    """Returns the spec of latents with the mean and the deviation of given ones.

    Args:
        latents: latents of training images, [n h w c], or [n c] if a codec has one vector for an image.
        image: spec of the images.
        codec: the codec.
    """
    channels = latents.shape[-1]
    flat = latents.reshape(-1, channels)
    height, width = latents.shape[1:3] if latents.ndim == 4 else (1, 1)
    return LatentSpec(
        height=height, width=width, channels=channels, classes=image.classes, caption=image.caption, image=image,
        mean=tuple(map(float, flat.mean(0, dtype=np.float64))),
        deviation=tuple(map(float, np.maximum(flat.std(0, dtype=np.float64), 1e-6))),
        codec=codec.checksum,
    )  # fmt: skip


def show(
    spec: LatentSpec, arrays: Float[np.ndarray, "*n h w c"], codec: Coder
) -> UInt8[np.ndarray, "*n height width channels"]:
    """Decodes standardised latents with any leading axes, such as those of a strip, to images."""
    latents = spec.to_codec(arrays.reshape(-1, *arrays.shape[-3:]), codec.latent_shape)
    shown = np.asarray(codec.decode(latents))
    return shown.reshape(*arrays.shape[:-3], *shown.shape[1:])
